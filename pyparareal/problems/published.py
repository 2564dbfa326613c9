# SPDX-License-Identifier: BSD-3-Clause
"""Test problems with the fine and coarse set-up under which their parareal histories are known.

Equations, parameters, bounds and set-ups are those of G. Gattiglio, L. Grigoryeva, M. Tamborrino,
"RandNet-Parareal" (2024) and "Nearest neighbors GParareal" (2024), whose stored results the golden tests
reproduce. There the state is mapped from ``[lower, upper]`` to ``[-1, 1]`` component by component, which
changes what a tolerance means; :meth:`Problem.normalised` does that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import arrays
from ..compiled import compiled
from ..implicit import ImplicitEuler
from ..propagators import RungeKutta, like
from ..tableaux import COOPER_VERNER_8, EULER, MIDPOINT, RK4, Tableau
from ..time_grid import TimeGrid

Array = Any


@dataclass(frozen=True)
class Problem:
    """``u' = rhs(t, u)``, ``u(t0) = u0`` on ``[t0, t1]``, cut into ``slices`` with ``m`` fine steps each.

    ``rhs`` works on ``[slices, batch..., features]`` of any array library, element by element, so that the
    propagators made from it are batch-invariant. ``lower`` and ``upper`` bound the components of the solution.
    """

    name: str
    rhs: Callable[[Array, Array], Array]
    u0: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    t0: float
    t1: float
    slices: int
    fine: Tableau
    m: int
    coarse: Tableau
    coarse_substeps: int

    def grid(self) -> TimeGrid:
        """The fine grid, ``slices * m`` steps."""
        return TimeGrid(self.t0, self.t1, self.slices * self.m)

    def normalised(self) -> Problem:
        """The same problem for ``w = 2 (u - lower) / (upper - lower) - 1``."""
        lower, upper = np.array(self.lower), np.array(self.upper)
        scale, middle = 2 / (upper - lower), (upper + lower) / 2

        def rhs(t: Array, w: Array) -> Array:
            s, c = like(scale, w), like(middle, w)
            return self.rhs(t, w / s + c) * s

        w0 = (np.array(self.u0) - middle) * scale
        one = tuple(np.ones_like(scale).tolist())
        return dataclasses.replace(self, rhs=rhs, u0=tuple(w0.tolist()), lower=tuple(-x for x in one), upper=one)

    def physical(self, w: Array) -> Array:
        """``u`` from the ``w`` of :meth:`normalised`, NumPy."""
        lower, upper = np.array(self.lower), np.array(self.upper)
        return (w + 1) / 2 * (upper - lower) + lower

    def parareal(self) -> dict[str, Any]:
        """Arguments for :func:`pyparareal.solve`: ``solve(**problem.parareal(), tol=...)``."""
        grid = self.grid()
        return {
            "fine": RungeKutta(self.rhs, grid, self.fine, batch_invariant=True),
            "coarse": RungeKutta(
                self.rhs, grid.coarsen(self.m), self.coarse, substeps=self.coarse_substeps, batch_invariant=True
            ),
            "u0": np.array(self.u0),
            "grid": grid,
            "m": self.m,
        }


def lorenz() -> Problem:
    """``x' = 10 (y - x), y' = 28 x - y - x z, z' = x y - 8/3 z``: chaotic (E. N. Lorenz, 1963)."""

    @compiled("lorenz", 10, 28, 8 / 3)
    def rhs(t: Array, u: Array) -> Array:
        x, y, z = u[..., 0], u[..., 1], u[..., 2]
        du = arrays.empty_like(u)
        du[..., 0] = 10 * (y - x)
        du[..., 1] = 28 * x - y - x * z
        du[..., 2] = x * y - 8 / 3 * z
        return du

    return Problem(
        "Lorenz", rhs, (-15.0, -15.0, 20.0), (-17.1, -23.0, 6.0), (18.1, 25.0, 45.0), 0.0, 18.0, 50, RK4, 450, RK4, 6
    )


def fitzhugh_nagumo() -> Problem:
    """``u' = 3 (u - u^3/3 + v), v' = -(u - 0.2 + 0.2 v) / 3``: a spiking neuron (R. FitzHugh 1961, J. Nagumo 1962)."""

    @compiled("fitzhugh_nagumo", 0.2, 0.2, 3)
    def rhs(t: Array, w: Array) -> Array:
        u, v = w[..., 0], w[..., 1]
        dw = arrays.empty_like(w)
        dw[..., 0] = 3 * (u - u * u * u / 3 + v)
        dw[..., 1] = (u - 0.2 + 0.2 * v) / -3
        return dw

    return Problem("FitzHugh-Nagumo", rhs, (-1.0, 1.0), (-2.0, -1.0), (2.1, 1.2), 0.0, 40.0, 40, RK4, 4000, MIDPOINT, 4)


