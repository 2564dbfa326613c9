# SPDX-License-Identifier: BSD-3-Clause
"""Parareal: one fine step over every slice at once, one coarse chain that carries the corrections.

    U_0[n+1] = G(U_0[n])
    U_k[n+1] = F(U_{k-1}[n]) + (G(U_k[n]) - G(U_{k-1}[n]))              k = 1, 2, ...

``F`` takes the ``m`` fine steps of a slice, ``G`` one cheap step across it. J.-L. Lions, Y. Maday,
G. Turinici, C. R. Acad. Sci. Paris 332 (2001), pp. 661-668; in this form M. J. Gander, S. Vandewalle,
SIAM J. Sci. Comput. 29 (2007), pp. 556-578, eq. (2.2).

After ``k`` iterations the first ``k`` slices are exact: slice ``n`` then starts from a final state, the
bracket is zero, and ``U_k[n+1]`` is the fine result itself. The prefix of exact slices, and of slices
whose jump ``|U_k - U_{k-1}|`` has fallen below the tolerance once the last exact state has settled, is frozen
and not computed again, even if slices further right overflow meanwhile: ``keep_going`` iterates through that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import arrays, ops
from .norms import NORMS
from .propagators import Propagator, advance
from .runtime import Runtime
from .solution import Status
from .stopping import leading, settled
from .time_grid import TimeGrid

Array = Any
Callback = Callable[[int, Array, float], Any]


@dataclass
class Parareal:
    """Fine and coarse propagator, the grid of the fine one, and the rule to stop; :meth:`run` does the work.

    Attributes
    ----------
    residuals : list of float
        Per iteration the largest jump of a slice that was not yet known to be exact.
    converged : list of int
        Per iteration the length of the frozen prefix.
    """

    fine: Propagator
    coarse: Propagator
    grid: TimeGrid
    m: int
    tol: float | None
    max_iterations: int
    norm: str
    freeze: bool
    keep_going: bool
    runtime: Runtime
    callback: Callback | None = None
    residuals: list[float] = field(default_factory=list)
    converged: list[int] = field(default_factory=list)
    fine_steps: int = 0
    coarse_steps: int = 0

    def run(self, u: Array, *, guessed: bool = False) -> Status:
        """Iterate on ``u [slices + 1, batch, features...]`` in place; ``u[0]`` is the initial value.

        With ``guessed`` the other rows are the starting guess, otherwise the coarse chain makes it.
        """
        f, g = arrays.empty_like(u[1:]), arrays.empty_like(u[1:])
        self._guess(u, g, guessed)
        jump = ops.slice_norms(u[1:], norm="max_abs")
        if self.tol is None:
            return self._run_fixed(u, f, g, jump)
        if not (self.keep_going or math.isfinite(self.runtime.reduce(jump, np.maximum))):
            return Status.NON_FINITE_GUESS

        done, last_move, slices = 0, 0.0, self.runtime.in_all(len(f))
        for k in range(1, self.max_iterations + 1):
            jumps, moves = self.runtime.gather(jump, self._iterate(u, f, g, jump, done))
            done, still = done + 1, settled(moves, last_move, self.tol)
            residual = float(np.max(jumps[done:], initial=0.0))
            below = leading(jumps[done:] < self.tol) if still else 0
            done += below if self.freeze or done + below == slices else 0
            last_move = float(jumps[done]) if done < slices else 0.0
            self.residuals.append(residual)
            self.converged.append(done)
            if not (self.keep_going or math.isfinite(residual)):
                return Status.NON_FINITE
            if self.callback is not None and self.callback(k, u, residual):
                return Status.STOPPED
            if done == slices:
                return Status.CONVERGED
        return Status.MAX_ITERATIONS

    def _run_fixed(self, u: Array, f: Array, g: Array, jump: Array) -> Status:
        """``max_iterations`` of them, or until every slice is exact; their jumps are read when all are under way."""
        last, jumps = min(self.max_iterations, self.runtime.in_all(len(f))), []
        for done in range(last):
            self._iterate(u, f, g, jump, done)
            jumps.append(arrays.copy(jump[self.runtime.left_of(done + 1, len(f)) :]))
        self.residuals += [self.runtime.reduce(one, np.maximum) for one in jumps]
        self.converged += range(1, last + 1)
        for k, residual in enumerate(self.residuals if self.callback else (), start=1):
            self.callback(k, u, residual)  # type: ignore[misc]
        return Status.FIXED

    def _iterate(self, u: Array, f: Array, g: Array, jump: Array, done: int) -> Array:
        """``F`` of all but the first ``done`` slices, the coarse chain behind it; ``|F(u) - u|`` of the first two."""
        first, second, third = (self.runtime.left_of(done + i, len(f)) for i in range(3))
        with self.runtime.mark("parareal.fine"):
            starts = self.runtime.shift(u)[first:]
            self.runtime.map(self.fine, starts, self.grid.starts(self.m, first, len(f)), self.m, out=f[first:])
            self.fine_steps += self.m * len(starts)
        norm = NORMS[self.norm]
        moves = ops.slice_norms(f[first:third], u[first + 1 : third + 1], norm=norm.op)
        u[first + 1 : second + 1] = f[first:second]  # this slice started from a final state
        with self.runtime.mark("parareal.coarse"):
            self._correct(u, f, g, jump, second)
        return norm.finish(moves, math.prod(u.shape[1:]))

    def _guess(self, u: Array, g: Array, guessed: bool) -> None:
        """``U_0[n+1] = G(U_0[n])``, or ``G`` of a given guess; either way ``g[n] = G(U_0[n])``."""

        def predict(n: int, start: Array, end: Array) -> None:
            advance(self.coarse, start, slice(n, n + 1, 1), out=g[n : n + 1])
            end[...] = g[n : n + 1]

        with self.runtime.mark("parareal.guess"):
            if guessed:
                self.runtime.map(self.coarse, self.runtime.shift(u), slice(0, len(g), 1), out=g)
            else:
                self.runtime.chain(predict, u, 0)
            self.coarse_steps += len(g)

    def _correct(self, u: Array, f: Array, g: Array, jump: Array, first: int) -> None:
        """``u[n+1] = f[n] + (G(u[n]) - g[n])`` from left to right, ``g[n] = G(u[n])``, and the jump of ``u[n+1]``."""
        g_new, norm = arrays.empty_like(g[:1]), NORMS[self.norm]

        def correct(n: int, start: Array, end: Array) -> None:
            here = slice(n, n + 1)
            advance(self.coarse, start, slice(n, n + 1, 1), out=g_new)
            # Bracket first: it is exactly zero where the start no longer changes, and then the end is F exactly.
            ops.parareal_update(f[here], g_new, g[here], end, norm=norm.op, out=end, jump=jump[here])
            g[here] = g_new

        self.runtime.chain(correct, u, first)
        self.coarse_steps += len(g) - first
        jump[first:] = norm.finish(jump[first:], math.prod(u.shape[1:]))
