# SPDX-License-Identifier: BSD-3-Clause
"""Wrong arguments of Newton's method: named before any step is taken."""

import numpy as np
import pytest
from newton_cases import Cell, Linear, Logistic

from pyparareal import Newton, TimeGrid, serial_solve, solve
from pyparareal.propagators import Map

GRID = TimeGrid(0, 1, 12)
U0 = np.array([[0.3, 0.2]])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "gauss"}, ValueError, "method: got 'gauss', expected one of parareal, mgrit, newton"),
        ({"method": Newton("dense")}, ValueError, "jacobian: got 'dense', expected one of auto, full, block"),
        ({"method": Newton(damping=1.5)}, ValueError, "damping: got 1.5, expected a number from 0 to 1"),
        ({"method": Newton(damping=-0.1)}, ValueError, "damping: got -0.1"),
        ({"method": Newton(damping=float("nan"))}, ValueError, "damping: got nan"),
        ({"method": Newton(damping="much")}, TypeError, "damping: got 'much', expected a number or 'adaptive'"),
        ({"method": Newton(damping=True)}, TypeError, "damping: got True"),
        ({"method": Newton(damping=None)}, TypeError, "damping: got None"),
        ({"method": Newton(trust="far")}, TypeError, "trust: got 'far', expected a number or None"),
        ({"method": Newton(trust=0.0)}, ValueError, "trust: got 0.0, expected a finite number above 0"),
        ({"method": Newton(trust=float("inf"))}, ValueError, "trust: got inf"),
        ({"norm": "max"}, ValueError, "norm: got 'max', expected one of inf, l1, l2, rms"),
        ({"norm": lambda u: u}, ValueError, "norm: got"),
        ({"m": 13}, ValueError, "m: got 13, expected at most the 12 steps"),
        ({"m": [2, 3]}, TypeError, "m: got \\[2, 3\\]"),
        ({"tol": -1.0}, ValueError, "tol: got -1"),
        ({"tol": None}, ValueError, "max_iterations: got None with tol=None"),
        ({"max_iterations": 0}, ValueError, "max_iterations: got 0"),
        ({"coarse": 3}, TypeError, "coarse: got int"),
        ({"coarse": Map(np.sin), "initial": np.zeros((7, 1, 2))}, ValueError, "coarse: got one with an initial guess"),
        ({"method": Newton("block")}, ValueError, "jacobian: got 'block', expected one that Logistic has: 'full'"),
    ],
)  # fmt: skip
def test_wrong_arguments(options, error, message):
    class Unused(Logistic):
        def step(self, u, points):
            raise AssertionError("a step was taken")

    Unused.__name__ = "Logistic"
    with pytest.raises(error, match=message):
        solve(Unused(), U0, GRID, **{"m": 2, "tol": 1e-9, "method": "newton"} | options)


@pytest.mark.parametrize("jacobian", ["full", "diagonal", "block"])
def test_numpy_steps_without_jacobians_are_refused_by_name(jacobian):
    with pytest.raises(TypeError, match=f"jacobian: got '{jacobian}' for a Map that has no linearise"):
        solve(Map(np.sin), U0, GRID, m=2, tol=1e-9, method=Newton(jacobian))
    for always in (Newton("none"), Newton("auto"), Newton(jacobian, 1.0)):
        solution = solve(Map(np.sin), U0, GRID, m=2, tol=1e-9, method=always)
        assert solution.stats.jacobian == "none"
        assert np.allclose(solution.u, serial_solve(Map(np.sin), U0, GRID, m=2, save="coarse").u, rtol=0, atol=1e-8)


def test_blocks_must_fit():
    cell = Cell(4)
    cell.block = 3
    with pytest.raises(ValueError, match="jacobian: got 'block' with block = 3, expected a divisor of 4"):
        solve(cell, cell.u0, cell.grid, m=1, tol=1e-9, method=Newton("block"))


@pytest.mark.parametrize(("kind", "shape"), [("full", (6, 1, 2)), ("diagonal", (6, 1, 1)), ("full", (6, 1, 4, 1))])
def test_a_jacobian_of_another_shape_is_refused(kind, shape):
    class Odd(Logistic):
        def linearise(self, u, points, kind):
            return self.step(u, points), np.zeros(shape)

    with pytest.raises(ValueError, match=rf"Odd.linearise: returned a {kind} Jacobian of shape \({shape[0]}, "):
        solve(Odd(), U0, GRID, m=2, tol=1e-9, method=Newton(kind))


def test_kinds_that_a_propagator_does_not_have():
    phi = Linear(np.full((12, 2, 2), 0.1))
    with pytest.raises(ValueError, match="jacobian: got 'diagonal', expected one that Linear has: 'full', 'none'"):
        solve(phi, U0, GRID, m=2, tol=1e-9, method=Newton("diagonal"))


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (lambda u: u, "float64"),
        (lambda u: (u, None), "float64, NoneType"),
        (lambda u: (u, u, u), "tuple"),
        (lambda u: (u, u * 1j), "float64, complex128"),
    ],
)
def test_a_linearise_that_returns_no_pair_of_real_arrays_is_refused_by_name(returned, got):
    class Odd(Logistic):
        def linearise(self, u, points, kind):
            return returned(u)

    with pytest.raises(TypeError, match=rf"Odd.linearise: returned .*{got}.*, expected \(u_next, J\), real arrays"):
        solve(Odd(), U0, GRID, m=2, tol=1e-9, method=Newton("diagonal"))
