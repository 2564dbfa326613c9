# SPDX-License-Identifier: BSD-3-Clause
"""Congruent modules of any kind as one, through ``torch.func.vmap`` over stacked parameters and buffers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap


def run_stacked(members: Sequence[nn.Module], x: Tensor) -> Tensor:
    """``m_i(x[i])`` for every member, ``[G, batch, ...] -> [G, batch, ...]``.

    Buffers changed in place (running statistics) are written back. Random draws differ between members. Under autocast
    the members run one after the other: torch does not apply autocast to what happens inside ``vmap``.

    Raises
    ------
    RuntimeError
        The module cannot run under ``vmap`` (control flow that depends on values) or would lose state there (a buffer
        that is assigned anew); it says so and names the module.
    """
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        return torch.stack([m(u) for m, u in zip(members, x, strict=True)])
    module = _Watched(members[0])
    parameters = {
        f"inner.{name}": torch.stack([m.get_parameter(name) for m in members])
        for name, _ in members[0].named_parameters()
    }
    buffers = {
        f"inner.{name}": torch.stack([m.get_buffer(name) for m in members]) for name, _ in members[0].named_buffers()
    }

    def one(state: dict[str, Tensor], u: Tensor) -> Tensor:
        y: Tensor = functional_call(module, state, (u,))
        return y

    try:
        y = vmap(one, randomness="different")(parameters | buffers, x)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        raise RuntimeError(
            f"execution='batched' cannot run {type(members[0]).__name__} for several parts at once: {error} "
            "Use execution='serial' or 'parallel'."
        ) from error
    for name, stacked in buffers.items():
        # Always: batch norm changes them under vmap without a trace in the version counter.
        for m, value in zip(members, stacked, strict=True):
            m.get_buffer(name.removeprefix("inner.")).copy_(value)
    return y


class _Watched(nn.Module):
    """A module that may change its buffers in place only: what it assigns would be gone after the call."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        before = dict(self.inner.named_buffers())
        y = self.inner(x)
        for name, tensor in self.inner.named_buffers():
            if tensor is not before.get(name):
                kind = type(self.inner).__name__
                raise RuntimeError(f"{kind} assigns its buffer {name!r}, which vmap loses; expected a change in place.")
        return y
