# SPDX-License-Identifier: BSD-3-Clause
"""The definition: one part after the other, in this thread."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..shapes import require_same_kind
from . import Modules, States
from .spans import called


class Serial:
    """``x_j = C^j(x)``, ``y_j = g^j(x_j)`` for ``j = 1 .. N`` in turn."""

    def require(self, preprocess: Modules, fine: Modules) -> None:
        pass

    def run(self, preprocess: Modules, fine: Modules, x: Tensor) -> States:
        return *in_turn(preprocess, fine, x), "serial"


def in_turn(
    preprocess: Modules, fine: Modules, x: Tensor, call: Callable[[nn.Module, Tensor], Tensor] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """All ``x_j`` and ``y_j``; a guess that is no possible output of the part before is refused before it is used."""
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for j, (c, g) in enumerate(zip(preprocess, fine, strict=True)):
        inputs.append(call(c, x) if call else called(f"preprocess[{j}]", c, x))
        if j > 0:
            require_meeting(j, inputs[j], outputs[j - 1])
        outputs.append(call(g, inputs[j]) if call else run_part(j, g, inputs[j]))
    return inputs, outputs


def run_part(j: int, g: nn.Module, x_j: Tensor, name: str = "fine") -> Tensor:
    """``g^{j+1}(x_{j+1})``, which must leave its argument as it is: the residual of interface ``j`` needs it."""
    if torch.compiler.is_compiling():
        # A compiled graph has no version counters; a part that overwrites its own copy does no harm.
        return g(x_j.clone() if j > 0 else x_j)
    before = _version(x_j)
    y = called(f"{name}[{j}]", g, x_j)
    if j > 0 and _version(x_j) != before:
        raise ValueError(
            f"fine[{j}]: got a part that changes its input in place, expected one that leaves it as it is, because "
            f"the residual of interface {j} needs it; make its first layer inplace=False"
        )
    return y


def require_meeting(j: int, guess: Tensor, y: Tensor) -> None:
    """The guess ``x_{j+1}`` must be of the kind of ``y_j``."""
    what = f"interface {j}: preprocess[{j}] (C^{j + 1}) must guess the output of part {j}"
    require_summable(guess, y, what, f"y_{j} = g^{j}(x_{j})")


def require_summable(got: Tensor, expected: Tensor, what: str, like: str) -> None:
    """As :func:`.require_same_kind`, but under autocast floating-point dtypes may differ, and a sum has the wider one.

    What autocast makes of a module's output depends on its last operation: a linear guess is narrow where the part that
    it guesses ends with a sum or a norm that is not.
    """
    device = expected.device.type
    if got.dtype != expected.dtype and got.is_floating_point() and expected.is_floating_point():  # noqa: SIM102
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            got = torch.empty((), dtype=expected.dtype, device=got.device).expand(got.shape)  # no memory
    require_same_kind(got, expected, what, like)


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