def brusselator() -> Problem:
    """``u' = 1 + u^2 v - 4 u, v' = 3 u - u^2 v``: a chemical oscillator (R. Lefever, G. Nicolis, 1971)."""

    @compiled("brusselator", 1, 3)
    def rhs(t: Array, w: Array) -> Array:
        u, v = w[..., 0], w[..., 1]
        dw = arrays.empty_like(w)
        autocatalysis = u * u * v
        dw[..., 0] = 1 + autocatalysis - 4 * u
        dw[..., 1] = 3 * u - autocatalysis
        return dw

    return Problem("Brusselator", rhs, (1.0, 3.07), (0.4, 0.9), (4.0, 5.0), 0.0, 100.0, 25, RK4, 1000, RK4, 10)


def hopf(m: int = 5440) -> Problem:
    """``u' = -v + u c, v' = u + v c, s' = 1`` with ``c = s/500 - u^2 - v^2``: a Hopf bifurcation at time ``s = 0``.

    Time is the third component. ``m`` is the number of fine steps per slice.
    """

    def rhs(t: Array, w: Array) -> Array:
        u, v = w[..., 0], w[..., 1]
        dw = arrays.empty_like(w)
        c = w[..., 2] / 500 - u * u - v * v
        dw[..., 0] = u * c - v
        dw[..., 1] = u + v * c
        dw[..., 2] = 1
        return dw

    return Problem(
        "Hopf",
        rhs,
        (0.1, 0.1, -20.0),
        (-23.0, -23.0, 0.0),
        (23.0, 23.0, 1.0),
        -20.0,
        500.0,
        32,
        COOPER_VERNER_8,
        m,
        EULER,
        64,
    )


def burgers(m: int = 200, points: int = 128) -> Problem:
    """``u_t + u u_x = 0.01 u_xx`` on ``[-1, 1]``, ``u(0, x) = (cos(4.5 pi x) + 1) / 2``, central differences.

    The ``points`` include both ends, and the last is taken as the left neighbour of the first: the wrap
    the stored histories were made with. ``m`` is the number of fine steps per slice.
    """
    dx = 2 / (points - 1)
    diffusion, advection = 0.01 / dx**2, 1 / (2 * dx)

    def rhs(t: Array, u: Array) -> Array:
        wide = arrays.empty(u, (*u.shape[:-1], points + 2))
        wide[..., 1:-1], wide[..., 0], wide[..., -1] = u, u[..., -1], u[..., 0]
        left, right = wide[..., :-2], wide[..., 2:]
        return diffusion * (left - 2 * u + right) - u * (advection * (right - left))

    x = np.linspace(-1, 1, points)
    u0 = tuple((0.5 * (np.cos(4.5 * np.pi * x) + 1)).tolist())
    return Problem("Burgers", rhs, u0, (0.0,) * points, (1.0,) * points, 0.0, 5.9, 128, COOPER_VERNER_8, m, EULER, 4)


def heat_1d(points: int = 63, slices: int = 32, m: int = 32, t1: float = 0.5) -> dict[str, Any]:
    """``u_t = u_xx`` on ``(0, 1)``, ``u = 0`` at both ends, ``u(0, x) = sin(pi x) + sin(3 pi x) / 2``.

    Backward Euler on both grids, ``points`` inner points. Returns the arguments for :func:`pyparareal.solve`.
    The solution is ``exp(-pi^2 t) sin(pi x) + exp(-9 pi^2 t) sin(3 pi x) / 2``.
    """
    dx = 1 / (points + 1)
    off, x = np.full(points - 1, 1 / dx**2), np.linspace(dx, 1 - dx, points)
    grid = TimeGrid(0.0, t1, slices * m)
    fine = ImplicitEuler(off, np.full(points, -2 / dx**2), off, grid)
    u0 = np.sin(np.pi * x) + np.sin(3 * np.pi * x) / 2
    return {"fine": fine, "coarse": fine.rediscretise(m), "u0": u0, "grid": grid, "m": m}
