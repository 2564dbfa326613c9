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
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import arrays, checks
from .adjoint_options import METHODS, ON_FAILURE, options_of
from .adjoint_options import Adjoint as Adjoint
from .adjoint_options import BackwardPass as BackwardPass
from .adjoint_step import Parts
from .cuts import From
from .errors import ConvergenceError
from .handshake import method_name, named
from .hierarchy import Level, Transfer, build_levels
from .linearise import Source, source_of
from .method_runs import MethodRun, MgritRun, PararealRun, Problem, check_options
from .mgrit import MGRIT
from .newton import Newton
from .newton_run import NewtonRun
from .newton_run import check_options as check_newton
from .norms import NORMS
from .propagators import Propagator, advance, advance_all
from .relaxation import every_point
from .runtime import Runtime
from .solution import Solution, Status
from .stopping import SpatialNorm, spatial_norms, temporal_norm
from .time_grid import TimeGrid
from .vjp import require_graph


@dataclass(frozen=True)
class Stretch:
    """A contiguous part of the chain: here all of it, of :mod:`.adjoint_blocks` that of one rank.

    Attributes
    ----------
    u, w : tensors ``[steps + 1, batch, features...]``
        States, and the gradients with respect to them.
    first : int
        The point of the chain that row 0 is.
    end : tensor
        ``w[N]``, of the end of the whole chain.
    runtime : Runtime
        With the verbs on the slices of the stretch, from right to left.
    """

    u: Tensor
    w: Tensor
    first: int
    end: Tensor
    runtime: Runtime
    parts: Parts = field(default_factory=Parts)

    @property
    def last(self) -> int:
        return self.first + len(self.u) - 1

    def trailing(self, steps: int, found: Callable[[], Tensor]) -> Tensor:
        """``lambda [steps + 1, ...]`` at the points right of the last whole slice, from right to left: ``found()``.

        Where the stretch does not reach them, only the last.
        """
        return found()

    def states(self, depth: int, own: Tensor) -> Tensor:
        """Those of a coarse level from which its adjoint steps are taken: ``own``, of the stretch."""
        return own

    def local(self, run: MethodRun) -> MethodRun:
        """``run``, on the slices of the stretch."""
        return run

    def any(self, answer: bool) -> bool:
        """Whether it is so on any stretch."""
        return answer


@dataclass(frozen=True)
class Outcome:
    """How it went along a stretch, and ``lambda`` from left to right: at all its points, or at the first alone.

    If it failed and is not to be used, ``lambda`` is that of the C-points, from right to left, as ``run`` left it.
    """

    went: BackwardPass
    v: Tensor
    run: MethodRun | None = None


