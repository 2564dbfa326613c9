# SPDX-License-Identifier: BSD-3-Clause
"""C-relaxation, and ideal interpolation: every point from the C-points, all slices at once."""

from __future__ import annotations

from typing import Any, NamedTuple

from . import arrays, ops
from .propagators import Propagator, is_fused
from .runtime import Runtime
from .time_grid import TimeGrid, count_points, part_of_points

Array = Any


class Ends(NamedTuple):
    """C-points ``c`` and, in the other array of their level, what their slices end in: ``f[n+1] = A^m(c[n])``.

    ``last [S, ...]`` holds the states one step before, where a residual needs them; ``norms [S]`` what makes those of
    ``f - c`` (:func:`.stopping.raw_norms`), if they were found on the way.
    """

    c: Array
    f: Array
    last: Array | None = None
    norms: Array | None = None


def c_relax(runtime: Runtime, ends: Ends, omega: float) -> Array:
    """``c[n+1] = omega f[n+1] + (1 - omega) c[n+1]``; with ``omega = 1`` that is the other array, and costs nothing."""
    if omega == 1:
        return ends.f
    runtime.do(ops.c_relax, ends.f[1:], ends.c[1:], omega, out=ends.c[1:])
    return ends.c


def every_point(runtime: Runtime, phi: Propagator, grid: TimeGrid, m: int, c: Array, u: Array) -> tuple[int, int]:
    """Ideal interpolation: ``u`` gets the C-points ``c`` and, from them, all F-points, trailing ones included.

    ``c [S + 1, ...]``, ``u [steps + 1, ...]`` is written. Returns the steps taken: in total, and one after the other.
    """
    starts = runtime.shift(c)
    runtime.do(ops.inject, c, u, step=m)
    if is_fused(phi):
        return _every_point_fused(runtime, phi, grid, m, c, starts, u)
    v, total, depth = c, 0, min(m - 1, grid.steps)
    for j in range(1, depth + 1):
        count = count_points(grid.f_points(m, j))
        v_next = arrays.empty_like(v, slices=count)
        runtime.map(phi, v[:count], part_of_points(grid.f_points(m, j - 1), 0, count), out=v_next)
        runtime.do(ops.inject, v_next, u, start=j, step=m)
        v, total = v_next, total + count
    return total, depth


def _every_point_fused(
    runtime: Runtime, phi: Propagator, grid: TimeGrid, m: int, c: Array, starts: Array, u: Array
) -> tuple[int, int]:
    """One call for the F-points of all whole slices, one for the trailing ones."""
    whole, trailing = grid.starts(m), slice(len(c[1:]) * m, len(c[1:]) * m + 1, 1)
    rest = grid.steps % m
    if m > 1:
        runtime.map(phi, starts, whole, m - 1, out=None, every=arrays.windows(u, whole, m - 1, shift=1))
    if rest:
        runtime.map(phi, c[-1:], trailing, rest, out=None, every=arrays.windows(u, trailing, rest, shift=1))
    return (m - 1) * len(c[1:]) + rest, min(m - 1, grid.steps)
