# SPDX-License-Identifier: BSD-3-Clause
"""Model problems: their true solutions are true, their steps are what they promise, their settings converge."""

import dataclasses
import math

import numpy as np
import pytest

from pyparareal import MGRIT, problems
from pyparareal.problems import CATALOGUE, model_problem
from pyparareal.problems.model import LimitedRungeKutta, computed
from pyparareal.problems.ordinary import PERIOD, START
from pyparareal.problems.partial import _cole_hopf
from pyparareal.solution import Status
from pyparareal.solver import serial_solve, solve
from pyparareal.tableaux import COOPER_VERNER_8
from pyparareal.time_grid import TimeGrid

EPS = np.finfo(float).eps
SMALL = {
    "brusselator": {"steps": 100},
    "lorenz": {"steps": 90},
    "arenstorf": {"steps": 400},
    "allen-cahn": {"points": 16},
}
named = pytest.mark.parametrize("name", CATALOGUE)


def small(name):
    """The problem with numbers that make it cheap."""
    return model_problem(name, **SMALL.get(name, {}))


def chain_error(problem, integrator=None, since=0.0):
    """The largest error of the serial chain from time ``since`` on."""
    chain = serial_solve(problem.propagator(integrator), problem.u0, problem.grid)
    rows = (chain.t >= since) | (chain.t == 0)
    return problem.error(chain.t[rows], chain.u[rows]).max()


@named
def test_problem_is_complete(name):
    p = small(name)
    assert p.name == name
    assert "\n" not in p.equation
    assert p.method in ("parareal", "mgrit")
    assert p.truth_is in ("exact", "semi-discrete", "reference")
    assert p.remark
    t = np.array([p.grid.t0, p.grid.times()[-1]])
    truth = p.truth(t)
    assert truth.shape == (2, *p.u0.shape)
    np.testing.assert_allclose(truth[0], p.u0, atol=4 * EPS)
    known = dataclasses.replace(p, truth=lambda t: truth)  # some take a second to compute
    assert known.error(t, truth).max() == 0
    assert known.error(t, truth + 2.0) == pytest.approx(2.0)
    assert [len(x) for x in p.space] == list(p.u0.shape[: len(p.space)])
    assert p.space or len(p.labels) == p.u0.shape[0]


@named
def test_steps_keep_their_promise_of_bits(name):
    p = small(name)
    rng = np.random.default_rng(0)
    for integrator in p.integrators:
        phi = p.propagator(integrator)
        # Matrix products make no promise, and a problem in two dimensions must not pretend.
        assert phi.batch_invariant == (len(p.space) < 2)
        m = p.grid.steps // 5 if p.grid.steps < 500 else 7
        u = p.u0 + 0.01 * rng.standard_normal((5, *p.u0.shape))
        points = slice(0, 5 * m, m)
        together = phi.step(u, points)
        for n in range(5):
            alone = phi.step(u[n : n + 1], slice(n * m, n * m + 1, m))[0]
            if phi.batch_invariant:
                assert np.array_equal(alone, together[n]), integrator
            else:  # sums of n^2 terms, each of size at most max |u|
                np.testing.assert_allclose(alone, together[n], atol=100 * EPS * u[n].size)
        assert phi.rediscretise(4).grid == p.grid.coarsen(4)
        assert phi.rediscretise(4).step(u[:1], slice(0, 1, 1)).shape == u[:1].shape


# True solutions


@pytest.mark.parametrize("name", ["heat-1d", "heat-2d"])
def test_heat_error_is_of_second_order_in_space(name):
    # After the fast mode has died out, four times as many steps change these errors, 2e-3 and 5e-4, by less than 1 %:
    # they are those of space. Its next term, of order dx^4, is smaller by (pi dx)^2, 4 %, and bends the slope by 0.02.
    coarse, fine = (
        chain_error(model_problem(name, points=points, steps=96), "sdirk3", since=0.4) for points in (15, 31)
    )
    assert abs(math.log2(coarse / fine) - 2) < 0.05


