# SPDX-License-Identifier: BSD-3-Clause
"""An equation of one's own by MGRIT, its right-hand side compiled by Numba. Usage: python examples/own_rhs.py

A food chain of three species (A. Hastings, T. Powell, Ecology 72 (1991), pp. 896-903): the same equations once for
NumPy, stepped in Python, and once for Numba, whose steps are all taken by one kernel. Without Numba the first alone is
used, slower.
"""

import time

import numpy as np

from pyparareal import MGRIT, TimeGrid, serial_solve, solve
from pyparareal.compiled import Rhs
from pyparareal.propagators import RungeKutta
from pyparareal.slopes import numba_slope

# Rates and half-saturations of the two meals, deaths of the two eaters.
PARAMETERS = A1, B1, A2, B2, D1, D2 = (5.0, 3.0, 0.1, 2.0, 0.4, 0.01)
GRID = TimeGrid(0, 200, 2**16)
START = np.array([0.8, 0.2, 9.0])


def food_chain(t, u):
    """For all slices at once: ``u [slices, 3]``, ``t [slices, 1]``."""
    x, y, z = u[..., 0], u[..., 1], u[..., 2]
    first, second = A1 * x / (1 + B1 * x) * y, A2 * y / (1 + B2 * y) * z
    return np.stack([x * (1 - x) - first, first - second - D1 * y, second - D2 * z], -1)


def slope(t, u, du, p):
    """For one state."""
    x, y, z = u[0], u[1], u[2]
    first, second = p[0] * x / (1 + p[1] * x) * y, p[2] * y / (1 + p[3] * y) * z
    du[0] = x * (1 - x) - first
    du[1] = first - second - p[4] * y
    du[2] = second - p[5] * z


def run(rhs):
    """The solution, and the seconds of a second solve: the first one compiles."""
    phi = RungeKutta(rhs, GRID)
    for _ in range(2):
        begin = time.perf_counter()
        solution = solve(phi, START, GRID, m=16, tol=1e-9, method=MGRIT(levels=3))
        seconds = time.perf_counter() - begin
    return solution, seconds


ways = {"Python steps": food_chain}
try:
    ways["one kernel with Numba's function"] = Rhs(
        food_chain, 3, parameters=PARAMETERS, cpu=numba_slope(slope, 3, len(PARAMETERS))
    )
except ImportError as error:
    print(f"stepping in Python alone: {error}")

taken = {}
for name, rhs in ways.items():
    solution, taken[name] = run(rhs)
    print(f"{name}: {solution.status.name.lower()} in {solution.iterations} cycles, {taken[name]:.3f} s")
if len(taken) == 2:
    plain, fused = taken.values()
    print(f"{plain / fused:.1f} times faster")

serial = serial_solve(RungeKutta(rhs, GRID), START, GRID, m=16, save="coarse")
print(f"distance to the serial chain: {np.abs(solution.u[-1] - serial.u[-1]).max():.1e}")
