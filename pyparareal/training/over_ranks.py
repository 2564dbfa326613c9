# SPDX-License-Identifier: BSD-3-Clause
"""What the ranks of a training run tell each other besides the solves: one answer, one window size, one checkpoint.

A checkpoint is rank 0's: it reads the file and tells the others what is in it, and gets the C-points of their blocks
when one is to be written, not otherwise.
"""

from __future__ import annotations

import dataclasses
import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..runtime.distributed import DistributedRuntime
from . import checkpoint as checkpoints
from .memory import available


class Group:
    """The ranks of ``runtime``; for None one rank, which agrees with itself.

    Raises
    ------
    TypeError
        For anything else.
    """

    def __init__(self, runtime: Any) -> None:
        if runtime is not None and not isinstance(runtime, DistributedRuntime):
            raise TypeError(
                f"runtime: got {type(runtime).__name__}, expected what pyparareal.distributed() returns, or None"
            )
        self.runtime: DistributedRuntime | None = runtime

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.runtime is None or self.runtime.rank == 0

    def together(self) -> AbstractContextManager[None]:
        """Around checks: an error of one rank is told to all at its end."""
        return nullcontext() if self.runtime is None else self.runtime.together()

    def agree(self, asked: dict[str, Any]) -> None:
        """Refuse to go on with other ``asked`` than the other ranks."""
        if self.runtime is not None:
            self.runtime.ask(asked)
            self.runtime.agree()

    def told(self, message: Any, what: str) -> list[Any]:
        """What every rank says: anything that JSON can hold."""
        if self.runtime is None:
            return [message]
        with self.runtime.failing() as ranks:
            return ranks.texts(message, what)

    def any(self, answer: bool, what: str) -> bool:
        """Whether one of them says so."""
        return any(self.told(answer, what))

    def budget(self, memory: int | None, start: Tensor, probe: list[float]) -> int:
        """Bytes that every rank may work in: the least of all; ranks on one device share what is free of it.

        Raises
        ------
        ValueError
            The first gradients, ``probe``, are not those of rank 0, up to rounding.
        """
        where, dtype = f"{platform.node()} {_name(start.device)}", start.dtype
        everyone = self.told([where, available(start.device), memory, probe], "comparing the first gradients")
        for rank, (*_, theirs) in enumerate(everyone):
            if not checkpoints.same(everyone[0][-1], theirs, dtype):
                raise ValueError(f"loss or module: their gradients on rank {rank} are not those of rank 0")
        crowd = [place for place, *_ in everyone]
        return min(free // crowd.count(place) if given is None else given for place, free, given, _ in everyone)

    def shared(self, progress: checkpoints.Progress) -> checkpoints.Progress:
        """That of rank 0, on all."""
        if self.runtime is None:
            return progress
        rest = {field.name: getattr(progress, field.name) for field in dataclasses.fields(progress)}
        state, c = rest.pop("state"), rest.pop("c")
        rest["rows"] = None if c is None else len(c)
        found = self.told(rest if self.first else None, "telling where the run stands")[0]
        rows = found.pop("rows")
        if not self.first:
            state = torch.empty_like(state)
            c = None if rows is None else state.new_empty(rows, *state.shape)
        with self.runtime.failing() as ranks:
            for tensor in (state, c):
                if tensor is not None:
                    ranks.broadcast(tensor, 0, "telling where the run stands")
        found["parts"], found["sizes"] = tuple(found["parts"]), tuple(found["sizes"])
        return checkpoints.Progress(state=state, c=c, **found)


def _name(device: torch.device) -> str:
    """Of the hardware: every rank may call its own GPU ``cuda:0``."""
    if device.type != "cuda":
        return device.type
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", device))