def test_burgers_solution_satisfies_the_equation():
    # Differences of second order with h = 1e-3 outside the layer leave 7e-7 (four times that with 2 h).
    x, t, h, viscosity = np.concatenate([np.linspace(-0.9, -0.3, 7), np.linspace(0.3, 0.9, 7)]), 0.5, 1e-3, 0.02

    def u(dx, dt):
        return _cole_hopf(x + dx, t + dt, viscosity)

    slope, bend = (u(h, 0) - u(-h, 0)) / (2 * h), (u(h, 0) - 2 * u(0, 0) + u(-h, 0)) / h**2
    residual = (u(0, h) - u(0, -h)) / (2 * h) + u(0, 0) * slope - viscosity * bend
    assert np.abs(slope).min() > 0.1
    np.testing.assert_allclose(residual, 0, atol=3e-6)
    np.testing.assert_allclose(_cole_hopf(x, 1e-9, viscosity), -np.sin(np.pi * x), atol=1e-6)


def test_burgers_error_is_of_second_order_in_space():
    # Twice as many steps change the finer error by 5 %; 63 points hardly resolve the layer.
    coarse, fine = (chain_error(model_problem("burgers", points=points, steps=256), "ars222") for points in (63, 127))
    assert abs(math.log2(coarse / fine) - 2) < 0.15


def test_upwind_differences_add_their_known_diffusion():
    # Modified equation: u_t + u_x = dx/2 u_xx. A Gaussian of variance 1/32 spreads to 1/32 + dx t; the next term of the
    # equation is of order dx^2 and changes its height by less than 1 %.
    p = model_problem("advection-1d", points=256, steps=64)
    u = serial_solve(p.propagator("sdirk3"), p.u0, p.grid).u[-1]
    assert u.max() == pytest.approx(math.sqrt((1 / 32) / (1 / 32 + 2 / 256 * 2)), rel=0.01)
    assert u.argmax() == pytest.approx(128, abs=1)
    assert u.sum() == pytest.approx(p.u0.sum(), rel=1e-12)


def test_advection_moves_once_around():
    p = model_problem("advection-1d")
    truth = p.truth(np.array([0.0, 0.5, 2.0]))
    np.testing.assert_allclose(truth[1], np.roll(p.u0, 32), atol=20 * EPS)
    np.testing.assert_allclose(truth[2], p.u0, atol=20 * EPS)


def test_arenstorf_orbit_closes():
    p = model_problem("arenstorf", steps=1000)
    t = p.grid.times()[::20]
    truth = p.truth(t)
    # The truth takes 2000 steps of order 8, which miss the start by 4e-10; 1000 by 1e-9, so that what is
    # left is rounding, which the close encounters amplify a million times.
    assert p.grid.t1 == PERIOD
    np.testing.assert_allclose(truth[-1], START, atol=1e-8)
    assert np.abs(truth[:, 0]).max() > 1.2
    # Order 4: errors at the end of 3e-3 and 2e-4
    errors = []
    for fine in (p, model_problem("arenstorf", steps=2000)):
        chain = serial_solve(fine.propagator(), fine.u0, fine.grid)
        errors.append(np.abs(chain.u[-1] - START).max())
    assert abs(math.log2(errors[0] / errors[1]) - 4) < 0.1


def test_a_disc_shrinks_by_its_curvature():
    # Sharp interfaces move with v = -1/R, so R^2 = 1/16 - 2 t. The width 0.04 of this one and the width 1/64 of the
    # points change the radius 0.196 by a few percent.
    p = model_problem("allen-cahn")
    u = p.truth(np.array([0.0, 0.012]))
    radius = np.sqrt((u > 0).mean((1, 2)) / np.pi)
    np.testing.assert_allclose(radius, [0.25, math.sqrt(1 / 16 - 0.024)], rtol=0.04)


