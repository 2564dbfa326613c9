# SPDX-License-Identifier: BSD-3-Clause
"""Bounds of MGRIT against the matrix of a cycle, and that matrix against the method itself."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyparareal import convergence
from pyparareal.convergence import interpolation_norm, multilevel_bound, multilevel_rate, two_level_bound
from pyparareal.error_propagation import error_propagator, matrix_error_propagator
from pyparareal.mgrit import MGRIT
from pyparareal.propagators import Map
from pyparareal.solver import solve
from pyparareal.time_grid import TimeGrid

EPS = np.finfo(float).eps
UPPER = ("sqrt_1_inf", "asymptotic", "tight_upper", "quadratic_upper")
LOWER = ("tight_lower", "quadratic_lower")
RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def same_numbers_whatever_runs_before():
    RNG.bit_generator.state = np.random.default_rng(7).bit_generator.state


def in_disc(radius, count, rng=RNG):
    """Complex numbers of modulus below ``radius``, spread evenly."""
    return radius * np.sqrt(rng.uniform(size=count)) * np.exp(2j * np.pi * rng.uniform(size=count))


def backward_euler(x, m):
    """Eigenvalues per level for ``dt * eta = -x`` on the finest level."""
    return [1 / (1 + x * math.prod(m[:level])) for level in range(len(m) + 1)]


def complex_map(lam):
    """``u -> lam u`` on states ``[slices, modes, 2]`` that hold real and imaginary parts."""

    def step(u):
        z = lam * (u[..., 0] + 1j * u[..., 1])
        return np.stack([z.real, z.imag], -1)

    return Map(step, batch_invariant=True)


def errors(lams, m, steps, e0, cycles, **options):
    """The method's own errors ``[cycles + 1, C-points, modes]`` on a chain with solution 0, and its residuals."""
    grid = TimeGrid(0, 1, steps)
    initial = np.zeros((len(e0) + 1, *e0.shape[1:], 2))
    initial[1:] = np.stack([e0.real, e0.imag], -1)
    iterates, shape = [initial.copy()], initial.shape[1:]
    solution = solve(
        complex_map(lams[0]),
        np.zeros(shape),
        grid,
        m=m,
        tol=0.0,
        coarse=[complex_map(lam) for lam in lams[1:]],
        method=MGRIT(levels=len(lams), min_coarse=1, stagnation=None, divergence=math.inf, **options),
        norm="l2",
        max_iterations=cycles,
        initial=initial,
        on_failure="return",
        callback=lambda k, u, residual: iterates.append(u.copy()),
    )
    found = np.stack(iterates)[:, 1:]
    return found[..., 0] + 1j * found[..., 1], solution.residuals


# The matrix is the method

METHODS = {
    "F": {"m": [4], "nu": 0},
    "FCF": {"m": [4], "nu": 1},
    "FCFCF": {"m": [3], "nu": 2},
    "weighted": {"m": [3], "nu": 2, "omega": 0.7},
    "three V": {"m": [2, 3], "nu": [1, 0]},
    "three V weighted": {"m": [2, 3], "nu": [1, 2], "omega": [1.3, 0.6]},
    "three F": {"m": [2, 2], "nu": [0, 1], "cycle": "F"},
    "three W": {"m": [2, 3], "nu": [0, 0], "cycle": "W"},
    "four V": {"m": [2, 2, 2], "nu": [0, 1, 2]},
    "four F": {"m": [2, 2, 2], "nu": [0, 0, 1], "cycle": "F"},
    "four W": {"m": [2, 2, 2], "nu": [1, 0, 1], "cycle": "W"},
}


