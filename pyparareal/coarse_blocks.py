# SPDX-License-Identifier: BSD-3-Clause
"""Cycles in blocks down to one level; what lies below is solved whole, by every rank or by the first.

On the first level that is not cut each rank has the rows of its block: of the states, and of what the equation of that
level is made of (the pair ``f, g``, a right-hand side, or nothing for the level's own chain). They are put together,
all levels from there on run as in one process, and each rank takes its own rows of the solution:

* ``redundant``: every rank gets all rows, passed on along a ring, and solves; nothing comes back;
* ``gathered``: the first rank gets all rows, solves, and sends each rank its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import arrays
from .cuts import Cuts
from .equations import WithResidual, pair
from .mgrit import Cycles
from .runtime import LocalRuntime
from .runtime.block import BlockRuntime

Array = Any


@dataclass
class JoinedCycles(Cycles):
    """The cycles of one block, whose level ``below`` and all after it are solved whole.

    Attributes
    ----------
    below : int
    ends : sequence of int
        Steps of level ``below`` before the end of each block, in the order of the chain.
    gathered : bool
        On the first rank alone.
    whole : Cycles
        Of all slices, in this process.
    """

    below: int = field(kw_only=True)
    ends: Sequence[int] = field(kw_only=True)
    gathered: bool = field(kw_only=True)
    whole: Cycles = field(kw_only=True)
    _kept: dict[str, Array] = field(default_factory=dict)

    def _solve(self, at: int, equation: Any, u: Array, kind: str) -> None:
        if at != self.below:
            super()._solve(at, equation, u, kind)
            return
        phi: Any = self.whole.levels[at].phi
        if isinstance(equation, WithResidual):
            rows = [] if equation.rhs is None else [equation.rhs]
            self._at_once(at, u, rows, lambda v, rhs: self.whole._solve(at, WithResidual(phi, *rhs), v, kind))
        else:
            self._at_once(at, u, [equation.f, equation.g], lambda v, fg: self.whole._solve(at, pair(phi, *fg), v, kind))

    def _solve_anew(self, at: int, u: Array, *, visit: bool) -> None:
        if at != self.below:
            super()._solve_anew(at, u, visit=visit)
        else:
            self._at_once(at, u, [], lambda v, _: self.whole._solve_anew(at, v, visit=visit))

    def _at_once(self, at: int, u: Array, rows: list[Array], solve: Callable[[Array, list[Array]], None]) -> None:
        """``u`` gets its rows of what ``solve`` makes of all states and all ``rows``."""
        runtime: Any = self.runtime
        block: BlockRuntime = runtime
        # A serial chain overwrites all states but the first.
        serial = at + 1 == len(self.levels) and self.options.coarsest_sweeps is None
        first, last = self._spans()[block.place]
        told = [u[:1]] * (block.place == 0) + ([] if serial else [u[1:]]) + rows
        sizes = [self._size(place, len(rows) + (not serial)) for place in range(len(self.ends))]
        with block.mark("mgrit.join"):
            parts = block.join(_joined(told, u), sizes, everywhere=not self.gathered)
        if parts is not None:
            v, *joined = self._apart(parts, u, len(rows), serial)
            solve(v, joined)
            if block.place == 0:  # what all ranks do at once is one process's work
                self._taken += self.whole._taken
            self.whole._taken = []
        with block.mark("mgrit.join"):
            if self.gathered:
                block.spread(None if parts is None else [v[a + 1 : b + 1] for a, b in self._spans()], u[1:])
            else:
                u[...] = v[first : last + 1]

    def _spans(self) -> list[tuple[int, int]]:
        return list(zip((0, *self.ends), self.ends, strict=False))

    def _size(self, place: int, kinds: int) -> int:
        """Rows that a block has to tell of so many ``kinds``; the first has the initial value too."""
        first, last = self._spans()[place]
        return (place == 0) + (last - first) * kinds

    def _apart(self, parts: list[Array], u: Array, rows: int, serial: bool) -> list[Array]:
        """States ``[steps + 1, ...]`` and ``rows`` arrays ``[steps, ...]`` from what every block told."""
        names = [*([] if serial else ["u"]), *(f"row {n}" for n in range(rows))]
        found = {name: self._room_of(name, u, self.ends[-1]) for name in names}
        v = self._room_of("v", u, self.ends[-1] + 1)
        for place, ((first, last), part) in enumerate(zip(self._spans(), parts, strict=True)):
            at = 0
            if place == 0:
                v[:1], at = part[:1], 1
            for name in names:
                found[name][first:last] = part[at : at + last - first]
                at += last - first
        if not serial:
            v[1:] = found.pop("u")
        return [v, *found.values()]

    def _room_of(self, name: str, u: Array, rows: int) -> Array:
        if name not in self._kept:
            self._kept[name] = arrays.empty_like(u, slices=rows)
        return self._kept[name]


def _joined(parts: list[Array], u: Array) -> Array:
    """The rows of ``parts``, one after the other, like those of ``u``."""
    found, at = arrays.empty_like(u, slices=sum(len(one) for one in parts)), 0
    for one in parts:
        found[at : at + len(one)] = one
        at += len(one)
    return found


def joined_cycles(mine: Cycles, whole: Cycles, cuts: Cuts, *, gathered: bool) -> JoinedCycles:
    """``mine``, cycles of a block, with the levels from the last that is cut on those of ``whole``."""
    below = cuts.cut - 1
    runtime: Any = mine.runtime
    alone = LocalRuntime(slices_per_call=runtime.slices_per_call)
    alone.seconds = runtime.seconds
    inner = dataclasses.replace(whole, runtime=alone, callback=None, steps=[], critical=[], _taken=[], _rooms={})
    fields = {one.name: getattr(mine, one.name) for one in dataclasses.fields(mine)}
    return JoinedCycles(**fields, below=below, ends=cuts.ends(below), gathered=gathered, whole=inner)
