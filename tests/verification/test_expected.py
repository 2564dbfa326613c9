# SPDX-License-Identifier: BSD-3-Clause
"""How large an error may be: exact for chains whose growth is known, and never below what really comes out."""

import numpy as np
import pytest

from pyparareal import TimeGrid, verify
from pyparareal.propagators import Map
from pyparareal.verification import Fault
from pyparareal.verification.expected import SAFETY, Growth, growth


def chain(factor, steps):
    u = np.empty((steps + 1, 1, 3))
    u[0] = [[1.0, 2.0, -0.5]]
    for i in range(steps):
        u[i + 1] = factor * u[i]
    return u


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_growth_of_a_linear_chain(factor):
    """Differences of ``u -> a u`` grow by ``a^m`` in a slice, relative to the states not at all."""
    found = growth(lambda i, v: factor * v, chain(factor, 20), 4, 5)
    # One direction of size sqrt(eps) is known to sqrt(eps), and five slices are five such errors.
    assert np.allclose(found.logs, 4 * np.log(factor), rtol=0, atol=1e-7)
    assert found.exponent == pytest.approx(np.log(factor), abs=1e-7)
    assert found.relative == pytest.approx(1.0, rel=1e-6)


def test_errors_are_carried_along():
    """``e_n = a_n e_{n-1} + d_n``, by hand."""
    given = Growth(np.log([2.0, 3.0, 0.5]), np.ones(3), 1, np.ones(4))
    assert np.allclose(given.carried(np.array([1.0, 10.0, 100.0])), [1, 13, 106.5])
    assert np.allclose(given.allowed(0.0, 1.0), SAFETY * np.array([1, 4, 3]))
    # Without growth an error is carried on, or forgotten: at most all of them together.
    assert np.allclose(given.allowed(0.0, 1.0, growing=False), SAFETY * np.array([1, 2, 2]))


def test_growth_of_a_chaotic_map():
    """The Lyapunov exponent of ``4 u (1 - u)`` is log 2."""
    u = np.empty((4001, 1, 1))
    u[0] = 0.3
    for i in range(4000):
        u[i + 1] = 4 * u[i] * (1 - u[i])
    found = growth(lambda i, v: 4 * v * (1 - v), u, 4, 1000)
    # The mean of 4000 logarithms of spread pi / sqrt(12): 0.0143 is one standard deviation of independent ones.
    assert found.exponent == pytest.approx(np.log(2), abs=0.03)


@pytest.mark.parametrize("tol", [1e-3, 1e-8])
@pytest.mark.parametrize("method", ["parareal", "mgrit", "newton"])
def test_what_a_method_leaves_is_allowed(method, tol):
    """Also where differences grow: ``u' = sin(3 t) u``-like steps that amplify at first and forget later."""

    def step(u, points):
        i = np.arange(points.start, points.stop, points.step).reshape(-1, 1, 1)
        return u + 0.1 * np.sin(0.1 * i) * u + 0.02 * np.sin(u)

    fine = Map(step, pass_points=True, batch_invariant=True)
    coarse = Map(lambda u: 1.1 * u, batch_invariant=True)
    result = verify(
        fine, np.ones((2, 2)), grid=TimeGrid(0, 60, 60), m=3, coarse=coarse, method=method, tol=tol
    )  # fmt: skip
    assert result.ok, result.text()
    (values,) = result.comparisons
    assert values.expected.startswith("tolerance")
    # Useful all the same: the largest growth over any part of this chain is about 20, and there are 20 slices.
    assert max(row.allowed for row in values.rows) < SAFETY * 20 * 20 * tol + 1e-9


def test_bitwise_where_all_is_exact():
    fine, coarse = (Map(f, batch_invariant=True) for f in (lambda u: u + 0.1 * np.sin(u), lambda u: 0.3 * u))
    result = verify(fine, np.ones((2, 2)), grid=TimeGrid(0, 30, 30), m=3, coarse=coarse)
    assert result.ok
    assert result.comparisons[0].expected.startswith("bitwise")
    assert all(row.allowed == 0 == row.largest for row in result.slices)


def test_chaos_is_the_reason_and_no_fault_where_it_explains():
    """Two right answers of a chaotic chain differ; who asks for less of it gets an answer that is right."""

    def step(u):
        return 3.9 * u * (1 - u)

    def near(u):
        for _ in range(3):
            u = step(u)
        return u + 1e-4 * np.sin(u)

    def found(steps):
        fine, coarse = Map(step, batch_invariant=True), Map(near, batch_invariant=True)
        grid = TimeGrid(0, steps, steps)
        return verify(fine, np.array([[0.31], [0.47]]), grid=grid, m=3, coarse=coarse, tol=1e-5)

    assert found(12).ok
    assert not found(12).notes
    (chaos,) = found(90).findings
    assert chaos.fault is Fault.CHAOS
    # Five thirds of the exponent of the map near 3.9, 0.49, is as far as a finite piece may be off.
    assert 0.3 < chaos.numbers["exponent"] < 0.7
