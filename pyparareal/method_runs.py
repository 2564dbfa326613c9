# SPDX-License-Identifier: BSD-3-Clause
"""Each method made ready for :func:`pyparareal.solve`: its arguments checked, its cost and failure told in one form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from . import checks
from .equations import has_residual
from .hierarchy import Transfer, build_levels
from .mgrit import MGRIT, Cycles
from .newton import Newton
from .norms import NORMS
from .parareal import Callback, Parareal
from .propagators import Propagator
from .runtime import Runtime
from .solution import Solution, Stats, Status
from .stopping import TEMPORAL, History, Limits, Monitor, Rule, SpatialNorm, finished, require_norm
from .time_grid import TimeGrid

Array = Any

MOST_CYCLES = 100  # of a method that need not end by itself


@dataclass(frozen=True)
class Common:
    """The arguments of :func:`pyparareal.solve` that every method has."""

    tol: float | None
    max_iterations: int | None
    norm: SpatialNorm | None
    keep_going: bool
    deterministic: bool
    guessed: bool
    runtime: Runtime
    callback: Callback | None


@dataclass(frozen=True)
class Problem:
    """What :func:`pyparareal.solve` was asked to solve, and how, as its adjoint needs to know it.

    Attributes
    ----------
    fine : without the right-hand side, as the user gave it
    chain : what was solved
    m : as the user gave it
    factor : fine steps per slice
    """

    fine: Any
    coarse: Any
    grid: TimeGrid
    chain: Propagator
    m: Any
    factor: int
    method: str | MGRIT | Newton
    freeze: bool
    on_failure: str
    common: Common


class MethodRun(Protocol):
    """A method with its problem."""

    fine: Propagator
    m: int

    @property
    def serial(self) -> bool:
        """Whether there is only one level, so that nothing is left to iterate on."""
        ...

    @property
    def residuals(self) -> list[float]: ...

    @property
    def iterations(self) -> int: ...

    def run(self, u: Array, guessed: bool) -> tuple[Status, Array]:
        """Iterate from the C-points ``u [slices + 1, batch, features...]``, which are lost: how it ended, with what."""
        ...

    def final_residual(self, u: Array) -> float | None: ...

    def stats(self, filled: tuple[int, int]) -> Stats:
        """The cost, with the ``filled`` fine steps taken afterwards: in total, and one after the other."""
        ...

    def report(self, solution: Solution) -> str:
        """What to tell the user of a solution that failed."""
        ...


class PararealRun:
    """Parareal."""

    serial = False

    def __init__(self, fine: Any, coarse: Any, grid: TimeGrid, m: Any, freeze: bool, common: Common) -> None:
        norm = "inf" if common.norm is None else common.norm
        checks.choose("norm", norm, tuple(NORMS))
        slices = grid.slices(m)
        if coarse is None:
            if not hasattr(fine, "rediscretise"):
                raise TypeError("coarse: not given, and fine has no rediscretise(m) to make one")
            coarse = fine.rediscretise(m)
        self.m, self.grid, self.slices = m, grid, slices
        self.fine = checks.propagator("fine", fine, grid, common.deterministic)
        self.iterate = Parareal(
            self.fine,
            checks.propagator("coarse", coarse, grid.coarsen(m), common.deterministic),
            grid,
            m,
            tol=common.tol,
            max_iterations=checks.iterations(common.max_iterations, slices),
            norm=str(norm),
            freeze=freeze,
            keep_going=common.keep_going,
            runtime=common.runtime,
            callback=common.callback,
            residuals=History(),
        )
        self.guessed = common.guessed

    @property
    def residuals(self) -> list[float]:
        return self.iterate.residuals

    @property
    def iterations(self) -> int:
        return len(self.iterate.residuals)

    def run(self, u: Array, guessed: bool) -> tuple[Status, Array]:
        return self.iterate.run(u, guessed=guessed), u

    def final_residual(self, u: Array) -> float | None:
        return None

    def stats(self, filled: tuple[int, int]) -> Stats:
        iterate = self.iterate
        return Stats(
            slices=self.slices,
            m=self.m,
            serial_steps=self.grid.steps,
            fine_steps=iterate.fine_steps + filled[0],
            critical_fine_steps=self.iterations * self.m + filled[1],
            coarse_steps=iterate.coarse_steps,
            critical_coarse_steps=iterate.coarse_steps - (self.slices - 1) * self.guessed,
            converged_slices=tuple(iterate.converged),
        )

    def report(self, solution: Solution) -> str:
        done = self.iterate.converged[-1] if self.iterations else 0
        last = described_last("jump", self.residuals, self.iterate.tol)
        return (
            f"{solution.status.value} ({done} of {self.slices} slices after {self.iterations} "
            f'iterations{last}). The solution so far is in .solution; on_failure="serial" falls back.'
        )


class MgritRun:
    """MGRIT."""

    def __init__(
        self, fine: Any, coarse: Any, grid: TimeGrid, m: Any, options: MGRIT, u0: Array, common: Common
    ) -> None:
        check_options(options, common.guessed)
        norm = "l2" if common.norm is None else common.norm
        if not callable(norm):
            checks.choose("norm", norm, tuple(NORMS))
        require_norm(norm, u0[None])

        def adapt(name: str, phi: Any, on: TimeGrid) -> Propagator:
            # A coarse level steps all its points at once, or every m-th: only single slices are the same in both.
            return checks.propagator(name, phi, on, common.deterministic, block=8 if name == "fine" else 1)

        self.levels = build_levels(
            fine,
            coarse,
            grid,
            m,
            levels=options.levels,
            min_coarse=options.min_coarse,
            nu=options.nu,
            omega=options.omega,
            transfer=options.transfer,
            adapt=adapt,
        )
        self.fine = self.levels[0].phi
        self.m, self.grid, self.slices = self.levels[0].m, grid, self.levels[0].slices
        self.tol = common.tol
        self.cycles = Cycles(
            self.levels,
            options,
            Monitor(
                Rule(common.tol, options.relative, options.scope, options.temporal_norm),
                Limits(options.divergence, options.stagnation),
                options.lag,
                common.keep_going,
                common.runtime,
                partial(finished, norm, size=math.prod(u0.shape)),
            ),
            checks.iterations(common.max_iterations, self._enough_cycles()),
            norm,
            common.runtime,
            common.callback,
        )

    def _enough_cycles(self) -> int:
        """``ceil(floor(N / m) / (nu + 1))``, one for a first cycle that only goes up, one to see that it is exact.

        Coarse spaces, weights and residuals of the user's own make nothing exact: then at least ``MOST_CYCLES``.
        """
        enough = -(-self.slices // (self.levels[0].nu + 1)) + 2
        exact = all(level.omega == 1 and level.transfer is None for level in self.levels[:-1])
        ours = not any(has_residual(level.phi) for level in self.levels)
        return enough if exact and ours else max(enough, MOST_CYCLES)

    @property
    def serial(self) -> bool:
        return len(self.levels) == 1

    @property
    def residuals(self) -> list[float]:
        return self.cycles.monitor.history

    @property
    def iterations(self) -> int:
        return self.cycles.cycles

    def run(self, u: Array, guessed: bool) -> tuple[Status, Array]:
        if not guessed:
            u[1:] = u[:1]  # what the coarsest level relaxes from, if it is relaxed; otherwise never read
        return self.cycles.run(u, guessed=guessed)

    def final_residual(self, u: Array) -> float | None:
        return self.cycles.residual(u) if self.cycles.options.final_residual else None

    def stats(self, filled: tuple[int, int]) -> Stats:
        steps, critical = self.cycles.steps, self.cycles.critical
        return Stats(
            slices=self.slices,
            m=self.m,
            serial_steps=self.grid.steps,
            fine_steps=steps[0] + filled[0],
            critical_fine_steps=critical[0] + filled[1],
            coarse_steps=sum(steps[1:]),
            critical_coarse_steps=sum(critical[1:]),
            levels=len(self.levels),
            steps_per_level=(steps[0] + filled[0], *steps[1:]),
            critical_steps_per_level=(critical[0] + filled[1], *critical[1:]),
            mode=self.cycles.mode,
        )

    def report(self, solution: Solution) -> str:
        kind = self.cycles.options.stopping
        last = described_last(kind, self.residuals, self.tol)
        return (
            f"{solution.status.value} ({self.iterations} cycles on {len(self.levels)} levels{last}). "
            'The solution so far is in .solution; on_failure="serial" falls back.'
        )


def described_last(what: str, residuals: list[float], tol: float | None) -> str:
    """The last of ``residuals``, as the tail of a message."""
    if not residuals:
        return ""
    return f", last {what} {residuals[-1]:.3g}" + (f" (tol {tol:.3g})" if tol is not None else "")


def check_options(options: MGRIT, guessed: bool) -> None:
    """Refuse what no :class:`.MGRIT` can mean, naming the option."""
    for name, choices in (
        ("cycle", ("V", "F", "W")),
        ("measure", ("descent", "end")),
        ("stopping", ("residual", "jump")),
        ("relative", (None, "first", "state")),
        ("scope", ("global", "local")),
        ("temporal_norm", TEMPORAL),
        ("storage", ("c", "all")),
    ):
        value = getattr(options, name)
        if value not in choices:
            raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")
    for name, least, optional in (
        ("levels", 1, True),
        ("min_coarse", 1, False),
        ("nu", 0, False),
        ("coarsest_sweeps", 1, True),
        ("lag", 0, False),
        ("stagnation", 1, True),
    ):
        _check_integers(name, getattr(options, name), least, optional, several=name == "nu")
    weights = options.omega if isinstance(options.omega, list | tuple) else [options.omega]
    for omega in weights:
        if isinstance(omega, bool) or not isinstance(omega, int | float) or not 0 < omega < 2:
            raise ValueError(f"omega: got {omega!r}, expected a number between 0 and 2")
    given = options.transfer if isinstance(options.transfer, list | tuple) else [options.transfer]
    for transfer in given:
        if transfer is not None and not isinstance(transfer, Transfer):
            raise TypeError(f"transfer: got {type(transfer).__name__}, expected a Transfer or None")
    if isinstance(options.divergence, bool) or not isinstance(options.divergence, int | float):
        raise TypeError(f"divergence: got {options.divergence!r}, expected a number")
    if not options.divergence > 1:
        raise ValueError(f"divergence: got {options.divergence!r}, expected a number above 1")
    if options.nested and guessed:
        raise ValueError("nested: got True with an initial guess, which nested iteration would not use")
    if options.nested and options.skip_first_down:
        raise ValueError("nested: got True with skip_first_down=True, expected one of them")


def refuse_unused(m: Any, coarse: Any, options: MGRIT) -> None:
    """Refuse factors and propagators for more levels than ``options.levels``: more levels are meant, it seems."""
    if options.levels is None:
        return
    factors = options.levels - (options.coarsest_sweeps is None)  # a coarsest level that is relaxed has one too
    for name, given, what, most in (
        ("m", m, "factors", factors),
        ("coarse", coarse, "propagators", options.levels - 1),
    ):
        if isinstance(given, list | tuple) and len(given) > max(most, 1):
            raise ValueError(f"{name}: got {len(given)} {what} for levels={options.levels}, expected {most}")


def _check_integers(name: str, value: Any, least: int, optional: bool, several: bool) -> None:
    if value is None and optional:
        return
    for number in value if several and isinstance(value, list | tuple) else [value]:
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name}: got {number!r}, expected an integer{' or None' if optional else ''}")
        if number < least:
            raise ValueError(f"{name}: got {number}, expected at least {least}")
