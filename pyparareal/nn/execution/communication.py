# SPDX-License-Identifier: BSD-3-Clause
"""What one step sends if every part has its own device: the interface states, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Traffic(NamedTuple):
    """Bytes that cross interface ``j`` in one step."""

    interface: int
    shape: tuple[int, ...]
    forward_bytes: int
    backward_bytes: int


def traffic(outputs: Sequence[Tensor]) -> list[Traffic]:
    """``batch * |X_j| * itemsize`` bytes over interface ``j = 1 .. N-1``, each way (papers 1.1, communication).

    With ``C^j``, ``g^j`` and ``F^{j-1}`` on device ``j``, device ``j`` receives ``v_{j-1} [batch, X_{j-1}]``, computes
    ``v_j = y_j + F^{j-1}(v_{j-1} - x_j)`` and sends it on; backward, the gradient of ``v_j`` returns. The raw input,
    which every device reads, and the head's output are not counted, nor is data parallelism.
    """
    sent = [(tuple(y.shape), y.numel() * y.element_size()) for y in outputs[:-1]]
    return [Traffic(j, shape, size, size) for j, (shape, size) in enumerate(sent, start=1)]
