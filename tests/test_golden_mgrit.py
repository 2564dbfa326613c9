# SPDX-License-Identifier: BSD-3-Clause
"""Histories of XBraid and PyMGRIT, and an oracle written point by point for what they do not cover."""

import itertools
import math

import numpy as np
import pytest

pytest.importorskip("scipy")

from golden_mgrit import ACTIVE, ROWS, mismatch, run_library, run_oracle, setup_of
from golden_problems import Heat02Residual, copy, full_weighting, linear
from mgrit_oracle import Oracle

from pyparareal.mgrit import MGRIT, Transfer
from pyparareal.solver import solve
from pyparareal.time_grid import TimeGrid

# The oracle takes one step after the other and knows no single level; these rows have few steps and several levels.
SMALL = [
    name
    for name in ACTIVE
    if ROWS[name]["levels"] > 1 and (ROWS[name]["problem"].get("steps", 1000) <= 64 or "Dahlquist" in name)
]


def test_every_row_is_used_or_says_why_not():
    assert len(ROWS) == 148
    assert len(ACTIVE) == 121
    for row in ROWS.values():
        if row["status"] == "active":
            assert len(row["residuals"]) == row["iterations"] <= row["max_iterations"]
        else:
            assert row["status"] in ("skipped", "excluded")
            assert row["reason"]
            assert row["status"] == "excluded" or row["reason"].startswith("later issue: ")


@pytest.mark.parametrize("name", ACTIVE, ids=str)
def test_history_is_that_of_the_stored_run(name):
    assert mismatch(ROWS[name], run_library(ROWS[name])) == ""


@pytest.mark.parametrize("name", SMALL, ids=str)
def test_the_oracle_knows_the_stored_run_too(name):
    assert mismatch(ROWS[name], run_oracle(ROWS[name])) == ""


@pytest.mark.parametrize(
    ("option", "value"),
    [("nu", 2), ("omega", 1.01), ("cycle", "F"), ("skip_first_down", True), ("measure", "end"), ("levels", 2)],
)
def test_another_option_is_another_history(option, value):
    row = ROWS["ex-02: -ntime 32 -nspace 17 -nu 1 -ml 3 -mi 30 -skip 0 -sc"]
    assert mismatch(row, run_library(row)) == ""
    assert mismatch(row, run_library(row | {"options": row["options"] | {option: value}})) != ""


class Decay:
    """``u' = -(1 + t/4) u^2``, one semi-implicit step, on any grid: nonlinear, cheap, different at every point."""

    batch_invariant = True

    def __init__(self, grid):
        self.grid = grid

    def rediscretise(self, m):
        return Decay(self.grid.coarsen(m))

    def step(self, u, points):
        t, h = self.grid.times(points)[:, None], np.reshape(self.grid.dt(points), (-1, 1))
        return u / (1 + h * (1 + t / 4) * u)


GRIDS = {
    "uniform": TimeGrid(0, 6, 53),
    "graded": TimeGrid.from_times(6 * np.linspace(0, 1, 54) ** 1.5),
}
# Every cycle and start with a different mixture of the other options; factors that do not divide the steps.
COMBINATIONS = [
    {"cycle": cycle, **start, **more}
    for (cycle, start), more in zip(
        itertools.product("VFW", ({}, {"nested": True}, {"skip_first_down": True})),
        itertools.cycle(
            [
                {"nu": [0, 2, 1]},
                {"omega": [1.2, 0.9, 1.1], "measure": "end"},
                {"nu": 2, "temporal_norm": "l1", "coarsest_sweeps": 1},
                {"nu": [1, 0, 3], "temporal_norm": "inf", "omega": 0.8},
            ]
        ),
        strict=False,
    )
]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_library_and_oracle_agree_on_any_options(grid, options):
    check_against_oracle(Decay(GRIDS[grid]), [3, 2, 2], np.array([1.0, 2.0, 0.5]), None, options)


@pytest.mark.parametrize("cycle", ["V", "F", "W"])
@pytest.mark.parametrize(("start", "coarsen"), [("guess", False), ("guess", True), ("skip", False), ("skip", True)])
def test_library_and_oracle_agree_with_a_user_residual(cycle, coarsen, start):
    # Residual and step of the implicit system, with and without a coarser space.
    fine = Heat02Residual(TimeGrid(0, 2 * np.pi, 41))
    transfer = [(full_weighting, linear), (copy, copy)] if coarsen else None
    options = {"cycle": cycle, "skip_first_down": start == "skip", "nu": [1, 2]}
    check_against_oracle(fine, [2, 3], np.sin(np.linspace(0, np.pi, 9)), transfer, options)


def check_against_oracle(fine, factors, u0, transfer, options, cycles=4):
    """Residuals and states after ``cycles`` cycles from a guess of noise or none, to rounding.

    Both sum in different orders, so they differ by a few units in the last place per step and cycle; 1e-12 of the
    largest figure leaves a factor of 100.
    """
    phis = [fine]
    for m in factors:
        phis.append(phis[-1].rediscretise(m))
    guess = None
    if not options.get("nested"):
        guess = np.random.default_rng(3).uniform(0.2, 1, (fine.grid.slices(factors[0]) + 1, len(u0)))
    oracle = Oracle(phis, [*factors, factors[-1]], u0, guess, transfer, **options)
    expected = oracle.solve(-math.inf, cycles)
    oracle.f_relax(0)

    method = MGRIT(
        **{"levels": None, "min_coarse": 1, "skip_first_down": False, "stagnation": None} | options,
        transfer=[Transfer(*pair) for pair in transfer] if transfer else None,
    )
    got = solve(
        fine,
        u0,
        fine.grid,
        m=factors,
        tol=0.0,
        method=method,
        max_iterations=cycles,
        norm="l2",
        initial=guess,
        save="all",
        on_failure="return",
    )
    assert got.stats.levels == len(phis)
    np.testing.assert_allclose(got.residuals, expected, rtol=0, atol=1e-12 * np.nanmax(expected))
    np.testing.assert_allclose(got.u, np.array(oracle.u[0]), rtol=0, atol=1e-12)


def test_setup_knows_the_levels_of_the_source():
    # XBraid stops coarsening when the next level would have fewer than min_coarse steps.
    row = ROWS["ex-02: -ntime 128 -nspace 33 -nu 1 -ml 15 -skip 0"]
    assert [phi.grid.steps for phi in setup_of(row).phis] == [128, 64, 32, 16, 8, 4]
