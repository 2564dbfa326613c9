# SPDX-License-Identifier: BSD-3-Clause
"""What a solve with ``K`` iterations would take on ``P`` processors: *predicted*, from the measured cost of a step."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from . import arrays
from .cuts import Cuts, chosen
from .hierarchy import Level, build_levels
from .mgrit import MGRIT, Cycles
from .parareal import Parareal
from .propagators import Propagator, is_fused
from .runtime.model import ModelRuntime, RankCosts, RankModel, StepCost
from .stopping import Limits, Monitor, Rule
from .time_grid import TimeGrid

Array = Any


@dataclass(frozen=True)
class Prediction:
    """*Predicted* seconds of a schedule on ``processors``, in all and by region; those of the serial chain on one.

    Of ranks also how many of them have a block, ``working``, and where ``coarse`` levels are solved.
    """

    processors: int
    iterations: int
    seconds: float
    serial_seconds: float
    regions: dict[str, float]
    working: int | None = None
    coarse: str | None = None

    @property
    def speedup(self) -> float:
        """Serial seconds over predicted ones; below 1 it does not pay."""
        return self.serial_seconds / self.seconds if self.seconds else math.inf


def predict(
    grid: TimeGrid,
    costs: Sequence[StepCost],
    *,
    m: int | Sequence[int],
    iterations: int,
    processors: int,
    method: str | MGRIT = "parareal",
    message: float = 0.0,
    ranks: RankCosts | None = None,
    state_bytes: int = 8,
    coarse: str | None = None,
) -> Prediction:
    """The time of ``iterations`` iterations of the very schedule :func:`pyparareal.solve` runs.

    Parameters
    ----------
    costs : sequence of StepCost
        Of one step on every level, the finest first (:func:`measured_costs`).
    processors : int
        Each with a contiguous share of the slices of every level.
    message : float
        Seconds of a message between neighbours; 0 is free communication, an upper bound of what is gained.
    ranks : RankCosts, optional
        The processors are ranks of :func:`pyparareal.distributed`, with its blocks, its relayed chains, its messages of
        ``state_bytes`` and norms at these costs, not ``message``, and ``coarse`` levels where it would solve them.

    Raises
    ------
    ValueError, TypeError
        For too few costs, or what :func:`pyparareal.solve` would refuse.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations: got {iterations!r}, expected an integer of at least 0")
    runtime = ModelRuntime(processors, message=message)
    if len(costs) < 2:
        raise ValueError(f"costs: got {len(costs)}, expected one per level, at least a fine and a coarse one")
    if not isinstance(method, MGRIT) and method not in ("mgrit", "parareal"):
        raise ValueError(f"method: got {method!r}, expected 'parareal', 'mgrit' or MGRIT options")
    working, how = None, None
    if method == "parareal":
        if ranks is not None:
            grid.slices(m)  # type: ignore[arg-type]
            fine = Level(runtime.priced(costs[0]), grid, m, 0, 1.0, None)  # type: ignore[arg-type]
            cuts, how = Cuts([fine], True, processors), "chain"
            runtime = RankModel(cuts.ranks, cuts.shares(), ranks, state_bytes)
        _run_parareal(grid, [runtime.priced(cost) for cost in costs], m, iterations, runtime)
    else:
        options = method if isinstance(method, MGRIT) else MGRIT()
        levels = _levels(grid, [runtime.priced(cost) for cost in costs], m, options)
        below = None
        if ranks is not None:
            how, deepest = chosen(levels, options, processors, ranks, state_bytes, coarse)
            cuts, below = Cuts(levels, bool(options.coarsest_sweeps), processors, deepest=deepest), deepest + 1
            runtime = RankModel(cuts.ranks, cuts.shares(), ranks, state_bytes)
            levels = _levels(grid, [runtime.priced(cost) for cost in costs], m, options)
        _run_mgrit(levels, options, iterations, runtime, None if how == "chain" else below, how == "gathered")
    if isinstance(runtime, RankModel):
        working = runtime.processors
    serial = costs[0].seconds(1, grid.steps)
    return Prediction(processors, iterations, runtime.total, serial, dict(runtime.seconds), working, how)


def measured_costs(
    phis: Sequence[Propagator],
    u0: Array,
    slices: Sequence[int],
    *,
    steps: int | Sequence[int] = 16,
    repeats: int = 5,
    wait: Callable[[], None] | None = None,
) -> list[StepCost]:
    """The cost of a step of each of ``phis``, from the fastest of ``repeats`` calls with one slice and with many.

    Of a propagator that is fused, what runs is measured: relaxations, with the pair of the FAS equation on all levels
    but the finest.

    Parameters
    ----------
    u0 : array ``[batch, features...]``
        A state the step is typical for.
    slices : sequence of int
        How many slices each propagator steps at a time; 1 for the coarsest level.
    steps : int or sequence of int
        How many steps each fused propagator takes in one call: ``m``; on the coarsest level, all it has. At least 2.
    wait : callable, optional
        Waits for the device, before and after each call.
    """
    several = [steps] * len(phis) if isinstance(steps, int) else list(steps)
    found = []
    for depth, (phi, count, m) in enumerate(zip(phis, slices, several, strict=True)):
        if is_fused(phi) and m < 2:
            raise ValueError(f"steps: got {m}, expected at least 2 steps in a call of a fused propagator")
        measure = _measured_fused if is_fused(phi) else _measured
        found.append(measure(partial(_seconds, phi, u0, repeats, wait or _no_wait, depth > 0), count, m))
    return found


