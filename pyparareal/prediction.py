# SPDX-License-Identifier: BSD-3-Clause
"""What a solve with ``K`` iterations would take on ``P`` processors: *predicted*, from the measured cost of a step."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import arrays
from .hierarchy import build_levels
from .mgrit import MGRIT, Cycles
from .parareal import Parareal
from .propagators import Propagator
from .runtime.model import ModelRuntime, StepCost
from .stopping import Limits, Monitor, Rule
from .time_grid import TimeGrid

Array = Any


@dataclass(frozen=True)
class Prediction:
    """Seconds of a schedule on ``processors``, in all and by region, beside those of the serial chain on one."""

    processors: int
    iterations: int
    seconds: float
    serial_seconds: float
    regions: dict[str, float]

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

    Raises
    ------
    ValueError, TypeError
        For too few costs, or what :func:`pyparareal.solve` would refuse.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations: got {iterations!r}, expected an integer of at least 0")
    runtime = ModelRuntime(processors, message=message)
    phis = [runtime.priced(cost) for cost in costs]
    if len(phis) < 2:
        raise ValueError(f"costs: got {len(phis)}, expected one per level, at least a fine and a coarse one")
    if isinstance(method, MGRIT) or method == "mgrit":
        _run_mgrit(grid, phis, m, method if isinstance(method, MGRIT) else MGRIT(), iterations, runtime)
    elif method == "parareal":
        _run_parareal(grid, phis, m, iterations, runtime)
    else:
        raise ValueError(f"method: got {method!r}, expected 'parareal', 'mgrit' or MGRIT options")
    serial = grid.steps * costs[0].seconds(1)
    return Prediction(processors, iterations, runtime.total, serial, dict(runtime.seconds))


def measured_costs(
    phis: Sequence[Propagator],
    u0: Array,
    slices: Sequence[int],
    *,
    repeats: int = 5,
    wait: Callable[[], None] | None = None,
) -> list[StepCost]:
    """The cost of a step of each of ``phis``, from the fastest of ``repeats`` calls with one slice and with many.

    Parameters
    ----------
    u0 : array ``[batch, features...]``
        A state the step is typical for.
    slices : sequence of int
        How many slices each propagator steps at a time; 1 for the coarsest level.
    wait : callable, optional
        Waits for the device, before and after each call.
    """
    return [_measured(phi, u0, count, repeats, wait or _no_wait) for phi, count in zip(phis, slices, strict=True)]


def _measured(phi: Propagator, u0: Array, slices: int, repeats: int, wait: Callable[[], None]) -> StepCost:
    one = _seconds(phi, u0, 1, repeats, wait)
    if slices < 2:
        return StepCost(one, 0.0)
    many = _seconds(phi, u0, slices, repeats, wait)
    per_slice = max(0.0, (many - one) / (slices - 1))
    return StepCost(max(0.0, one - per_slice), per_slice)


def _seconds(phi: Propagator, u0: Array, slices: int, repeats: int, wait: Callable[[], None]) -> float:
    u = arrays.empty_like(u0[None], slices=slices)
    u[...] = u0
    # The stride of the points is the distance of neighbouring slices; here they are neighbours.
    points = slice(0, slices, 1)
    best = math.inf
    for _ in range(repeats):
        wait()
        begin = time.perf_counter()
        phi.step(u, points)
        wait()
        best = min(best, time.perf_counter() - begin)
    return best


def _run_mgrit(grid: TimeGrid, phis: list[Any], m: Any, options: MGRIT, iterations: int, runtime: ModelRuntime) -> None:
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
    options = dataclasses.replace(options, transfer=None, storage="c", relative=None)
    rule = Rule(None, None, "global", options.temporal_norm)  # never content
    monitor = Monitor(rule, Limits(math.inf, None), 0, True, runtime, lambda norms: norms)
    cycles = Cycles(levels, options, monitor, iterations, "l2", runtime)
    cycles.run(np.empty((levels[0].slices + 1, 0)), guessed=False)


def _run_parareal(grid: TimeGrid, phis: list[Any], m: Any, iterations: int, runtime: ModelRuntime) -> None:
    method = Parareal(
        phis[0], phis[1], grid, m, tol=None, max_iterations=iterations, norm="l2", freeze=True, keep_going=True,
        runtime=runtime,
    )  # fmt: skip
    method.run(np.empty((grid.slices(m) + 1, 0)))


def _no_wait() -> None:
    pass
