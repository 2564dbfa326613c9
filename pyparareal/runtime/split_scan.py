# SPDX-License-Identifier: BSD-3-Clause
"""The scan of :mod:`pyparareal.reference_scan` over rows that lie in several pieces, with the bits of one piece.

The order of operations of a scan depends on the number of the row alone: chunks of ``ROWS``, groups of ``CHUNKS``. So a
piece that knows which row it begins with, and how far the chunk and the group that it begins in have come, goes on as
if it had all rows before it. What it needs from there is a :class:`Carry`, of fixed size. In three parts:

1. the maps of the piece's own whole chunks and groups, which need nothing from elsewhere;
2. a carry comes in, passes the piece map by map (groups, and the chunks and rows at its ends), and leaves;
3. every chunk knows its start, and the rows follow.

Only the second is a relay, of one small operation per ``ROWS CHUNKS`` rows. Blocks of more than ``CHUNKED`` rows have
no chunks, and the relay is the scan.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .. import arrays, ops
from ..reference_scan import CHUNKED, CHUNKS, ROWS

Array = Any
Map = tuple[Array, Array]  # (A, B), which takes s to A s + B

GROUP = ROWS * CHUNKS


class Carry:
    """What the rows before row ``position`` leave to it and those after.

    Attributes
    ----------
    last : array, optional
        The row before; None if there is none, as for all that follows.
    start, group_start : array, optional
        What the chunk and the group of row ``position`` start from.
    chunk, group : (A, B), optional
        Of the rows since the chunk started, and of the whole chunks since the group did; None if there are none.
    """

    def __init__(self, position: int = 0) -> None:
        self.position = position
        self.last: Array | None = None
        self.start: Array | None = None
        self.group_start: Array | None = None
        self.chunk: Map | None = None
        self.group: Map | None = None

    def take_row(self, a: Array, b: Array) -> Array:
        """``u = a s + b``, where ``s`` is the row before or, at the beginning of a chunk, its start."""
        begins = self.position % ROWS == 0
        before = self.start if begins else self.last
        self.last = b if before is None else product(a, before) + b
        self.chunk = (a, b) if self.chunk is None else after(self.chunk, (a, b))
        self.position += 1
        if self.position % ROWS == 0:
            chunk, walked, self.chunk = self.chunk, self.last, None
            self._end_chunk(chunk, lambda: walked)
        return self.last

    def take_chunk(self, chunk: Map, walk: Callable[[Array | None], Array]) -> None:
        """A whole chunk; ``walk(start)`` is its last row, asked for where its map overflows."""
        start = self.start
        self.position += ROWS
        self._end_chunk(chunk, lambda: walk(start))

    def take_group(self, group: Map, walk: Callable[[Array | None], Array]) -> None:
        """A whole group; ``walk(start)`` is what its chunks one by one end in."""
        start = self.group_start
        self.position += GROUP
        self.start = self.group_start = end(group, start, lambda: walk(start))

    def _end_chunk(self, chunk: Map, walk: Callable[[], Array]) -> None:
        self.group = chunk if self.group is None else after(self.group, chunk)
        self.start = end(chunk, self.start, walk)
        if self.position % GROUP == 0:
            group, by_chunks, self.group = self.group, self.start, None
            self.start = self.group_start = end(group, self.group_start, lambda: by_chunks)

    # As one row of numbers, ``[7 n]`` for a diagonal with ``n`` numbers, ``[(5 + 2 d) n]`` for blocks of d x d

    def packed(self, a: Array, b: Array) -> Array:
        """For rows like those of ``a`` and ``b``; what there is not is 0."""
        vectors = [self.last, self.start, self.group_start, *((m and m[1]) for m in (self.chunk, self.group))]
        matrices = [m and m[0] for m in (self.chunk, self.group)]
        n, square = b[0].size if isinstance(b, np.ndarray) else b[0].numel(), a.shape[-1]
        row = arrays.empty(b, (1, (len(vectors) + len(matrices) * square) * n))
        at = 0
        for parts, size in ((vectors, n), (matrices, n * square)):
            for part in parts:
                row[0, at : at + size] = 0 if part is None else part.reshape(-1)
                at += size
        return row

    @classmethod
    def unpacked(cls, row: Array, a: Array, b: Array, position: int) -> Carry:
        """What :meth:`packed` made at this position, which says what there is."""
        carry, shape, square = cls(position), tuple(b.shape[1:]), tuple(a.shape[1:])
        n, at = 1, 0
        for length in shape:
            n *= length
        parts = []
        for kind in (shape, shape, shape, shape, shape, square, square):
            size = n if kind is shape else n * a.shape[-1]
            parts.append(row[0, at : at + size].reshape(kind))
            at += size
        last, start, group_start, *maps = parts
        carry.last = last if position else None
        carry.start = start if position >= ROWS else None
        carry.group_start = group_start if position >= GROUP else None
        carry.chunk = (maps[2], maps[0]) if position % ROWS else None
        carry.group = (maps[3], maps[1]) if position % GROUP >= ROWS else None
        return carry


class Piece:
    """The rows ``a``, ``b`` of a scan from row ``position`` on: blocks ``[n, ..., d, d]`` and ``[n, ..., d]``.

    Made before the carry is there, :meth:`pass_on` when it is, :meth:`rows` when it has left.
    """

    def __init__(self, a: Array, b: Array, position: int) -> None:
        self.a, self.b, self.begin, n = a, b, position, len(b)
        self.head = min(-position % ROWS, n)
        self.chunks = (n - self.head) // ROWS
        whole = slice(self.head, self.head + self.chunks * ROWS)
        shape = (self.chunks, ROWS)
        self.ca, self.cb = a[whole].reshape(*shape, *a.shape[1:]), b[whole].reshape(*shape, *b.shape[1:])
        with np.errstate(all="ignore"):
            self.maps = joined(self.ca, self.cb, ROWS) if self.chunks else (a[:0], b[:0])
            # Whole chunks before the first group that begins here, and the groups.
            self.before = min(-((position + self.head) // ROWS) % CHUNKS, self.chunks)
            self.groups = (self.chunks - self.before) // CHUNKS
            inside = slice(self.before, self.before + self.groups * CHUNKS)
            inner = [m[inside].reshape(self.groups, CHUNKS, *m.shape[1:]) for m in self.maps]
            self.inner = inner[0], inner[1]
            self.group_maps = joined(*self.inner, CHUNKS) if self.groups else (a[:0], b[:0])
        self.u = arrays.empty_like(b)
        self.starts = arrays.empty_like(b, slices=self.chunks)
        self.first: Array | None = None  # the row before

    def pass_on(self, carry: Carry) -> Carry:
        """``carry`` after this piece."""
        self.first = carry.last
        with np.errstate(all="ignore"):
            for i in range(self.head):
                self.u[i] = carry.take_row(self.a[i], self.b[i])
            at = 0
            for _ in range(self.before):
                at = self._take_chunk(carry, at)
            for g in range(self.groups):
                self._take_group(carry, g)
            at += self.groups * CHUNKS
            for _ in range(self.chunks - at):
                at = self._take_chunk(carry, at)
            if self.chunks:
                carry.last = self._walk(self.chunks - 1, self._start(self.chunks - 1))
            for i in range(self.head + self.chunks * ROWS, len(self.b)):
                self.u[i] = carry.take_row(self.a[i], self.b[i])
        return carry

    def rows(self) -> Array:
        """``u`` of this piece."""
        if not self.chunks:
            return self.u
        u = self.u[self.head : self.head + self.chunks * ROWS].reshape(self.cb.shape)
        with np.errstate(all="ignore"):
            self._start_chunks_of_groups()
            state = product(self.ca[:, 0], self.starts) + self.cb[:, 0]
            if self._no_start(0):
                state[0] = self.cb[0, 0]
            u[:, 0] = state
            for j in range(1, ROWS):
                u[:, j] = state = product(self.ca[:, j], state) + self.cb[:, j]
        return self.u

    def _no_start(self, chunk: int) -> bool:
        return self.begin == 0 and chunk == 0

    def _start(self, chunk: int) -> Array | None:
        return None if self._no_start(chunk) else self.starts[chunk]

    def _take_chunk(self, carry: Carry, at: int) -> int:
        if carry.start is not None:
            self.starts[at] = carry.start
        carry.take_chunk((self.maps[0][at], self.maps[1][at]), lambda start: self._walk(at, start))
        return at + 1

    def _take_group(self, carry: Carry, g: int) -> None:
        if carry.start is not None:
            self.starts[self.before + g * CHUNKS] = carry.start
        carry.take_group((self.group_maps[0][g], self.group_maps[1][g]), lambda start: self._by_chunks(g, start))

    def _by_chunks(self, g: int, state: Array | None) -> Array:
        for chunk in range(self.before + g * CHUNKS, self.before + (g + 1) * CHUNKS):
            state = end((self.maps[0][chunk], self.maps[1][chunk]), state, partial(self._walk, chunk, state))
        return state

    def _start_chunks_of_groups(self) -> None:
        """The starts of all chunks of whole groups but the first, those of all groups at once."""
        if not self.groups:
            return
        inside = slice(self.before, self.before + self.groups * CHUNKS)
        starts = self.starts[inside].reshape(self.groups, CHUNKS, *self.starts.shape[1:])
        a, b = self.inner
        for c in range(1, CHUNKS):
            here = [self.before + g * CHUNKS + c - 1 for g in range(self.groups)]
            found = product(a[:, c - 1], starts[:, c - 1]) + b[:, c - 1]
            if self._no_start(here[0]):
                found[0] = b[0, c - 1]
            good = arrays.namespace(found).isfinite(found).all(-1)
            for g in range(self.groups):
                if not bool(good[g].all()):
                    walked = self._walk(here[g], self._start(here[g]))
                    found[g] = arrays.namespace(found).where(good[g][..., None], found[g], walked)
            starts[:, c] = found
        self.starts[inside] = starts.reshape(self.groups * CHUNKS, *self.starts.shape[1:])

    def _walk(self, chunk: int, state: Array | None) -> Array:
        for j in range(ROWS):
            a, b = self.ca[chunk, j], self.cb[chunk, j]
            state = b if state is None else product(a, state) + b
        return state


def joined(a: Array, b: Array, count: int) -> Map:
    """The map of ``count`` stretches one after the other, for ``a [n, count, ...]``: ``[n, ...]``."""
    total = a[:, 0], b[:, 0]
    for i in range(1, count):
        total = after(total, (a[:, i], b[:, i]))
    return total


def after(first: Map, second: Map) -> Map:
    """The map of two stretches, one after the other."""
    a, c = second[0], first[0]
    total = a[..., :, 0, None] * c[..., None, 0, :]
    for q in range(1, a.shape[-1]):
        total = total + a[..., :, q, None] * c[..., None, q, :]
    return total, product(a, first[1]) + second[1]


def end(stretch: Map, start: Array | None, otherwise: Callable[[], Array]) -> Array:
    """``A s + B``, or where a component of that is not finite, ``otherwise``."""
    found = stretch[1] if start is None else product(stretch[0], start) + stretch[1]
    xp = arrays.namespace(found)
    good = xp.isfinite(found).all(-1)
    return found if bool(good.all()) else xp.where(good[..., None], found, otherwise())


def product(a: Array, x: Array) -> Array:
    """``a x``, each sum from the first column to the last."""
    total = a[..., 0] * x[..., 0, None]
    for q in range(1, a.shape[-1]):
        total = total + a[..., q] * x[..., q, None]
    return total


def chunked(a: Array) -> bool:
    """Whether blocks ``a [n, ..., d, d]`` are scanned in chunks."""
    return bool(a.shape[-1] <= CHUNKED)


def walk(a: Array, b: Array, start: Array | None) -> Array:
    """The scan of blocks that are not, with the bits of a scan of all rows."""
    return ops.scan_block(a, b, start)
