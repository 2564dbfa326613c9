# SPDX-License-Identifier: BSD-3-Clause
"""One module at two points: the bracket ``F(u) - F(x)`` needs both values of *one* function.

Calling a module twice is not that while it trains. Batch norm would normalise each batch by its own
statistics, so the two calls would be two functions, and the running averages, used later for both, would
fit neither; on handwritten digits that lost 2 to 27 percentage points of accuracy, depending on which call was
recorded. Dropout would draw two masks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


def call_pair(module: nn.Module, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """``module(u), module(x)`` of one function, ``u`` and ``x`` ``[batch, features...]`` of the same shape.

    * Batch norm with batch statistics: one call on ``u`` and ``x`` together, statistics committed once.
    * Otherwise two calls; random draws (dropout masks) of the second repeat those of the first. Equal
      arguments then give bitwise equal values.
    """
    if _uses_batch_statistics(module):
        require_pairable(module, type(module).__name__)
        both = module(torch.cat([u, x]))
        return both[: len(u)], both[len(u) :]
    if not _draws_random_numbers(module):
        return module(u), module(x)
    before = _random_state(u.device)
    v = module(u)
    _set_random_state(u.device, before)
    return v, module(x)


def require_pairable(module: nn.Module, name: str) -> None:
    """Refuse batch norm together with dropout: one joint call would drop different units at the two points."""
    norms = any(isinstance(m, _BatchNorm) for m in module.modules())
    if norms and any(isinstance(m, _DropoutNd) and m.p > 0 for m in module.modules()):
        raise ValueError(
            f"{name}: got batch norm together with dropout, expected at most one of them for correction='difference'"
        )


def _uses_batch_statistics(module: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) and (m.training or m.running_mean is None) for m in module.modules())


def _draws_random_numbers(module: nn.Module) -> bool:
    return any(isinstance(m, _DropoutNd) and m.training and m.p > 0 for m in module.modules())


def _random_state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
