# SPDX-License-Identifier: BSD-3-Clause
"""The entry: check everything, iterate, and hand back a :class:`Solution` that says how it ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _trace, arrays, checks
from .blocks import OverRanks, over_ranks, together
from .errors import ConvergenceError
from .forcing import forced
from .method_runs import Common, MethodRun, MgritRun, PararealRun, Problem, refuse_unused
from .mgrit import MGRIT
from .newton import Newton
from .newton_run import NewtonRun
from .parareal import Callback
from .propagators import Propagator
from .runtime import Runtime
from .solution import Solution, Stats, Status
from .solve_notes import noted
from .states import SAVE, Found, filled, points_of, serial_states, settled_status
from .stopping import SpatialNorm
from .time_grid import TimeGrid

if TYPE_CHECKING:
    from .adjoint import Adjoint

Array = Any

METHODS = ("parareal", "mgrit", "newton")
ON_FAILURE = ("raise", "serial", "return")


@together
def solve(
    fine: Any,
    u0: Array,
    grid: TimeGrid,
    *,
    m: int | Sequence[int],
    tol: float | None,
    coarse: Any = None,
    rhs: Array | None = None,
    method: str | MGRIT | Newton = "parareal",
    max_iterations: int | None = None,
    norm: SpatialNorm | None = None,
    freeze: bool = True,
    keep_going: bool = False,
    initial: Solution | Array | None = None,
    save: str = "coarse",
    on_failure: str = "raise",
    deterministic: bool = False,
    callback: Callback | None = None,
    parameters: Iterable[Array] | None = None,
    adjoint: Adjoint | MGRIT | Newton | str | None = None,
    runtime: Runtime | None = None,
) -> Solution:
    """``u[i+1] = fine(u[i]) + rhs[i]`` from ``u0`` along ``grid``, all slices of ``m`` steps at once.

    For torch tensors the solution is differentiable, as the serial loop under autograd would be.

    Parameters
    ----------
    fine : Propagator, callable or torch module
        One step of ``grid``, batched over slices (:mod:`pyparareal.propagators`).
    u0 : array ``[batch, features...]``
        Initial value, floating point; NumPy, torch or CuPy. The states stay in its library, dtype and device.
    m : int, or for MGRIT a sequence
        Fine steps per slice; ``floor(N / m)`` slices run in parallel, ``N mod m`` trailing steps serially. MGRIT:
        the coarsening factor of every level, or of each from the finest.
    tol : float or None
        Parareal: a slice has converged when the ``norm`` of its last jump is below ``tol``, and an exact state that it
        starts from has settled; with 0 it must be exact, which takes as many iterations as there are slices. Newton:
        the same for its residual, and the update that follows (:mod:`pyparareal.newton`). MGRIT: see ``stopping``
        and what follows it in :class:`pyparareal.MGRIT`; by default the 2-norm of the residual at the C-points. None:
        run ``max_iterations`` iterations (at most as many as there are slices, but for MGRIT: all is exact then),
        compare with nothing and read nothing back before the last one is launched, so that a device never waits for
        the host; residuals are known and ``callback`` is called at the end (``Status.FIXED``).
    coarse : like ``fine``, or for MGRIT a list with one per coarse level, optional
        One step of ``grid.coarsen(m)``; default ``fine.rediscretise(m)``, level by level. Newton: only for the
        starting guess, which is ``u0`` everywhere without it.
    rhs : array ``[steps, batch, features...]``, optional
        Added after the step from each point. ``coarse`` and ``fine.rediscretise(m)`` are without it.
    method : {"parareal", "mgrit", "newton"}, MGRIT or Newton
        :mod:`pyparareal.parareal`, or :mod:`pyparareal.mgrit` or :mod:`pyparareal.newton` with these options.
    max_iterations : int, optional
        Default: as many as make every slice exact: the number of slices for parareal and Newton, for MGRIT divided by
        ``nu + 1`` and two more, to go up first and to see that it is exact; at least 100 where weights,
        coarse spaces or residuals of your own make nothing exact.
    norm : {"inf", "l1", "l2", "rms"}, or for MGRIT also a function
        Spatial norm, per slice; a function maps states ``[slices, batch, features...]`` to ``[slices]``. Default:
        "inf" for parareal and Newton, "l2" for MGRIT.
    freeze : bool
        Parareal, Newton: stop computing a slice once it and everything left of it have converged. Without it the jumps
        (residuals) of all inexact slices must be below ``tol`` in the same iteration.
    keep_going : bool
        Iterate on when a slice that is not yet exact holds NaN or infinity. It heals when the exact slices reach
        it, one per iteration; that is no faster than the serial solve, so by default it counts as a failure.
    initial : Solution or array ``[slices + 1, batch, features...]``, optional
        Starting guess at the C-points, for instance the solution of a neighbouring problem; its first row is ignored.
    save : {"coarse", "all", "end"}
        Keep the C-points and the end of the grid, or every point, or only the initial value and the end of the grid
        (points 0 and N). Differentiable is each; over ranks the C-points are not gathered for "end".
    on_failure : {"raise", "serial", "return"}
        What to do when the method does not converge: raise :class:`ConvergenceError` with the solution attached,
        solve serially, or return the solution with its status.
    deterministic : bool
        Evaluate propagators that are not batch-invariant in fixed, padded blocks of slices, so that
        exact slices are bit for bit those of ``serial_solve(..., m=m, deterministic=True)``. Gradients of parameters
        are added up slice by slice on a fixed tree, so that over ranks their bits are those of one process; not those
        that a step computes itself (:class:`pyparareal.adjoint_step.OwnAdjoint`).
    callback : callable, optional
        ``callback(k, u, residual)`` after iteration ``k``; ``u`` is the live array of C-points. A true value stops.
    parameters : iterable of tensors, optional
        The tensors besides ``u0`` and ``rhs`` with respect to which the solution is differentiable; all others are
        constants. Default: those requiring grad that ``fine`` holds, itself or in its modules, or that the first step
        is found to depend on; a later step that depends on yet others is an error of the backward pass.
    adjoint : Adjoint, MGRIT, Newton or {"parareal", "mgrit", "newton", "serial"}, optional
        How the backward pass solves the adjoint chain (:class:`pyparareal.Adjoint`); default: with the method,
        tolerance and ``on_failure`` of the solve. The gradients are those of the chain at the states found,
        exact to the two tolerances. Modules in training mode with BatchNorm or dropout are refused.
    runtime : Runtime, optional
        Where the work runs; default :class:`LocalRuntime`, with ``devices=[...]`` on several GPUs or in several
        threads. :class:`GraphRuntime`: cycles of MGRIT as CUDA graphs.
        :func:`pyparareal.distributed`: in several processes, which all call this and get the same solution.

    Raises
    ------
    TypeError, ValueError
        For a wrong argument, before any step is taken (but for one from ``u0`` that looks for parameters, if they are
        not given); or if a step returns another shape, dtype or device, or is to be differentiated and detaches.
    ConvergenceError
        See ``on_failure``; raised by the backward pass, it says "adjoint".
    """
    checks.choose("on_failure", on_failure, ON_FAILURE)
    checks.choose("save", save, SAVE)
    if not isinstance(freeze, bool):
        raise TypeError(f"freeze: got {freeze!r}, expected True or False")
    u0, grid = checks.initial_value(u0), checks.grid(grid)
    start = arrays.detached(u0)
    runtime = checks.runtime(runtime, start)
    if tol is None and max_iterations is None:
        raise ValueError("max_iterations: got None with tol=None, expected how many iterations to run")
    tol = None if tol is None else checks.tolerance(tol)
    common = Common(tol, max_iterations, norm, keep_going, deterministic, initial is not None, runtime, callback)
    chain = forced(fine, rhs, start, grid)
    run: MethodRun
    if not isinstance(method, MGRIT | Newton):
        checks.choose("method", method, METHODS)
    if method == "parareal":
        run = PararealRun(chain, coarse, grid, m, freeze, common)
    elif method == "newton" or isinstance(method, Newton):
        newton = method if isinstance(method, Newton) else Newton()
        run = NewtonRun(chain, coarse, grid, m, newton, freeze, start, common)
    else:
        options = method if isinstance(method, MGRIT) else MGRIT()
        refuse_unused(m, coarse, options)
        run = MgritRun(chain, coarse, grid, m, options, start, common)

    problem = Problem(fine, coarse, grid, run.fine, m, run.m, method, freeze, on_failure, common)
    over = over_ranks(run, problem, start, save, rhs)
    first_alone = run.serial or (over is not None and initial is None)
    c, guessed = (start[None], False) if first_alone else _start(start, initial, grid, run.m)

    def compute(adjoint: Any) -> tuple[Solution, Found]:
        iterate = partial(_iterate, run, over, adjoint, c, guessed, grid, save, on_failure, runtime)
        return iterate() if _trace.listener is None else noted(method, m, start, fine, iterate, tol)

    return _connected(compute, problem, u0, rhs, parameters, adjoint)


def _iterate(
    run: MethodRun,
    over: OverRanks | None,
    adjoint: Any,
    u: Array,
    guessed: bool,
    grid: TimeGrid,
    save: str,
    on_failure: str,
    runtime: Runtime,
) -> tuple[Solution, Found]:
    """The solution by ``run`` from the C-points ``u``, or what ``on_failure`` says; ``over`` the ranks, if any."""
    u0 = u[0]
    if over is not None:
        over.agree(adjoint, u[1:] if guessed else None)
    if run.serial:
        how = "return" if on_failure == "return" else "raise"
        serial, found = _serial(run.fine, over, u0, grid, run.m, save, how, runtime)
        stats = dataclasses.replace(serial.stats, levels=1)
        return dataclasses.replace(serial, iterations=1, residuals=(0.0,), stats=stats), found
    before = dict(runtime.seconds)
    found = _found(run, u, guessed, grid, save, runtime) if over is None else over.found(run, u, guessed, grid, save)
    status = found.status
    stats = dataclasses.replace(
        run.stats(found.filled),
        seconds={name: total - before.get(name, 0.0) for name, total in runtime.seconds.items()},
        final_residual=found.final,
        losses=found.losses,
    )
    points = points_of(grid, run.m, save)
    solution = Solution(found.u, points, grid, status, run.iterations, tuple(run.residuals), stats)

    if status.ok or status is Status.STOPPED or on_failure == "return":
        return solution, found
    if on_failure == "raise":
        raise ConvergenceError(" ".join([run.report(solution), *(f"({loss})" for loss in found.losses)]), solution)
    serial, found = _serial(run.fine, over, u0, grid, run.m, save, "raise", runtime)
    instead = dataclasses.replace(
        solution,
        u=serial.u,
        points=serial.points,
        status=Status.SERIAL_FALLBACK,
        stats=dataclasses.replace(stats, failure=status),
    )
    return instead, found


def _found(run: MethodRun, u: Array, guessed: bool, grid: TimeGrid, save: str, runtime: Runtime) -> Found:
    """In one process."""
    status, c = run.run(u, guessed)
    final = run.final_residual(c)
    u, steps = filled(run.fine, c, grid, run.m, save, runtime)
    return Found(settled_status(status, u, *([c] if save == "end" else [])), u, final, steps, c if save == "end" else u)


@together
def serial_solve(
    fine: Any,
    u0: Array,
    grid: TimeGrid,
    *,
    m: int = 1,
    rhs: Array | None = None,
    save: str = "all",
    deterministic: bool = False,
    on_failure: str = "raise",
    parameters: Iterable[Array] | None = None,
    runtime: Runtime | None = None,
) -> Solution:
    """``u[i+1] = fine(u[i]) + rhs[i]``, one step after the other: what :func:`solve` must reproduce.

    ``m`` says which points count as C-points for ``save="coarse"``, and with ``deterministic`` where the
    blocks lie. Other parameters, and errors, as in :func:`solve`; a non-finite state is a failure. It is
    differentiable too, one step after the other. Over ranks each takes the steps of its own block, one rank after the
    other: no faster than one process, but none has to hold all states.
    """
    checks.choose("save", save, SAVE)
    checks.choose("on_failure", on_failure, ("raise", "return"))
    u0, grid = checks.initial_value(u0), checks.grid(grid)
    start = arrays.detached(u0)
    grid.slices(m)
    chain = checks.propagator("fine", forced(fine, rhs, start, grid), grid, deterministic)
    runtime = checks.runtime(runtime, start)
    common = Common(0.0, None, None, False, deterministic, False, runtime, None)

    problem = Problem(fine, None, grid, chain, m, m, "serial", True, on_failure, common)
    over = over_ranks(None, problem, start, save, rhs)

    def compute(adjoint: Any) -> tuple[Solution, Found]:
        if over is not None:
            over.agree(adjoint)
        serial = partial(_serial, chain, over, start, grid, m, save, on_failure, runtime)
        return serial() if _trace.listener is None else noted("serial", m, start, fine, serial)

    return _connected(compute, problem, u0, rhs, parameters, None)


def _serial(
    fine: Propagator,
    over: OverRanks | None,
    u0: Array,
    grid: TimeGrid,
    m: int,
    save: str,
    on_failure: str,
    runtime: Runtime,
) -> tuple[Solution, Found]:
    before = runtime.seconds.get("serial", 0.0)
    if over is None:
        u = serial_states(fine, u0, grid, m, save, runtime)
        ends = u if save != "end" else u[[0, -1]]
        found = Found(settled_status(Status.SERIAL, u), ends, None, (0, 0), u)
    else:
        found = over.serially(fine, u0, grid, m, save)
    stats = Stats(
        slices=grid.slices(m),
        m=m,
        fine_steps=grid.steps,
        coarse_steps=0,
        critical_fine_steps=grid.steps,
        critical_coarse_steps=0,
        serial_steps=grid.steps,
        seconds={"serial": runtime.seconds.get("serial", 0.0) - before},
    )
    solution = Solution(found.u, points_of(grid, m, save), grid, found.status, 0, (), stats)
    if not found.status.ok and on_failure == "raise":
        raise ConvergenceError(f"{found.status.value} in the serial solve", solution)
    return solution, found


def _start(u0: Array, initial: Any, grid: TimeGrid, m: int) -> tuple[Array, bool]:
    """The array of C-points with the initial value in row 0, and whether the other rows hold a guess."""
    slices = grid.slices(m)
    u = arrays.empty_like(u0[None], slices=slices + 1)
    u[0] = u0
    if initial is None:
        return u, False
    if isinstance(initial, Solution):
        if initial.grid != grid:
            raise ValueError(f"initial: a solution on {initial.grid}, expected one on {grid}")
        rows = np.flatnonzero(np.isin(initial.points, np.arange(*grid.c_points(m).indices(grid.steps + 1))))
        if len(rows) != slices + 1:
            raise ValueError(
                f"initial: the solution holds {len(rows)} of the {slices + 1} C-points for m = {m}; "
                'save="all" keeps them all'
            )
        initial = initial.u[rows.tolist()]
    initial = arrays.detached(initial)
    for what, expected in (("shape", u.shape), ("dtype", u.dtype), ("device", getattr(u, "device", None))):
        if (got := getattr(initial, what, None)) != expected:
            raise ValueError(f"initial: got {what} {got}, expected {expected}")
    u[1:] = initial[1:]
    return u, True


def _connected(
    compute: Callable[[Any], tuple[Solution, Found]],
    problem: Problem,
    u0: Array,
    rhs: Any,
    parameters: Any,
    adjoint: Any,
) -> Solution:
    """``compute(adjoint)`` without a graph, its states then connected to what they are differentiable in."""
    if arrays.is_torch(u0):
        from .differentiable import differentiable

        return differentiable(compute, problem, u0, rhs, parameters, adjoint)
    for name, value in (("parameters", parameters), ("adjoint", adjoint)):
        if value is not None:
            raise TypeError(f"{name}: got {value!r} for u0 of {type(u0).__name__}, expected a torch tensor as u0")
    return compute(None)[0]
