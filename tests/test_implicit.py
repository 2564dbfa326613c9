# SPDX-License-Identifier: BSD-3-Clause
"""Implicit steps: what a scheme's coefficients must satisfy, operators against dense algebra, observed orders, bits."""

import numpy as np
import pytest

from pyparareal import tableaux
from pyparareal.implicit import DiagonallyImplicit, Imex, ImplicitEuler
from pyparareal.operators import Laplacian2D, PeriodicUpwind, Rates, Tridiagonal
from pyparareal.time_grid import TimeGrid

EPS = np.finfo(float).eps
MIDPOINT = tableaux.ImplicitTableau("implicit midpoint", 2, ((0.5,),), (1.0,), (0.5,))
SCHEMES = [
    tableaux.BACKWARD_EULER,
    tableaux.CRANK_NICOLSON,
    tableaux.theta_method(0.7),
    tableaux.SDIRK_2,
    tableaux.SDIRK_3,
    MIDPOINT,
]
PAIRS = [tableaux.IMEX_EULER, tableaux.ARS_222]


def diffusion(n=5, dx=0.5):
    off = np.full(n - 1, 1 / dx**2)
    return Tridiagonal(off, np.full(n, -2 / dx**2), off)


OPERATORS = {
    "tridiagonal": Tridiagonal([1.0, 2.0, 3.0], [-4.0, -5.0, -6.0, -7.0], [0.5, 0.25, 2.0]),
    "single": Tridiagonal([], [-2.0], []),
    "upwind": PeriodicUpwind(6, 3.0),
    "rates": Rates([-1, -2 + 3j, 4j]),
    "square": Laplacian2D(4, 2.0),
    "torus": Laplacian2D(4, 2.0, periodic=True, scale=0.5),
    "odd torus": Laplacian2D(5, periodic=True),
}
named = pytest.mark.parametrize("name", OPERATORS)


# Coefficients


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_order_conditions(scheme):
    a = np.array([list(row) + [0.0] * (len(scheme.a) - len(row)) for row in scheme.a])
    b, c = np.array(scheme.b), np.array(scheme.c)
    np.testing.assert_allclose(a.sum(1), c, atol=4 * EPS)
    conditions = {1: [(b.sum(), 1)], 2: [(b @ c, 1 / 2)], 3: [(b @ c**2, 1 / 3), (b @ a @ c, 1 / 6)]}
    for order, equations in conditions.items():
        held = all(abs(left - right) < 20 * EPS for left, right in equations)
        assert held == (order <= scheme.order), f"order {order}"


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_damping_of_infinitely_stiff_components(scheme):
    # R(-infinity) of a theta method is (theta - 1)/theta; SDIRK 2 and 3 are L-stable: 0; the midpoint rule: -1.
    expected = {"Crank-Nicolson": -1.0, "theta 0.7": -3 / 7, "implicit midpoint": -1.0}.get(scheme.name, 0.0)
    step = DiagonallyImplicit(Tridiagonal([], [-1e9], []), TimeGrid(0, 1, 1), scheme)
    # terms of size 1/(h lambda) = 1e-9, and rounding of sums of numbers of size h lambda * R
    np.testing.assert_allclose(step.step(np.ones((1, 1)), slice(0, 1, 1)), expected, atol=1e-6)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda s: s.name)
def test_imex_pairs_share_their_nodes(pair):
    # Row sums of the explicit part: the nodes of the implicit part, or N(t) would be taken at a wrong time.
    np.testing.assert_allclose([sum(row) for row in pair.explicit], pair.implicit.c, atol=4 * EPS)
    if pair.order == 2:
        assert np.dot(pair.explicit[-1], (0.0, *pair.implicit.c[:-1])) == pytest.approx(0.5, abs=4 * EPS)


# Operators


def dense(operator, how):
    """The matrix of a linear map, column by column."""
    n = int(np.prod(operator.shape))
    return how(np.eye(n).reshape(n, *operator.shape)).reshape(n, n).T


@named
@pytest.mark.parametrize("h", [0.01, 1.0, 50.0])
def test_solve_inverts_what_apply_says(name, h):
    operator = OPERATORS[name]
    a = dense(operator, operator.apply)
    inverse = dense(operator, lambda b: operator.solve(b, h))
    system = np.eye(len(a)) - h * a
    # Every entry of the product is a sum of n terms, each within a few roundings of |system| |inverse|.
    bound = 20 * EPS * len(a) * np.abs(system).sum(1).max() * np.abs(inverse).sum(1).max()
    np.testing.assert_allclose(system @ inverse, np.eye(len(a)), atol=bound)


