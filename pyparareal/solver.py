# SPDX-License-Identifier: BSD-3-Clause
"""The entry: check everything, iterate, and hand back a :class:`Solution` that says how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import arrays, checks
from .errors import ConvergenceError
from .method_runs import Common, MethodRun, MgritRun, PararealRun
from .mgrit import MGRIT
from .parareal import Callback
from .propagators import Propagator, advance
from .relaxation import every_point
from .runtime import LocalRuntime, Runtime
from .solution import Solution, Stats, Status
from .stopping import SpatialNorm
from .time_grid import TimeGrid

Array = Any

METHODS = ("parareal", "mgrit")
ON_FAILURE = ("raise", "serial", "return")
SAVE = ("coarse", "all")


def solve(
    fine: Any,
    u0: Array,
    grid: TimeGrid,
    *,
    m: int | Sequence[int],
    tol: float,
    coarse: Any = None,
    method: str | MGRIT = "parareal",
    max_iterations: int | None = None,
    norm: SpatialNorm | None = None,
    freeze: bool = True,
    keep_going: bool = False,
    initial: Solution | Array | None = None,
    save: str = "coarse",
    on_failure: str = "raise",
    deterministic: bool = False,
    callback: Callback | None = None,
    runtime: Runtime | None = None,
) -> Solution:
    """``u[i+1] = fine(u[i])`` from ``u0`` along ``grid``, all slices of ``m`` steps at once.

    Parameters
    ----------
    fine : Propagator, callable or torch module
        One step of ``grid``, batched over slices (:mod:`pyparareal.propagators`).
    u0 : array ``[batch, features...]``
        Initial value, floating point; NumPy, torch or CuPy. The states stay in its library, dtype and device.
    m : int, or for MGRIT a sequence
        Fine steps per slice; ``floor(N / m)`` slices run in parallel, ``N mod m`` trailing steps serially. MGRIT:
        the coarsening factor of every level, or of each from the finest.
    tol : float
        Parareal: a slice has converged when the ``norm`` of its last jump is below ``tol``; with 0 it must be exact,
        which takes as many iterations as there are slices. MGRIT: see ``stopping`` and what follows it in
        :class:`pyparareal.MGRIT`; by default the 2-norm of the residual at the C-points.
    coarse : like ``fine``, or for MGRIT a list with one per coarse level, optional
        One step of ``grid.coarsen(m)``; default ``fine.rediscretise(m)``, level by level.
    method : {"parareal", "mgrit"} or MGRIT
        :mod:`pyparareal.parareal`, or :mod:`pyparareal.mgrit` with these options.
    max_iterations : int, optional
        Default: as many as make every slice exact: the number of slices for parareal, for MGRIT that divided by
        ``nu + 1`` and two more, for a first cycle that only goes up and for a last residual.
    norm : {"inf", "l1", "l2", "rms"}, or for MGRIT also a function
        Spatial norm, per slice; a function maps states ``[slices, batch, features...]`` to ``[slices]``. Default:
        "inf" for parareal, "l2" for MGRIT.
    freeze : bool
        Parareal: stop computing a slice once it and everything left of it have converged. Without it the jumps of
        all inexact slices must be below ``tol`` in the same iteration.
    keep_going : bool
        Iterate on when a slice that is not yet exact holds NaN or infinity. It heals when the exact slices reach
        it, one per iteration; that is no faster than the serial solve, so by default it counts as a failure.
    initial : Solution or array ``[slices + 1, batch, features...]``, optional
        Starting guess at the C-points, for instance the solution of a neighbouring problem; its first row is ignored.
    save : {"coarse", "all"}
        Keep the C-points and the end of the grid, or every point.
    on_failure : {"raise", "serial", "return"}
        What to do when the method does not converge: raise :class:`ConvergenceError` with the solution attached,
        solve serially, or return the solution with its status.
    deterministic : bool
        Evaluate propagators that are not batch-invariant in fixed, padded blocks of slices, so that
        exact slices are bit for bit those of ``serial_solve(..., m=m, deterministic=True)``.
    callback : callable, optional
        ``callback(k, u, residual)`` after iteration ``k``; ``u`` is the live array of C-points. A true value stops.
    runtime : Runtime, optional
        Where the work runs; default :class:`LocalRuntime`.

    Raises
    ------
    TypeError, ValueError
        For a wrong argument, before any step is taken; or if a step returns another shape, dtype or device.
    ConvergenceError
        See ``on_failure``.
    """
    checks.choose("on_failure", on_failure, ON_FAILURE)
    checks.choose("save", save, SAVE)
    u0, grid = checks.initial_value(u0), checks.grid(grid)
    runtime = LocalRuntime() if runtime is None else runtime
    common = Common(
        checks.tolerance(tol), max_iterations, norm, keep_going, deterministic, initial is not None, runtime, callback
    )
    run: MethodRun
    if not isinstance(method, MGRIT):
        checks.choose("method", method, METHODS)
    if method == "parareal":
        run = PararealRun(fine, coarse, grid, m, freeze, common)
    else:
        run = MgritRun(fine, coarse, grid, m, method if isinstance(method, MGRIT) else MGRIT(), u0, common)
    if run.serial:
        how = "return" if on_failure == "return" else "raise"
        serial = serial_solve(run.fine, u0, grid, m=run.m, save=save, on_failure=how, runtime=runtime)
        stats = dataclasses.replace(serial.stats, levels=1)
        return dataclasses.replace(serial, iterations=1, residuals=(0.0,), stats=stats)
    u, guessed = _start(u0, initial, grid, run.m)

    before = dict(runtime.seconds)
    with _no_grad(u):
        status = run.run(u, guessed)
        final = run.final_residual(u)
        u, points, steps = _states(run.fine, u, grid, run.m, save, runtime)
    if status is Status.CONVERGED and not checks.finite(u):
        status = Status.NON_FINITE

    stats = dataclasses.replace(
        run.stats(steps),
        seconds={name: total - before.get(name, 0.0) for name, total in runtime.seconds.items()},
        final_residual=final,
    )
    solution = Solution(u, points, grid, status, run.iterations, tuple(run.residuals), stats)

    if status.ok or status is Status.STOPPED or on_failure == "return":
        return solution
    if on_failure == "raise":
        raise ConvergenceError(run.report(solution), solution)
    serial = serial_solve(run.fine, u0, grid, m=run.m, save=save, runtime=runtime)
    return dataclasses.replace(
        solution,
        u=serial.u,
        points=serial.points,
        status=Status.SERIAL_FALLBACK,
        stats=dataclasses.replace(stats, failure=status),
    )


def serial_solve(
    fine: Any,
    u0: Array,
    grid: TimeGrid,
    *,
    m: int = 1,
    save: str = "all",
    deterministic: bool = False,
    on_failure: str = "raise",
    runtime: Runtime | None = None,
) -> Solution:
    """``u[i+1] = fine(u[i])``, one step after the other: what :func:`solve` must reproduce.

    ``m`` says which points count as C-points for ``save="coarse"``, and with ``deterministic`` where the
    blocks lie. Other parameters, and errors, as in :func:`solve`; a non-finite state is a failure.
    """
    checks.choose("save", save, SAVE)
    checks.choose("on_failure", on_failure, ("raise", "return"))
    u0, slices = checks.initial_value(u0), checks.grid(grid).slices(m)
    fine = checks.propagator("fine", fine, grid, deterministic)
    runtime = LocalRuntime() if runtime is None else runtime
    stride = m if save == "coarse" else 1

    points = np.append(np.arange(0, grid.steps, stride), grid.steps)
    u = arrays.empty_like(u0[None], slices=len(points))
    u[0] = u0
    before = runtime.seconds.get("serial", 0.0)
    with _no_grad(u), runtime.mark("serial"):
        for row, (i, end) in enumerate(zip(points[:-1].tolist(), points[1:].tolist(), strict=True)):
            advance(fine, u[row : row + 1], slice(i, i + 1, m), end - i, out=u[row + 1 : row + 2])

    status = Status.SERIAL if checks.finite(u) else Status.NON_FINITE
    stats = Stats(
        slices=slices,
        m=m,
        fine_steps=grid.steps,
        coarse_steps=0,
        critical_fine_steps=grid.steps,
        critical_coarse_steps=0,
        serial_steps=grid.steps,
        seconds={"serial": runtime.seconds["serial"] - before},
    )
    solution = Solution(u, points, grid, status, 0, (), stats)
    if not status.ok and on_failure == "raise":
        raise ConvergenceError(f"{status.value} in the serial solve", solution)
    return solution


def _states(
    fine: Propagator, u: Array, grid: TimeGrid, m: int, save: str, runtime: Runtime
) -> tuple[Array, Array, tuple[int, int]]:
    """The states to return, their points, and the fine steps it took: in total, and one after the other."""
    trailing, last = grid.steps % m, len(u) - 1
    if save == "all":
        return _every_point(fine, u, grid, m, runtime)
    points = np.arange(0, last * m + 1, m)
    if not trailing:
        return u, points, (0, 0)
    longer = arrays.empty_like(u, slices=last + 2)
    longer[: last + 1] = u
    with runtime.mark("parareal.fill"):
        runtime.map(fine, u[last:], slice(last * m, last * m + 1, m), trailing, out=longer[last + 1 :])
    return longer, np.append(points, grid.steps), (trailing, trailing)


def _every_point(
    fine: Propagator, u: Array, grid: TimeGrid, m: int, runtime: Runtime
) -> tuple[Array, Array, tuple[int, int]]:
    every = arrays.empty_like(u, slices=grid.steps + 1)
    with runtime.mark("parareal.fill"):
        taken = every_point(runtime, fine, grid, m, u, every)
    return every, np.arange(grid.steps + 1), taken


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
    for what, expected in (("shape", u.shape), ("dtype", u.dtype), ("device", getattr(u, "device", None))):
        if (got := getattr(initial, what, None)) != expected:
            raise ValueError(f"initial: got {what} {got}, expected {expected}")
    u[1:] = initial[1:]
    return u, True


def _no_grad(u: Array) -> contextlib.AbstractContextManager[Any]:
    return sys.modules["torch"].no_grad() if arrays.is_torch(u) else contextlib.nullcontext()
