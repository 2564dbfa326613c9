# SPDX-License-Identifier: BSD-3-Clause
"""A model problem: an equation with its steps, its true solution, and settings of a method that suit it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..propagators import Propagator, RungeKutta
from ..solver import serial_solve
from ..tableaux import COOPER_VERNER_8, RK4, Tableau
from ..time_grid import TimeGrid

Array = Any
RightHandSide = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class ModelProblem:
    """``u' = ...``, ``u(t0) = u0`` on ``grid``; ``solve(**problem.arguments())`` solves it.

    Attributes
    ----------
    name, equation : str
        As on the command line; one line.
    grid : TimeGrid
        The fine grid.
    u0 : float64 array ``[features...]``
    integrators : mapping of name to ``grid -> Propagator``
        What can be chosen; the first is the default. Each propagator has ``rediscretise(m)``.
    truth : callable
        The solution at times ``[k]``, ``t0`` first: float64 ``[k, features...]``.
    truth_is : str
        "exact": of the equation; "semi-discrete": of the equation with its space discretised, a reference
        computed with much smaller time steps; "reference": computed, of an ordinary differential equation.
    method : {"parareal", "mgrit"}
    m : int
        Coarsening factor.
    levels : int
        For MGRIT.
    tol : float
        Chosen below the error of the fine steps, where the iteration can reach that.
    space : tuple of float64 arrays
        Coordinates of the points, one array per direction; none for an ordinary differential equation.
    labels : tuple of str
        Names of the components, where there are few.
    plane : bool
        Draw the second component over the first instead of both over time.
    remark : str
        What to expect of parallel time here.
    """

    name: str
    equation: str
    grid: TimeGrid
    u0: Array
    integrators: Mapping[str, Callable[[TimeGrid], Propagator]]
    truth: Callable[[Array], Array]
    truth_is: str
    method: str
    m: int
    tol: float
    levels: int = 2
    space: tuple[Array, ...] = ()
    labels: tuple[str, ...] = ()
    plane: bool = False
    remark: str = ""

    def propagator(self, integrator: str | None = None) -> Any:
        """The fine steps with ``integrator``, or with the default one."""
        name = next(iter(self.integrators)) if integrator is None else integrator
        if name not in self.integrators:
            raise ValueError(f"integrator: got {name!r}, {self.name} has {', '.join(self.integrators)}")
        return self.integrators[name](self.grid)

    def arguments(self, integrator: str | None = None) -> dict[str, Any]:
        """``fine, u0, grid, m, tol`` for :func:`pyparareal.solve`; the method is the caller's choice."""
        return {
            "fine": self.propagator(integrator),
            "u0": self.u0,
            "grid": self.grid,
            "m": self.m,
            "tol": self.tol,
        }

    def error(self, t: Array, u: Array) -> Array:
        """Root mean square over the features of ``u [k, features...]`` less the truth, per time ``[k]``."""
        d = np.asarray(u, dtype=np.float64) - self.truth(t)
        return np.sqrt((d * d).reshape(len(d), -1).mean(1))


class LimitedRungeKutta(RungeKutta):
    """Explicit Runge-Kutta steps that are cut into equal parts of at most ``limit``, on coarser grids too.

    An explicit scheme with long steps is unstable; a coarse step is made of as many short ones as stability needs,
    and so costs more than one fine step.
    """

    def __init__(self, rhs: RightHandSide, grid: TimeGrid, tableau: Tableau = RK4, *, limit: float) -> None:
        self.limit = limit
        # 1e-9: a step that is the limit up to rounding is not cut
        substeps = max(1, math.ceil(float(np.max(grid.dt())) / limit - 1e-9))
        super().__init__(rhs, grid, tableau, substeps=substeps, batch_invariant=True)

    def rediscretise(self, m: int) -> LimitedRungeKutta:
        return LimitedRungeKutta(self.rhs, self.grid.coarsen(m), self.tableau, limit=self.limit)


def computed(rhs: RightHandSide, u0: Array, steps: int, tableau: Tableau = COOPER_VERNER_8) -> Callable[..., Array]:
    """The solution of ``u' = rhs(t, u)`` at given times, by at least ``steps`` steps, equally many between any two."""

    def truth(t: Array) -> Array:
        grid = TimeGrid.from_times(t)
        phi = RungeKutta(rhs, grid, tableau, substeps=-(-steps // grid.steps))
        return serial_solve(phi, u0, grid).u

    return truth
