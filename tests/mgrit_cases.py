# SPDX-License-Identifier: BSD-3-Clause
"""Problems for the tests of MGRIT: a chaotic chain with useless coarse propagators, and a decay that converges."""

import math

import numpy as np

from pyparareal import MGRIT, TimeGrid, serial_solve
from pyparareal.propagators import Map

LOGISTIC = Map(lambda u: 3.9 * u * (1 - u), batch_invariant=True)  # chaotic
POOR = [
    Map(lambda u: 0.8 * np.sin(2.5 * u), batch_invariant=True),
    Map(lambda u: 0.7 * np.cos(1.7 * u), batch_invariant=True),
    Map(lambda u: 0.5 + 0.1 * u, batch_invariant=True),
]
U0 = np.array([[0.37, 0.2]])


class Decay:
    """Backward Euler for ``u' = -u``."""

    batch_invariant = True

    def __init__(self, grid):
        self.grid = grid

    def step(self, u, points):
        h = self.grid.dt(points)
        return u / (1 + (h if isinstance(h, float) else h.reshape(-1, *[1] * (u.ndim - 1))))

    def rediscretise(self, m):
        return Decay(self.grid.coarsen(m))


class DecayWithResidual(Decay):
    """The same, and the equation it solves: ``(1 + h) u_next - u = 0``."""

    def _h(self, u, points):
        h = self.grid.dt(points)
        return h if isinstance(h, float) else h.reshape(-1, *[1] * (u.ndim - 1))

    def residual(self, u_next, u, points):
        return (1 + self._h(u, points)) * u_next - u

    def step_with(self, u, points, rhs):
        return (u + rhs) / (1 + self._h(u, points))

    def rediscretise(self, m):
        return DecayWithResidual(self.grid.coarsen(m))


def logistic(steps=48, m=4, levels=2, **options):
    """Arguments of solve for a chaotic chain with coarse propagators that know nothing of it."""
    common = {"tol": 0.0, "on_failure": "return", "keep_going": True}
    common |= {name: options.pop(name) for name in ("max_iterations", "save", "runtime", "initial") if name in options}
    method = MGRIT(levels=levels, **({"stagnation": None, "divergence": math.inf} | options))
    grid = TimeGrid(0, 1, steps)
    return {"fine": LOGISTIC, "coarse": POOR[: levels - 1], "u0": U0, "grid": grid, "m": m, "method": method, **common}


def decay(steps=64, m=4, tol=1e-9, **options):
    common = {name: options.pop(name) for name in ("max_iterations", "norm", "on_failure", "save") if name in options}
    grid = TimeGrid(0, 8, steps)
    return {"fine": Decay(grid), "u0": U0, "grid": grid, "m": m, "tol": tol, "method": MGRIT(**options), **common}


def chain(case, **options):
    return serial_solve(case["fine"], case["u0"], case["grid"], **options).u


def growth(factor):
    grid = TimeGrid(0, 1, 256)
    coarse = Map(lambda u: factor * u, batch_invariant=True)
    fine = Map(lambda u: 0.9 * u, batch_invariant=True)
    return {"fine": fine, "coarse": coarse, "u0": U0, "grid": grid, "m": 4, "tol": 1e-8, "on_failure": "return"}