def test_matrices_are_the_ones_in_the_docstrings():
    np.testing.assert_array_equal(
        dense(OPERATORS["tridiagonal"], OPERATORS["tridiagonal"].apply),
        np.diag([-4.0, -5, -6, -7]) + np.diag([1.0, 2, 3], -1) + np.diag([0.5, 0.25, 2], 1),
    )
    circle = np.eye(6)
    np.testing.assert_array_equal(
        dense(OPERATORS["upwind"], OPERATORS["upwind"].apply), -3 * (circle - np.roll(circle, 1, 0))
    )
    for name, n, dx, scale in (("square", 4, 2 / 5, 1), ("torus", 4, 2 / 4, 0.5), ("odd torus", 5, 1 / 5, 1)):
        line = np.diag([1.0] * (n - 1), 1) + np.diag([1.0] * (n - 1), -1) - 2 * np.eye(n)
        if name != "square":
            line[0, -1] = line[-1, 0] = 1
        expected = scale / dx**2 * (np.kron(line, np.eye(n)) + np.kron(np.eye(n), line))
        a = dense(OPERATORS[name], OPERATORS[name].apply)
        np.testing.assert_allclose(a, expected, atol=20 * EPS * np.abs(expected).sum(1).max())
    u = np.array([[[1.0, 2.0], [3.0, -1.0], [0.5, 0.25]]])
    z = (u[..., 0] + 1j * u[..., 1]) * np.array([-1, -2 + 3j, 4j])
    np.testing.assert_allclose(OPERATORS["rates"].apply(u), np.stack([z.real, z.imag], -1), rtol=4 * EPS)


# Orders


def manufactured(t):
    """``u_j(t) = sin(t + j)`` and its derivative, ``[k, 5]``."""
    s = np.asarray(t)[:, None] + np.arange(5)
    return np.sin(s), np.cos(s)


def final_error(make, steps):
    grid = TimeGrid(0.0, 2.0, steps)
    phi, u = make(grid), manufactured([0.0])[0]
    for i in range(steps):
        u = phi.step(u, slice(i, i + 1, 1))
    return np.abs(u - manufactured([2.0])[0]).max()


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_observed_order_with_a_source(scheme):
    a = diffusion()

    def source(t):
        u, du = manufactured(t)
        return du - a.apply(u)

    # h |A| is below 1/2, so the next term of the error expansion bends the slope by less than a tenth, and the error
    # of order 3, about 1e-8, is far above rounding.
    errors = [final_error(lambda g: DiagonallyImplicit(a, g, scheme, source=source), n) for n in (100, 200)]
    assert abs(np.log2(errors[0] / errors[1]) - scheme.order) < 0.1
    assert errors[1] > 1e-10


@pytest.mark.parametrize("pair", PAIRS, ids=lambda s: s.name)
def test_observed_order_of_imex(pair):
    a = diffusion()

    def explicit(t, u):
        exact, du = manufactured(np.ravel(t))
        return u * u + (du - a.apply(exact) - exact * exact)

    errors = [final_error(lambda g: Imex(a, explicit, g, pair), n) for n in (200, 400)]
    assert abs(np.log2(errors[0] / errors[1]) - pair.order) < 0.1
    assert errors[1] > 1e-10


# Bits


@named
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_slices_do_not_feel_their_company(name, scheme):
    operator = OPERATORS[name]
    phi = DiagonallyImplicit(operator, TimeGrid(0, 1, 35), scheme)
    assert phi.batch_invariant == operator.batch_invariant
    u = np.random.default_rng(0).standard_normal((7, 2, *operator.shape))
    together = phi.step(u, slice(0, 35, 5))
    alone = np.concatenate([phi.step(u[n : n + 1], slice(5 * n, 5 * n + 1, 5)) for n in range(7)])
    if phi.batch_invariant:
        assert np.array_equal(alone, together)
    else:  # matrix products of at most 5 terms, four in a row
        np.testing.assert_allclose(alone, together, rtol=1e3 * EPS, atol=1e3 * EPS)


