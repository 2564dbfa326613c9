# SPDX-License-Identifier: BSD-3-Clause
"""The right-hand side of a chain: ``u[i+1] = Phi_i(u[i]) + rhs[i]`` by every method, for every kind of propagator."""

import numpy as np
import pytest

from pyparareal import MGRIT, TimeGrid, serial_solve, solve
from pyparareal.propagators import RungeKutta

STEPS, M = 23, 3
GRID = TimeGrid(0.0, 2.0, STEPS)
H = 2.0 / STEPS
U0 = np.array([[1.0, 0.5]])
RHS = 0.3 * np.random.default_rng(1).standard_normal((STEPS, 1, 2))

METHODS = {
    "parareal": "parareal",
    "two levels": MGRIT(levels=2, nu=0),
    "three levels": MGRIT(levels=3, nu=1, cycle="F"),
    "nested": MGRIT(levels=3, nested=True),
}


def logistic(grid=GRID):
    return RungeKutta(lambda t, u: u * (1.0 - u), grid, batch_invariant=True)


def chain(phi, rhs):
    u = [U0]
    for i in range(len(rhs)):
        u.append(phi.step(u[-1][None], slice(i, i + 1, 1))[0] + rhs[i])
    return np.stack(u)


@pytest.mark.parametrize("name", METHODS)
def test_exact_solution_is_bitwise_that_of_the_chain(name):
    expected = chain(logistic(), RHS)
    got = solve(logistic(), U0, GRID, m=M, tol=0.0, method=METHODS[name], rhs=RHS, save="all")
    assert np.array_equal(got.u, expected)
    assert np.abs(expected - chain(logistic(), 0 * RHS)).max() > 0.1


def test_the_serial_solution_and_the_c_points():
    expected = chain(logistic(), RHS)
    assert np.array_equal(serial_solve(logistic(), U0, GRID, rhs=RHS).u, expected)
    got = solve(logistic(), U0, GRID, m=M, tol=0.0, rhs=RHS)
    assert np.array_equal(got.u, expected[got.points])


def test_only_the_fine_propagator_is_forced():
    seen = []

    def coarse(u):
        seen.append(len(u))
        return u + 3 * H * u * (1.0 - u)

    got = solve(logistic(), U0, GRID, m=M, tol=0.0, rhs=RHS, coarse=coarse, save="all")
    assert seen
    assert np.array_equal(got.u, chain(logistic(), RHS))


class BackwardEuler:
    """``(1 + h) u[i+1] = u[i]``, with its residual."""

    batch_invariant = True

    def __init__(self, h):
        self.h = h

    def step(self, u, points):
        return u / (1 + self.h)

    def rediscretise(self, m):
        return type(self)(self.h * m)


class WithItsResidual(BackwardEuler):
    def residual(self, u_next, u, points):
        return (1 + self.h) * u_next - u

    def step_with(self, u, points, rhs):
        return (u + rhs) / (1 + self.h)


class Searching(BackwardEuler):
    """The same solved by fixed-point iteration from a guess; ``h < 0.3``, so 40 iterations reach rounding."""

    guesses = 0

    def step_from(self, u, points, guess):
        Searching.guesses += 1
        x = guess
        for _ in range(40):
            x = u - self.h * x
        return x


@pytest.mark.parametrize("kind", [BackwardEuler, WithItsResidual, Searching])
@pytest.mark.parametrize("levels", [2, 3])
def test_propagators_with_residual_or_guess(kind, levels):
    # tol bounds the residual of every C-point; the chain contracts, so errors are at most their sum, below 1e-11.
    method = MGRIT(levels=levels, storage="all" if kind is Searching else "c")
    got = solve(kind(H), U0, GRID, m=M, tol=1e-12, method=method, rhs=RHS, save="all", max_iterations=20)
    assert got.status.ok
    np.testing.assert_allclose(got.u, chain(BackwardEuler(H), RHS), rtol=0, atol=1e-11)
    assert kind is not Searching or Searching.guesses


def test_deterministic_blocks_of_a_forced_step():
    def fine(u):
        return u + H * np.tanh(u @ np.array([[0.3, -1.0], [0.8, 0.2]]))

    options = {"m": M, "rhs": RHS, "deterministic": True, "save": "all"}
    got = solve(fine, U0, GRID, tol=0.0, coarse=lambda u: u, **options)
    assert np.array_equal(got.u, serial_solve(fine, U0, GRID, **options).u)


def test_wrong_right_hand_sides():
    torch = pytest.importorskip("torch")
    spoiled = RHS.copy()
    spoiled[4] = np.nan
    for rhs, error, message in (
        (RHS[:-1], ValueError, r"rhs: got shape \(22, 1, 2\), expected \(23, 1, 2\)"),
        (RHS.astype(np.float32), ValueError, "rhs: got dtype float32, expected float64"),
        (torch.tensor(RHS), TypeError, "rhs: got Tensor, expected an array of the library of u0, ndarray"),
        (1.0, TypeError, "rhs: got float"),
        (spoiled, ValueError, "rhs: got NaN or infinity"),
    ):
        for call in (solve, serial_solve):
            more = {"tol": 1e-6} if call is solve else {}
            with pytest.raises(error, match=message):
                call(logistic(), U0, GRID, m=M, rhs=rhs, **more)


def test_a_step_that_would_broadcast_is_refused():
    with pytest.raises(ValueError, match=r"step: returned shape \(1, 1\)"):
        serial_solve(lambda u: u[..., :1].sum(axis=1), U0, GRID, rhs=RHS)
