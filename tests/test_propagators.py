# SPDX-License-Identifier: BSD-3-Clause
"""Steps: observed orders, batching, blocks; and what a step may not do."""

import numpy as np
import pytest

from pyparareal import MGRIT, problems, solve, tableaux
from pyparareal.compiled import compiled
from pyparareal.implicit import ImplicitEuler
from pyparareal.propagators import Blocked, Blocks, Map, Propagator, RungeKutta, advance
from pyparareal.time_grid import TimeGrid

SCHEMES = [tableaux.EULER, tableaux.MIDPOINT, tableaux.HEUN, tableaux.RK4, tableaux.COOPER_VERNER_8]


def run(phi, u0, steps):
    u = np.array(u0)[None]
    for i in range(steps):
        u = phi.step(u, slice(i, i + 1, 1))
    return u[0]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
@pytest.mark.parametrize("substeps", [1, 2])
def test_observed_order(scheme, substeps):
    # u' = u cos t, u = exp(sin t): not autonomous, so wrong nodes c show. The steps are such that the error of
    # the last one is above rounding (1e-13 for order 8) and the next term of the error expansion, one power
    # of h smaller, changes the slope by less than a quarter.
    steps = {1: 400, 2: 100, 4: 40, 8: 8}[scheme.order] // substeps
    errors = []
    for n in (steps, 2 * steps):
        phi = RungeKutta(lambda t, u: u * np.cos(t), TimeGrid(0, 2.5, n), scheme, substeps=substeps)
        errors.append(abs(run(phi, [1.0], n)[0] - np.exp(np.sin(2.5))))
    assert abs(np.log2(errors[0] / errors[1]) - scheme.order) < 0.25
    assert errors[1] > 2e-14


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.name)
def test_tableau_is_consistent(scheme):
    # Row sums and the weights are sums of at most 11 numbers of size 1.
    np.testing.assert_allclose([sum(row) for row in scheme.a], scheme.c, atol=1e-14)
    assert sum(scheme.b) == pytest.approx(1, abs=1e-14)


def test_wrong_tableau():
    with pytest.raises(ValueError, match="equal numbers"):
        tableaux.Tableau("x", 1, ((),), (1.0,), (0.0, 1.0))
    with pytest.raises(ValueError, match="left of the diagonal"):
        tableaux.Tableau("x", 1, ((1.0,),), (1.0,), (0.0,))


def test_implicit_euler_solves_its_equation_and_has_order_one():
    rng = np.random.default_rng(1)
    lower, diagonal, upper = rng.uniform(0, 1, 8), -2 - rng.uniform(0, 1, 9), rng.uniform(0, 1, 8)
    matrix = np.diag(diagonal) + np.diag(lower, -1) + np.diag(upper, 1)
    phi = ImplicitEuler(lower, diagonal, upper, TimeGrid(0, 1, 10))
    u = rng.standard_normal((4, 3, 9))
    u_next = phi.step(u, slice(0, 10, 3))
    # The matrix is diagonally dominant with condition below 2: a residual of a few ulps.
    np.testing.assert_allclose(u_next - 0.1 * u_next @ matrix.T, u, atol=20 * np.finfo(float).eps)

    values, vectors = np.linalg.eig(matrix)
    exact = (vectors @ np.diag(np.exp(values)) @ np.linalg.inv(vectors)).real @ u[0, 0]
    errors = [
        np.abs(run(ImplicitEuler(lower, diagonal, upper, TimeGrid(0, 1, n)), u[0, 0], n) - exact).max()
        for n in (200, 400)
    ]
    assert abs(np.log2(errors[0] / errors[1]) - 1) < 0.05


def test_non_uniform_steps():
    grid = TimeGrid.from_times([0.0, 0.1, 0.5, 0.6, 1.2])
    u = np.linspace(1, 2, 8).reshape(4, 2)
    points = slice(0, 4, 1)
    h = np.array([0.1, 0.4, 0.1, 0.6])[:, None]
    euler = RungeKutta(lambda t, u: -u + t, grid, tableaux.EULER)
    np.testing.assert_allclose(euler.step(u, points), u + h * (-u + grid.times()[:4, None]), rtol=1e-15)
    implicit = ImplicitEuler([0.0], [-1.0, -1.0], [0.0], grid)
    np.testing.assert_allclose(implicit.step(u, points), u / (1 + h), rtol=1e-15)
    np.testing.assert_allclose(implicit.rediscretise(2).step(u[:2], slice(0, 2, 1)), u[:2] / [[1.5], [1.7]], rtol=1e-15)