@pytest.mark.parametrize("steps", [48, 53], ids=["divisible", "trailing"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_errors_of_the_method_are_those_of_the_matrix(method, steps):
    options = dict(method)
    m = options.pop("m")
    lams = [in_disc(0.95, 5) for _ in range(len(m) + 1)]
    n = steps // m[0]
    e = RNG.normal(size=(n, 5)) + 1j * RNG.normal(size=(n, 5))
    found, _ = errors(lams, m, steps, e, 3, **options)
    matrix = error_propagator(lams, m, steps, options.pop("nu"), **options)
    assert matrix.shape == (5, n, n)
    for k in range(1, 4):
        e = np.einsum("kij,jk->ik", matrix, e)
        # Each point is a sum over at most n points, of products along at most `steps` steps, with moduli below 2.
        np.testing.assert_allclose(found[k], e, rtol=0, atol=4 * steps * EPS * np.abs(found[: k + 1]).max())


def test_a_wrong_cycle_is_not_the_matrix():
    # The comparison above can fail: one relaxation or one visit more is seen in the first digits.
    lams, m, e = [in_disc(0.9, 3) for _ in range(4)], [2, 2, 2], RNG.normal(size=(24, 3)) + 0j
    found, _ = errors(lams, m, 48, e, 1, nu=[0, 1, 0], cycle="F")
    right = np.einsum("kij,jk->ik", error_propagator(lams, m, 48, [0, 1, 0], cycle="F"), e)
    np.testing.assert_allclose(found[1], right, atol=1e-12)
    for nu, cycle in (([0, 0, 0], "F"), ([1, 1, 0], "F"), ([0, 1, 1], "F"), ([0, 1, 0], "V"), ([0, 1, 0], "W")):
        other = np.einsum("kij,jk->ik", error_propagator(lams, m, 48, nu, cycle=cycle), e)
        assert np.abs(other - found[1]).max() > 1e-3


def test_matrices_that_do_not_commute():
    rng = np.random.default_rng(3)
    phis = [0.4 * rng.normal(size=(3, 3)) for _ in range(3)]
    steps, m, n = 24, [2, 3], 12
    initial = np.zeros((n + 1, 1, 3))
    initial[1:] = rng.normal(size=(n, 1, 3))
    solution = solve(
        Map(lambda u: u @ phis[0].T),
        np.zeros((1, 3)),
        TimeGrid(0, 1, steps),
        m=m,
        tol=0.0,
        coarse=[Map(lambda u, phi=phi: u @ phi.T) for phi in phis[1:]],
        method=MGRIT(levels=3, nu=[1, 0], cycle="F"),
        initial=initial,
        max_iterations=1,
        on_failure="return",
    )
    matrix = matrix_error_propagator(phis, m, steps, [1, 0], cycle="F")
    e = (matrix @ initial[1:].ravel()).reshape(n, 1, 3)
    np.testing.assert_allclose(solution.u[1:], e, rtol=0, atol=100 * EPS * np.abs(initial).max())


def test_commuting_matrices_give_the_modes():
    rng = np.random.default_rng(4)
    q = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    lams = [in_disc(0.9, 4, rng) for _ in range(3)]
    matrix = matrix_error_propagator([q * lam @ q.T for lam in lams], [2, 2], 20, 1)
    modes = multilevel_bound(lams, [2, 2], 20, 1, kind="exact")
    assert np.linalg.norm(matrix, 2) == pytest.approx(modes.max(), rel=1e-12)


# Two levels: bounds

ANGLE = st.floats(0, 2 * math.pi)
MODULUS = st.floats(0, 0.999)


@given(MODULUS, ANGLE, MODULUS, ANGLE, st.integers(1, 5), st.integers(1, 40), st.integers(0, 3), st.integers(0, 4))
def test_bounds_enclose_the_exact_factor(r0, phi0, r1, phi1, m, slices, nu, trailing):
    lam0, lam1 = r0 * np.exp(1j * phi0), r1 * np.exp(1j * phi1)
    steps = slices * m + min(trailing, m - 1)
    matrix = error_propagator([lam0, lam1], m, steps, nu)
    truth = np.linalg.norm(matrix, 2)
    # The singular values of a matrix are known to a few units of its norm; powers of tiny numbers may underflow.
    slack = 100 * EPS * truth + 1e-290
    assert two_level_bound(lam0, lam1, m, steps, nu, "exact") == pytest.approx(truth, rel=1e-10, abs=1e-290)
    for kind in UPPER:
        assert truth <= two_level_bound(lam0, lam1, m, steps, nu, kind) + slack, kind
    for kind in LOWER:
        assert truth >= two_level_bound(lam0, lam1, m, steps, nu, kind) - slack, kind
    root = math.sqrt(np.linalg.norm(matrix, 1)) * math.sqrt(np.linalg.norm(matrix, np.inf))  # the product underflows
    assert two_level_bound(lam0, lam1, m, steps, nu) == pytest.approx(root, rel=1e-10, abs=1e-290)


@pytest.mark.parametrize("p", [1, 2, 3, 10, 1000])
def test_bounds_touch_where_they_should_and_nowhere_else(p):
    steps = p + 1  # m = 1 and nu = 0: the factor is that of p points times |lam0 - lam1|
    exact = two_level_bound(0.0, 1.0, 1, steps, 0, "exact")
    assert two_level_bound(0.0, 1.0, 1, steps, 0, "tight_upper") == pytest.approx(exact, rel=1e-12)
    assert exact == pytest.approx(1 / (2 * math.sin(math.pi / (4 * p + 2))), rel=1e-12)
    for kind in ("quadratic_upper", "sqrt_1_inf", *LOWER):
        assert abs(two_level_bound(0.0, 1.0, 1, steps, 0, kind) / exact - 1) > 1e-3 or (p == 1 and kind == "sqrt_1_inf")
    assert two_level_bound(0.0, 1.0, 1, steps) == p


@pytest.mark.parametrize("nu", [0, 1, 2])
def test_asymptotic_is_the_limit_of_all(nu):
    lam0, lam1 = in_disc(0.95, 40), in_disc(0.95, 40)
    limit = two_level_bound(lam0, lam1, 4, 40, nu, "asymptotic")
    np.testing.assert_array_equal(limit, two_level_bound(lam0, lam1, 4, 400, nu, "asymptotic"))
    for kind in ("exact", "sqrt_1_inf", "tight_upper", "tight_lower", "quadratic_upper", "quadratic_lower"):
        near, far = (two_level_bound(lam0, lam1, 4, 4 * n, nu, kind) for n in (100, 10000))
        assert (near <= limit * (1 + 4 * EPS)).all()
        assert (near <= far * (1 + 4 * EPS)).all()  # from below
        # 1 - t^2 a / (2 (1 - a)^2) with t < pi / p and a < 0.95: 190 t^2 = 2e-5
        np.testing.assert_allclose(far, limit, rtol=2e-5)
        assert np.abs(near / limit - 1).max() > 1e-3 or kind == "sqrt_1_inf"
    assert two_level_bound(0.5, 1.0, 4, 40, nu, "asymptotic") == np.inf
    assert two_level_bound(-1.0, 1.0, 4, 40, nu, "asymptotic") == 0.0  # no defect


@pytest.mark.parametrize("slices", [7, 8, 9])
@pytest.mark.parametrize("nu", [0, 1, 2])
def test_two_levels_are_exact_after_their_number_of_cycles_and_not_before(slices, nu):
    matrix = error_propagator([0.9 + 0.1j, 0.5], 3, 3 * slices, nu)
    last = math.ceil(slices / (nu + 1))
    assert (np.linalg.matrix_power(matrix, last) == 0).all()
    assert np.abs(np.linalg.matrix_power(matrix, last - 1)).max() > 0
    assert (two_level_bound(0.9, 0.5, 3, 3 * (nu + 1), nu) == 0).all()  # one cycle is enough
    assert two_level_bound(0.9, 0.5, 3, 3 * (nu + 2), nu) > 0


def test_interpolation_norm():
    for lam in (0.0, 0.7, 1.0, 0.5 - 0.6j, 1.5):
        columns = np.linalg.norm([[lam**j] for j in range(5)], 2)  # F-points of one slice from its C-point
        assert interpolation_norm(lam, 5) == pytest.approx(columns, rel=1e-14)


def test_a_conserved_mode_is_no_obstacle():
    # The mean of a periodic state: eigenvalues 1, or what rounding makes of 1. It is exact after the first relaxation.
    for one in (1 - 2 * EPS, 1.0, 1 + 2 * EPS):
        for kind in convergence.TWO_LEVEL:
            assert two_level_bound(one, 1.0, 4, 4000, 0, kind) < 1e-10
            assert two_level_bound(1.0, one, 4, 4000, 0, kind) < 1e-10
    assert two_level_bound(1.0, 0.9, 4, 4000, 0, "asymptotic") == pytest.approx(1)


# More levels


@pytest.mark.parametrize("nu", [0, 1, 2])
def test_two_levels_are_the_multilevel_bounds_of_two(nu):
    lams = [in_disc(0.95, 20), in_disc(0.95, 20)]
    for kind, of_two in (("exact", "exact"), ("sqrt_1_inf", "sqrt_1_inf"), ("submultiplicative", "sqrt_1_inf")):
        for cycle in ("V", "F", "W"):
            found = multilevel_bound(lams, 3, 40, nu, cycle=cycle, kind=kind)
            np.testing.assert_allclose(found, two_level_bound(*lams, 3, 40, nu, of_two), rtol=1e-12)
    if nu < 2:
        np.testing.assert_allclose(multilevel_rate(lams, 3, 40, nu), two_level_bound(*lams, 3, 40, nu), rtol=1e-12)


@pytest.mark.parametrize("m", [[2, 2], [4, 2], [2, 3, 2], [2, 2, 2, 2]], ids=str)
@pytest.mark.parametrize("cycle", ["V", "F", "W"])
def test_multilevel_bounds_are_in_order(m, cycle):
    for nu in (0, 1, [0, *[1] * (len(m) - 1)], [2, *[0] * (len(m) - 1)]):
        lams = [in_disc(0.95, 30) for _ in range(len(m) + 1)]
        exact, root, product = (
            multilevel_bound(lams, m, 67, nu, cycle=cycle, kind=kind) for kind in convergence.MULTILEVEL
        )
        assert (exact <= root * (1 + 1e-12)).all()
        assert (root <= product * (1 + 1e-12)).all()
        assert (exact > 0).all()


@pytest.mark.parametrize("nu", [0, 1])
def test_more_visits_solve_the_heat_equation_like_two_levels(nu):
    m, x = [2, 2, 2, 2], np.geomspace(1e-3, 1e3, 40)
    v, f, w = (multilevel_bound(backward_euler(x, m), m, 128, nu, kind="exact", cycle=cycle).max() for cycle in "VFW")
    two = two_level_bound(*backward_euler(x, m)[:2], 2, 128, nu, "exact").max()
    # A coarse solve that leaves a fraction q of its error changes the factor by q (1 + factor) at most: V-cycles leave
    # 0.46 with F- and 0.13 with FCF-relaxation, two of them the square of that.
    assert max(f, w) < two + v**2 * (1 + two)
    assert max(f, w) < v / 2


@pytest.mark.parametrize("m", [[2, 2], [4, 4], [2, 2, 2], [2, 2, 2, 2]], ids=str)
@pytest.mark.parametrize("nu", [0, 1])
def test_the_approximate_rate_follows_the_norms(m, nu):
    x = np.geomspace(1e-2, 1e2, 30)
    lams = backward_euler(x, m)
    rate, root = multilevel_rate(lams, m, 256, nu), multilevel_bound(lams, m, 256, nu)
    # Sums over m points of a slice become sums over m - 1 of them in columns, and the other way round in rows: with
    # m = 2 a factor of 2 per inner level in one of two factors under the root. The ends of the grid are left out: 15 %.
    inner = len(m) - 1
    assert (rate < 1.15 * math.sqrt(2) * root).all()
    assert (rate > root / (1.15 * math.sqrt(2) ** inner)).all()


def test_approximate_rates_written_out():
    # [H] term by term for four levels of 48, 24, 8 and 4 steps, no two terms alike.
    lams, m = [0.9, 0.7, 0.5, 0.3], [2, 3, 2]
    ideal = [0.9**2, 0.9**2 * 0.7**2, 0.9**2 * 0.7**2 * 0.5]
    d1, d2, d3 = (abs(lam - product) for lam, product in zip(lams[1:], ideal, strict=True))
    g1, g2, end = 1 + 0.7 + 0.49, 1 + 0.5, 1 + 0.3 + 0.09
    columns = d1 * 1.7 + d2 * 1.7 * 1 + d3 * 1.7 * 1 * end + 0.3**3 * d3
    rows = d1 * g1 * g2 * end + d2 * g2 * end + d3 * end
    assert multilevel_rate(lams, m, 48) == pytest.approx(math.sqrt(columns * rows), rel=1e-14)
    end = 1 + 0.3
    both = 0.7 * g1 * 0.5 * g2 * (d2 + d3) + d1 * 0.7**2 * g1 * 0.5 * g2
    columns = 0.81 * (d1 * g1 + 0.7 * g1 * d2 * g2 / 3 + end * both / 3)
    rows = 0.81 * end * (d1 * g1 * g2 + 0.7 * d2 * g2 + 0.7 * 0.5 * d3)
    assert multilevel_rate(lams, m, 48, 1) == pytest.approx(math.sqrt(columns * rows), rel=1e-14)


# What the formulas say about learning rates


@pytest.mark.parametrize("m", [2, 4])
def test_learning_rates_of_gradient_descent(m):
    # On a quadratic with curvature mu a step multiplies the error by 1 - alpha mu.
    x = np.array([1e-3, 1e-4])  # alpha mu
    scaled, naive = 1 - m * x, 1 - x
    for coarse, order in ((scaled, 2), (naive, 1)):
        defect = np.abs((1 - x) ** m - coarse)
        assert math.log10(defect[0] / defect[1]) == pytest.approx(order, abs=0.01)
    # Divided by 1 - |lambda_1|: long runs converge faster the smaller alpha mu is, or not at all.
    steps = 10**7
    good, bad = (two_level_bound(1 - x, coarse, m, steps, 0, "asymptotic") for coarse in (scaled, naive))
    np.testing.assert_allclose(good, (m - 1) / 2 * x, rtol=0.01)
    np.testing.assert_allclose(bad, m - 1, rtol=0.01)
    # alpha_max: a coarse step that is not stable itself has no bound.
    assert two_level_bound(0.5, 1 - 2.1, m, steps, 0, "asymptotic") == np.inf


# Measured factors


@pytest.mark.parametrize("nu", [0, 1, 2])
@pytest.mark.parametrize("m", [[4], [2, 2]], ids=["two", "three"])
def test_measured_factors_stay_below_the_bounds(m, nu):
    x = np.geomspace(1e-3, 1e2, 12)
    heat = [lam + 0j for lam in backward_euler(x, m)]
    advection = backward_euler(0.5 * (1 - np.exp(1j * np.linspace(0, 2 * np.pi, 12))), m)  # upwind, Courant number 1/2
    for lams in (heat, advection):
        steps = 64
        e = RNG.normal(size=(steps // m[0], 12)) + 1j * RNG.normal(size=(steps // m[0], 12))
        found, residuals = errors(lams, m, steps, e, 4, nu=nu)
        norms = np.linalg.norm(found, axis=1)  # [cycles, modes]
        above = norms[0] * 1e-12  # what rounding leaves
        bound = multilevel_bound(lams, m, steps, nu)
        assert (norms[1:] <= bound * norms[:-1] * (1 + 1e-12) + above).all()
        if len(m) == 1:
            # The residual is the relaxed one: |lambda_0|^(m nu) times that of the matrix, in every cycle alike.
            r = np.array(residuals)
            assert (r[1:] <= bound.max() * r[:-1] * (1 + 1e-12) + 1e-12 * r[0]).all()


def test_the_worst_guess_meets_the_exact_factor():
    lams = [np.array([0.9 + 0j]), np.array([0.5 + 0.2j])]
    _, sigma, right = np.linalg.svd(error_propagator(lams, 4, 64, 1)[0])
    found, _ = errors(lams, [4], 64, right[0].conj()[:, None], 1, nu=1)
    assert np.linalg.norm(found[1]) == pytest.approx(sigma[0], rel=1e-12)
    assert two_level_bound(*lams, 4, 64, 1, "exact")[0] == pytest.approx(sigma[0], rel=1e-12)


# Arguments


def test_shapes():
    lam0, lam1 = np.full((3, 1), 0.5), np.full(4, 0.2)
    assert two_level_bound(lam0, lam1, 2, 8).shape == (3, 4)
    assert multilevel_bound([lam0, lam1, 0.1], 2, 8).shape == (3, 4)
    assert multilevel_rate([lam0, lam1, 0.1], 2, 8).shape == (3, 4)
    assert error_propagator([lam0, lam1], 2, 8).shape == (3, 4, 4, 4)
    assert np.ndim(two_level_bound(0.5, 0.2, 2, 8)) == 0
    assert two_level_bound([], [], 2, 8, 0, "exact").shape == (0,)


def test_many_modes_are_done_in_parts(monkeypatch):
    lams = [in_disc(0.9, 11) for _ in range(3)]
    whole = multilevel_bound(lams, 2, 16, kind="exact")
    monkeypatch.setattr(convergence, "_ENTRIES", 3 * 8**2)
    np.testing.assert_array_equal(multilevel_bound(lams, 2, 16, kind="exact"), whole)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: two_level_bound(0.5, 0.2, 2, 8, kind="sharp"), ValueError, "kind: got 'sharp', expected one of exact"),
        (lambda: two_level_bound(0.5, 1.5, 2, 8, 0, "exact"), ValueError, "lam1: got .* 1.5, expected at most 1"),
        (lambda: two_level_bound(np.nan, 0.2, 2, 8), ValueError, "lam0: got NaN"),
        (lambda: two_level_bound("a", 0.2, 2, 8), TypeError, "lam0: got dtype"),
        (lambda: two_level_bound(np.ones(2), np.ones(3), 2, 8), ValueError, "lams: got shapes"),
        (lambda: two_level_bound(0.5, 0.2, 0, 8), ValueError, "m: got 0"),
        (lambda: two_level_bound(0.5, 0.2, 2.5, 8), TypeError, "m: got 2.5, expected an integer"),
        (lambda: two_level_bound(0.5, 0.2, 9, 8), ValueError, "m: got 9 on level 0, expected at most its 8 steps"),
        (lambda: two_level_bound(0.5, 0.2, 2, 8, -1), ValueError, "nu: got -1"),
        (lambda: two_level_bound(0.5, 0.2, 2, 0), ValueError, "steps: got 0"),
        (lambda: multilevel_bound([0.5], 2, 8), ValueError, "lams: got 1 levels"),
        (lambda: multilevel_bound([0.5] * 3, [2], 8), ValueError, "m: got 1 values, expected 2"),
        (lambda: multilevel_bound([0.5] * 3, 2, 8, [0, 0, 0]), ValueError, "nu: got 3 values, expected 2"),
        (lambda: multilevel_bound([0.5] * 3, [4, 4], 8), ValueError, "m: got 4 on level 1"),
        (lambda: multilevel_bound([0.5] * 2, 2, 8, cycle="X"), ValueError, "cycle: got 'X'"),
        (lambda: multilevel_bound([0.5] * 2, 2, 8, kind="x"), ValueError, "kind: got 'x'"),
        (lambda: multilevel_rate([0.5, 1.0], 2, 8), ValueError, r"lams: .*expected \|lambda\| < 1"),
        (lambda: multilevel_rate([0.5, 0.5], 2, 8, 2), ValueError, "nu: got 2, expected 0 or 1"),
        (lambda: error_propagator([0.5, 0.5], 2, 8, omega=math.inf), ValueError, "omega: got inf"),
        (lambda: error_propagator([0.5, 0.5], 2, 8, cycle="Z"), ValueError, "cycle: got 'Z'"),
        (lambda: matrix_error_propagator([np.eye(2)], 2, 8), ValueError, "matrices: got shapes"),
        (lambda: matrix_error_propagator([np.eye(2), np.eye(3)], 2, 8), ValueError, "matrices: got shapes"),
        (lambda: matrix_error_propagator([np.eye(2), np.full((2, 2), np.inf)], 2, 8), ValueError, "Phi1: got NaN"),
    ],
)
def test_wrong_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()