def _measured(seconds: Callable[[int, int], float], slices: int, m: int) -> StepCost:
    one = seconds(1, 1)
    if slices < 2:
        return StepCost(one, 0.0)
    per_slice = max(0.0, (seconds(slices, 1) - one) / (slices - 1))
    return StepCost(max(0.0, one - per_slice), per_slice)


def _measured_fused(seconds: Callable[[int, int], float], slices: int, m: int) -> StepCost:
    """From three relaxations: of one slice with one step and with ``m``, and of all slices with ``m``."""
    first, one = seconds(1, 1), seconds(1, m)
    alone = max(0.0, (one - first) / (m - 1))  # a step of one slice, without the call
    call = max(0.0, one - m * alone)
    if slices < 2:
        return StepCost(call, 0.0, alone, fused=True)
    per_slice = max(0.0, (seconds(slices, m) - one) / (m * (slices - 1)))
    return StepCost(call, per_slice, max(0.0, alone - per_slice), fused=True)


def _seconds(
    phi: Any, u0: Array, repeats: int, wait: Callable[[], None], as_pair: bool, slices: int, steps: int
) -> float:
    """Of one call: a step, or if ``phi`` is fused a relaxation of so many ``steps``."""
    u = arrays.empty_like(u0[None], slices=slices)
    u[...] = u0
    # The stride of the points is the distance of neighbouring slices: of steps side by side, or of relaxations.
    points = slice(0, (slices - 1) * steps + 1, steps)
    call = partial(phi.step, u, points)
    if is_fused(phi):
        f = g = None
        if as_pair:
            sides = (arrays.empty_like(u, slices=slices * steps) for _ in "fg")
            f, g = (side.reshape(slices, steps, *u0.shape) for side in sides)
            f[...], g[...] = u0, u0
        call = partial(phi.relax, u, points, steps, arrays.empty_like(u), f=f, g=g)
    best = math.inf
    for _ in range(repeats):
        wait()
        begin = time.perf_counter()
        call()
        wait()
        best = min(best, time.perf_counter() - begin)
    return best


def _levels(grid: TimeGrid, phis: list[Any], m: Any, options: MGRIT) -> list[Level]:
    most = len(phis) if options.levels is None else options.levels
    levels = build_levels(
        phis[0],
        phis[1:most],
        grid,
        m,
        levels=most,
        min_coarse=options.min_coarse,
        nu=options.nu,
        omega=options.omega,
        transfer=None,  # costs no step
        adapt=lambda name, phi, on: phi,
    )
    if len(levels) == 1:
        raise ValueError(f"m: got {m}, which leaves one level of {grid.steps} steps, and nothing to predict")
    return levels


def _run_mgrit(
    levels: list[Level], options: MGRIT, iterations: int, runtime: ModelRuntime, below: int | None, gathered: bool
) -> None:
    options = dataclasses.replace(options, transfer=None, storage="c", relative=None)
    rule = Rule(None, None, "global", options.temporal_norm)  # never content
    monitor = Monitor(rule, Limits(math.inf, None), 0, True, runtime, lambda norms: norms)
    cycles = Cycles(levels, options, monitor, iterations, "l2", runtime)
    if below is not None:
        cycles = _Joined(levels, options, monitor, iterations, "l2", runtime, below=below, gathered=gathered)
    cycles.run(np.empty((levels[0].slices + 1, 0)), guessed=False)


@dataclass
class _Joined(Cycles):
    """The price of :class:`.coarse_blocks.JoinedCycles`."""

    below: int = field(kw_only=True)
    gathered: bool = field(kw_only=True)

    def _solve(self, at: int, equation: Any, u: Array, kind: str) -> None:
        with self._whole(at, u, 2):
            super()._solve(at, equation, u, kind)

    def _solve_anew(self, at: int, u: Array, *, visit: bool) -> None:
        with self._whole(at, u, 0):
            super()._solve_anew(at, u, visit=visit)

    def _whole(self, at: int, u: Array, kinds: int) -> AbstractContextManager[None]:
        runtime: Any = self.runtime
        if at != self.below or runtime.alone:
            return nullcontext()
        serial = at + 1 == len(self.levels) and self.options.coarsest_sweeps is None
        return runtime.joined(len(u) - 1, kinds + (not serial), self.gathered)


def _run_parareal(grid: TimeGrid, phis: list[Any], m: Any, iterations: int, runtime: ModelRuntime) -> None:
    method = Parareal(
        phis[0], phis[1], grid, m, tol=None, max_iterations=iterations, norm="l2", freeze=True, keep_going=True,
        runtime=runtime,
    )  # fmt: skip
    method.run(np.empty((grid.slices(m) + 1, 0)))


def _no_wait() -> None:
    pass
