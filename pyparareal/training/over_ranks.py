# SPDX-License-Identifier: BSD-3-Clause
"""What the ranks of a training run tell each other besides the solves: one window size, one checkpoint.

A checkpoint is rank 0's: it reads the file and tells the others what is in it, and gets the C-points of their blocks
when one is to be written, not otherwise.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..runtime.group import Group
from . import checkpoint as checkpoints
from .memory import available


def budget(group: Group, memory: int | None, device: torch.device) -> int:
    """Bytes that every rank may work in: the least that one of them was given, or has free."""
    given = [m for m in group.told(memory, "comparing the memory that was given") if m is not None]
    free = group.least(available(device), device) if len(given) < group.size else min(given)
    return min([*given, free])


def require_same_gradients(group: Group, found: list[float], dtype: torch.dtype) -> None:
    """Refuse first gradients, as numbers, that are not those of rank 0, up to rounding.

    Raises
    ------
    ValueError
        On all ranks.
    """
    everyone = group.told(found, "comparing the first gradients")
    for rank, theirs in enumerate(everyone):
        if not checkpoints.same(everyone[0], theirs, dtype):
            raise ValueError(f"loss or module: their gradients on rank {rank} are not those of rank 0")


def shared(group: Group, progress: checkpoints.Progress) -> checkpoints.Progress:
    """That of rank 0, on all."""
    if not group:
        return progress
    what = "telling where the run stands"
    rest = {field.name: getattr(progress, field.name) for field in dataclasses.fields(progress)}
    state, c = rest.pop("state"), rest.pop("c")
    rest["rows"] = None if c is None else len(c)
    found = group.told(None if group.rank else rest, what)[0]
    rows = found.pop("rows")
    if group.rank:
        state = torch.empty_like(state)
        c = None if rows is None else state.new_empty(rows, *state.shape)
    with group.failing() as ranks:
        for tensor in (state, c):
            if ranks is not None and isinstance(tensor, Tensor):
                ranks.broadcast(tensor, 0, what)
    found["parts"], found["sizes"] = tuple(found["parts"]), tuple(found["sizes"])
    return checkpoints.Progress(state=state, c=c, **found)
