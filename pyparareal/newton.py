# SPDX-License-Identifier: BSD-3-Clause
"""Newton's method for a chain: every slice is linearised at once, and one scan solves all the linear chains.

    r[n] = F(u[n]) - u[n+1]                                          residual of slice n
    d[n+1] = J[n] d[n] + r[n]          d[0] = 0                      the linearised chain
    u_new[n+1] = F(u[n]) + J[n] d[n]                                 n = 0 .. S - 1

``F`` takes the ``m`` steps of a slice, and ``J[n]`` is its Jacobian at ``u[n]``, the product of theirs. With ``m = 1``
and full Jacobians it is DEER: Y. H. Lim, Q. Zhu, J. Selfridge, M. F. Kasim, ICLR 2024, arXiv:2309.12252, eqs. (3)-(6);
with their diagonals quasi-DEER: X. Gonzalez, A. Warrington, J. T. H. Smith, S. W. Linderman, NeurIPS 2024,
arXiv:2407.19115. ``J = 0`` is the Jacobi or Picard iteration over slices, which is parareal with a coarse propagator
that is zero. All are one iteration with another linear chain for ``F``: X. Gonzalez et al., arXiv:2509.21716. Multiple
shooting for ordinary differential equations has the same form (parareal's derivation by Gander and Vandewalle, 2007).

Whatever ``J`` is, ``k`` iterations make ``k`` slices exact: slice ``n`` then starts from a final state, ``d[n]`` is
zero, and ``u_new[n+1]`` is the fine result itself. The prefix of slices that are exact, or whose residual is below the
tolerance, is frozen and not computed again. With the true ``J`` convergence is quadratic, and a linear chain is solved
by one iteration.

Where a chain grows, ``|J[n] ... J[0]| >> 1``, ``d`` does too, and the iteration leaves the region where it converges.
Two things keep it there. A trust region bounds ``d`` after the scan by the size of the states, the simplest form of
what ELK (arXiv:2407.19115) does within it; convergence stays quadratic. Damping scales ``J`` down to what stays
bounded, as generalised teacher forcing does (F. Hess et al., ICML 2023, and arXiv:2605.12683), and makes convergence
linear. Both help where a chain grows in places; where it is chaotic as a whole nothing does: X. Gonzalez et al.,
arXiv:2508.16817.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import arrays, growth, linear_chain, ops
from .linearise import Linearised
from .norms import NORMS
from .propagators import Propagator, advance
from .runtime import Runtime
from .solution import Status
from .stopping import leading
from .time_grid import TimeGrid

Array = Any


@dataclass(frozen=True)
class Newton:
    """The options of :mod:`pyparareal.newton`.

    Attributes
    ----------
    jacobian : {"auto", "full", "block", "diagonal", "none"}
        What of ``J`` is used; see :mod:`pyparareal.linearise` for where it comes from and what it costs. "auto": full
        up to 16 features, beyond that blocks or the diagonal where the propagator has them, otherwise none. "none"
        works for every propagator, and well for those that forget within a slice.
    damping : float from 0 to 1, or "adaptive"
        ``J`` is multiplied by ``1 - damping``: 0 is Newton's method, 1 the same as "none". "adaptive": by
        ``min(1, 1 / |J|)`` for each slice and each state of the batch, so that no product of them is larger than 1.
    trust : float, optional
        ``d[n]`` of a state is scaled down to at most ``trust`` times the largest number in ``F(u)`` of all slices, and
        dropped where it overflows. 0.25 suits states that are bounded, as those of recurrent cells are: little is lost
        where it is not needed. A chain whose states grow beyond those of its guess takes more iterations with it.
    """

    jacobian: str = "auto"
    damping: float | str = 0.0
    trust: float | None = None


@dataclass
class NewtonIteration:
    """The fine propagator, its slices' Jacobians, and the rule to stop; :meth:`run` does the work.

    The chain has converged when all residuals are below ``tol`` and all updates that follow below ``tol`` too, for
    what they leave is ``F' - J`` times as much; with the full Jacobian below ``max(tol, sqrt(tol))``, for that is of
    the order of their square. A small residual says little of the error where the chain amplifies it so much. A slice
    after a converged prefix has when its residual is below ``tol`` and its start moves as little. In a linear chain
    there is no such bound on the updates by its full Jacobian, neither damped nor restricted: they are exact.

    Attributes
    ----------
    linearised : Linearised, optional
        The slices with Jacobians; None for ``J = 0``.
    predict : Propagator, optional
        One step per slice, for the starting guess; None: the initial value everywhere.
    residuals : list of float
        Per iteration the largest residual, before the update, of the slices that are not frozen.
    converged : list of int
        Per iteration the length of the frozen prefix.
    jacobians : array, optional
        The last of every slice, not damped.
    """

    fine: Propagator
    linearised: Linearised | None
    predict: Propagator | None
    grid: TimeGrid
    m: int
    damping: float | str
    trust: float | None
    tol: float | None
    max_iterations: int
    norm: str
    freeze: bool
    keep_going: bool
    runtime: Runtime
    callback: Callable[[int, Array, float], Any] | None = None
    residuals: list[float] = field(default_factory=list)
    converged: list[int] = field(default_factory=list)
    jacobians: Array | None = None
    fine_steps: int = 0
    coarse_steps: int = 0

    def run(self, u: Array, *, guessed: bool = False) -> Status:
        """Iterate on ``u [slices + 1, batch, features...]`` in place; ``u[0]`` is the initial value.

        With ``guessed`` the other rows are the starting guess.
        """
        slices = self.runtime.in_all(len(u) - 1)
        f = arrays.empty_like(u[1:])
        if self.linearised is not None:
            self.jacobians = self.linearised.empty_jacobians(u[1:])
        if not guessed:
            self._guess(u)
        if self.tol is None:
            return self._run_fixed(u, f)

        done = 0
        for k in range(1, self.max_iterations + 1):
            norms, updates = self.runtime.gather(*self._iterate(u, f, done))
            done += 1
            residual = float(np.max(norms))
            below = self._below_tolerance(norms, updates, self.tol)
            done += below if self.freeze or done + below == slices else 0
            self.residuals.append(residual)
            self.converged.append(done)
            if not (self.keep_going or math.isfinite(residual)):
                return Status.NON_FINITE
            if self.callback is not None and self.callback(k, u, residual):
                return Status.STOPPED
            if done == slices:
                return Status.CONVERGED
        return Status.MAX_ITERATIONS

    def _run_fixed(self, u: Array, f: Array) -> Status:
        """``max_iterations`` of them, or until every slice is exact; residuals are read when all are under way."""
        last = min(self.max_iterations, self.runtime.in_all(len(f)))
        norms = [self._iterate(u, f, done)[0] for done in range(last)]
        self.residuals += [self.runtime.reduce(one, np.maximum) for one in norms]
        self.converged += range(1, last + 1)
        for k, residual in enumerate(self.residuals if self.callback else (), start=1):
            self.callback(k, u, residual)  # type: ignore[misc]
        return Status.FIXED

    def _guess(self, u: Array) -> None:
        if self.predict is None:
            u[1:] = u[:1]
            return
        predict = self.predict
        with self.runtime.mark("newton.guess"):
            self.runtime.chain(lambda n, start, end: advance(predict, start, slice(n, n + 1, 1), out=end), u, 0)
            self.coarse_steps += len(u) - 1

    def _iterate(self, u: Array, f: Array, done: int) -> tuple[Array, Array]:
        """``F`` and ``J`` of all but the first ``done`` slices, and the updates of their ends.

        Returns the norms of the residuals before, and of the updates.
        """
        first, second = (self.runtime.left_of(done + i, len(f)) for i in range(2))
        self._relax(u, f, first)
        with self.runtime.mark("newton.scan"), np.errstate(all="ignore"):
            norms = self._norms(f[first:], u[first + 1 :])
            if self.jacobians is None:
                u[first + 1 :] = f[first:]
                return norms, norms
            j = self._damped(self.jacobians[first:])
            d = linear_chain.solve(self.runtime, j, f[first:] - u[first + 1 :], done, diagonal=self.diagonal)
            updates = self._norms(d[1:])
            if self.trust is not None:
                linear_chain.restrict(d, self.runtime.largest(f[first:]), self.trust)
            u[first + 1 : second + 1] = f[first:second]  # this slice started from a final state
            # Bracket first: d is exactly zero where the start no longer changes, and then the end is F exactly.
            j, d = j[second - first :], d[second - first : -1]
            linear_chain.add_product(f[second:], j, d, out=u[second + 1 :], diagonal=self.diagonal)
            return norms, updates

    def _relax(self, u: Array, f: Array, first: int) -> None:
        """``f = F(u)``, and ``J`` where it is used and not known already, of all but the ``first`` slices."""
        with self.runtime.mark("newton.fine"):
            starts, points = self.runtime.shift(u)[first:], self.grid.starts(self.m, first, len(f))
            j = self.jacobians
            if self.linearised is None or j is None or (self._linear and self.fine_steps):
                self.runtime.map(self.fine, starts, points, self.m, out=f[first:])
            else:
                self.runtime.map(self.linearised, starts, points, self.m, out=f[first:], jacobians=j[first:])
            self.fine_steps += self.m * len(starts)

    @property
    def diagonal(self) -> bool:
        """Whether ``jacobians`` are diagonals."""
        return self.linearised is not None and self.linearised.kind == "diagonal"

    @property
    def _linear(self) -> bool:
        return self.linearised is not None and self.linearised.source.linear

    def _damped(self, jacobians: Array) -> Array:
        if self.damping == "adaptive":
            return growth.bounded(jacobians, diagonal=self.diagonal)
        return jacobians if self.damping == 0 else jacobians * (1 - float(self.damping))

    def _norms(self, u: Array, v: Array | None = None) -> Array:
        """``norm`` of ``u - v`` for each slice."""
        norm = NORMS[self.norm]
        return norm.finish(ops.slice_norms(u, v, norm=norm.op), math.prod(u.shape[1:]))

    def _below_tolerance(self, norms: Array, updates: Array, tol: float) -> int:
        """How many slices have converged, of those after the first one, which is exact."""
        full = self.linearised is not None and self.linearised.kind == "full" and self.damping == 0
        most = (math.inf if self._linear and self.trust is None else max(tol, math.sqrt(tol))) if full else tol
        if ((norms < tol) & (updates < most)).all():
            return len(norms) - 1
        small = (norms[1:] < tol) & (updates[:-1] < most)
        return leading(small)
