# SPDX-License-Identifier: BSD-3-Clause
"""The adjoint of a chain, itself a chain, solved by the same methods on the reversed grid.

``u[i+1] = Phi_i(u[i]) + g[i+1]`` and a function ``J`` of the states with ``w[i] = dJ/du[i]`` have the adjoint

    lambda[N] = w[N]        lambda[i] = J_i^T lambda[i+1] + w[i]        J_i = (dPhi_i/du)(u[i])

and then ``dJ/du0 = lambda[0]``, ``dJ/dg[i] = lambda[i]``, ``dJ/dtheta = sum_i (dPhi_i/dtheta)^T lambda[i+1]``.
Level ``l`` of its hierarchy has the transposed derivative of the forward level's ``Phi_l`` at the states there.
S. Guenther, N. R. Gauger, J. B. Schroder, "A non-intrusive parallel-in-time adjoint solver with the XBraid library",
Comput. Vis. Sci. 19 (2018), 85-95; for layers of networks S. Guenther et al., SIAM J. Math. Data Sci. 2 (2020), 1-23.

The C-points of the reversed grid are those of the forward one, so the ``N mod m`` trailing steps come first, serially.
Where the factor of a coarser level does not divide its steps, its reversed grid gets steps in front that keep
``lambda``, and so does every level above it. They do no harm: what they start from is exact, and a step that starts
from an exact state ends, bracket first, in the fine result whatever the coarse propagator.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import arrays, checks
from .adjoint_step import adjoint_step
from .errors import ConvergenceError
from .hierarchy import Level, Transfer, build_levels
from .linearise import Source, source_of
from .method_runs import MethodRun, MgritRun, PararealRun, Problem, check_options
from .mgrit import MGRIT
from .newton import Newton
from .newton_run import NewtonRun
from .newton_run import check_options as check_newton
from .norms import NORMS
from .propagators import Propagator, advance_all
from .relaxation import every_point
from .solution import Solution, Status
from .stopping import SpatialNorm, spatial_norms, temporal_norm
from .time_grid import TimeGrid
from .vjp import require_graph

METHODS = ("parareal", "mgrit", "newton", "serial")
ON_FAILURE = ("raise", "serial", "return")


@dataclass(frozen=True)
class Adjoint:
    """How the backward pass of :func:`pyparareal.solve` solves; what is None is that of the forward solve.

    Attributes
    ----------
    method : {"parareal", "mgrit", "newton", "serial"}, MGRIT or Newton, optional
        "serial": one step after the other, as autograd does it for the chain. With ``skip_first_down=False``
        MGRIT starts from zero. Newton, for this linear chain, is one reverse scan of the transposed Jacobians, each
        computed once, and a second relaxation to see that it is right; with ``jacobian="diagonal"`` or "none" it
        iterates. It has neither damping nor ``trust`` unless a Newton is given here.
    tol : float, optional
        As ``tol`` of the forward solve, times ``sum_i |w[i]|``, the norms of the gradients that come in: no
        ``lambda`` is larger than that where the steps do not amplify. Not times that if MGRIT's ``relative`` is given.
    max_iterations : int, optional
        Default: as many as make every slice exact, or ``max_iterations`` of the forward solve if that is more. With
        ``tol=None`` it is the number of the forward solve, and how exact the gradients are is for you to say.
    on_failure : {"raise", "serial", "return"}, optional
        "return" uses the gradients as they are, with a warning unless ``max_iterations`` is given and all that failed.
    norm : as in :func:`pyparareal.solve`, optional
    fixed : bool
        Run ``max_iterations`` iterations, compared with nothing, whatever the tolerance of the forward solve.
    accept : callable, optional
        Asked about every pass of iterations that ended well, a :class:`BackwardPass`; if it says no, the pass counts as
        diverged, whatever ``on_failure``, and the adjoint is solved serially instead.
    """

    method: str | MGRIT | Newton | None = None
    tol: float | None = None
    max_iterations: int | None = None
    on_failure: str | None = None
    norm: SpatialNorm | None = None
    fixed: bool = False
    accept: Callable[[BackwardPass], bool] | None = None


@dataclass(frozen=True)
class BackwardPass:
    """How one backward pass went; :attr:`Solution.adjoint` has one for each.

    Attributes
    ----------
    status : Status
    iterations : int
    residuals : tuple of float
        As in :class:`Solution`, of the adjoint; if it was not accepted, of the iterations that were not.
    failure : Status, optional
        Why the method failed, if the adjoint was solved serially instead.
    size : float
        Norm of ``lambda`` at the C-points, as that of the residuals is taken.
    path : float
        How far ``lambda`` goes, in units of itself: ``sum_n |lambda[n] - lambda[n+1]| / |lambda[n]|`` at the C-points.
    """

    status: Status
    iterations: int = 0
    residuals: tuple[float, ...] = ()
    failure: Status | None = None
    size: float = math.nan
    path: float = math.nan


class AdjointChain:
    """The adjoint of ``problem``: its method and levels, checked when made; :meth:`solve` solves it.

    Raises
    ------
    TypeError, ValueError
        For options that do not fit, or a level without a propagator.
    """

    def __init__(self, problem: Problem, adjoint: Any) -> None:
        options = _options(adjoint)
        self.problem = problem
        self.method = problem.method if options.method is None else options.method
        if not isinstance(self.method, MGRIT | Newton):
            checks.choose("method", self.method, METHODS)
        if self.method == "mgrit":
            self.method = MGRIT()
        if self.method == "newton":
            self.method = Newton()
        if isinstance(self.method, Newton):
            check_newton(self.method)
            if options.method is None:  # its chain is linear: there is no region to stay in
                self.method = dataclasses.replace(self.method, damping=0.0, trust=None)
        self.on_failure = problem.on_failure if options.on_failure is None else options.on_failure
        checks.choose("on_failure", self.on_failure, ON_FAILURE)
        self.limit, self.accept = options.max_iterations, options.accept
        if self.accept is not None and not callable(self.accept):
            raise TypeError(f"accept: got {type(self.accept).__name__}, expected a callable or None")
        checks.iterations(self.limit, 1)
        self.tol = problem.common.tol if options.tol is None else checks.tolerance(options.tol)
        if options.fixed:
            if options.tol is not None or self.limit is None:
                raise ValueError("fixed: got True, expected max_iterations with it, and no tol")
            self.tol = None
        self.norm = self._norm(options.norm)
        self.levels = self._levels()
        self._jacobians: Source | None = None

    def _norm(self, norm: SpatialNorm | None) -> SpatialNorm:
        multilevel, forward = isinstance(self.method, MGRIT), self.problem.common.norm
        if norm is None and forward is not None and (multilevel or not callable(forward)):
            norm = forward
        if norm is None:
            return "l2" if multilevel else "inf"
        if not (multilevel and callable(norm)):
            checks.choose("norm", norm, tuple(NORMS))
        return norm

    def _levels(self) -> list[Level]:
        """The forward levels the method uses: the finest alone where it is serial."""
        problem, grid, method = self.problem, self.problem.grid, self.method
        phi = checks.propagator("fine", problem.fine, grid, deterministic=False)
        if isinstance(method, MGRIT):
            check_options(method, guessed=False)
            return build_levels(
                problem.fine,
                problem.coarse,
                grid,
                problem.m,
                levels=method.levels,
                min_coarse=method.min_coarse,
                nu=method.nu,
                omega=method.omega,
                transfer=method.transfer,
                adapt=lambda name, phi, on: checks.propagator(name, phi, on, deterministic=False),
            )
        m = problem.factor
        finest = Level(phi, grid, m, 0, 1.0, None)
        if method == "serial" or isinstance(method, Newton):
            return [finest]
        coarse = problem.coarse[0] if isinstance(problem.coarse, list | tuple) else problem.coarse
        if coarse is None:
            if not hasattr(phi, "rediscretise"):
                raise TypeError("coarse: not given, and fine has no rediscretise(m) to make one")
            coarse = phi.rediscretise(m)
        below = grid.coarsen(m)
        coarse = checks.propagator("coarse", coarse, below, deterministic=False)
        return [finest, Level(coarse, below, m, 0, 1.0, None)]

    def require_graphs(self, u: Tensor) -> None:
        """Refuse propagators without a derivative, judged on one step from ``u [1, ...]`` on every level."""
        for depth, level in enumerate(self.levels):
            transfer = self.levels[depth - 1].transfer if depth else None
            u = u if transfer is None else transfer.restrict(u)
            require_graph(level.phi, u)
        if isinstance(self.method, Newton) and self.method.jacobian != "none":
            self._jacobians = source_of(self.levels[0].phi, u)

    @property
    def serial(self) -> bool:
        """Whether there is nothing to iterate on."""
        return len(self.levels) == 1 and not isinstance(self.method, Newton)

    def solve(self, u: Tensor, w: Tensor, *, every: bool) -> tuple[Tensor, BackwardPass]:
        """``lambda`` at all points of the grid (``every``), or ``lambda[0]`` alone, and how it went.

        Parameters
        ----------
        u, w : tensors ``[steps + 1, batch, features...]``
            States, and the gradients with respect to them.
        """
        m, steps, common = self.levels[0].m, self.problem.grid.steps, self.problem.common
        scale = common.runtime.reduce(spatial_norms(self.norm, w))
        if scale == 0:
            return torch.zeros_like(w if every else w[:1]), BackwardPass(Status.CONVERGED)
        whole = steps - steps % m
        trailing = self._serial(u, w, steps, steps - whole, 1)
        if self.serial or not math.isfinite(scale):
            return self._serially(u, w, trailing, every, None if math.isfinite(scale) else Status.NON_FINITE)
        run, c, guessed = self._prepare(u[: whole + 1], w[: whole + 1], trailing[-1], scale)
        status, c = run.run(c, guessed)
        if status.ok and not checks.finite(c):
            status = Status.NON_FINITE
        went = BackwardPass(status, run.iterations, tuple(run.residuals), None, *self._extent(c))
        if status.ok and self.accept is not None and not self.accept(went):
            v, instead = self._serially(u, w, trailing, every, Status.DIVERGED)
            return v, dataclasses.replace(instead, residuals=went.residuals)
        if not status.ok and self.on_failure == "serial":
            return self._serially(u, w, trailing, every, status)
        if not status.ok:
            self._complain(run, c, went)
        if not every:
            return c[-1:], went
        v = arrays.empty_like(c, slices=(len(c) - 1) * m + 1)
        every_point(common.runtime, run.fine, TimeGrid(0, 1, len(v) - 1), m, c, v)
        return _forwards(v[len(v) - 1 - whole :], trailing), went

    def _extent(self, c: Tensor) -> tuple[float, float]:
        """``size`` and ``path`` of a :class:`BackwardPass` with ``lambda`` at the C-points ``c``."""
        kind, runtime = "inf", self.problem.common.runtime
        if isinstance(self.method, MGRIT):
            kind = self.method.temporal_norm
        norms, steps = spatial_norms(self.norm, c[1:]), spatial_norms(self.norm, c[1:], c[:-1])
        return temporal_norm(kind, norms, runtime), runtime.reduce(steps / (norms + (norms == 0)))

    def _serially(
        self, u: Tensor, w: Tensor, trailing: Tensor, every: bool, failure: Status | None
    ) -> tuple[Tensor, BackwardPass]:
        m, whole = self.levels[0].m, len(w) - len(trailing)
        main = self._serial(u[: whole + 1], w[: whole + 1], whole, whole, m, trailing[-1])
        status = Status.SERIAL if failure is None else Status.SERIAL_FALLBACK
        went = BackwardPass(status, 0, (), failure, *self._extent(main[::m]))
        return _forwards(main, trailing) if every else main[-1:], went

    def _serial(self, u: Tensor, w: Tensor, last: int, steps: int, stride: int, start: Tensor | None = None) -> Tensor:
        """``lambda`` at the points ``last, last - 1, ...``: ``[steps + 1, ...]``, one step after the other."""
        phi = self._adapt(adjoint_step(self.levels[0].phi, u, last, w), last)
        v = arrays.empty_like(w, slices=steps + 1)
        v[0] = w[last] if start is None else start
        advance_all(phi, v, steps, stride)
        return v

    def _adapt(self, phi: Propagator, last: int) -> Propagator:
        grid = TimeGrid(0, 1, last)
        return checks.propagator("adjoint", phi, grid, self.problem.common.deterministic)

    def _prepare(self, u: Tensor, w: Tensor, end: Tensor, scale: float) -> tuple[MethodRun, Tensor, bool]:
        """The method on the reversed grid, its C-points with a start, and whether that is a guess."""
        method, m = self.method, self.levels[0].m
        steps = self._reversed_steps()
        states, transfers = self._restricted(u)
        chains = [
            adjoint_step(level.phi, v, last, None if depth else w, self._jacobians)
            for depth, (level, v, last) in enumerate(zip(self.levels, states, steps, strict=True))
        ]
        relative = isinstance(method, MGRIT) and method.relative
        common = dataclasses.replace(
            self.problem.common,
            tol=None if self.tol is None else self.tol * (1.0 if relative else scale),
            max_iterations=self._most_iterations(),
            norm=self.norm,
            guessed=False,
            callback=None,
        )
        grid = TimeGrid(0, 1, steps[0])
        c = arrays.empty_like(w, slices=steps[0] // m + 1)
        kept = steps[0] // m - (len(w) - 1) // m
        c[: kept + 1] = end
        if isinstance(method, Newton):
            c[1:] = 0
            return NewtonRun(chains[0], None, grid, m, method, self.problem.freeze, end, common), c, True
        if not isinstance(method, MGRIT):
            return PararealRun(chains[0], chains[1], grid, m, self.problem.freeze, common), c, False
        options = dataclasses.replace(method, levels=len(self.levels), min_coarse=1, transfer=transfers)
        from_zero = method.skip_first_down is False and not method.nested
        c[kept + 1 :] = 0
        factors = [max(2, level.m) for level in self.levels]  # a coarsest level of one step has the factor 1
        return MgritRun(chains[0], chains[1:], grid, factors, options, end, common), c, from_zero

    def _most_iterations(self) -> int | None:
        forward = self.problem.common.max_iterations
        if self.limit is not None or forward is None:
            return self.limit
        if self.tol is None:
            return forward
        # Every method's own default is at most the number of slices, a first cycle that only goes up, and a last one.
        return max(forward, self._reversed_steps()[0] // self.levels[0].m + 2)

    def _reversed_steps(self) -> list[int]:
        """The steps of every level's reversed grid: those of the level, and more where a factor does not divide."""
        if len(self.levels) == 1:
            return [self.problem.grid.slices(self.levels[0].m) * self.levels[0].m]
        factors = [level.m for level in self.levels[:-1]]
        unit = math.prod(factors[1:])
        steps = [-(-self.levels[1].grid.steps // unit) * unit * factors[0]]
        for m in factors:
            steps.append(steps[-1] // m)
        return steps

    def _restricted(self, u: Tensor) -> tuple[list[Tensor], list[Transfer | None]]:
        """The states of every level, and the transposed transfers between their spaces."""
        states: list[Tensor] = [u]
        transfers: list[Transfer | None] = []
        for level in self.levels[:-1]:
            v = fine = states[-1][:: level.m]
            if level.transfer is not None:
                v = level.transfer.restrict(fine)
            transfers.append(None if level.transfer is None else _transposed(level.transfer, fine[:1], v[:1]))
            states.append(v)
        return states, transfers

    def _complain(self, run: MethodRun, c: Tensor, went: BackwardPass) -> None:
        """Raise, or warn of what nobody asked for."""
        found = self._found(c, run, went)
        if self.on_failure == "raise":
            raise ConvergenceError(f"adjoint: {run.report(found)}", found)
        if went.status is not Status.MAX_ITERATIONS or self.limit is None:
            warnings.warn(f"adjoint: the gradients are inexact: {went.status.value}", RuntimeWarning, stacklevel=2)

    def _found(self, c: Tensor, run: MethodRun, went: BackwardPass) -> Solution:
        """``lambda`` at the C-points, as far as it came, for the error that says so."""
        m, slices = run.m, self.problem.grid.slices(run.m)
        v = c[len(c) - 1 - slices :].flip(0)
        points = np.arange(0, slices * m + 1, m)
        return Solution(v, points, self.problem.grid, went.status, went.iterations, went.residuals, run.stats((0, 0)))


def _forwards(main: Tensor, trailing: Tensor) -> Tensor:
    """``lambda`` at all points in the order of the chain: those of whole slices, then of the trailing steps."""
    return main.flip(0) if len(trailing) == 1 else torch.cat([main.flip(0), trailing.flip(0)[1:]])


def _options(adjoint: Any) -> Adjoint:
    if adjoint is None:
        return Adjoint()
    if isinstance(adjoint, str | MGRIT | Newton):
        return Adjoint(adjoint)
    if not isinstance(adjoint, Adjoint):
        raise TypeError(f"got {type(adjoint).__name__}, expected Adjoint, MGRIT, Newton or one of {', '.join(METHODS)}")
    return adjoint


def _transposed(transfer: Transfer, fine: Tensor, coarse: Tensor) -> Transfer:
    """Restriction ``P^T`` and prolongation ``R^T`` for states like ``fine`` and ``coarse``, ``[1, ...]``."""

    def transpose(linear: Any, like: Tensor) -> Any:
        def apply(w: Tensor) -> Tensor:
            with torch.enable_grad():
                x = like.new_zeros((len(w), *like.shape[1:])).requires_grad_()
                (gradient,) = torch.autograd.grad(linear(x), x, w)
            return gradient

        return apply

    return Transfer(transpose(transfer.prolong, coarse), transpose(transfer.restrict, fine))