@named
@pytest.mark.parametrize("scheme", [tableaux.CRANK_NICOLSON, tableaux.SDIRK_3], ids=lambda s: s.name)
def test_torch_states_give_the_bits_of_numpy(name, scheme):
    torch = pytest.importorskip("torch")
    operator = OPERATORS[name]
    grid = TimeGrid.from_times([0.0, 0.5, 0.7, 1.9])
    phi = DiagonallyImplicit(operator, grid, scheme, source=lambda t: np.multiply.outer(t, np.ones(operator.shape)))
    u = np.random.default_rng(0).standard_normal((3, 2, *operator.shape))
    expected, got = phi.step(u, slice(0, 3, 1)), phi.step(torch.tensor(u), slice(0, 3, 1)).numpy()
    if operator.batch_invariant:
        assert np.array_equal(got, expected)
    else:
        np.testing.assert_allclose(got, expected, rtol=1e3 * EPS, atol=1e3 * EPS)
    single = phi.step(u.astype(np.float32), slice(0, 3, 1))
    assert single.dtype == np.float32


def test_imex_is_batch_invariant_where_both_parts_are():
    phi = Imex(diffusion(), lambda t, u: t - u * u, TimeGrid(0, 1, 35), tableaux.ARS_222, batch_invariant=True)
    assert phi.batch_invariant
    assert phi.rediscretise(5).grid == phi.grid.coarsen(5)
    u = np.random.default_rng(0).standard_normal((7, 5))
    together = phi.step(u, slice(0, 35, 5))
    for n in range(7):
        assert np.array_equal(phi.step(u[n : n + 1], slice(5 * n, 5 * n + 1, 5))[0], together[n])
    assert not Imex(Laplacian2D(4), lambda t, u: u, TimeGrid(0, 1, 35), batch_invariant=True).batch_invariant


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_steps_of_different_sizes(scheme):
    grid = TimeGrid.from_times([0.0, 0.1, 0.5, 1.2])
    phi = DiagonallyImplicit(diffusion(), grid, scheme, source=lambda t: manufactured(t)[0])
    u = np.random.default_rng(0).standard_normal((3, 5))
    together = phi.step(u, slice(0, 3, 1))
    for n, (t0, t1) in enumerate(zip(grid.times()[:-1], grid.times()[1:], strict=True)):
        one = DiagonallyImplicit(diffusion(), TimeGrid(t0, t1, 1), scheme, source=lambda t: manufactured(t)[0])
        assert np.array_equal(one.step(u[n : n + 1], slice(0, 1, 1))[0], together[n])


# Errors


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ImplicitEuler([1.0], [1.0], [], TimeGrid(0, 1, 2)), ValueError, "lower, upper: got shapes"),
        (lambda: PeriodicUpwind(1, 1.0), ValueError, "points, rate: got 1, 1.0"),
        (lambda: PeriodicUpwind(9, -1.0), ValueError, "above 0"),
        (lambda: Laplacian2D(2), ValueError, "n: got 2"),
        (lambda: DiagonallyImplicit(3, TimeGrid(0, 1, 2)), TypeError, "operator: got int"),
        (lambda: DiagonallyImplicit(diffusion(), 3), TypeError, "grid: got int"),
        (lambda: DiagonallyImplicit(diffusion(), TimeGrid(0, 1, 2), tableaux.RK4), TypeError, "tableau: got Tableau"),
        (lambda: Imex(diffusion(), 3, TimeGrid(0, 1, 2)), TypeError, "explicit: got int"),
        (lambda: tableaux.theta_method(0), ValueError, "theta: got 0"),
        (lambda: tableaux.ImplicitTableau("x", 1, ((1.0,),), (1.0,), ()), ValueError, "equal numbers"),
        (lambda: tableaux.ImplicitTableau("x", 1, ((),), (1.0,), (1.0,)), ValueError, "up to the diagonal"),
        (lambda: tableaux.ImexTableau("x", 1, MIDPOINT, ((1.0,),)), ValueError, "implicit: got implicit midpoint"),
        (lambda: tableaux.ImexTableau("x", 1, tableaux.SDIRK_2, ((1.0,),)), ValueError, "explicit: expected row i"),
        (
            lambda: DiagonallyImplicit(Laplacian2D(3), TimeGrid(0, 1, 2)).step(np.ones((1, 3, 4)), slice(0, 1, 1)),
            ValueError,
            r"u: got \(3, 4\) features, expected \(3, 3\)",
        ),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