@pytest.mark.parametrize("name", ["lorenz", "fitzhugh_nagumo", "brusselator", "hopf", "burgers"])
def test_problems_are_batch_invariant_and_relax_is_steps(name):
    p = getattr(problems, name)().normalised()
    phi = p.parareal()["fine"]
    rng = np.random.default_rng(0)
    u = np.array(p.u0) + 0.01 * rng.standard_normal((7, len(p.u0)))
    points, m = slice(0, 7 * p.m, p.m), 3
    together = np.empty_like(u)
    phi.relax(u, points, m, together)
    for n in range(7):
        v = u[n : n + 1]
        for j in range(m):
            v = phi.step(v, slice(n * p.m + j, n * p.m + j + 1, p.m))
        assert np.array_equal(v[0], together[n])


def test_heat_is_batch_invariant():
    phi = problems.heat_1d()["fine"]
    u = np.random.default_rng(0).standard_normal((5, 63))
    together = phi.step(u, slice(0, 5, 1))
    for n in range(5):
        assert np.array_equal(phi.step(u[n : n + 1], slice(n, n + 1, 1))[0], together[n])


def test_steps_may_work_in_place_or_reuse_a_buffer():
    buffer = np.empty((3, 2))

    def in_place(u):
        u *= 2
        return u

    def reuse(u):
        np.multiply(u, 2, out=buffer)
        return buffer

    for phi in (Map(in_place), Map(reuse)):
        u, out = np.ones((3, 2)), np.empty((3, 2))
        advance(phi, u, slice(0, 3, 1), 3, out=out)
        assert (u == 1).all()
        assert (out == 8).all()
        assert not np.shares_memory(out, buffer)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda u: u[:, :1], r"Map.step: returned shape \(3, 1\), expected \(3, 2\)"),
        (lambda u: u.astype(np.float32), "returned dtype float32, expected float64"),
        (lambda u: None, "returned shape None"),
    ],
)
def test_a_step_keeps_shape_and_dtype(step, message):
    with pytest.raises(ValueError, match=message):
        advance(Map(step), np.ones((3, 2)), slice(0, 3, 1), 1, out=np.empty((3, 2)))


def test_a_right_hand_side_keeps_shape():
    phi = RungeKutta(lambda t, u: np.ones((3, 5, 2)), TimeGrid(0, 1, 6), tableaux.EULER)
    with pytest.raises(ValueError, match=r"RungeKutta\.step: returned shape"):
        advance(phi, np.ones((3, 1, 2)), slice(0, 6, 2), 1, out=np.empty((3, 1, 2)))


def test_map_passes_points_if_asked():
    phi = Map(lambda u, points: u + points.start, pass_points=True)
    assert isinstance(phi, Propagator)
    assert phi.step(np.zeros(2), slice(4, 8, 2)).tolist() == [4, 4]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Map(3), TypeError, "phi: got int"),
        (lambda: RungeKutta(3, TimeGrid(0, 1, 2)), TypeError, "rhs: got int"),
        (lambda: RungeKutta(abs, 2), TypeError, "grid: got int"),
        (lambda: RungeKutta(abs, TimeGrid(0, 1, 2), substeps=0), ValueError, "substeps: got 0"),
        (lambda: ImplicitEuler([1.0], [1.0], [], TimeGrid(0, 1, 2)), ValueError, "lower, upper: got shapes"),
        (lambda: problems.heat_1d()["fine"].step(np.ones((1, 9)), slice(0, 1, 1)), ValueError, "9,.*expected .63"),
        (lambda: Blocks([]), ValueError, "empty list"),
        (lambda: Blocked(Map(abs), 4, block=0), ValueError, "block: got 0"),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


# A propagator with the defect of a matrix product, made visible: the result depends on the number of
# slices in the call and on the position among them.


def _company(u, points):
    place = np.arange(len(u))[:, None]
    return u + 1000 * len(u) + place


@pytest.mark.parametrize(("steps", "m"), [(s, m) for s in (1, 2, 3, 5, 8, 9, 23, 24, 25) for m in (1, 2, 3) if m <= s])
def test_blocks_hide_the_company_of_a_slice(steps, m):
    phi = Blocked(Map(_company, pass_points=True), steps, block=4)
    assert phi.batch_invariant
    for j in range(m):
        count = len(range(j, steps, m))
        u = np.arange(count, dtype=float)[:, None]
        together = phi.step(u, slice(j, steps, m))
        assert together.shape == u.shape
        for first in range(count):
            for last in range(first + 1, count + 1):
                points = slice(first * m + j, (last - 1) * m + j + 1, m)
                assert np.array_equal(phi.step(u[first:last], points), together[first:last])


