# SPDX-License-Identifier: BSD-3-Clause
"""Histories of independent programs: iterations and converged intervals exactly, jumps to the printed digits."""

import json
from pathlib import Path

import numpy as np
import pytest

from pyparareal import problems
from pyparareal.solver import solve

GOLDEN = json.loads((Path(__file__).parent / "golden" / "parareal.json").read_text())
PUBLISHED = {"fitzhugh_nagumo": 11, "lorenz": 15, "brusselator": 19, "hopf": 19, "burgers": 90}


@pytest.mark.parametrize("name", PUBLISHED)
def test_history_is_that_of_the_published_run(name):
    row = GOLDEN["rows"][name]
    problem = getattr(problems, name)(**row["arguments"]).normalised()
    solution = solve(**problem.parareal(), tol=GOLDEN["tolerance"])

    assert solution.iterations == row["iterations"] == PUBLISHED[name]
    assert list(solution.stats.converged_slices) == row["converged"]
    stored = np.array(row["residuals"])
    assert len(stored) >= min(67, row["iterations"])
    np.testing.assert_allclose(solution.residuals[: len(stored)], stored, rtol=row["rtol"])


def test_normalising_keeps_the_solution():
    # The map to [-1, 1] is affine, so a Runge-Kutta step commutes with it up to rounding. Brusselator: 20 steps
    # of a stable oscillator amplify rounding by less than 1e3.
    problem = problems.brusselator()
    plain, normal = problem.parareal(), problem.normalised().parareal()
    u, w = plain["u0"][None], normal["u0"][None]
    np.testing.assert_allclose(problem.physical(w), u, rtol=1e-15)
    for i in range(20):
        u = plain["fine"].step(u, slice(i, i + 1, 1))
        w = normal["fine"].step(w, slice(i, i + 1, 1))
    np.testing.assert_allclose(problem.physical(w), u, rtol=1e3 * np.finfo(float).eps)
    assert not np.allclose(u, plain["u0"])
