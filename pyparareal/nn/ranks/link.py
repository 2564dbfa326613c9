# SPDX-License-Identifier: BSD-3-Clause
"""What the ranks send each other in one pass, forward and backward.

=====================  =============================================  ================================================
forward                input ``x`` from rank 0 to all                 interface state ``U_j`` to the next rank;
                                                                      output from the last rank to all
backward               gradient of ``U_j`` to the rank before         if ``x`` requires grad: the sum so far to the rank
                                                                      before, the whole from rank 0 to all
=====================  =============================================  ================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import RankError
from .meeting import Meeting


@dataclass(frozen=True)
class Sent:
    """Of what kind a tensor is that a rank hands on."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    requires_grad: bool

    @classmethod
    def of(cls, u: Tensor) -> Sent:
        stride = torch.empty_like(u, device="meta").stride()  # dense: of u, where that is
        return cls(tuple(u.shape), tuple(stride), str(u.dtype).removeprefix("torch."), u.requires_grad)

    @classmethod
    def told(cls, message: dict[str, Any]) -> Sent:
        return cls(**message | {"shape": tuple(message["shape"]), "stride": tuple(message["stride"])})

    def tell(self) -> dict[str, Any]:
        return asdict(self)

    def room(self, device: torch.device) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=getattr(torch, self.dtype), device=device)


class Link:
    """One pass over the ranks. ``sent`` has what each rank hands on, the last of them to all."""

    def __init__(self, meeting: Meeting, counts: Any, device: torch.device) -> None:
        self._meeting, self._counts, self._device = meeting, counts, device
        self.runtime = meeting.runtime
        self.rank, self.size = self.runtime.rank, self.runtime.size
        self.number = meeting.passes
        self.sent: list[Sent] = []
        self.place = "input"  # for the text of an error

    @property
    def is_last(self) -> bool:
        return self.rank + 1 == self.size

    def what(self, direction: str = "forward pass") -> str:
        return f"{direction} {self.number}, {self.place}"

    # Forward

    def input(self, x: Tensor) -> Tensor:
        """Rank 0's ``x``, on every rank."""
        value = x.detach()
        if self.size == 1:
            return value
        if self.rank > 0:
            value = torch.empty_like(value)
        with self.runtime.failing() as ranks:
            ranks.broadcast(value, 0, self.what())
        self._count("input", value, self.rank == 0)
        return value

    def state(self) -> Tensor:
        """The state that the rank before hands on."""
        u = self.sent[self.rank - 1].room(self._device)
        with self.runtime.failing() as ranks:
            ranks.receive(u, self.what(), self.rank - 1)
        return u

    def hand_on(self, u: Tensor) -> None:
        with self.runtime.failing() as ranks:
            ranks.send(u.detach(), self.what(), self.rank + 1)
        self._count("forward", u)

    def output(self, u: Tensor) -> Tensor:
        """The last rank's ``u``, on every rank."""
        value = u.detach() if self.is_last else self.sent[-1].room(self._device)
        with self.runtime.failing() as ranks:
            ranks.broadcast(value, self.size - 1, self.what())
        self._count("output", value, self.is_last and self.size > 1)
        return value

    # Backward

    def begin_backward(self) -> None:
        self.place = "output"
        with self.runtime.failing():
            self._meeting.come("backward pass", self.number)
        if self.returns(self.rank - 1):
            self._meeting.unfinished = f"backward pass {self.number}"
            torch.autograd.Variable._execution_engine.queue_callback(self._require_returned)

    def returns(self, rank: int) -> bool:
        """Whether a gradient comes back to ``rank`` from the next one."""
        return 0 <= rank < self.size - 1 and self.sent[rank].requires_grad and self.sent[-1].requires_grad

    def gradient(self) -> Tensor:
        """Of what this rank has handed on."""
        g = self.sent[self.rank].room(self._device)
        with self.runtime.failing() as ranks:
            ranks.receive(g, self.what("backward pass"), self.rank + 1)
        return g

    def give_back(self, g: Tensor | None) -> None:
        """The gradient of what the rank before has handed on."""
        if not self.returns(self.rank - 1):
            return
        if g is None:
            g = torch.zeros_like(self.sent[self.rank - 1].room(self._device))
        with self.runtime.failing() as ranks:
            ranks.send(g, self.what("backward pass"), self.rank - 1)
        self._count("backward", g)
        self._meeting.unfinished = None

    def sum_over_parts(self, gradients: Sequence[Tensor | None], like: Tensor) -> Tensor:
        """The sum over all parts of all ranks, the last part first as in one process; the same on every rank."""
        self.place = "gradient of x"
        total: Tensor | None = None
        with self.runtime.failing() as ranks:
            what = self.what("backward pass")
            if not self.is_last:
                total = torch.empty_like(like)
                ranks.receive(total, what, self.rank + 1)
            for g in reversed(gradients):
                total = total if g is None else g if total is None else total + g
            total = torch.zeros_like(like) if total is None else total
            if self.rank > 0:
                ranks.send(total, what, self.rank - 1)
                self._count("input gradient", total)
                total = torch.empty_like(like)
            ranks.broadcast(total, 0, what)
        self._count("input gradient", total, self.rank == 0 and self.size > 1)
        return total

    def _require_returned(self) -> None:
        if self._meeting.unfinished is None:
            return
        error = RankError(
            f"rank {self.rank}: backward pass {self.number}: the gradient that rank {self.rank - 1} waits for was not "
            "among those asked for; call loss.backward() or ask torch.autograd.grad for that of the network's input"
        )
        with self.runtime.failing():
            raise error

    def _count(self, name: str, u: Tensor, here: bool = True) -> None:
        if here:
            self._counts[name] += u.numel() * u.element_size()
