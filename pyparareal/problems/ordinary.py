# SPDX-License-Identifier: BSD-3-Clause
"""Model problems that are ordinary differential equations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import arrays
from ..compiled import compiled
from ..implicit import DiagonallyImplicit
from ..operators import LinearOperator, Rates, Tridiagonal
from ..propagators import Propagator, RungeKutta
from ..solver import serial_solve
from ..tableaux import BACKWARD_EULER, COOPER_VERNER_8, CRANK_NICOLSON, MIDPOINT, RK4, SDIRK_2, SDIRK_3
from ..time_grid import TimeGrid
from . import published
from .model import LimitedRungeKutta, ModelProblem, RightHandSide, computed

Array = Any


def implicit_integrators(
    operator: LinearOperator, source: Callable[[Array], Array] | None = None
) -> Mapping[str, Callable[[TimeGrid], Propagator]]:
    """All schemes for ``u' = A u + f(t)``."""

    def made(tableau: Any) -> Callable[[TimeGrid], Propagator]:
        return lambda grid: DiagonallyImplicit(operator, grid, tableau, source=source)

    schemes = (BACKWARD_EULER, CRANK_NICOLSON, SDIRK_2, SDIRK_3)
    names = ("backward-euler", "crank-nicolson", "sdirk2", "sdirk3")
    return {name: made(tableau) for name, tableau in zip(names, schemes, strict=True)}


def explicit_integrators(rhs: RightHandSide, limit: float) -> Mapping[str, Callable[[TimeGrid], Propagator]]:
    """Explicit schemes for ``u' = rhs(t, u)``, with no step of RK4 longer than ``limit``.

    The other two are given half as much: the midpoint rule because it is less stable, order 8 because with the limit
    of RK4 it overflows on the Brusselator.
    """

    def made(tableau: Any, share: float) -> Callable[[TimeGrid], Propagator]:
        return lambda grid: LimitedRungeKutta(rhs, grid, tableau, limit=limit * share)

    return {"rk4": made(RK4, 1.0), "midpoint": made(MIDPOINT, 0.5), "rk8": made(COOPER_VERNER_8, 0.5)}


def decay(steps: int = 100) -> ModelProblem:
    """``u' = -u``, ``u(0) = 1`` on ``[0, 5]``."""
    return ModelProblem(
        "decay",
        "u' = -u, u(0) = 1",
        TimeGrid(0.0, 5.0, steps),
        np.ones(1),
        implicit_integrators(Tridiagonal([], [-1.0], [])),
        lambda t: np.exp(-np.asarray(t))[:, None],
        "exact",
        "mgrit",
        2,
        1e-7,
        labels=("u",),
        remark="The solution forgets where it came from, so errors of the coarse steps die out.",
    )


RATES = (-0.1, -1.0, -10.0, -100.0, -1 + 2j, -1 + 8j, 2j)


def dahlquist(steps: int = 256) -> ModelProblem:
    """``u' = lambda u``, ``u(0) = 1`` on ``[0, 4]`` for decaying, damped and undamped ``lambda`` at once."""
    rates = np.array(RATES)

    def truth(t: Array) -> Array:
        z = np.exp(np.multiply.outer(np.asarray(t), rates))
        return np.stack([z.real, z.imag], -1)

    return ModelProblem(
        "dahlquist",
        "u' = lambda u, u(0) = 1, lambda in {-0.1, -1, -10, -100, -1+2i, -1+8i, 2i}",
        TimeGrid(0.0, 4.0, steps),
        np.stack([np.ones(len(rates)), np.zeros(len(rates))], -1),
        implicit_integrators(Rates(RATES)),
        truth,
        "exact",
        "mgrit",
        4,
        1e-7,
        labels=("-0.1", "-1", "-10", "-100", "-1+2i", "-1+8i", "2i"),
        remark="Real lambda converge fast, however stiff; the more an oscillation turns in a coarse step, the slower.",
    )


def lorenz(steps: int = 22500) -> ModelProblem:
    """The chaotic Lorenz system in the published parareal set-up, not normalised."""
    return _published(
        published.lorenz(), "lorenz", "x' = 10 (y - x), y' = 28 x - y - x z, z' = x y - 8/3 z", "xyz", steps, 5600
    )


def brusselator(steps: int = 25000) -> ModelProblem:
    """The Brusselator in the published parareal set-up, not normalised."""
    return _published(
        published.brusselator(), "brusselator", "u' = 1 + u^2 v - 4 u, v' = 3 u - u^2 v", "uv", steps, 5000
    )


