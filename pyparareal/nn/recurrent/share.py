# SPDX-License-Identifier: BSD-3-Clause
"""Which chunks of a sequence are this rank's, and what it tells the others of them; without ranks all, and nobody.

In a pass a rank sends one state to each neighbour at most: where its last chunk ends, and in a backward pass the
gradient where its first one starts. All decisions are taken from the numbers of all chunks, on every rank the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...runtime.ranks import Ranks


class Share:
    """The chunks ``first .. last - 1`` of ``slices``, of which ranks behind the last chunk have none.

    Parameters
    ----------
    ranks : Ranks, optional
        None: all chunks are here.
    what : str
        Of what, for errors.
    """

    def __init__(self, ranks: Ranks | None, slices: int, what: str = "recurrence") -> None:
        self.ranks, self.slices, self.what = ranks, slices, what
        rank, size = (0, 1) if ranks is None else (ranks.rank, ranks.size)
        self.working = min(size, slices)
        bounds = [slices * r // self.working for r in range(self.working + 1)]
        self.counts = [b - a for a, b in itertools.pairwise(bounds)] + [0] * (size - self.working)
        self.first, self.last = (bounds[rank], bounds[rank + 1]) if rank < self.working else (slices, slices)

    @property
    def empty(self) -> bool:
        return self.first == self.last

    @property
    def leftmost(self) -> bool:
        return self.first == 0

    @property
    def rightmost(self) -> bool:
        """Whether the last chunk is here."""
        return self.last == self.slices and not self.empty

    def of(self, first: int, last: int) -> tuple[int, int]:
        """Those of the chunks ``first .. last - 1`` that are here."""
        first = max(first, self.first)
        return first, max(first, min(last, self.last))

    def ends_right(self, u: Tensor, m: int, first: int, last: int) -> None:
        """Of the chunks ``first .. last - 1`` of ``m`` steps, the end in ``u`` that the next rank starts from."""
        if self.ranks is None or self.empty:
            return
        if not self.rightmost and first < self.last <= last:
            self.ranks.send(u[self.last * m : self.last * m + 1], f"{self.what}: chunk {self.last - 1}")
        if not self.leftmost and first < self.first <= last:
            self.ranks.receive(u[self.first * m : self.first * m + 1], f"{self.what}: chunk {self.first - 1}")

    def starts_left(self, start: Tensor, like: Tensor) -> Tensor | None:
        """Send what starts the first chunk here, ``[1, ...]``; what starts the first one of the next rank, like it."""
        if self.ranks is None or self.empty:
            return None
        if not self.leftmost:
            self.to_left(start)
        return None if self.rightmost else self.from_right(like)

    def to_left(self, start: Tensor) -> None:
        """Send ``start`` to the rank before."""
        assert self.ranks is not None
        self.ranks.send(start, f"{self.what}: chunk {self.first}", to=self.ranks.rank - 1)

    def from_right(self, like: Tensor) -> Tensor:
        """What the next rank sends."""
        assert self.ranks is not None
        found = torch.empty_like(like)
        self.ranks.receive(found, f"{self.what}: chunk {self.last}", source=self.ranks.rank + 1)
        return found

    def numbers(self, *values: Any) -> list[np.ndarray[Any, Any]]:
        """Each of two at most, numbers of chunks here, joined with those of all others."""
        mine = [np.asarray(one, np.float64) for one in values]
        if self.ranks is None:
            return mine
        return self.ranks.numbers(mine, 2 * max(self.counts) + 2, f"{self.what}: comparing the chunks")

    def whole(self, u: Tensor, m: int) -> None:
        """The states of all chunks of ``m`` steps into ``u [slices * m + 1, ...]``, of which ours are there."""
        if self.ranks is not None:
            mine, rows = u[self.first * m + 1 : self.last * m + 1], [count * m for count in self.counts]
            self.ranks.blocks(u[1 : self.slices * m + 1], rows, mine, f"{self.what}: gathering the states")

    def of_first(self, start: Tensor | None, like: Tensor) -> Tensor:
        """``start`` of rank 0, on all."""
        found = torch.empty_like(like) if start is None else start.contiguous()
        if self.ranks is not None:
            self.ranks.broadcast(found, 0, f"{self.what}: gathering the gradients")
        return found

    def summed(self, found: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor | None]:
        """Added up from rank 0 to the last, on all; None for what no rank has."""
        ranks, what = self.ranks, f"{self.what}: adding up the gradients"
        if ranks is None:
            return list(found)
        has = ranks.texts([one is not None for one in found], what)
        total: list[Tensor | None] = []
        for own, tensor, *some in zip(found, like, *has, strict=True):
            if not any(some):
                total.append(None)
                continue
            # As where the tensor is not seen by a step, which adds a zero.
            mine = torch.zeros_like(tensor) if own is None else own.clone(memory_format=torch.contiguous_format)
            if not self.empty:
                if not self.leftmost:
                    before = torch.empty_like(mine)
                    ranks.receive(before, what)
                    mine = before + mine
                if not self.rightmost:
                    ranks.send(mine, what)
            ranks.broadcast(mine, self.working - 1, what)
            total.append(mine)
        return total
