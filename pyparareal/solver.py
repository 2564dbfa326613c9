# SPDX-License-Identifier: BSD-3-Clause
"""The entry: check everything, iterate, and hand back a :class:`Solution` that says how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from typing import Any

import numpy as np

from . import arrays, ops
from .errors import ConvergenceError
from .norms import NORMS
from .parareal import Callback, Parareal
from .propagators import Blocked, Blocks, Map, Propagator, advance
from .runtime import LocalRuntime, Runtime
from .solution import Solution, Stats, Status
from .time_grid import TimeGrid, count_points, part_of_points

Array = Any

METHODS = ("parareal",)
ON_FAILURE = ("raise", "serial", "return")
SAVE = ("coarse", "all")


def solve(
    fine: Any,
    u0: Array,
    grid: TimeGrid,
    *,
    m: int,
    tol: float,
    coarse: Any = None,
    method: str = "parareal",
    max_iterations: int | None = None,
    norm: str = "inf",
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
    m : int
        Fine steps per slice; ``floor(N / m)`` slices run in parallel, ``N mod m`` trailing steps serially.
    tol : float
        A slice has converged when the ``norm`` of its last jump is below ``tol``. With 0 it must be exact,
        which takes as many iterations as there are slices.
    coarse : like ``fine``, optional
        One step of ``grid.coarsen(m)``; default ``fine.rediscretise(m)``.
    max_iterations : int, optional
        Default: the number of slices, after which every slice is exact.
    norm : {"inf", "l1", "l2", "rms"}
        Spatial norm of a jump, per slice.
    freeze : bool
        Stop computing a slice once it and everything left of it have converged. Without it the jumps of
        all inexact slices must be below ``tol`` in the same iteration.
    keep_going : bool
        Iterate on when a slice that is not yet exact holds NaN or infinity. It heals when the exact slices reach
        it, one per iteration; that is no faster than the serial solve, so by default it counts as a failure.
    initial : Solution or array ``[slices + 1, batch, features...]``, optional
        Starting guess at the C-points, for instance the solution of a neighbouring problem; its first row is ignored.
    save : {"coarse", "all"}
        Keep the C-points and the end of the grid, or every point.
    on_failure : {"raise", "serial", "return"}
        What to do when parareal does not converge: raise :class:`ConvergenceError` with the solution attached,
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
    _choose("method", method, METHODS)
    _choose("norm", norm, tuple(NORMS))
    _choose("on_failure", on_failure, ON_FAILURE)
    _choose("save", save, SAVE)
    u0, slices = _initial_value(u0), _grid(grid).slices(m)
    fine, coarse = _pair(fine, coarse, grid, m, deterministic)
    runtime = LocalRuntime() if runtime is None else runtime
    iterate = Parareal(
        fine,
        coarse,
        grid,
        m,
        tol=_tolerance(tol),
        max_iterations=_iterations(max_iterations, slices),
        norm=norm,
        freeze=freeze,
        keep_going=keep_going,
        runtime=runtime,
        callback=callback,
    )
    u, guessed = _start(u0, slices, initial, grid, m)

    before = dict(runtime.seconds)
    with _no_grad(u):
        status = iterate.run(u, guessed=guessed)
        u, points, steps = _states(fine, u, grid, m, save, runtime)
    if status is Status.CONVERGED and not _finite(u):
        status = Status.NON_FINITE

    iterations = len(iterate.residuals)
    stats = Stats(
        slices=slices,
        m=m,
        serial_steps=grid.steps,
        fine_steps=iterate.fine_steps + steps[0],
        critical_fine_steps=iterations * m + steps[1],
        coarse_steps=iterate.coarse_steps,
        critical_coarse_steps=iterate.coarse_steps - (slices - 1) * guessed,
        converged_slices=tuple(iterate.converged),
        seconds={name: total - before.get(name, 0.0) for name, total in runtime.seconds.items()},
    )
    solution = Solution(u, points, grid, status, iterations, tuple(iterate.residuals), stats)

    if status.ok or status is Status.STOPPED or on_failure == "return":
        return solution
    if on_failure == "raise":
        raise ConvergenceError(_report(solution, tol), solution)
    serial = serial_solve(fine, u0, grid, m=m, save=save, runtime=runtime)
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
    _choose("save", save, SAVE)
    _choose("on_failure", on_failure, ("raise", "return"))
    u0, slices = _initial_value(u0), _grid(grid).slices(m)
    fine = _propagator("fine", fine, grid, deterministic)
    runtime = LocalRuntime() if runtime is None else runtime
    stride = m if save == "coarse" else 1

    points = np.append(np.arange(0, grid.steps, stride), grid.steps)
    u = arrays.empty_like(u0[None], slices=len(points))
    u[0] = u0
    before = runtime.seconds.get("serial", 0.0)
    with _no_grad(u), runtime.mark("serial"):
        for row, (i, end) in enumerate(zip(points[:-1].tolist(), points[1:].tolist(), strict=True)):
            advance(fine, u[row : row + 1], slice(i, i + 1, m), end - i, out=u[row + 1 : row + 2])

    status = Status.SERIAL if _finite(u) else Status.NON_FINITE
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
    """F-relaxation: every F-point from the C-point left of it, all slices at once, trailing points included."""
    every = arrays.empty_like(u, slices=grid.steps + 1)
    ops.inject(u, every, step=m)
    v, total, depth = u, 0, min(m - 1, grid.steps)
    with runtime.mark("parareal.fill"):
        for j in range(1, depth + 1):
            count = count_points(grid.f_points(m, j))
            v_next = arrays.empty_like(v, slices=count)
            runtime.map(fine, v[:count], part_of_points(grid.f_points(m, j - 1), 0, count), out=v_next)
            ops.inject(v_next, every, start=j, step=m)
            v, total = v_next, total + count
    return every, np.arange(grid.steps + 1), (total, depth)


def _start(u0: Array, slices: int, initial: Any, grid: TimeGrid, m: int) -> tuple[Array, bool]:
    """The array of C-points with the initial value in row 0, and whether the other rows hold a guess."""
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


def _pair(fine: Any, coarse: Any, grid: TimeGrid, m: int, deterministic: bool) -> tuple[Propagator, Propagator]:
    if coarse is None:
        if not hasattr(fine, "rediscretise"):
            raise TypeError("coarse: not given, and fine has no rediscretise(m) to make one")
        coarse = fine.rediscretise(m)
    return (
        _propagator("fine", fine, grid, deterministic),
        _propagator("coarse", coarse, grid.coarsen(m), deterministic),
    )


def _propagator(name: str, phi: Any, grid: TimeGrid, deterministic: bool) -> Propagator:
    """``phi`` as a propagator on ``grid``."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(phi, torch.nn.Module):
        phi = Blocks(phi)
    elif not hasattr(phi, "step") and callable(phi):
        phi = Map(phi)
    if not isinstance(phi, Propagator):
        raise TypeError(
            f"{name}: got {type(phi).__name__}, expected a callable u -> u_next or an object with "
            "step(u, points) and batch_invariant"
        )
    if (own := getattr(phi, "grid", None)) is not None and own != grid:
        raise ValueError(f"{name}: lives on {own}, expected {grid}")
    if (steps := getattr(phi, "steps", None)) is not None and steps != grid.steps:
        raise ValueError(f"{name}: has {steps} steps, expected the {grid.steps} of {grid}")
    return Blocked(phi, grid.steps) if deterministic and not phi.batch_invariant else phi


