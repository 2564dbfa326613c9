# SPDX-License-Identifier: BSD-3-Clause
"""Newton's method made ready for :func:`pyparareal.solve`: its arguments checked, its cost and failure told."""

from __future__ import annotations

import dataclasses
import math
from functools import cached_property
from typing import Any

import numpy as np

from . import arrays, checks
from .growth import Growth, growth_from, growth_of, slice_logs
from .linearise import KINDS, Linearised, choose_kind, source_of
from .method_runs import Common, described_last
from .newton import Newton, NewtonIteration
from .newton_fused import FusedNewton, fuses
from .norms import NORMS
from .solution import Solution, Stats, Status
from .stopping import History
from .time_grid import TimeGrid

Array = Any


class NewtonRun:
    """Newton's method (a :class:`.MethodRun`)."""

    serial = False

    def __init__(
        self,
        fine: Any,
        coarse: Any,
        grid: TimeGrid,
        m: Any,
        options: Newton,
        freeze: bool,
        u0: Array,
        common: Common,
    ) -> None:
        check_options(options)
        norm = "inf" if common.norm is None else common.norm
        checks.choose("norm", norm, tuple(NORMS))
        if coarse is not None and common.guessed:
            raise ValueError("coarse: got one with an initial guess, expected one of them: Newton only guesses with it")
        self.m, self.grid, self.slices = m, grid, grid.slices(m)
        self.fine = checks.propagator("fine", fine, grid, common.deterministic)
        if coarse is not None:
            coarse = checks.propagator("coarse", coarse, grid.coarsen(m), common.deterministic)
        needed = options.jacobian != "none" and options.damping != 1
        source = source_of(self.fine, u0[None]) if needed else None
        self.kind = choose_kind(options.jacobian, self.fine, source) if needed else "none"
        fused = fuses(self.fine, self.kind, m, options.damping, common.tol, str(norm), common.runtime)
        self.iterate = (FusedNewton if fused else NewtonIteration)(
            self.fine,
            Linearised(self.fine, source, self.kind) if source is not None and self.kind != "none" else None,
            coarse,
            grid,
            m,
            damping=options.damping,
            trust=options.trust,
            tol=common.tol,
            max_iterations=checks.iterations(common.max_iterations, self.slices),
            norm=str(norm),
            freeze=freeze,
            keep_going=common.keep_going,
            runtime=common.runtime,
            callback=common.callback,
            residuals=History(),
        )
        self._failed_at: Array | None = None

    @property
    def residuals(self) -> list[float]:
        return self.iterate.residuals

    @property
    def iterations(self) -> int:
        return len(self.iterate.residuals)

    def run(self, u: Array, guessed: bool) -> tuple[Status, Array]:
        status = self.iterate.run(u, guessed=guessed)
        self._failed_at = None if status.ok else u
        return status, u

    def final_residual(self, u: Array) -> float | None:
        return None

    @cached_property
    def growth(self) -> Growth | None:
        """Of the last Jacobians; where none are used and the iteration failed, of one tangent per slice."""
        if self.iterate.jacobians is not None:
            return growth_of(self.iterate.jacobians, self.m, diagonal=self.iterate.diagonal)
        logs = self.slice_logs()
        return None if logs is None else growth_from(logs, self.m)

    def slice_logs(self) -> np.ndarray[Any, Any] | None:
        """``log |J|`` of every slice, float64 ``[slices]``, NaN where it is not known; None if nowhere."""
        if self.iterate.jacobians is not None:
            return slice_logs(self.iterate.jacobians, diagonal=self.iterate.diagonal)
        if self._failed_at is None or not arrays.is_torch(self._failed_at):
            return None
        from .autograd_jacobians import growth_of_a_tangent

        logs = growth_of_a_tangent(self.fine, self._failed_at[:-1], self.grid.starts(self.m), self.m).cpu().numpy()
        return np.where(np.isfinite(logs), logs, math.nan)

    def stats(self, filled: tuple[int, int]) -> Stats:
        iterate, growth = self.iterate, self.growth
        stats = Stats(
            slices=self.slices,
            m=self.m,
            serial_steps=self.grid.steps,
            fine_steps=iterate.fine_steps + filled[0],
            critical_fine_steps=self.iterations * self.m + filled[1],
            coarse_steps=iterate.coarse_steps,
            critical_coarse_steps=iterate.coarse_steps,
            levels=1,
            converged_slices=tuple(iterate.converged),
            jacobian=self.kind,
        )
        if growth is None:
            return stats
        return dataclasses.replace(
            stats, exponent=growth.exponent, worst_slice=growth.slice, chain_exponent=growth.chain
        )

    def report(self, solution: Solution) -> str:
        done = self.iterate.converged[-1] if self.iterations else 0
        last = described_last("residual", self.residuals, self.iterate.tol)
        return (
            f"{solution.status.value} ({done} of {self.slices} slices after {self.iterations} "
            f"iterations with jacobian {self.kind!r}{last}). {self._growth_report()}"
            'The solution so far is in .solution; on_failure="serial" falls back.'
        )

    def _growth_report(self) -> str:
        """Where the chain grows, if that is known."""
        growth, m = self.growth, self.m
        if growth is None:
            return ""
        where = f"Slice {growth.slice} (steps {growth.slice * m} to {growth.slice * m + m - 1})"
        text = f"{where} grows by exp({growth.exponent:.3g}) per step"
        if growth.chain is None:
            return f"{text}. "
        kind = (
            "it is chaotic or unstable, and no such method is faster than the serial chain"
            if growth.chain > 0
            else "the chain as a whole does not grow; trust=0.25 or damping may help"
        )
        return f"{text}, the chain by exp({growth.chain:.3g}): {kind}. "


def check_options(options: Newton) -> None:
    """Refuse what no :class:`.Newton` can mean, naming the option."""
    checks.choose("jacobian", options.jacobian, ("auto", *KINDS))
    damping, trust = options.damping, options.trust
    if damping != "adaptive":
        if not _is_number(damping):
            raise TypeError(f"damping: got {damping!r}, expected a number or 'adaptive'")
        if not 0 <= float(damping) <= 1:
            raise ValueError(f"damping: got {damping}, expected a number from 0 to 1, or 'adaptive'")
    if trust is not None:
        if not _is_number(trust):
            raise TypeError(f"trust: got {trust!r}, expected a number or None")
        if not 0 < trust < math.inf:
            raise ValueError(f"trust: got {trust}, expected a finite number above 0, or None")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.floating) and not isinstance(value, bool)