def test_computed_solution_is_far_better_than_the_steps():
    truth = computed(lambda t, u: u * np.cos(t), np.ones(1), 100)
    t = np.array([0.0, 0.3, 2.5])
    np.testing.assert_allclose(truth(t)[:, 0], np.exp(np.sin(t)), rtol=1e-13)
    errors = [chain_error(model_problem("allen-cahn", points=16, steps=n), "ars222") for n in (128, 256)]
    assert abs(math.log2(errors[0] / errors[1]) - 2) < 0.1


def test_no_step_is_longer_than_its_limit():
    phi = LimitedRungeKutta(lambda t, u: -u, TimeGrid(0, 3, 30), COOPER_VERNER_8, limit=0.1)
    assert phi.substeps == 1
    assert phi.rediscretise(4).substeps == 4
    assert phi.rediscretise(4).rediscretise(3).substeps == 12
    assert isinstance(phi.rediscretise(3), LimitedRungeKutta)


# Settings


CONTRACTIVE = ("decay", "dahlquist", "heat-1d", "heat-2d", "advection-1d")


@pytest.mark.parametrize("name", [*CONTRACTIVE, "arenstorf", "burgers"])
def test_default_settings_converge(name):
    p = model_problem(name)
    case = p.arguments()
    solution = solve(**case, method=MGRIT(levels=p.levels))
    slices = solution.stats.slices
    assert solution.status is Status.CONVERGED
    assert 1 < solution.iterations < 1 + -(-slices // 2)  # not merely because all of it is exact
    chain = serial_solve(case["fine"], p.u0, p.grid, m=p.m, save="coarse")
    distance = np.abs(solution.u - chain.u).max()
    assert 0 < distance < p.error(chain.t, chain.u).max()  # the iteration is not what limits the accuracy
    if name in CONTRACTIVE:
        # Errors are sums of residuals carried on by steps that do not enlarge them: at most sqrt(slices) |r|.
        assert distance < math.sqrt(slices) * p.tol


def test_advection_takes_more_cycles_than_heat():
    cycles = {}
    for name in ("advection-1d", "heat-1d"):
        p = model_problem(name, points=128, steps=128)
        cycles[name] = solve(**p.arguments() | {"m": 4, "tol": 1e-6}, method=MGRIT(levels=2)).iterations
    assert cycles["advection-1d"] >= 2 * cycles["heat-1d"]


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "heat"}, ValueError, "name: got 'heat', expected one of decay, "),
        ({"name": "heat-1d", "points": 2}, ValueError, "points: got 2, expected at least 3"),
        ({"name": "heat-1d", "points": 9.0}, TypeError, "points: got 9.0, expected an integer"),
        ({"name": "heat-1d", "steps": 0}, ValueError, "steps: got 0, expected at least 1"),
        ({"name": "lorenz", "points": 9}, ValueError, "points: got 9, but lorenz is an ordinary"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        model_problem(**arguments)


def test_unknown_integrator():
    with pytest.raises(ValueError, match="integrator: got 'rk4', decay has backward-euler, crank"):
        model_problem("decay").arguments("rk4")


def test_the_published_set_ups_keep_their_names():
    assert isinstance(problems.lorenz(), problems.Problem)
    assert set(problems.heat_1d()) == {"fine", "coarse", "u0", "grid", "m"}


# Pictures


@named
def test_pictures_can_be_drawn(name):
    matplotlib = pytest.importorskip("matplotlib.figure")
    from pyparareal.problems.pictures import draw_residuals, draw_solution

    p = small(name)
    t = p.grid.times()[:: max(1, p.grid.steps // 10)]
    u = np.broadcast_to(p.u0, (len(t), *p.u0.shape))
    left, right = matplotlib.Figure().subplots(1, 2)
    draw_residuals(left, [math.nan, 1.0, 0.1, 0.0, math.inf], 1e-3, "residual")
    draw_solution(right, p, t, u, t[::2], u[::2])
    (line, tolerance) = left.lines
    assert line.get_xydata().tolist() == [[2, 1.0], [3, 0.1]]
    assert tolerance.get_ydata()[0] == 1e-3
    assert right.get_title() == name
    assert right.lines or right.images
