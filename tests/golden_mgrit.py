# SPDX-License-Identifier: BSD-3-Clause
"""The rows of ``tests/golden/mgrit.json``: run one with the oracle or with the library, and say what differs."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from golden_problems import build, levels_of
from mgrit_oracle import Oracle

STORED = json.loads((Path(__file__).parent / "golden" / "mgrit.json").read_text())
ROWS = {row["name"]: row for row in STORED["rows"]}
ACTIVE = [name for name, row in ROWS.items() if row["status"] == "active"]


@dataclasses.dataclass
class Outcome:
    """What a run left: residuals (nan where there is none), levels, states at the finest C-points and at all points."""

    residuals: list[float]
    levels: int
    u: np.ndarray
    every: np.ndarray
    changes: list[float]  # largest relative change of a component at a C-point, in per cent, per cycle


def setup_of(row):
    """The problem of a row, with one propagator per level."""
    m, options = row["m"], row["options"]
    if isinstance(m, list):
        setup = build(row["problem"], m)
    else:
        steps = row["problem"]["steps"]
        setup = build(row["problem"], levels_of(steps, m, options["levels"], options["min_coarse"]))
    if row.get("guess") == "nested":
        setup.initial = nested_guess(setup, options)
    elif setup.initial is None and not options.get("nested") and setup.factors:
        setup.initial = np.zeros((setup.phis[0].grid.slices(setup.factors[0]) + 1, *setup.u0.shape))
    return setup


def nested_guess(setup, options):
    """The guess of a nested iteration that starts from ``setup.starts``, not from restrictions of ``u0``."""
    oracle = Oracle(setup.phis, [*setup.factors, 1], setup.u0, transfer=setup.transfer, nu=options["nu"])
    for u, start in zip(oracle.u, setup.starts, strict=True):
        u[0] = start
    oracle.nested_iteration()
    return np.array(oracle.u[0][:: setup.factors[0]])


def tolerance_of(row, setup):
    return setup.tol if row["tol"] is None else row["tol"]


class RelativeChange:
    """A callback: ``100 max |(new - old) / new|`` over the C-points, 0 where ``new`` is 0.

    The first change is that from the coarse chain, which two levels with nested iteration start from.
    """

    def __init__(self, setup):
        chain = [setup.u0]
        for i in range(setup.phis[1].grid.steps):
            chain.append(setup.phis[1].step(chain[-1][None], slice(i, i + 1, 1))[0])
        self.last, self.changes = np.array(chain), []

    def __call__(self, k, u, residual):
        u = np.array(u)
        self.changes.append(100 * float(np.abs(np.divide(u - self.last, u, out=np.zeros_like(u), where=u != 0)).max()))
        self.last = u
        return False


def run_oracle(row):
    setup, options = setup_of(row), dict(row["options"])
    for name in ("levels", "min_coarse"):
        options.pop(name)
    factors = [*setup.factors, setup.factors[-1]]  # the last one is for a coarsest level that is only relaxed
    oracle = Oracle(setup.phis, factors, setup.u0, setup.initial, setup.transfer, **options)
    change = RelativeChange(setup) if "relative_changes" in row else None
    residuals = oracle.solve(tolerance_of(row, setup), row["max_iterations"], change)
    oracle.f_relax(0)
    u = np.array(oracle.u[0])
    return Outcome(residuals, oracle.levels, u[:: factors[0]], u, change.changes if change else [])


def run_library(row, **more):
    """The same row with :func:`pyparareal.solver.solve`; ``more`` overrides its arguments."""
    from pyparareal.mgrit import MGRIT, Transfer
    from pyparareal.solver import solve

    setup, options = setup_of(row), dict(row["options"])
    if setup.transfer:
        options["transfer"] = [Transfer(*pair) for pair in setup.transfer]
    change = RelativeChange(setup) if "relative_changes" in row else None
    arguments: dict[str, Any] = {
        "m": row["m"],
        "tol": tolerance_of(row, setup),
        "coarse": setup.phis[1:] if "methods" in row["problem"] else None,
        "method": MGRIT(**options, stagnation=None, divergence=math.inf),
        "max_iterations": row["max_iterations"],
        "norm": "l2",
        "initial": setup.initial,
        "on_failure": "return",
        "callback": change,
        "save": "all",
    }
    solution = solve(setup.phis[0], setup.u0, setup.phis[0].grid, **(arguments | more))
    return Outcome(
        list(solution.residuals),
        solution.stats.levels,
        solution.u[:: setup.factors[0] if setup.factors else 1],
        solution.u,
        change.changes if change else [],
    )


def mismatch(row, outcome):
    """``""`` if a run reproduces the row, else the first figure that differs."""
    if len(outcome.residuals) != row["iterations"]:
        return f"iterations: got {len(outcome.residuals)} ({outcome.residuals}), stored {row['iterations']}"
    if outcome.levels != row["levels"]:
        return f"levels: got {outcome.levels}, stored {row['levels']}"
    atol = row.get("atol", 1e-13 * float(np.sqrt((outcome.u * outcome.u).sum())))
    for k, (got, stored) in enumerate(zip(outcome.residuals, row["residuals"], strict=True)):
        rtol = row.get("rtol", 1e-9 if k < 3 else 1e-6)
        if stored is not None and not math.isclose(got, stored, rel_tol=rtol, abs_tol=atol):
            return f"residual {k}: got {got!r}, stored {stored!r}, relative {abs(got / (stored or 1) - 1):.1e}"
    for k, stored in enumerate(row.get("relative_changes", [])):
        if not math.isclose(outcome.changes[k], stored, rel_tol=row["rtol"]):
            return f"relative change {k}: got {outcome.changes[k]!r}, stored {stored!r}"
    for point, stored in row.get("solution", {}).items():
        if not math.isclose(got := outcome.every[int(point)].item(), stored, rel_tol=1e-14):
            return f"solution at point {point}: got {got!r}, stored {stored!r}"
    if "final_error" in row:
        setup = setup_of(row)
        error = outcome.every[-1] - setup.exact(setup.phis[0].grid.t1)
        got = math.sqrt(float((error * error).sum()) * setup.h)
        if not math.isclose(got, row["final_error"], rel_tol=row.get("final_error_rtol", 1e-9)):
            return f"final error: got {got!r}, stored {row['final_error']!r}"
    return ""
