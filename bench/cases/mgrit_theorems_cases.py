# SPDX-License-Identifier: BSD-3-Clause
"""MGRIT against theory, bit for bit, on a chaotic chain whose coarse propagators know nothing of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.cases import Result, case

SLICES, M = 12, 4


@case("mgrit.theorems", suite="quick")
def theorems() -> Result:
    """Statements that hold: exact after so many cycles and not one earlier, parareal, cycles, splitting."""
    outcomes: dict[str, list[bool]] = {}
    with np.errstate(all="ignore"):  # points that are not exact yet may overflow on the way
        for name, held in itertools.chain(_exactness(), _parareal(), _cycles(), _splitting()):
            outcomes.setdefault(name, []).append(held)
    held, total = sum(map(sum, outcomes.values())), sum(map(len, outcomes.values()))
    return Result(
        metrics={"held": held, "total": total, **{f"held_{name}": sum(found) for name, found in outcomes.items()}},
        checked=held == total,
        notes=f"bitwise on u -> 3.9 u (1 - u), {SLICES} slices of {M} steps, with and without trailing points",
    )


def _exactness() -> Iterator[tuple[str, bool]]:
    """``ceil(S / (nu + 1))`` cycles, one more if the first only goes up; and not one fewer."""
    for levels, nu, skip, trailing, cycle in itertools.product((2, 3), (0, 1, 2), (False, True), (0, 3), "VFW"):
        cycles = math.ceil(SLICES / (nu + 1)) + skip
        options = {"levels": levels, "nu": nu, "skip_first_down": skip, "cycle": cycle}
        chain = _serial(trailing)
        yield "exact", np.array_equal(_solve(cycles, trailing, **options), chain)
        yield "not_before", not np.array_equal(_solve(cycles - 1, trailing, **options), chain)


def _parareal() -> Iterator[tuple[str, bool]]:
    """Two levels with F-relaxation; parareal's guess, the coarse chain, is the first cycle."""
    from pyparareal import solve

    for k in range(1, SLICES):
        problem = _problem(0)
        problem["coarse"] = problem["coarse"][0]
        parareal = solve(**problem, freeze=False, max_iterations=k, save="all")
        mgrit = _solve(k + 1, 0, levels=2, nu=0, skip_first_down=True)
        yield "parareal", np.array_equal(mgrit, parareal.u, equal_nan=True)


def _cycles() -> Iterator[tuple[str, bool]]:
    """On two levels all cycles are one."""
    for nu, other in itertools.product((0, 1, 2), "FW"):
        ours, theirs = (_solve(3, 3, levels=2, nu=nu, cycle=kind, skip_first_down=False) for kind in ("V", other))
        yield "cycles", np.array_equal(ours, theirs, equal_nan=True)


def _splitting() -> Iterator[tuple[str, bool]]:
    """The slices of a call do not change the bits."""
    from pyparareal import LocalRuntime

    for levels, size in itertools.product((2, 3), (1, 3, 7)):
        whole = _solve(3, 3, levels=levels)
        split = _solve(3, 3, levels=levels, runtime=LocalRuntime(slices_per_call=size))
        yield "splitting", np.array_equal(whole, split, equal_nan=True)


def _problem(trailing: int) -> dict[str, Any]:
    from pyparareal import TimeGrid
    from pyparareal.propagators import Map

    maps = (lambda u: 3.9 * u * (1 - u), lambda u: 0.8 * np.sin(2.5 * u), lambda u: 0.7 * np.cos(1.7 * u))
    fine, *coarse = (Map(phi, batch_invariant=True) for phi in maps)
    grid = TimeGrid(0, 1, SLICES * M + trailing)
    common = {"tol": 0.0, "keep_going": True, "on_failure": "return"}
    return {"fine": fine, "coarse": coarse, "u0": np.array([[0.37, 0.2]]), "grid": grid, "m": M} | common


def _solve(cycles: int, trailing: int, *, runtime: Any = None, **options: Any) -> Any:
    from pyparareal import MGRIT, solve

    problem = _problem(trailing)
    problem["coarse"] = problem["coarse"][: options["levels"] - 1]
    if not options.get("skip_first_down", True):
        problem["initial"] = np.full((SLICES + 1, 1, 2), 0.9)
    method = MGRIT(stagnation=None, divergence=math.inf, **options)
    return solve(**problem, method=method, max_iterations=cycles, save="all", runtime=runtime).u


def _serial(trailing: int) -> Any:
    from pyparareal import serial_solve

    problem = _problem(trailing)
    return serial_solve(problem["fine"], problem["u0"], problem["grid"]).u
