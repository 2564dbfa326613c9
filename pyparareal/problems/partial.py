# SPDX-License-Identifier: BSD-3-Clause
"""Model problems that are partial differential equations, discretised in space."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import arrays
from ..implicit import Imex
from ..operators import Laplacian2D, LinearOperator, PeriodicUpwind, Tridiagonal
from ..propagators import Propagator
from ..tableaux import ARS_222, IMEX_EULER, RK4
from ..time_grid import TimeGrid
from .model import ModelProblem, RightHandSide, computed
from .ordinary import implicit_integrators

Array = Any


def _per_time(f: Callable[[float], float], t: Array) -> Array:
    """``f`` at each time: NumPy's own may round by how many share the call."""
    return np.array([f(float(s)) for s in t])


def _inner(points: int, left: float, right: float) -> Array:
    """Equidistant points between two boundary points, without these."""
    return np.linspace(left, right, points + 2)[1:-1]


def _second_difference(points: int, dx: float, diffusivity: float = 1.0) -> Tridiagonal:
    off = np.full(points - 1, diffusivity / dx**2)
    return Tridiagonal(off, np.full(points, -2 * diffusivity / dx**2), off)


def heat_1d(points: int = 63, steps: int = 1024) -> ModelProblem:
    """``u = sin(pi x) cos(t) + exp(-9 pi^2 t) sin(3 pi x) / 2``; central differences on inner points."""
    x = _inner(points, 0.0, 1.0)
    slow, fast = np.sin(math.pi * x), np.sin(3 * math.pi * x) / 2

    def source(t: Array) -> Array:
        return np.multiply.outer(_per_time(lambda s: math.pi**2 * math.cos(s) - math.sin(s), t), slow)

    def truth(t: Array) -> Array:
        return np.multiply.outer(np.cos(t), slow) + np.multiply.outer(np.exp(-9 * math.pi**2 * t), fast)

    return ModelProblem(
        "heat-1d",
        "u_t = u_xx + sin(pi x) (pi^2 cos t - sin t), u = 0 at x = 0 and 1",
        TimeGrid(0.0, 2.0, steps),
        slow + fast,
        implicit_integrators(_second_difference(points, 1 / (points + 1)), source),
        truth,
        "exact",
        "mgrit",
        8,
        1e-6,
        levels=3,
        space=(x,),
        remark="Diffusion forgets: the residual falls by the same factor for any number of slices.",
    )


def heat_2d(points: int = 31, steps: int = 512) -> ModelProblem:
    """``u = sin(pi x) sin(pi y) cos(t) + exp(-8 pi^2 t) sin(2 pi x) sin(2 pi y) / 2``; ``points`` per direction."""
    x = _inner(points, 0.0, 1.0)
    slow = np.multiply.outer(np.sin(math.pi * x), np.sin(math.pi * x))
    fast = np.multiply.outer(np.sin(2 * math.pi * x), np.sin(2 * math.pi * x)) / 2

    def source(t: Array) -> Array:
        return np.multiply.outer(_per_time(lambda s: 2 * math.pi**2 * math.cos(s) - math.sin(s), t), slow)

    def truth(t: Array) -> Array:
        return np.multiply.outer(np.cos(t), slow) + np.multiply.outer(np.exp(-8 * math.pi**2 * t), fast)

    return ModelProblem(
        "heat-2d",
        "u_t = u_xx + u_yy + sin(pi x) sin(pi y) (2 pi^2 cos t - sin t), u = 0 around the unit square",
        TimeGrid(0.0, 1.0, steps),
        slow + fast,
        implicit_integrators(Laplacian2D(points), source),
        truth,
        "exact",
        "mgrit",
        8,
        1e-5,
        levels=3,
        space=(x, x),
        remark="Diffusion forgets, in two dimensions as in one: few cycles, whatever the number of slices.",
    )


def advection_1d(points: int = 128, steps: int = 128) -> ModelProblem:
    """A bump that travels once around; first-order upwind differences."""
    x = -1 + 2 * np.arange(points) / points

    def bump(x: Array) -> Array:
        return np.exp(-16 * ((x + 1) % 2 - 1) ** 2)

    return ModelProblem(
        "advection-1d",
        "u_t + u_x = 0 on [-1, 1), periodic, u(0, x) = exp(-16 x^2)",
        TimeGrid(0.0, 2.0, steps),
        bump(x),
        implicit_integrators(PeriodicUpwind(points, points / 2)),
        lambda t: bump(x - np.asarray(t)[:, None]),
        "exact",
        "mgrit",
        4,
        1e-6,
        space=(x,),
        remark="Nothing is forgotten, and coarse steps move the bump to a wrong place: time-parallel methods struggle.",
    )


