# SPDX-License-Identifier: BSD-3-Clause
"""The states that a solve returns: from the C-points the others, or one after the other from the first."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import arrays, checks
from .propagators import Propagator, advance, advance_all
from .relaxation import every_point
from .runtime import Runtime
from .solution import Loss, Status
from .time_grid import TimeGrid

Array = Any

SAVE = ("coarse", "all", "end")


class Found(NamedTuple):
    """What an iteration, or a chain, ended in.

    Attributes
    ----------
    u : array ``[points, ...]``
        The states to return, at :func:`points_of`.
    filled : (int, int)
        Fine steps taken after the iteration: in total, and one after the other.
    kept : array
        All states that this process has a backward pass begin with: the C-points, or all points.
    bounds : list of int, optional
        Points between the blocks of the ranks, if there are several.
    losses : tuple of Loss
        Ranks that were lost on the way.
    coarse : (int or None, str)
        How a backward pass over these blocks solves its coarse levels, see :func:`.blocks.coarse_of`.
    """

    status: Status
    u: Array
    final: float | None
    filled: tuple[int, int]
    kept: Array
    bounds: list[int] | None = None
    losses: tuple[Loss, ...] = ()
    coarse: tuple[int | None, str] = (None, "chain")


def points_of(grid: TimeGrid, m: int, save: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The points of ``grid`` that ``save`` says."""
    stride = {"coarse": m, "all": 1, "end": grid.steps}[save]
    return np.append(np.arange(0, grid.steps, stride), grid.steps)


def filled(
    fine: Propagator, c: Array, grid: TimeGrid, m: int, save: str, runtime: Runtime
) -> tuple[Array, tuple[int, int]]:
    """The states at :func:`points_of`, from those at the C-points, and the fine steps it took (see :class:`Found`)."""
    trailing, last = grid.steps % m, len(c) - 1
    if save == "all":
        every = arrays.empty_like(c, slices=grid.steps + 1)
        with runtime.mark("parareal.fill"):
            taken = every_point(runtime, fine, grid, m, c, every)
        return every, taken
    if save == "coarse" and not trailing:
        return c, (0, 0)
    rows = len(points_of(grid, m, save))
    u = arrays.empty_like(c, slices=rows)
    u[: rows - 1] = c[: rows - 1]
    if not trailing:
        u[rows - 1 :] = c[last:]
        return u, (0, 0)
    with runtime.mark("parareal.fill"):
        runtime.map(fine, c[last:], slice(last * m, last * m + 1, m), trailing, out=u[rows - 1 :])
    return u, (trailing, trailing)


def settled_status(status: Status, *states: Array) -> Status:
    """``status``, unless it is one of success and one of the ``states`` is not finite."""
    if status in (Status.CONVERGED, Status.FIXED, Status.SERIAL) and not all(checks.finite(u) for u in states):
        return Status.NON_FINITE
    return status


def serial_states(fine: Propagator, u0: Array, grid: TimeGrid, m: int, save: str, runtime: Runtime) -> Array:
    """``u[i+1] = fine(u[i])``, one after the other: all points, or the C-points and the end."""
    points = points_of(grid, m, "all" if save == "all" else "coarse")
    u = arrays.empty_like(u0[None], slices=len(points))
    u[0] = u0

    def link(n: int, start: Array, end: Array) -> None:
        first, last = points[n : n + 2].tolist()
        advance(fine, start, slice(first, first + 1, m), last - first, out=end)

    def whole(rows: Array) -> None:
        advance_all(fine, rows, grid.steps, m)

    with runtime.mark("serial"):
        runtime.chain(link, u, 0, whole=whole if len(points) > grid.steps else None)
    return u
