# SPDX-License-Identifier: BSD-3-Clause
"""A solve verified: its steps by themselves, then all of it against the loop, and a name for what differs."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from .. import arrays, checks
from ..mgrit import MGRIT
from ..newton import Newton
from ..solver import serial_solve, solve
from .calls import Raised, guarded
from .chain import ChainVerifier
from .coarse import coarse_probes
from .expected import SAFETY, SENSITIVE, growth
from .faults import FAULT, NOTE, Fault, Finding, Place
from .measures import copy, differences, digits, epsilon, per_row, sizes
from .result import Comparison, SliceErrors, Verification

Array = Any

_ARGUMENTS = {"coarse", "m", "method", "tol", "max_iterations", "norm", "runtime", "rhs", "adjoint"} | {
    field.name for kind in (MGRIT, Newton) for field in dataclasses.fields(kind)
}


class SolveVerifier(ChainVerifier):
    """The work on one :class:`.chain.Chain`; :meth:`run` does it."""

    def run(self) -> Verification:
        """Everything, and all put back as it was."""
        comparisons: list[Comparison] = []
        try:
            with np.errstate(all="ignore"):
                comparisons = self._run()
        except Raised as raised:
            self.found.add(raised.finding())
        finally:
            self.held.restore()
        return Verification(self.chain.what, tuple(comparisons), self.found.all(), self.facts)

    def _run(self) -> list[Comparison]:
        self._require_coarse()
        self.progress("serial chain", 0.0)
        u = self.serial_states()
        if u is None:
            return []
        self.u = u
        self.probe_steps()
        self.held.restore()
        self.progress("growth of differences", 0.5)
        self.growth = growth(lambda i, v: guarded(self.one, self.place(i), i, v), self.u, self.m, self.slices)
        self.facts["growth of a relative difference"] = self.growth.relative
        self.facts["exponent per step"] = self.growth.exponent
        self.held.restore()
        coarse = self._coarse()
        if coarse is not None and not isinstance(coarse, str):
            self.found.add(*coarse_probes(self, coarse), group="coarse")
        self.held.restore()
        self.progress("parallel solve", 0.6)
        comparisons = self._values(coarse)
        if self.gradients and not self.found.has(Fault.RAISED):
            from .chain_gradients import compared

            self.progress("gradients", 0.8)
            self.held.restore()
            comparisons += compared(self)
        return comparisons

    # The whole

    def _require_coarse(self) -> None:
        """Refused before any work, in the words of solve."""
        method = self.chain.method
        needed = self.chain.coarse is None and not isinstance(method, Newton) and method != "newton"
        if needed and not hasattr(self.phi, "rediscretise"):
            raise TypeError("coarse: not given, and fine has no rediscretise(m) to make one")

    def _coarse(self) -> Any:
        """The propagator of one step per slice, if there is one whose states are those of the fine one."""
        chain = self.chain
        transfer = chain.method.transfer if isinstance(chain.method, MGRIT) else None
        coarse = chain.coarse[0] if isinstance(chain.coarse, list | tuple) else chain.coarse
        if transfer is not None:
            return "coarse in space"
        try:
            if coarse is None and hasattr(self.phi, "rediscretise"):
                coarse = self.phi.rediscretise(self.m)
            if coarse is None:
                return None
            return checks.propagator("coarse", coarse, self.grid.coarsen(self.m), chain.deterministic)
        except (TypeError, ValueError):
            return None  # refused by the solve too, which says so

    def solved(self, u0: Array, tol: float | None, **more: Any) -> Any:
        """The user's solve, every point kept."""
        chain = self.chain
        return solve(
            chain.fine, u0, self.grid, m=chain.m, tol=tol, coarse=chain.coarse, rhs=chain.rhs, method=chain.method,
            max_iterations=chain.max_iterations, norm=chain.norm, save="all", on_failure="return",
            deterministic=chain.deterministic, runtime=chain.runtime, **more,
        )  # fmt: skip

    def tolerance(self, coarse: Any) -> float:
        """That of the solve: given, or as small as can be reached."""
        if self.chain.tol is not None:
            return self.chain.tol
        if self._invariant(coarse) and not isinstance(self.chain.method, Newton) and self.chain.method != "newton":
            return 0.0
        return 256 * epsilon(self.u) * float(sizes(self.u).max()) * float(np.sqrt(np.prod(self.u.shape[1:])))

    def _invariant(self, coarse: Any) -> bool:
        return bool(self.phi.batch_invariant and getattr(coarse, "batch_invariant", False))

    def _values(self, coarse: Any) -> list[Comparison]:
        tol = self.tol = self.tolerance(coarse)
        chain, place = self.chain, self.place(0)
        without = sys.modules["torch"].no_grad if arrays.is_torch(self.u) else contextlib.nullcontext
        self.held.restore()
        with without():
            alone = partial(
                serial_solve, chain.fine, grid=self.grid, m=self.m, rhs=chain.rhs, deterministic=chain.deterministic,
                on_failure="return",
            )  # fmt: skip
            serial = guarded(alone, place, copy(self.start)).u
            self.held.restore()
            solution = self._solution(tol)
        self.held.restore()
        self.facts |= {"status": solution.status.value, "iterations": solution.iterations, "tolerance": tol}
        expected, allowed = self._expected(coarse, tol, solution)
        comparison = Comparison("values", expected, tuple(self._rows(solution.u, serial, allowed)))
        self._diagnose(comparison, solution, serial, tol)
        return [comparison]

    def _solution(self, tol: float) -> Any:
        """What the user's solve gives; what it refuses is refused here too."""
        try:
            return guarded(partial(self.solved, tol=tol), self.place(0), copy(self.start))
        except Raised as raised:
            if isinstance(raised.error, TypeError | ValueError) and str(raised).partition(":")[0] in _ARGUMENTS:
                raise raised.error from None
            raise

    def _expected(self, coarse: Any, tol: float, solution: Any) -> tuple[str, Any]:
        """The class of the error in words, and the largest ``[slices]``."""
        method = self.chain.method
        plain = method in ("parareal", "mgrit") or isinstance(method, MGRIT)
        weights = method.omega if isinstance(method, MGRIT) else 1.0
        plain = plain and bool(np.all(np.asarray(weights) == 1.0)) and coarse != "coarse in space"
        exact = (solution.status.name == "CONVERGED" and tol == 0) or solution.status.name.startswith("SERIAL")
        if plain and exact and self._invariant(coarse):
            text = "bitwise: all steps are batch-invariant, and the method has made every slice exact"
            return text, np.zeros(self.slices)
        text = (
            f"tolerance: {SAFETY:.0f} times the method's {tol:.2g} and rounding of {self.facts['dtype']} "
            f"({epsilon(self.u):.1g} of the state, {self.m} steps), made at every slice and grown along the chain as "
            f"measured: relative differences by at most {self.growth.relative:.2g}"
        )
        return text, self.growth.allowed(epsilon(self.u), tol)

    def _rows(self, u: Array, serial: Array, allowed: Any) -> Iterator[SliceErrors]:
        total = self.growth.total
        for n in range(self.slices):
            d = differences(u[n * self.m + 1 : (n + 1) * self.m + 1], serial[n * self.m + 1 : (n + 1) * self.m + 1])
            bad = np.flatnonzero(per_row(d) > allowed[n])
            step = int(bad[0]) if len(bad) else None
            yield SliceErrors(n, float(d.max()), float(d.mean()), float(allowed[n]), float(total[n]), step)

    def _diagnose(self, comparison: Comparison, solution: Any, serial: Array, tol: float) -> None:
        """What differs and is not yet explained gets a name."""
        status, bad = solution.status, comparison.first_bad
        if comparison.ok or status.ok:
            self._sensitive(comparison, tol)
        if (not status.ok and status.name not in ("ROUND_OFF", "STAGNATED")) or (not status.ok and bad is not None):
            place = self.place(bad.slice * self.m) if bad is not None else Place(words="the solve")
            last = f", last residual {solution.residuals[-1]:.2g}" if solution.residuals else ""
            text = f"After {solution.iterations} iterations{last}: {status.value}."
            self.found.add(Finding(Fault.NOT_CONVERGED, place, text))
            if self.growth.relative >= SENSITIVE:
                self._unstable()
        elif bad is not None and not self.found.blames():
            place = self.place(bad.slice * self.m + (bad.step or 0))
            residual = self._residual(solution.u, bad.slice)
            text = (
                f"The parallel states differ from the serial ones by {digits(bad.largest)} there (allowed: "
                f"{digits(bad.allowed)}). All steps were found repeatable and independent; the parallel states miss "
                f"the step itself by {digits(residual)} in that slice."
            )
            self.found.add(Finding(Fault.UNEXPLAINED, place, text))

    def _unstable(self) -> None:
        """Beside a solve that failed: that differences grow is a likely reason."""
        grown = self.growth
        text = (
            f"Relative differences grow by {digits(grown.relative)} along the chain, by exp({grown.exponent:.3g}) per "
            "step, and so do the errors of the iterates: only slices that begin nearly exact get better, one after "
            "the other."
        )
        numbers = {"growth": grown.relative, "exponent": grown.exponent}
        place = Place(words="the chain")
        self.found.add(Finding(Fault.CHAOS, place, text, NOTE, numbers=numbers))

    def _sensitive(self, comparison: Comparison, tol: float) -> None:
        grown = self.growth
        plain = grown.allowed(epsilon(self.u), tol, growing=False)
        beyond = [row for row in comparison.rows if row.largest > plain[row.slice]]
        if grown.relative < SENSITIVE or not beyond:
            return
        row = beyond[0]
        text = (
            f"Relative differences grow by {grown.relative:.2g} along the chain, by exp({grown.exponent:.3g}) per "
            f"step: from {self.word} {row.slice} on the states differ by more than {digits(plain[row.slice])}, "
            f"up to {digits(comparison.largest)}, which that growth explains (allowed there: "
            f"{digits(max(r.allowed for r in comparison.rows))})."
        )
        useless = comparison.ok and comparison.largest > 1e-2 * float(grown.scales.max())
        numbers = {"growth": grown.relative, "exponent": grown.exponent}
        severity = FAULT if useless else NOTE
        self.found.add(Finding(Fault.CHAOS, self.place(row.slice * self.m), text, severity, numbers=numbers))

    def _residual(self, u: Array, n: int) -> float:
        v = copy(u[n * self.m : n * self.m + 1])
        for i in range(n * self.m, (n + 1) * self.m):
            v = guarded(self.one, self.place(i), i, v)
        return float(differences(v, u[(n + 1) * self.m : (n + 1) * self.m + 1]).max())