def imex_integrators(
    operator: LinearOperator, explicit: RightHandSide, *, batch_invariant: bool
) -> Mapping[str, Callable[[TimeGrid], Propagator]]:
    """Both IMEX schemes for ``u' = A u + N(t, u)``."""
    return {
        "ars222": lambda grid: Imex(operator, explicit, grid, ARS_222, batch_invariant=batch_invariant),
        "imex-euler": lambda grid: Imex(operator, explicit, grid, IMEX_EULER, batch_invariant=batch_invariant),
    }


def burgers(points: int = 127, steps: int = 1024) -> ModelProblem:
    """A sine wave that steepens into a layer at ``x = 0``; central differences, diffusion implicit."""
    x, dx, viscosity = _inner(points, -1.0, 1.0), 2 / (points + 1), 0.02

    def transport(t: Array, u: Array) -> Array:
        flux, n = arrays.empty_like(u), u * u
        flux[..., 1:-1] = n[..., :-2] - n[..., 2:]
        flux[..., 0], flux[..., -1] = -n[..., 1], n[..., -2]
        return flux / (4 * dx)

    return ModelProblem(
        "burgers",
        "u_t + u u_x = 0.02 u_xx on (-1, 1), u = 0 at both ends, u(0, x) = -sin(pi x)",
        TimeGrid(0.0, 1.0, steps),
        -np.sin(math.pi * x),
        imex_integrators(_second_difference(points, dx, viscosity), transport, batch_invariant=True),
        lambda t: np.stack([_cole_hopf(x, float(s), viscosity) for s in t]),
        "exact",
        "mgrit",
        16,
        1e-5,
        space=(x,),
        remark="Transport slows the method, viscosity helps; coarse steps must be short enough for the explicit part.",
    )


def _cole_hopf(x: Array, t: float, viscosity: float) -> Array:
    """``u = - int sin(pi (x - y)) w dy / int w dy``, ``w = exp(-cos(pi (x - y)) / (2 pi nu) - y^2 / (4 nu t))``.

    C. Basdevant et al., Computers and Fluids 14 (1986), pp. 23-41, eq. (3); by Gauss-Hermite quadrature.
    """
    if t == 0:
        return -np.sin(math.pi * x)
    nodes, weights = np.polynomial.hermite.hermgauss(100)
    angle = math.pi * (x[:, None] - math.sqrt(4 * viscosity * t) * nodes)
    w = weights * np.exp(-(np.cos(angle) + 1) / (2 * math.pi * viscosity))
    return -(np.sin(angle) * w).sum(1) / w.sum(1)


def allen_cahn(points: int = 64, steps: int = 256) -> ModelProblem:
    """A disc that shrinks by the curvature of its boundary; ``points`` per direction, diffusion implicit."""
    epsilon, t1 = 0.04, 0.024
    x = np.arange(points) / points - 0.5
    operator = Laplacian2D(points, periodic=True)

    def reaction(t: Array, u: Array) -> Array:
        return u * (1 - u * u) / epsilon**2

    radius = np.sqrt(x[:, None] ** 2 + x[None, :] ** 2)
    u0 = np.tanh((0.25 - radius) / (math.sqrt(2) * epsilon))
    # RK4 is stable for real eigenvalues above -2.78 / h; those of this equation lie above -8 n^2 - 2 / epsilon^2.
    stable = math.ceil(t1 * (8 * points**2 + 2 / epsilon**2) / 2.5)
    return ModelProblem(
        "allen-cahn",
        "u_t = u_xx + u_yy + u (1 - u^2) / 0.04^2 on the unit square, periodic",
        TimeGrid(0.0, t1, steps),
        u0,
        imex_integrators(operator, reaction, batch_invariant=False),
        computed(lambda t, u: operator.apply(u) + reaction(t, u), u0, stable, RK4),
        "semi-discrete",
        "mgrit",
        8,
        1e-4,
        space=(x, x),
        remark="Interfaces sharpen fast and then move slowly. Coarse steps above 0.04^2 are unstable: two levels.",
    )