class AdjointChain:
    """The adjoint of ``problem``: its method and levels, checked when made; :meth:`solve` solves it.

    Raises
    ------
    TypeError, ValueError
        For options that do not fit, or a level without a propagator.
    """

    def __init__(self, problem: Problem, adjoint: Any) -> None:
        options = options_of(adjoint)
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

    def unit(self, deepest: int | None = None) -> int:
        """Steps between the points that every relaxed level has, or those up to ``deepest``: blocks may end there."""
        relaxed_to_the_end = isinstance(self.method, MGRIT) and self.method.coarsest_sweeps
        relaxed = self.levels if relaxed_to_the_end or len(self.levels) == 1 else self.levels[:-1]
        return math.prod(_factor(level, self.levels) for level in relaxed[: None if deepest is None else deepest + 1])

    def asked(self) -> dict[str, str]:
        """What must be the same on all ranks, by the name that an error says."""
        options = {"tol": self.tol, "max_iterations": self.limit, "on_failure": self.on_failure}
        found = {f"adjoint.{name}": repr(value) for name, value in options.items()} | {"adjoint.norm": named(self.norm)}
        return found | {"adjoint.method": method_name(self.method), "adjoint.accept": str(self.accept is not None)}

    def scale(self, dw: Tensor, points: Any) -> float:
        """``sum_i |w[i]|``, of gradients with respect to the states at some ``points``; the others are zero."""
        norms = np.zeros(self.problem.grid.steps + 1)
        norms[points] = arrays.to_numpy(spatial_norms(self.norm, dw))
        return self.problem.common.runtime.reduce(norms)

    def along(self, at: Stretch, scale: float, *, every: bool) -> Outcome:
        """``lambda`` at all points of a stretch (``every``), or at its first alone, and how it went.

        ``scale`` is that of the whole chain.
        """
        if scale == 0:
            return Outcome(BackwardPass(Status.CONVERGED), torch.zeros_like(at.w if every else at.w[:1]))
        m, steps = self.levels[0].m, self.problem.grid.steps
        whole = steps - steps % m
        trailing = at.trailing(steps - whole, lambda: self._trailing(at, steps, steps - whole))
        if self.serial or not math.isfinite(scale):
            return self._serially(at, trailing, None if math.isfinite(scale) else Status.NON_FINITE)
        run, c, guessed = self._prepare(at, whole, trailing[-1], scale)
        run = at.local(run)
        status, c = run.run(c, guessed)
        if status.ok and at.any(not checks.finite(c)):
            status = Status.NON_FINITE
        at.runtime.shift(c)
        went = BackwardPass(status, run.iterations, tuple(run.residuals), None, *self._extent(at, c))
        if status.ok and self.accept is not None and at.any(not self.accept(went)):
            instead = self._serially(at, trailing, Status.DIVERGED)
            return Outcome(dataclasses.replace(instead.went, residuals=went.residuals), instead.v)
        if not status.ok and self.on_failure == "serial":
            return self._serially(at, trailing, status)
        if not (status.ok or self.on_failure == "return"):
            return Outcome(went, c, run)
        if not every:
            return Outcome(went, c[-1:], run)
        v = arrays.empty_like(c, slices=(len(c) - 1) * m + 1)
        every_point(at.runtime, run.fine, TimeGrid(0, 1, len(v) - 1), m, c, v)
        return Outcome(went, _forwards(v[len(v) - 1 - (min(at.last, whole) - at.first) :], trailing), run)

    def _extent(self, at: Stretch, c: Tensor) -> tuple[float, float]:
        """``size`` and ``path`` of a :class:`BackwardPass` with ``lambda`` at the C-points ``c``."""
        kind = self.method.temporal_norm if isinstance(self.method, MGRIT) else "inf"
        norms, steps = spatial_norms(self.norm, c[1:]), spatial_norms(self.norm, c[1:], c[:-1])
        return temporal_norm(kind, norms, at.runtime), at.runtime.reduce(steps / (norms + (norms == 0)))

    def _trailing(self, at: Stretch, last: int, steps: int) -> Tensor:
        """``lambda`` at the points ``last, last - 1, ...``: ``[steps + 1, ...]``, one step after the other."""
        v = arrays.empty_like(at.w, slices=steps + 1)
        v[0] = at.end
        if steps:
            advance_all(self._step(at, last), v, steps, 1)
        return v

    def _serially(self, at: Stretch, trailing: Tensor, failure: Status | None) -> Outcome:
        """One step after the other, from stretch to stretch."""
        m, steps = self.levels[0].m, self.problem.grid.steps
        whole = steps - steps % m
        last = min(at.last, whole)
        phi = self._step(at, whole)
        mine = phi if last == whole else From(phi, whole - last)

        def link(n: int, start: Tensor, end: Tensor) -> None:
            advance(mine, start, slice(n, n + 1, m), out=end)

        v = arrays.empty_like(at.w, slices=last - at.first + 1)
        v[0] = trailing[-1]
        at.runtime.chain(link, v, 0, whole=lambda rows: advance_all(mine, rows, len(rows) - 1, m))
        status = Status.SERIAL if failure is None else Status.SERIAL_FALLBACK
        went = BackwardPass(status, 0, (), failure, *self._extent(at, v[::m]))
        return Outcome(went, _forwards(v, trailing))

    def _step(self, at: Stretch, last: int) -> Propagator:
        """The finest level's, on the reversed grid of the first ``last`` steps, as far as the stretch goes."""
        rows = min(at.last, last) - at.first + 1
        phi = at.parts.adjoint_step(self.levels[0].phi, at.u[:rows], at.first, last, last, at.w[:rows], None)
        return checks.propagator("adjoint", phi, TimeGrid(0, 1, last), self.problem.common.deterministic)

    def _prepare(self, at: Stretch, whole: int, end: Tensor, scale: float) -> tuple[MethodRun, Tensor, bool]:
        """The method on the reversed grid, the C-points of the stretch with a start, and whether that is a guess."""
        method, m, first = self.method, self.levels[0].m, at.first
        lasts, steps = self.reversed_steps(), min(at.last, whole) - first
        states, transfers = self._restricted(at, at.u[: steps + 1])
        chains = []
        for depth, (level, v, last) in enumerate(zip(self.levels, states, lasts, strict=True)):
            w, own = (None, level.grid.steps) if depth else (at.w[: steps + 1], whole)
            begin = 0 if len(v) == own + 1 else first
            chains.append(at.parts.adjoint_step(level.phi, v, begin, own, last, w, self._jacobians))
            first //= level.m
        relative = isinstance(method, MGRIT) and method.relative
        common = dataclasses.replace(
            self.problem.common,
            tol=None if self.tol is None else self.tol * (1.0 if relative else scale),
            max_iterations=self._most_iterations(),
            norm=self.norm,
            guessed=False,
            callback=None,
        )
        grid = TimeGrid(0, 1, lasts[0])
        kept = (lasts[0] - whole) // m if at.last >= whole else 0
        c = arrays.empty_like(at.w, slices=kept + steps // m + 1)
        c[: kept + 1] = end
        if isinstance(method, Newton):
            c[1:] = 0
            return NewtonRun(chains[0], None, grid, m, method, self.problem.freeze, end, common), c, True
        if not isinstance(method, MGRIT):
            return PararealRun(chains[0], chains[1], grid, m, self.problem.freeze, common), c, False
        options = dataclasses.replace(method, levels=len(self.levels), min_coarse=1, transfer=transfers)
        from_zero = method.skip_first_down is False and not method.nested
        c[kept + 1 :] = 0
        factors = [_factor(level, self.levels) for level in self.levels]
        return MgritRun(chains[0], chains[1:], grid, factors, options, end, common), c, from_zero

    def _most_iterations(self) -> int | None:
        forward = self.problem.common.max_iterations
        if self.limit is not None or forward is None:
            return self.limit
        if self.tol is None:
            return forward
        # Every method's own default is at most the number of slices, a first cycle that only goes up, and a last one.
        return max(forward, self.reversed_steps()[0] // self.levels[0].m + 2)

    def reversed_steps(self) -> list[int]:
        """The steps of every level's reversed grid: those of the level, and more where a factor does not divide."""
        first = self.levels[0].m
        if len(self.levels) == 1:
            return [self.problem.grid.slices(first) * first]
        unit = self.unit() // first
        steps = [-(-self.levels[1].grid.steps // unit) * unit * first]
        for level in self.levels[:-1]:
            steps.append(steps[-1] // level.m)
        return steps

    def _restricted(self, at: Stretch, u: Tensor) -> tuple[list[Tensor], list[Transfer | None]]:
        """The states of every level, and the transposed transfers between their spaces."""
        states: list[Tensor] = [u]
        transfers: list[Transfer | None] = []
        for depth, level in enumerate(self.levels[:-1]):
            v = fine = states[-1][:: level.m]
            if level.transfer is not None:
                v = level.transfer.restrict(fine)
            v = at.states(depth + 1, v)
            transfers.append(None if level.transfer is None else _transposed(level.transfer, fine[:1], v[:1]))
            states.append(v)
        return states, transfers

    def require(self, found: Outcome) -> None:
        """Raise if it failed, with ``lambda`` at all C-points from right to left; or warn of what nobody asked for."""
        went, run = found.went, found.run
        if went.status.ok:
            return
        if self.on_failure == "raise" and run is not None:
            solution = self.found(found.v, run, went)
            raise ConvergenceError(f"adjoint: {run.report(solution)}", solution)
        if went.status is not Status.MAX_ITERATIONS or self.limit is None:
            warnings.warn(f"adjoint: the gradients are inexact: {went.status.value}", RuntimeWarning, stacklevel=2)

    def found(self, c: Tensor, run: MethodRun, went: BackwardPass) -> Solution:
        """``lambda`` at the C-points, as far as it came, for the error that says so."""
        m, slices = run.m, self.problem.grid.slices(run.m)
        v = c[len(c) - 1 - slices :].flip(0)
        points = np.arange(0, slices * m + 1, m)
        return Solution(v, points, self.problem.grid, went.status, went.iterations, went.residuals, run.stats((0, 0)))


def _factor(level: Level, levels: list[Level]) -> int:
    """``m``; on a coarsest level of one step, which has the factor 1, at least 2: the reversed one may have more."""
    return level.m if level is not levels[-1] else max(2, level.m)


def _forwards(main: Tensor, trailing: Tensor) -> Tensor:
    """``lambda`` at all points in the order of the chain: those of whole slices, then of the trailing steps."""
    return main.flip(0) if len(trailing) == 1 else torch.cat([main.flip(0), trailing.flip(0)[1:]])


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
