# SPDX-License-Identifier: BSD-3-Clause
"""Where the blocks of slices of the ranks lie, on every level, and the levels of each as chains of their own."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from .hierarchy import Level
from .method_runs import MgritRun, PararealRun
from .mgrit import MGRIT
from .newton import NewtonIteration
from .newton_run import NewtonRun
from .propagators import is_fused
from .runtime.model import RankCosts, Relaxed, cheapest
from .time_grid import TimeGrid, shift_points

Array = Any


def bounds_of(steps: int, unit: int, ranks: int) -> list[int]:
    """Points where blocks of ``steps`` steps begin and end, multiples of ``unit``: for at most ``ranks`` ranks.

    The last block has what fills no unit.
    """
    units = max(steps // unit, 1)
    ranks = min(ranks, units)
    return [units * n // ranks * unit for n in range(ranks)] + [steps]


class Cuts:
    """Where the blocks lie: at points of a level that is relaxed, so that no slice of it or of a finer one is cut.

    Parameters
    ----------
    deepest : int, optional
        That level; default: the coarsest that is relaxed. Those after the next one are not cut at all.
    fit : int
        The blocks begin at multiples of so many steps, too.
    bounds : list of int, optional
        Points of the finest grid between the blocks, the first and the last included; default: :func:`bounds_of`.

    Attributes
    ----------
    ranks : int
        How many have a block.
    """

    def __init__(
        self,
        levels: list[Level],
        relaxed_to_the_end: bool,
        ranks: int,
        *,
        fit: int = 1,
        bounds: list[int] | None = None,
        deepest: int | None = None,
    ) -> None:
        self.levels = levels
        relaxed = (levels if relaxed_to_the_end else levels[:-1])[: None if deepest is None else deepest + 1]
        self.cut = min(len(relaxed) + 1, len(levels))  # levels that are
        # Steps of each level in a unit; on a coarsest level that is not relaxed, one.
        self.steps = [math.prod(level.m for level in relaxed[at:]) for at in range(len(levels))]
        unit = math.lcm(self.steps[0], fit)
        self.bounds = bounds_of(levels[0].grid.steps, unit, ranks) if bounds is None else bounds
        self.ranks = len(self.bounds) - 1

    def span(self, rank: int, at: int) -> tuple[int, int]:
        """First step of a block on a level, and the one after its last."""
        scale = self.steps[0] // self.steps[at]
        first, last = (bound // scale for bound in self.bounds[rank : rank + 2])
        return first, self.levels[at].grid.steps if rank + 1 == self.ranks else last

    def slices(self, rank: int) -> int:
        """Slices of a block on the finest level."""
        first, last = self.span(rank, 0)
        return (last - first) // self.levels[0].m

    def levels_of(self, rank: int) -> list[Level]:
        """The levels of a block, each a chain of its own that counts from 0, and those that are not cut."""
        return [self._level(at, *self.span(rank, at)) for at in range(self.cut)] + self.levels[self.cut :]

    def ends(self, at: int) -> list[int]:
        """Steps of a level before the end of each block."""
        return [self.span(rank, at)[1] for rank in range(self.ranks)]

    def shares(self) -> dict[int, int]:
        """The most slices of a block, and steps, by how many the level has in all."""
        found: dict[int, int] = {}
        for at, level in enumerate(self.levels[: self.cut]):
            steps = [last - first for first, last in (self.span(rank, at) for rank in range(self.ranks))]
            found |= {level.grid.steps: max(steps), level.grid.steps // level.m: max(n // level.m for n in steps)}
        return found

    def _level(self, at: int, first: int, last: int) -> Level:
        level = self.levels[at]
        # Only the propagators ask for times, and they have their own grids.
        grid = TimeGrid(0, 1, last - first)
        # Of the last level that is cut, which is not relaxed in blocks, there may be too few steps for a slice.
        return dataclasses.replace(level, phi=From(level.phi, first), grid=grid, m=min(level.m, grid.steps))


class From:
    """``phi`` with its steps counted from ``first``."""

    def __init__(self, phi: Any, first: int) -> None:
        self.phi, self.first = phi, first
        self.batch_invariant, self.fused = phi.batch_invariant, is_fused(phi)
        self.compares = getattr(phi, "compares", False)
        for name in ("relax", "residual", "step_with", "step_from"):
            if hasattr(phi, name):
                setattr(self, name, getattr(self, f"_{name}"))

    def step(self, u: Array, points: slice) -> Array:
        return self.phi.step(u, shift_points(points, self.first))

    def _relax(self, u: Array, points: slice, m: int, out: Array | None, **more: Any) -> None:
        self.phi.relax(u, shift_points(points, self.first), m, out, **more)

    def _residual(self, u_next: Array, u: Array, points: slice) -> Array:
        return self.phi.residual(u_next, u, shift_points(points, self.first))

    def _step_with(self, u: Array, points: slice, rhs: Array) -> Array:
        return self.phi.step_with(u, shift_points(points, self.first), rhs)

    def _step_from(self, u: Array, points: slice, guess: Array) -> Array:
        return self.phi.step_from(u, shift_points(points, self.first), guess)


def levels_of(run: PararealRun | NewtonRun | MgritRun) -> list[Level]:
    """Parareal as the two levels it is; Newton's method too, if it has a coarse propagator to guess with."""
    if isinstance(run, MgritRun):
        return run.levels
    iterate = run.iterate
    coarse = iterate.predict if isinstance(iterate, NewtonIteration) else iterate.coarse
    fine = Level(iterate.fine, run.grid, run.m, 0, 1.0, None)
    return [fine] if coarse is None else [fine, Level(coarse, run.grid.coarsen(run.m), 1, 0, 1.0, None)]


def chosen(
    levels: list[Level], options: MGRIT, ranks: int, costs: RankCosts, nbytes: int, coarse: str | None
) -> tuple[str, int]:
    """Which of ``COARSE`` it is, ``coarse`` or else the cheapest for states of ``nbytes``; the last level in blocks.

    That is the coarsest with a slice for every rank, or for ``chain`` the coarsest that is relaxed.
    """
    relaxed = levels if options.coarsest_sweeps else levels[:-1]
    if coarse is None:
        shapes = [Relaxed(level.slices, level.m, level.nu) for level in relaxed]
        serial = 0 if options.coarsest_sweeps else levels[-1].grid.steps
        coarse = cheapest(costs, nbytes, shapes, serial, ranks, options.cycle)
    deepest = max((at for at, level in enumerate(relaxed) if level.slices >= ranks), default=0)
    if coarse == "chain" or deepest + 1 == len(levels):
        return "chain", len(relaxed) - 1
    return coarse, deepest
