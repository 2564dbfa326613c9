# SPDX-License-Identifier: BSD-3-Clause
"""The verbs on one rank's block of slices; :mod:`.distributed` says what they send."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .. import _trace, arrays
from ..propagators import Propagator, is_fused, padding
from ..time_grid import part_of_points
from .local import LocalRuntime, rows_of
from .model import RankCosts
from .protocol import Link
from .ranks import Ranks
from .split_scan import Carry, Piece, chunked, walk

Array = Any


class BlockRuntime(LocalRuntime):
    """The verbs on one rank's block of slices, of which there is at least one.

    Parameters
    ----------
    counts : sequence of int
        Slices of every rank that has any, in the order of the chain.
    seconds : dict
        Where :meth:`mark` adds up.
    room : int, optional
        The most numbers that are gathered at once; default :func:`room_for`.
    mirrored : bool
        The chain runs from the last of these ranks to rank 0, as an adjoint does.
    costs : RankCosts, optional
        What says whether a message is hidden behind work.

    Attributes
    ----------
    chained : int
        Links of chains that were taken here.
    """

    def __init__(
        self,
        ranks: Ranks,
        counts: Sequence[int],
        seconds: dict[str, float],
        slices_per_call: int | None,
        room: int | None = None,
        *,
        mirrored: bool = False,
        costs: RankCosts | None = None,
    ) -> None:
        super().__init__(slices_per_call=slices_per_call)
        self.seconds, self.costs = seconds, costs or RankCosts()
        self._sent: Array | None = None  # the array whose end has left before its shift
        self._ranks, self._counts = ranks, list(counts)
        self._room = room_for(counts) if room is None else room
        self._place, self._mirrored = len(counts) - 1 - ranks.rank if mirrored else ranks.rank, mirrored
        self._first = sum(counts[: self._place])
        self._region, self.chained = "start", 0

    def in_all(self, slices: int) -> int:
        return sum(self._counts)

    def left_of(self, n: int, slices: int) -> int:
        return min(max(n - self._first, 0), slices)

    def map(
        self,
        phi: Propagator,
        u: Array,
        points: slice,
        m: int = 1,
        *,
        out: Array | None,
        shifted: Array | None = None,
        **fused: Any,
    ) -> None:
        if shifted is None or out is None:
            super().map(phi, u, points, m, out=out, **fused)
            return
        what, last = self._what("shift"), len(u) - 1
        if self._place:
            self._ranks.expect(shifted[:1], what, self._at(self._place - 1))
        if not self._overlaps(phi, u, m):
            super().map(phi, u, points, m, out=out, **fused)
            return
        for first, end in ((last, last + 1), (0, last)):
            part = part_of_points(points, first, end)
            super().map(phi, u[first:end], part, m, out=out[first:end], **rows_of(fused, first, end))
            if end > last:
                self._send_end(shifted, what)
                self._sent = shifted

    def _overlaps(self, phi: Propagator, u: Array, m: int) -> bool:
        """Whether the last slice goes first, so that its end is under way while the others are computed.

        It then has a call of its own for each step, or for all if they are fused, and where slices are padded to blocks
        a block; that must not change its bits, and cost less than the message.
        """
        if len(u) < 2 or self._place + 1 == len(self._counts) or not phi.batch_invariant:
            return False
        calls = 1 if is_fused(phi) else m
        return self.costs.overlaps(u[:1].nbytes, calls, m * padding(phi))

    def shift(self, u: Array) -> Array:
        with _trace.mark("shift", "verb"):
            return self._shift(u)

    def _shift(self, u: Array) -> Array:
        what = self._what("shift")
        sent, self._sent = self._sent, None
        if sent is None:
            self._send_end(u, what)
        elif sent is not u:
            raise RuntimeError(f"{what}: got another array than the one whose end was sent ahead")
        self._receive_start(u, what)
        return u[:-1]

    def chain(self, link: Link, u: Array, first: int, *, whole: Any = None) -> None:
        what = self._what("chain")
        self._receive_start(u, what)
        super().chain(link, u, first, whole=whole)
        self._send_end(u, what)
        self.chained += len(u) - 1 - first

    def scan(self, a: Array, b: Array, first: int, u: Array) -> None:
        with _trace.mark("scan", "verb"):
            self._scan(a, b, first, u)

    def _scan(self, a: Array, b: Array, first: int, u: Array) -> None:
        u[:1] = 0
        if not len(b):
            return
        what, position = self._what("scan"), max(self._first, first) - first
        if a.ndim == b.ndim:
            a, b, u = a[..., None, None], b[..., None], u[..., None]
        if not chunked(a):
            if position:
                self._receive_start(u, what)
            u[1:] = walk(a, b, u[0] if position else None)
            self._send_end(u, what)
            return
        piece, carry = Piece(a, b, position), Carry()
        if position:
            row = Carry().packed(a, b)
            self._receive_start(row, what)
            carry = Carry.unpacked(row, a, b, position)
        carry = piece.pass_on(carry)
        self._send_end(carry.packed(a, b), what)
        u[1:] = piece.rows()
        if piece.first is not None:
            u[0] = piece.first

    def largest(self, u: Array) -> Array:
        (found,) = self.gather(super().largest(u)[None])
        u = arrays.empty(u, ())
        u[...] = float(found.max())
        return u

    def reduce(self, values: Array, combine: Any = np.add) -> float:
        return super().reduce(self.gather(values)[0], combine)

    def gather(self, *values: Array) -> list[np.ndarray[Any, Any]]:
        with _trace.mark("gather", "verb"):
            return self._gathered(values)

    def _gathered(self, values: Sequence[Array]) -> list[np.ndarray[Any, Any]]:
        mine = [arrays.to_numpy(one).astype(np.float64) for one in values]
        return self._ranks.numbers(mine, self._room, self._what("gather"), mirrored=self._mirrored)

    def collect(self, u: Array) -> Array | None:
        """The C-points of all blocks, one after the other, on rank 0; None on the others, which send theirs."""
        what, ends = self._what("collect"), np.cumsum(self._counts).tolist()
        if self._ranks.rank:
            self._ranks.send(u[1:], what, to=0)
            return None
        whole = arrays.empty_like(u, slices=ends[-1] + 1)
        whole[: len(u)] = u
        for rank, (first, end) in enumerate(itertools.pairwise(ends), start=1):
            self._ranks.receive(whole[first + 1 : end + 1], what, source=rank)
        return whole

    @property
    def place(self) -> int:
        """Which of the blocks this is, in the order of the chain."""
        return self._place

    def join(self, mine: Array, rows: Sequence[int], *, everywhere: bool) -> list[Array] | None:
        """What every block has, of ``rows[n]`` rows like ``mine``: on all ranks, or on the first, and None elsewhere.

        Everywhere: along a ring, so that each rank sends what all but its right neighbour had.
        """
        what, blocks, place = self._what("join"), len(rows), self._place
        found = [mine if n == place else arrays.empty_like(mine, slices=rows[n]) for n in range(blocks)]
        if everywhere:
            for k in range(blocks - 1):
                sent, room = found[(place - k) % blocks], found[(place - k - 1) % blocks]
                if place % 2:  # a wire that waits for the other side must find it receiving
                    self._ranks.receive(room, what, source=self._at(place - 1))
                self._ranks.send(sent, what, to=self._at(place + 1))
                if not place % 2:
                    self._ranks.receive(room, what, source=self._at(place - 1))
            return found
        if place:
            self._ranks.send(mine, what, to=self._at(0))
            return None
        for n in range(1, blocks):
            self._ranks.receive(found[n], what, source=self._at(n))
        return found

    def spread(self, parts: Sequence[Array] | None, mine: Array) -> None:
        """``mine`` gets its part of those that the first rank has."""
        what = self._what("spread")
        if parts is None:
            self._ranks.receive(mine, what, source=self._at(0))
            return
        for n in range(1, len(parts)):
            self._ranks.send(parts[n], what, to=self._at(n))
        mine[...] = parts[0]

    def _at(self, place: int) -> int:
        """The rank that has a block, counted around."""
        place %= len(self._counts)
        return len(self._counts) - 1 - place if self._mirrored else place

    def mark(self, name: str) -> AbstractContextManager[None]:
        self._region = name
        return super().mark(name)

    def finish(self) -> None:
        """All that was sent has left, and ranks without slices know that it is over."""
        self._ranks.flush(self._what("finish"))
        if len(self._counts) < self._ranks.size:
            self._ranks.end(self._room, self._what("finish"))

    def _send_end(self, u: Array, what: str) -> None:
        if self._place + 1 < len(self._counts):
            self._ranks.send(u[-1:], what, to=self._ranks.rank + (-1 if self._mirrored else 1))

    def _receive_start(self, u: Array, what: str) -> None:
        if self._place > 0:
            self._ranks.receive(u[:1], what, source=self._ranks.rank + (1 if self._mirrored else -1))

    def _what(self, verb: str) -> str:
        last = self._first + self._counts[self._place] - 1
        backward = "backward: " if self._mirrored else ""
        return f"{backward}{verb} in {self._region}, slices {self._first} to {last}"


def room_for(counts: Sequence[int], each: int = 1) -> int:
    """The most numbers that a rank has to say at once: ``each`` per slice, and two moves of parareal."""
    return each * max(counts) + 2
