# SPDX-License-Identifier: BSD-3-Clause
"""A window of consecutive training steps, solved by MGRIT, or serially from the last state known to be exact."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _trace, arrays, checks
from ..mgrit import MGRIT
from ..propagators import Propagator, advance, is_fused
from ..runtime import LocalRuntime
from ..runtime.block import BlockRuntime
from ..runtime.group import Group
from ..solution import Solution, Status
from ..solver import solve
from ..stopping import Limits, spatial_norms, temporal_norm
from ..time_grid import TimeGrid
from .optimisers import SGD
from .settings import Settings
from .steps import OptimiserStep


@dataclass
class Window:
    """How the steps ``first .. first + steps - 1`` were solved.

    Attributes
    ----------
    status : Status
    failure : Status, optional
        Why the iteration failed, where the serial solution was computed instead.
    iterations, residuals : int, list of float
        MGRIT cycles; the 2-norm of the residual at the C-points in each, taken before its correction.
    exact : int
        After a failure: so many first steps of the window were bitwise the serial ones, and were not taken again.
    levels : int
    steps_per_level : tuple of int
        Steps taken on each level, those of a serial fallback included, and those before an interruption.
    alphas : tuple of float
        Learning rate per level, the largest where there are several.
    seconds : float
        Those before an interruption included, up to the last checkpoint.
    curvature : float, optional
        After a residual that grew: the largest of the loss at the last exact weights, for gradient descent.
    """

    first: int
    steps: int
    status: Status = Status.SERIAL
    failure: Status | None = None
    iterations: int = 0
    residuals: list[float] = field(default_factory=list)
    exact: int = 0
    levels: int = 1
    steps_per_level: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    seconds: float = 0.0
    curvature: float | None = None

    @property
    def grew(self) -> bool:
        """Whether the residual ended above its first value, or was not finite."""
        known = [r for r in self.residuals if math.isfinite(r)]
        return self.failure in (Status.DIVERGED, Status.NON_FINITE) or (len(known) > 1 and known[-1] > known[0])

    @property
    def reason(self) -> str:
        """What went wrong, in words; empty if nothing did."""
        if self.failure is None:
            return ""
        if not self.grew:
            return self.failure.value
        known = [r for r in self.residuals if math.isfinite(r)]
        rates = ", ".join(f"{alpha:.4g}" for alpha in self.alphas)
        if not known:
            return (
                "a step from the guess gives NaN or infinity, in the first cycle: set guess='constant' if weights of "
                f"zero have no gradient, or smaller learning rates of the levels than {rates}"
            )
        return (
            f"the residual grew from {known[0]:.3g} to {self.residuals[-1]:.3g}: the learning rates of the levels, "
            f"{rates}, are unstable; set alpha_max below {max(self.alphas):.4g}, or use fewer levels or a smaller "
            f"growth{self._limit()}"
        )

    def _limit(self) -> str:
        if self.curvature is None or not self.curvature > 0 or not math.isfinite(self.curvature):
            return ""
        where = f"the largest curvature of the loss at step {self.first + self.exact} is {self.curvature:.3g}"
        return f" ({where}, so that gradient descent is stable there below {2 / self.curvature:.3g})"


@dataclass
class Cycle:
    """Where an iteration stands after a cycle: all that the next one depends on.

    ``c [slices + 1, 1, s (1 + moments)]`` are the C-points, over ranks those of this rank's ``block``; ``parts`` the
    cycles of every part of an iteration that was interrupted.
    """

    c: Tensor
    residuals: list[float]
    parts: tuple[int, ...] = ()
    block: BlockRuntime | None = None

    def whole(self) -> Tensor | None:
        """All C-points; over ranks on rank 0, when all of them ask, and None on the others."""
        return self.c if self.block is None else self.block.collect(self.c)


class WindowSolver:
    """The steps of one window; :meth:`solve` and :meth:`serial` lead from its start to its end state.

    Parameters
    ----------
    step : OptimiserStep
        Of the finest level, its ``offset`` the first step of the window.
    group : Group, optional
        The ranks that solve it together; what is serial each of them does for itself.
    """

    def __init__(self, step: OptimiserStep, steps: int, settings: Settings, group: Group | None = None) -> None:
        self.settings, self.steps, self.step = settings, steps, step
        self.group = group or Group(None)
        self.grid = TimeGrid(0.0, float(steps), steps)
        self.fine: Propagator = checks.propagator("fine", step, self.grid, settings.deterministic)
        self.limits = Limits(settings.divergence, settings.stagnation)
        self.tol = settings.tol * math.sqrt(steps)
        self.window = Window(step.offset, steps, alphas=(step.largest_alpha(steps),))

    def serial(self, start: Tensor, first: int = 0) -> Tensor:
        """From ``start [1, s]`` at point ``first``, a C-point, to the end, one step after the other."""
        m = self.settings.m
        u, end = start[None].clone(), torch.empty_like(start[None])
        stride = self.steps - first if is_fused(self.fine) else m
        for i in range(first, self.steps, max(stride, 1)):
            # The points have the stride of the slices: padded blocks then lie where they lie in the parallel solve.
            advance(self.fine, u, slice(i, i + 1, m), min(stride, self.steps - i), out=end)
            u, end = end, u
        return u[0]

    def solve(
        self, start: Tensor, resume: Cycle | None = None, after: Callable[[Cycle], bool] | None = None
    ) -> Tensor | None:
        """The end state by MGRIT, or None where it failed; then ``window.failure`` says why.

        ``after`` each cycle is called with what :meth:`solve` can be resumed from; True asks to stop.
        """
        window, settings, levels = self.window, self.settings, self.settings.levels_for(self.steps)
        if levels == 1:
            window.steps_per_level = (self.steps,)
            return self.serial(start)
        window.levels = levels
        coarse = (self.step.moved(level=at, stride=settings.m**at) for at in range(levels))
        window.alphas = tuple(step.largest_alpha(self.steps) for step in coarse)
        window.residuals = list(resume.residuals) if resume else []
        status = self._judge() if resume else None
        parts = resume.parts if resume else ()
        taken = tuple(map(sum, zip(*(self._taken(levels, k, i > 0) for i, k in enumerate(parts)), strict=True)))
        window.steps_per_level = taken
        self.c = self._guess(start) if resume is None else resume.c
        end: Tensor | None = self.c[-1] if self.steps % settings.m == 0 else None
        if status is None:
            solution, status = self._cycles(levels, after, only_up=resume is None and settings.guess == "coarse")
            slices = self.steps // settings.m
            self.c, end = solution.u[: slices + 1], solution.u[-1]
            now = solution.stats.steps_per_level
            window.steps_per_level = tuple(map(sum, zip(taken, now, strict=True))) if taken else now
        elif end is None:
            end = self.serial(self.c[-1], self.steps - self.steps % settings.m)
        window.status, window.failure = status, None if status is Status.CONVERGED else status
        return end if status is Status.CONVERGED else None

    def fall_back(self) -> Tensor:
        """The end state serially, from the last C-point that is known to be exact, found by one more relaxation."""
        m, window = self.settings.m, self.window
        starts, found = self.grid.starts(m), torch.empty_like(self.c[:-1])
        LocalRuntime().map(self.fine, self.c[:-1], starts, m, out=found)
        wrong = torch.nonzero((found != self.c[1:]).flatten(1).any(1))
        slices = int(wrong[0]) if len(wrong) else len(found)
        window.exact = slices * m
        if window.grew and self.step.optimiser == SGD():
            window.curvature = self.step.curvature(self.c[slices, 0])
        left = self.steps - window.exact
        if window.steps_per_level:
            taken = window.steps_per_level
            window.steps_per_level = (taken[0] + m * len(found) + left, *taken[1:])
        window.status = Status.SERIAL_FALLBACK
        return self.serial(self.c[slices], window.exact)

    def _cycles(self, levels: int, after: Callable[[Cycle], bool] | None, only_up: bool) -> tuple[Solution, Status]:
        settings, known = self.settings, list(self.window.residuals)
        watch = _Watch(self.limits, self.tol, self.window.residuals, after)
        with torch.no_grad():
            solution = solve(
                self.step, self.c[0], self.grid, m=settings.m, tol=self.tol, method=self._options(levels),
                max_iterations=settings.max_iterations - len(known), initial=None if only_up else self.c,
                callback=watch, deterministic=settings.deterministic, on_failure="return", runtime=self.group.runtime,
            )  # fmt: skip
        # A rank without slices was not called back.
        self.window.residuals = known + list(solution.residuals)
        self.window.iterations = len(self.window.residuals)
        failure = self.group.told(watch.failure and watch.failure.name, "telling how a window ended")[0]
        return solution, Status[failure] if failure else solution.status

    def _options(self, levels: int) -> MGRIT:
        settings = self.settings
        return MGRIT(
            levels=levels, min_coarse=1, nu=settings.nu, cycle=settings.cycle, divergence=math.inf, stagnation=None
        )

    def _taken(self, levels: int, cycles: int, guessed: bool) -> tuple[int, ...]:
        """Steps on each level of so many cycles from C-points that are ``guessed``, counted with steps that do nothing.

        Cycles take the same steps from the third on, so no more than four are counted.
        """
        slices = self.grid.slices(self.settings.m)
        only_up = not guessed and self.settings.guess == "coarse"

        def count(k: int) -> tuple[int, ...]:
            return solve(
                _Idle(), np.zeros((1, 1)), self.grid, m=self.settings.m, tol=None, method=self._options(levels),
                max_iterations=k, initial=None if only_up else np.zeros((slices + 1, 1, 1)), on_failure="return",
            ).stats.steps_per_level  # fmt: skip

        if cycles <= 4:
            return count(cycles)
        return tuple(b + (cycles - 4) * (b - a) for a, b in zip(count(3), count(4), strict=True))

    def _judge(self) -> Status | None:
        """What the last residual was judged to be before the run was interrupted."""
        residuals = self.window.residuals
        self.window.iterations, last = len(residuals), residuals[-1]
        if last < self.tol or last == 0:
            return Status.CONVERGED
        if not math.isfinite(last) and not (self.settings.guess == "coarse" and len(residuals) == 1):
            return Status.NON_FINITE
        failure = self.limits.judge(residuals, lambda: 0.0)
        late = len(residuals) >= self.settings.max_iterations
        return failure or (Status.MAX_ITERATIONS if late else None)

    def _guess(self, start: Tensor) -> Tensor:
        c = start.new_zeros(self.grid.slices(self.settings.m) + 1, *start.shape)
        c[0] = start
        if self.settings.guess == "constant":
            c[1:] = start
        return c


@dataclass
class _Watch:
    """The callback of a window: whether its history promises nothing more, or ``after`` asks to stop."""

    limits: Limits
    tol: float
    residuals: list[float]
    after: Callable[[Cycle], bool] | None
    block: BlockRuntime | None = None
    failure: Status | None = None

    def within(self, block: BlockRuntime) -> _Watch:
        """The same for C-points that are those of ``block``."""
        self.block = block
        return self

    def __call__(self, k: int, c: Tensor, residual: float) -> bool:
        self.residuals.append(residual)
        stop = bool(self.after and self.after(Cycle(c, self.residuals, block=self.block)))
        if residual < self.tol or residual == 0 or not math.isfinite(residual):
            return False  # the solver sees that itself
        self.failure = self.limits.judge(self.residuals, lambda: self._round_off(c))
        return stop or self.failure is not None

    def _round_off(self, c: Tensor) -> float:
        """10 units in the last place of all states."""
        states = temporal_norm("l2", spatial_norms("l2", c[1:]), self.block or LocalRuntime())
        return 10 * arrays.epsilon(c) * states


class _Idle:
    """A propagator that only gets counted."""

    batch_invariant = True

    def step(self, u: Any, points: slice) -> Any:
        return u.copy()

    def rediscretise(self, m: int) -> _Idle:
        return self


def timed(name: str, window: Window, work: Callable[[], Any], wait: Callable[[], None]) -> Any:
    """``work()``, a region ``name``; its seconds are added to ``window``."""
    wait()
    begin = time.perf_counter()
    try:
        with _trace.mark(name):
            return work()
    finally:
        wait()
        window.seconds += time.perf_counter() - begin


def as_json(window: Window) -> dict[str, Any]:
    """For a checkpoint."""
    return {
        **window.__dict__,
        "status": window.status.name,
        "failure": window.failure.name if window.failure else None,
    }


def from_json(values: dict[str, Any]) -> Window:
    """What :func:`as_json` wrote."""
    failure = values["failure"]
    rows = {name: tuple(values[name]) for name in ("steps_per_level", "alphas")}
    return Window(
        **{**values, **rows, "status": Status[values["status"]], "failure": Status[failure] if failure else None}
    )


def finite(u: Tensor) -> bool:
    """Whether every number is."""
    return bool(torch.isfinite(u).all())
