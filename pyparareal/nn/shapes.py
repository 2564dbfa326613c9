# SPDX-License-Identifier: BSD-3-Clause
"""Shapes of a chain of modules, found without arithmetic: every tensor lives on torch's ``meta`` device."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call


def meta_output(module: nn.Module, x: Tensor, name: str | None = None) -> Tensor:
    """``module(x)`` on the meta device: right shape and dtype, no values, the module's own state untouched.

    ``name`` is what an error calls the module; default its class.
    """
    state = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in chain(module.named_parameters(), module.named_buffers())
    }
    with torch.no_grad():
        y = functional_call(module, state, (x.to("meta"),))
    if not isinstance(y, Tensor):
        raise TypeError(
            f"{name or type(module).__name__}: got an output of type {type(y).__name__}, expected one tensor"
        )
    return y


def require_same_kind(got: Tensor, expected: Tensor, what: str, like: str) -> None:
    """Refuse tensors that a sum would broadcast, promote or move: shape, dtype and device must agree."""
    if got.shape != expected.shape:
        raise ValueError(f"{what}: got shape {tuple(got.shape)}, expected {tuple(expected.shape)} as {like}")
    if got.dtype != expected.dtype:
        raise TypeError(f"{what}: got dtype {got.dtype}, expected {expected.dtype} as {like}")
    if got.device != expected.device:
        raise ValueError(f"{what}: got device {got.device}, expected {expected.device} as {like}")
