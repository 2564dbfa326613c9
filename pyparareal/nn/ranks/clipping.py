# SPDX-License-Identifier: BSD-3-Clause
"""The norm of all gradients, of which every rank has some."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .state import COMPILED

if TYPE_CHECKING:
    from .network import RankedNetwork


def clip(net: RankedNetwork, max_norm: float, norm_type: float, error_if_nonfinite: bool) -> Tensor:
    """As ``torch.nn.utils.clip_grad_norm_`` of the whole network in one process."""
    order = {name: i for i, name in enumerate(net.parameter_names)}
    own = {name.replace(COMPILED, ""): p.grad for name, p in net.named_parameters() if p.grad is not None}
    max_norm, norm_type = float(max_norm), float(norm_type)
    norms = {order[name]: _norm(g, norm_type) for name, g in own.items()}
    asked, dtypes = {"max_norm": max_norm, "norm_type": norm_type}, {str(n.dtype)[6:] for n in norms.values()}
    net.meeting.come("clip_grad_norm_")
    told = net.meeting.compare("clip_grad_norm_", asked, None, dtypes=sorted(dtypes))
    everywhere = [getattr(torch, dtype) for theirs in told for dtype in theirs["dtypes"]] or [torch.float32]
    with net.runtime.failing() as ranks:
        numbers = np.array(list(norms), np.float64), np.array([float(n) for n in norms.values()], np.float64)
        index, values = ranks.numbers(numbers, 2 * len(order), "clip_grad_norm_")
    # As torch does: the norm of the norms, in the order of the parameters.
    stacked = torch.tensor(values[np.argsort(index)], dtype=reduce(torch.promote_types, everywhere))
    total = torch.linalg.vector_norm(stacked, norm_type) if len(stacked) else stacked.sum()
    if error_if_nonfinite and not torch.isfinite(total):
        raise RuntimeError(f"the norm of order {norm_type} of all gradients is {float(total)}, so none was clipped")
    factor = float(torch.clamp(max_norm / (total + 1e-6), max=1.0))  # a number: a DTensor takes no other tensor
    for g in own.values():
        g.detach().mul_(factor)
    return total


def _norm(g: Tensor, norm_type: float) -> Tensor:
    norm = torch.linalg.vector_norm(g.detach(), norm_type)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
