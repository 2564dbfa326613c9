# SPDX-License-Identifier: BSD-3-Clause
"""Parareal against theory and against the stored histories of independent programs.

Nothing here is a timing to be proud of: the metrics count what is right.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.cases import Result, case

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "parareal.json"


@case("parareal.theorems", suite="quick")
def theorems() -> Result:
    """Points that equal the serial chain bit for bit, of those that must: ``k`` slices after ``k`` iterations."""
    bitwise = total = early = 0
    for arguments in _poor_coarse_propagators():
        right, of, too_soon = _exact_prefixes(arguments)
        bitwise, total, early = bitwise + right, total + of, early + too_soon
    return Result(
        metrics={"bitwise_points": bitwise, "total_points": total, "exact_too_early": early},
        checked=bitwise == total and early == 0,
        notes="logistic map and Lorenz with coarse maps that know little of them; exact_too_early counts slices "
        "that were exact before the theorem says so, and were thus no test",
    )


@case("parareal.golden", suite="quick")
def golden() -> Result:
    """Published runs whose iterations, converged intervals and jumps are all reproduced."""
    from pyparareal import problems
    from pyparareal.solver import solve

    stored = json.loads(GOLDEN.read_text())
    matched, metrics, seconds = 0, {}, {}
    for name, row in stored["rows"].items():
        problem = getattr(problems, name)(**row["arguments"]).normalised()
        begin = time.perf_counter()
        solution = solve(**problem.parareal(), tol=stored["tolerance"], on_failure="return")
        seconds[name] = [time.perf_counter() - begin]
        metrics[f"iterations_{name}"] = float(solution.iterations)
        matched += _same_history(solution, row)
    total = len(stored["rows"])
    return Result(
        metrics={"matched": matched, "total": total, **metrics},
        checked=matched == total,
        samples=seconds,
        notes="one solve per row, host seconds",
    )


def _same_history(solution: Any, row: dict[str, Any]) -> bool:
    jumps = solution.residuals[: len(row["residuals"])]
    return (
        solution.iterations == row["iterations"]
        and list(solution.stats.converged_slices) == row["converged"]
        and bool(np.allclose(jumps, row["residuals"], rtol=row["rtol"], atol=0))
    )


def _poor_coarse_propagators() -> list[dict[str, Any]]:
    from pyparareal import problems, tableaux
    from pyparareal.propagators import Map
    from pyparareal.time_grid import TimeGrid

    chaotic = Map(lambda u: 3.9 * u * (1 - u), batch_invariant=True)
    u0, grid = np.array([[0.37, 0.2]]), TimeGrid(0, 1, 51)  # 12 slices of 4 steps and 3 trailing points
    maps = [lambda u: 0.8 * np.sin(2.5 * u), lambda u: 0.7 * np.cos(1.7 * u)]
    cases = [{"fine": chaotic, "coarse": Map(g, batch_invariant=True), "u0": u0, "grid": grid, "m": 4} for g in maps]
    lorenz = dataclasses.replace(problems.lorenz(), slices=20, m=30, coarse=tableaux.EULER, coarse_substeps=40)
    return [*cases, lorenz.normalised().parareal()]


def _exact_prefixes(arguments: dict[str, Any]) -> tuple[int, int, int]:
    from pyparareal.solver import serial_solve, solve

    grid, m = arguments["grid"], arguments["m"]
    slices = grid.slices(m)
    with np.errstate(all="ignore"):  # inexact slices may overflow on the way
        chain = serial_solve(arguments["fine"], arguments["u0"], grid, m=m)
        bitwise = total = early = 0
        for k in range(1, slices + 1):
            got = solve(**arguments, tol=0.0, max_iterations=k, keep_going=True, save="all", on_failure="return")
            exact = (got.u == chain.u).reshape(len(got.u), -1).all(1)
            last = grid.steps if k == slices else k * m  # the points a prefix of k exact slices covers
            bitwise, total = bitwise + int(exact[: last + 1].sum()), total + last + 1
            early += int(exact[(k + 1) * m :: m].sum())
    return bitwise, total, early