def _initial_value(u0: Any) -> Array:
    if isinstance(u0, (int, float, list, tuple)):
        u0 = np.asarray(u0, dtype=np.float64)
    if not hasattr(u0, "dtype") or not hasattr(u0, "shape"):
        raise TypeError(f"u0: got {type(u0).__name__}, expected an array")
    if "float" not in str(u0.dtype):
        raise TypeError(f"u0: got dtype {u0.dtype}, expected a floating point dtype")
    if getattr(u0, "requires_grad", False):
        raise ValueError("u0: requires grad, but solve is not differentiable; pass u0.detach()")
    if not _finite(u0[None]):
        raise ValueError("u0: got NaN or infinity, expected finite values")
    return u0


def _grid(grid: Any) -> TimeGrid:
    if not isinstance(grid, TimeGrid):
        raise TypeError(f"grid: got {type(grid).__name__}, expected a TimeGrid")
    return grid


def _tolerance(tol: Any) -> float:
    if isinstance(tol, bool) or not isinstance(tol, (int, float, np.floating)):
        raise TypeError(f"tol: got {tol!r}, expected a number")
    if not 0 <= tol < math.inf:
        raise ValueError(f"tol: got {tol}, expected a finite number of at least 0")
    return float(tol)


def _iterations(max_iterations: Any, slices: int) -> int:
    if max_iterations is None:
        return slices
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, (int, np.integer)):
        raise TypeError(f"max_iterations: got {max_iterations!r}, expected an integer or None")
    if max_iterations < 1:
        raise ValueError(f"max_iterations: got {max_iterations}, expected at least 1")
    return int(max_iterations)


def _choose(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(choices)}")


def _finite(u: Array) -> bool:
    return bool(np.isfinite(arrays.to_numpy(ops.slice_norms(u, norm="max_abs"))).all())


def _no_grad(u: Array) -> contextlib.AbstractContextManager[Any]:
    return sys.modules["torch"].no_grad() if arrays.is_torch(u) else contextlib.nullcontext()


def _report(solution: Solution, tol: float) -> str:
    done = solution.stats.converged_slices[-1] if solution.iterations else 0
    last = f", last jump {solution.residuals[-1]:.3g} (tol {tol:.3g})" if solution.iterations else ""
    return (
        f"{solution.status.value} ({done} of {solution.stats.slices} slices after {solution.iterations} "
        f'iterations{last}). The solution so far is in .solution; on_failure="serial" falls back.'
    )
