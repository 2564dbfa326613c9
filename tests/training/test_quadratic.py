# SPDX-License-Identifier: BSD-3-Clause
"""On a quadratic loss a training run is linear: every cycle multiplies the errors by the matrix of the theory."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pyparareal.convergence import error_propagator, two_level_bound  # noqa: E402
from pyparareal.training import problems  # noqa: E402
from pyparareal.training.windows import WindowSolver  # noqa: E402

CURVATURES = np.array([1.0, 0.5, 0.1, 0.01])
STEPS, M = 64, 2


def errors(rules, cycles=4, nu=1):
    """At the C-points after 0, 1, ... cycles, ``[cycles + 1, C-points, modes]``; and the eigenvalues of the levels."""
    runs = problems.quadratic(CURVATURES).runs(
        STEPS, rules=rules, lr=0.4, tol=0.0, max_iterations=cycles, guess="zeros", nu=nu, stagnation=None
    )
    solver, found = WindowSolver(runs.step, STEPS, runs.settings), []
    solver.solve(runs.start, after=lambda cycle: found.append(cycle.c[:, 0].numpy().copy()))
    alphas = solver.window.alphas
    lams = [1 - alpha * CURVATURES for alpha in alphas]
    exact = lams[0] ** (M * np.arange(STEPS // M + 1))[:, None]  # the initial weights are 1
    guess = np.zeros_like(exact)
    guess[0] = 1
    return np.array([guess, *found]) - exact, lams, alphas


@pytest.mark.parametrize("nu", [0, 1])
@pytest.mark.parametrize(("rules", "growth"), [("naive", 1.0), ("solver1", 2.0), ("slow", 1.25)])
def test_a_cycle_multiplies_the_errors_by_the_predicted_matrix(rules, growth, nu):
    e, lams, alphas = errors(rules, nu=nu)
    assert alphas == (0.4, 0.4 * growth)
    matrix = error_propagator(lams, M, STEPS, nu)  # [modes, C-points, C-points]
    for before, after in itertools.pairwise(e):
        expected = np.einsum("kij,jk->ik", matrix, before[1:])
        np.testing.assert_allclose(after[1:], expected, rtol=0, atol=1e-14)  # sums of 32 errors of at most 1
        assert np.abs(after[0]).max() == 0


def test_the_learning_rate_of_the_coarse_level_explains_the_solvers():
    """``|lambda_0^m - lambda_1|`` is of second order in the curvature for ``m alpha``, of first for ``alpha``."""
    factors = {}
    for rules in ("naive", "solver1"):
        e, lams, _ = errors(rules)
        sizes = np.linalg.norm(e[:, 1:], axis=1)  # [cycles + 1, modes]
        measured = sizes[2] / sizes[1]
        factors[rules] = two_level_bound(lams[0], lams[1], M, STEPS, 1, kind="exact")
        assert (measured <= factors[rules] * (1 + 1e-12)).all()
        # The guess is not the worst one, but far from harmless: an upper bound of any size would pass otherwise.
        assert (measured >= 0.3 * factors[rules]).all()
    assert (factors["solver1"][:-1] < 0.6 * factors["naive"][:-1]).all()
    slow = CURVATURES == 0.01  # alpha mu = 0.004: D = 0.004 (naive), 0.000016 (solver 1)
    assert factors["solver1"][slow] < 0.01 * factors["naive"][slow]
