# SPDX-License-Identifier: BSD-3-Clause
"""Growth: exponents where they are known, damping, and chains that amplify too much to be solved in parallel."""

import math

import numpy as np
import pytest
from newton_cases import Cell, Linear, Logistic

from pyparareal import Newton, Status, TimeGrid, problems, serial_solve, solve
from pyparareal.errors import ConvergenceError
from pyparareal.growth import growth_of, log_norms
from pyparareal.propagators import RungeKutta

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")

EPS = np.finfo(np.float64).eps
U0 = np.array([[0.37, 0.2]])


def along(phi, u0, grid, m, **options):
    """A solve that starts from the serial solution, so that its Jacobians are those of the chain."""
    chain = serial_solve(phi, u0, grid)
    return solve(phi, u0, grid, m=m, tol=None, max_iterations=1, initial=chain, method=Newton(**options))


# Exponents


@pytest.mark.parametrize("m", [1, 4])
def test_exponents_of_a_linear_chain_are_exact(m):
    factors = np.array([0.5, 0.8, 1.25, 0.9])[np.arange(24) // m % 4][:, None, None]
    stats = along(Linear(factors), np.ones((1, 1)), TimeGrid(0, 1, 24), m, jacobian="full").stats
    assert stats.exponent == pytest.approx(math.log(1.25), rel=1e-14)
    assert stats.worst_slice == 2
    assert stats.chain_exponent == pytest.approx(np.log(factors).mean(), rel=1e-13)


@pytest.mark.parametrize("growth", [1e-9, 0.5, 1.0, 3.0, 1e9])
def test_exponents_of_scaled_rotations_neither_over_nor_underflow(growth):
    # 600 steps grow by up to 1e5400; the norm of a rotation is 1 whatever the vector that the iteration starts from.
    random = np.random.default_rng(0)
    a = growth * np.stack([np.linalg.qr(random.normal(size=(4, 4)))[0] for _ in range(601)])[:, None]
    found = growth_of(a, 1, diagonal=False)
    assert found.exponent == pytest.approx(math.log(growth), abs=1e-13)
    assert found.chain == pytest.approx(math.log(growth), abs=1e-13)


def test_the_norm_of_blocks_is_nearly_the_2_norm_and_never_more():
    random = np.random.default_rng(1)
    a = random.normal(size=(500, 2, 6, 6))
    start = 0.5 + np.arange(1, 7) * (5**0.5 - 1) / 2 % 1
    _, sizes, directions = np.linalg.svd(a)
    cosine = np.abs(directions[..., 0, :] @ start) / np.linalg.norm(start)
    found = np.exp(log_norms(a, diagonal=False))
    assert (found <= sizes[..., 0] * (1 + 100 * EPS)).all()
    # |A (A'A)^8 v| / |(A'A)^8 v| is at least the 17th root of |A (A'A)^8 v|, and that at least s^17 c.
    assert (found >= sizes[..., 0] * cosine ** (1 / 17) * (1 - 100 * EPS)).all()
    assert np.mean(found / sizes[..., 0]) > 0.99


def test_what_forgets_everything_has_the_exponent_minus_infinity():
    for diagonal in (False, True):
        found = growth_of(np.zeros((3, 1, 2, 2)), 4, diagonal=diagonal)
        assert (found.exponent, found.chain) == (-math.inf, -math.inf)


def test_jacobians_that_are_not_finite_are_left_out():
    a = np.array([2.0, 0.5, 4.0, math.nan, 8.0, math.inf])[:, None, None, None]
    for diagonal in (False, True):
        found = growth_of(a, 2, diagonal=diagonal)
        assert found.slice == 4
        assert found.exponent == pytest.approx(math.log(8) / 2)
        assert found.chain == pytest.approx(math.log(4) / 6)  # of the first three
        assert growth_of(a[3:4], 2, diagonal=diagonal) is None


def test_the_logistic_map_has_the_exponent_ln_2():
    # u = sin^2 of an angle that doubles: log|u'| sums to N ln 2 and a difference of two logarithms at the ends.
    steps = 4000
    stats = along(Logistic(4.0), np.array([[0.3]]), TimeGrid(0, 1, steps), 1, jacobian="diagonal").stats
    assert stats.chain_exponent == pytest.approx(math.log(2), abs=0.01)
    longer = along(Logistic(4.0), np.array([[0.3]]), TimeGrid(0, 1, steps), 500, jacobian="full").stats
    assert longer.chain_exponent == pytest.approx(stats.chain_exponent, rel=1e-10)
    assert math.log(2) - 0.05 < longer.exponent < math.log(2) + 0.05


def test_lorenz_has_its_exponent():
    # 0.9056 (J. C. Sprott, "Chaos and Time-Series Analysis", 2003). Over a time T the mean of the local growth has a
    # standard deviation of about sqrt(D / T) with D near 0.15, and the transient counts log 10 / T: 0.08 for T = 60.
    grid = TimeGrid(0, 60, 6000)
    phi = RungeKutta(problems.lorenz().rhs, grid)
    stats = along(phi, np.array([1.0, 1.0, 20.0]), grid, 20, jacobian="auto").stats
    assert stats.jacobian == "full"
    assert stats.chain_exponent / 0.01 == pytest.approx(0.9056, abs=0.2)
    assert stats.exponent > stats.chain_exponent


def test_exponents_are_those_of_the_jacobians_in_use():
    cell = Cell(40, keep=0.7)
    full, diagonal, none = (
        along(cell, cell.u0, cell.grid, 2, jacobian=kind).stats for kind in ("full", "diagonal", "none")
    )
    assert full.chain_exponent < 0  # a contraction by 0.97
    assert diagonal.chain_exponent < 0
    assert full.chain_exponent != diagonal.chain_exponent
    assert (none.exponent, none.worst_slice, none.chain_exponent) == (None, None, None)


# Damping


def test_damping_of_one_is_no_jacobian():
    grid, guess = TimeGrid(0, 1, 20), np.random.default_rng(0).random((11, 1, 2))
    options = {"m": 2, "tol": 0.0, "max_iterations": 4, "initial": guess, "on_failure": "return"}
    damped, none = (
        solve(Logistic(2.0), U0, grid, method=one, **options) for one in (Newton("full", 1), Newton("none"))
    )
    assert np.array_equal(damped.u, none.u)


@pytest.mark.parametrize("jacobian", ["full", "diagonal", "block"])
def test_adaptive_damping_leaves_contractions_alone(jacobian):
    cell = Cell(40, gain=0.5, keep=0.4)
    options = {"m": 2, "tol": 1e-11}
    plain, adaptive = (
        solve(cell, cell.u0, cell.grid, method=Newton(jacobian, d), **options) for d in (0.0, "adaptive")
    )
    assert np.array_equal(plain.u, adaptive.u)


def test_fixed_damping_makes_convergence_linear():
    cell = Cell(60)
    counts = [
        solve(cell, cell.u0, cell.grid, m=1, tol=1e-10, method=Newton("full", damping)).iterations
        for damping in (0.0, 0.1, 0.5, 1.0)
    ]
    assert counts[0] < counts[1] < counts[2] < counts[3]


class Bump:
    """A contraction but for some steps that amplify by 20 about the middle: products overflow, the chain does not."""

    batch_invariant = True

    def step(self, u, points):
        return 10 * np.sin(2 * u) * np.exp(-(u**2)) + 0.1

    def linearise(self, u, points, kind):
        slope = 20 * np.cos(2 * u) * np.exp(-(u**2)) - 20 * u * np.sin(2 * u) * np.exp(-(u**2))
        return self.step(u, points), slope


def test_adaptive_damping_keeps_updates_bounded_where_the_chain_of_jacobians_is_not():
    guess = np.zeros((201, 1, 1))
    options = {"m": 1, "tol": None, "max_iterations": 1, "initial": guess}
    grid, u0 = TimeGrid(0, 1, 200), np.zeros((1, 1))
    plain = solve(Bump(), u0, grid, method=Newton("diagonal"), on_failure="return", **options)
    adaptive = solve(Bump(), u0, grid, method=Newton("diagonal", "adaptive"), **options)
    assert float(np.abs(plain.u).max()) > 1e200  # 0.1 * 20^n
    # Every residual is 0.1 and every factor 1: they add up to n / 10.
    assert np.allclose(adaptive.u[:, 0, 0], 0.1 * np.arange(201), rtol=1e-12)


# The trust region


def test_a_trust_region_bounds_updates_by_the_size_of_the_states():
    guess = np.zeros((201, 1, 1))
    options = {"m": 1, "tol": None, "max_iterations": 1, "initial": guess}
    u = solve(Bump(), np.zeros((1, 1)), TimeGrid(0, 1, 200), method=Newton("diagonal", trust=3.0), **options).u
    # F(0) = 0.1 everywhere, |J| = 20: updates are 0.1, 0.2 + 0.01, ... up to 3 * 0.1, and the rest is cut to that.
    assert np.allclose(u[:2, 0, 0], [0, 0.1], rtol=0, atol=0)
    assert np.allclose(u[3:, 0, 0], 0.1 + 20 * 0.3, rtol=1e-14, atol=0)


def test_an_update_that_overflows_is_dropped():
    phi = Linear(np.full((400, 1, 1), 1e3))
    guess = np.full((401, 1, 1), 1e-300)
    options = {"m": 1, "tol": None, "max_iterations": 1, "initial": guess, "norm": "inf"}
    u0 = np.full((1, 1), 1e-300)
    plain = solve(phi, u0, TimeGrid(0, 1, 400), method=Newton("full"), on_failure="return", **options)
    bounded = solve(phi, u0, TimeGrid(0, 1, 400), method=Newton("full", trust=1.0), **options)
    assert plain.status is Status.NON_FINITE
    assert bounded.status is Status.FIXED
    assert float(bounded.u.max()) <= 2e-294  # F and J times an update as large as F, at most 1e-297 each


@pytest.mark.parametrize("jacobian", ["full", "diagonal", "block"])
def test_a_trust_region_that_nothing_leaves_changes_nothing(jacobian):
    cell = Cell(40, keep=0.6)
    options = {"m": 2, "tol": 1e-11}
    plain, trusted = (
        solve(cell, cell.u0, cell.grid, method=Newton(jacobian, trust=t), **options) for t in (None, 100.0)
    )
    assert np.array_equal(plain.u, trusted.u)


def test_a_trust_region_helps_a_cell_that_grows_in_places():
    # Rows of W of size 5: the chain forgets as a whole, and grows by more than e per step in places.
    cell = Cell(300, features=8, gain=6.0, keep=0.3, seed=4)
    chain = serial_solve(cell, cell.u0, cell.grid).u
    stats = along(cell, cell.u0, cell.grid, 1, jacobian="full").stats
    assert stats.exponent > 0.3 > stats.chain_exponent
    options = {"m": 1, "tol": 1e-9, "max_iterations": 300, "on_failure": "return"}
    plain, trusted = (solve(cell, cell.u0, cell.grid, method=Newton("full", trust=t), **options) for t in (None, 1.0))
    assert trusted.status is Status.CONVERGED
    assert trusted.iterations < plain.iterations
    assert float(np.abs(trusted.u - chain).max()) < 1e-6


# Chains that are chaotic


class Sine:
    """Chaotic and bounded: nothing overflows in a step, and nothing converges but slice by slice."""

    batch_invariant = True

    def step(self, u, points):
        return np.sin(4 * u) + 0.3

    def linearise(self, u, points, kind):
        return self.step(u, points), 4 * np.cos(4 * u)


@pytest.mark.parametrize("damping", [0.0, "adaptive"])
def test_a_chaotic_chain_is_not_called_converged(damping):
    options = {"m": 4, "tol": 1e-6, "max_iterations": 30, "method": Newton("diagonal", damping)}
    grid = TimeGrid(0, 1, 800)
    with pytest.raises(
        ConvergenceError, match=r"Slice \d+ \(steps \d+ to \d+\) grows by exp\(.*\) per step.*chaotic"
    ) as e:
        solve(Sine(), U0, grid, **options)
    assert e.value.solution.status in (Status.MAX_ITERATIONS, Status.NON_FINITE)
    assert e.value.solution.stats.chain_exponent > 0.3
    serial = serial_solve(Sine(), U0, grid, m=4, save="coarse")
    fallen = solve(Sine(), U0, grid, on_failure="serial", **options)
    assert fallen.status is Status.SERIAL_FALLBACK
    assert np.array_equal(fallen.u, serial.u)
    assert fallen.stats.failure in (Status.MAX_ITERATIONS, Status.NON_FINITE)


def test_a_small_residual_is_not_enough_where_errors_grow():
    # The chain in float32: its residuals are below 1e-6, but it is another orbit after some 30 steps.
    grid = TimeGrid(0, 1, 400)
    rounded = serial_solve(Sine(), U0.astype(np.float32), grid).u.astype(np.float64)
    true = serial_solve(Sine(), U0, grid).u
    assert float(np.abs(rounded[1:] - Sine().step(rounded[:-1], None)).max()) < 1e-6
    assert float(np.abs(rounded - true).max()) > 0.5
    solution = solve(
        Sine(),
        U0,
        grid,
        m=1,
        tol=1e-6,
        initial=rounded,
        method=Newton("diagonal"),
        on_failure="return",
        max_iterations=9,
    )
    assert solution.status is Status.MAX_ITERATIONS


def test_the_failure_of_lorenz_names_its_slice():
    grid = TimeGrid(0, 10, 1000)
    fine = RungeKutta(problems.lorenz().rhs, grid)
    with pytest.raises(ConvergenceError, match="iterations with jacobian 'full', last residual") as e:
        solve(fine, np.array([1.0, 1.0, 20.0]), grid, m=50, tol=1e-12, max_iterations=2, method="newton")
    stats = e.value.solution.stats
    n, exponent = stats.worst_slice, stats.exponent
    assert f"Slice {n} (steps {50 * n} to {50 * n + 49}) grows by exp({exponent:.3g}) per step" in str(e.value)
