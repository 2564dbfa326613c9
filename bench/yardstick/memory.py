# SPDX-License-Identifier: BSD-3-Clause
"""A long time axis with only its C-points kept: how much memory that takes, in a process of its own."""

from __future__ import annotations

import math
import resource
import time
from typing import Any

import numpy as np

from . import problems

POINTS = 16  # float64 numbers in a state


def solve_long(steps: int, m: int = 16, end: float = 0.5, tol: float = 1e-10) -> dict[str, Any]:
    """Heat on 16 points over ``steps`` time steps by multilevel MGRIT, and its error at 1000 C-points and the last.

    ``bound`` is what the error may be: residuals of 2-norm ``tol`` over S slices add up to at most ``sqrt(S) tol``,
    and each step rounds by some units in the last place, none of which a diffusion step amplifies.
    """
    from pyparareal import MGRIT, LocalRuntime, solve

    before, begin = _peak(), time.perf_counter()
    problem = problems.heat(steps, POINTS, end)
    # 2^16 slices a call: where a step has temporary arrays, they are as many times smaller than the state
    runtime = LocalRuntime(slices_per_call=1 << 16)
    method = MGRIT(levels=None, min_coarse=64, storage="c")
    solution = solve(**problem, m=m, tol=tol, method=method, runtime=runtime, on_failure="return")
    seconds = time.perf_counter() - begin
    peak = _peak()  # before the check makes arrays of its own
    rows = np.unique(np.linspace(0, len(solution.u) - 1, 1000).astype(int))
    exact = problems.heat_exact(problem["u0"], problem["grid"], solution.points[rows])
    slices = steps // m
    return {
        "status": solution.status.name,
        "cycles": solution.iterations,
        "levels": solution.stats.levels,
        "residuals": list(solution.residuals),
        "error": float(np.abs(solution.u[rows] - exact).max()),
        "bound": math.sqrt(slices) * tol + 8 * steps * 2.0**-53 * float(np.linalg.norm(problem["u0"])),
        "c_point_bytes": _c_points(steps, m, solution.stats.levels) * POINTS * 8,
        "all_points_bytes": (steps + 1) * POINTS * 8,
        "peak_rss_bytes": peak,
        "rss_bytes_before": before,
        "seconds": seconds,
    }


def _c_points(steps: int, m: int, levels: int) -> int:
    """C-points of all levels but the coarsest, which has none: about ``(1/m + 1/m^2 + ...) steps``."""
    total = 0
    for _ in range(levels - 1):
        steps //= m
        total += steps + 1
    return total


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