def test_blocks_pass_points_of_the_grid_only():
    seen = []

    def step(u, points):
        seen.append(list(range(points.start, points.stop, points.step)))
        assert len(seen[-1]) == len(u)
        return u + np.array(seen[-1])[:, None]

    phi = Blocked(Map(step, pass_points=True), 11, block=4)
    out = phi.step(np.zeros((6, 1)), slice(0, 11, 2))
    assert out[:, 0].tolist() == [0, 2, 4, 6, 8, 10]
    assert seen == [[0, 2, 4, 6], [4, 6, 8, 10]]
    assert phi.step(np.zeros((1, 1)), slice(6, 7, 2))[0, 0] == 6


def test_torch_blocks():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.Linear(3, 3, dtype=torch.float64) for _ in range(4)])
    u = torch.randn(2, 5, 3, dtype=torch.float64)
    each = Blocks(layers)
    assert each.steps == 4
    assert torch.equal(each.step(u, slice(1, 4, 2)), torch.stack([layers[1](u[0]), layers[3](u[1])]))
    shared = Blocks(torch.nn.Sequential(layers[0], torch.nn.Tanh()))
    assert shared.steps is None
    expected = torch.tanh(layers[0](u.reshape(10, 3))).reshape(2, 5, 3)
    assert torch.equal(shared.step(u, slice(0, 2, 1)), expected)
    assert torch.equal(shared.step(u[:, 0], slice(0, 2, 1)), torch.tanh(layers[0](u[:, 0])))
    assert not shared.batch_invariant


@pytest.mark.parametrize("name", ["lorenz", "burgers"])
def test_torch_states_give_the_bits_of_numpy(name):
    torch = pytest.importorskip("torch")
    p = getattr(problems, name)().normalised()
    phi = p.parareal()["fine"]
    u = np.array(p.u0) + 0.01 * np.random.default_rng(0).standard_normal((7, len(p.u0)))
    points = slice(0, 7 * p.m, p.m)
    assert np.array_equal(phi.step(torch.tensor(u), points).numpy(), phi.step(u, points))
    heat = ImplicitEuler([0.5], [-1.0, -1.0], [0.5], TimeGrid(0, 1, 9))
    assert np.array_equal(
        heat.step(torch.tensor(u[:, :2]), slice(0, 7, 1)).numpy(), heat.step(u[:, :2], slice(0, 7, 1))
    )


@pytest.mark.parametrize("name", ["step", "_step", "_substep", "_relax"])
def test_a_step_of_ones_own_is_not_passed_over_by_the_kernel(name):
    def own(self, *arguments):
        return arguments[-2 if name == "_substep" else -1]

    rhs, grid = compiled("dahlquist", -1.0)(lambda t, u: -u), TimeGrid(0.0, 1.0, 4)
    assert RungeKutta(rhs, grid).fused
    assert not type("Own", (RungeKutta,), {name: own})(rhs, grid).fused


@pytest.mark.parametrize("kind", [RungeKutta, ImplicitEuler])
def test_a_relax_of_ones_own_is_not_asked_for_norms(kind):
    """It may have the signature of before there were any."""

    class Own(kind):
        def relax(self, u, points, m, out, *, f=None, g=None, every=None):
            more = {key: v for key, v in {"f": f, "g": g, "every": every}.items() if v is not None}
            kind.relax(self, u, points, m, out, **more)

    grid = TimeGrid(0.0, 1.0, 32)
    if kind is RungeKutta:
        arguments, u0 = (compiled("dahlquist", -1.0)(lambda t, u: -u), grid), np.ones(1)
    else:
        arguments, u0 = (np.ones(3), -2 * np.ones(4), np.ones(3), grid), np.ones(4)
    ours, own = kind(*arguments), Own(*arguments)
    assert ours.compares
    assert not own.compares
    options = {"m": 4, "tol": 1e-10, "method": MGRIT(levels=2)}
    coarse = kind(*arguments).rediscretise(4)
    expected, got = (solve(phi, u0, grid, coarse=coarse, **options) for phi in (ours, own))
    assert np.array_equal(expected.u, got.u)
    assert expected.residuals == got.residuals