REMARKS = {
    "lorenz": "Chaos amplifies what is left in the first slices: the tolerance bounds jumps, not the error.",
    "brusselator": "Coarse steps lose the phase of the oscillation, so most slices wait for their left neighbours.",
}


def _published(
    setup: published.Problem, name: str, equation: str, labels: str, steps: int, reference: int
) -> ModelProblem:
    """``setup`` with coarse steps cut as it says; ``reference`` steps for the true solution."""
    return ModelProblem(
        name,
        equation,
        TimeGrid(setup.t0, setup.t1, steps),
        np.array(setup.u0),
        explicit_integrators(setup.rhs, (setup.t1 - setup.t0) / setup.slices / setup.coarse_substeps),
        computed(setup.rhs, np.array(setup.u0), reference),
        "reference",
        "parareal",
        setup.m,
        1e-6,
        labels=tuple(labels),
        remark=REMARKS[name],
    )


# Arenstorf: masses of moon and earth, starting point and period. E. Hairer, S. P. Norsett, G. Wanner, "Solving
# Ordinary Differential Equations I", section II.0.
MOON = 0.012277471
EARTH = 1 - MOON
PERIOD = 17.0652165601579625588917206249
PERIOD_OF_S = 35.7876  # the same in the variable of _graded_times; how precise does not matter
START = (0.994, 0.0, 0.0, -2.00158510637908252240537862224)


@compiled("arenstorf", MOON)
def _three_bodies(t: Array, u: Array) -> Array:
    x, y, vx, vy = u[..., 0], u[..., 1], u[..., 2], u[..., 3]
    du = arrays.empty_like(u)
    # d^3 as sqrt(d^6): pow and its bits differ between libraries, sqrt does not
    d1, d2 = (x + MOON) * (x + MOON) + y * y, (x - EARTH) * (x - EARTH) + y * y
    d1, d2 = (d1 * d1 * d1) ** 0.5, (d2 * d2 * d2) ** 0.5
    du[..., 0], du[..., 1] = vx, vy
    du[..., 2] = x + 2 * vy - EARTH * (x + MOON) / d1 - MOON * (x - EARTH) / d2
    du[..., 3] = y - 2 * vx - EARTH * y / d1 - MOON * y / d2
    return du


def arenstorf(steps: int = 4000) -> ModelProblem:
    """A closed orbit around earth and moon; short time steps where it comes close to one of them."""
    u0 = np.array(START)
    return ModelProblem(
        "arenstorf",
        "x'' = x + 2 y' - M (x + m)/d^3 - m (x - M)/e^3, y'' = y - 2 x' - M y/d^3 - m y/e^3",
        TimeGrid.from_times(_graded_times(steps)),
        u0,
        explicit_integrators(_three_bodies, math.inf),
        computed(_three_bodies, u0, 2000),
        "reference",
        "mgrit",
        20,
        1e-6,
        labels=("x", "y", "x'", "y'"),
        plane=True,
        remark="Close encounters amplify errors; short steps there let coarse steps follow, and few cycles suffice.",
    )


def _graded_times(steps: int) -> Array:
    """Times at equal distances of ``s``, where ``dt/ds`` is small near a body, as fast as the motion is there.

    K. F. Sundman's regularisation (Acta Math. 36, 1912) with ``dt/ds = (1 + M/d^3 + m/e^3)^(-1/2)``: the time in which
    the nearer body would be circled at the present distance.
    """

    def rhs(s: Array, w: Array) -> Array:
        x, y = w[..., 0], w[..., 1]
        d1, d2 = (x + MOON) ** 2 + y * y, (x - EARTH) ** 2 + y * y
        slow = (1 + EARTH * d1**-1.5 + MOON * d2**-1.5) ** -0.5
        dw = arrays.empty_like(w)
        dw[..., :4], dw[..., 4] = _three_bodies(s, w[..., :4]) * slow[..., None], slow
        return dw

    finer = -(-2000 // steps)
    grid = TimeGrid(0.0, PERIOD_OF_S, finer * steps)
    t = serial_solve(RungeKutta(rhs, grid), np.array([*START, 0.0]), grid, m=finer, save="coarse").u[:, 4]
    t = t * (PERIOD / t[-1])
    t[-1] = PERIOD
    return t
