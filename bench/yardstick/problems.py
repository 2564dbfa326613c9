# SPDX-License-Identifier: BSD-3-Clause
"""The problems of the MGRIT comparisons, as arguments of ``pyparareal.solve``."""

from __future__ import annotations

from typing import Any

import numpy as np


def heat(steps: int, points: int, end: float = 1.0) -> dict[str, Any]:
    """``u_t = u_xx`` on (0, 1), 0 at both ends, backward Euler; ``points`` are the inner ones.

    At the start 1 left of the middle and 0 right of it: all modes in space, and the same bits in every program.
    """
    from pyparareal import TimeGrid
    from pyparareal.implicit import ImplicitEuler

    grid, dx = TimeGrid(0.0, end, steps), 1 / (points + 1)
    off = np.full(points - 1, 1 / dx**2)
    u0 = np.where(2 * np.arange(1, points + 1) < points + 1, 1.0, 0.0)
    return {"fine": ImplicitEuler(off, np.full(points, -2 / dx**2), off, grid), "u0": u0, "grid": grid}


def heat_exact(u0: Any, grid: Any, i: Any) -> Any:
    """Backward Euler's states ``[len(i), points]`` at the points ``i`` of ``grid``, from the eigenvectors."""
    points = len(u0)
    angle = np.pi * np.arange(1, points + 1) / (points + 1)
    vectors = np.sqrt(2 / (points + 1)) * np.sin(np.multiply.outer(np.arange(1, points + 1), angle))
    h = (grid.t1 - grid.t0) / grid.steps
    # lambda^i with lambda = 1 / (1 + h mu): by logarithm, which loses nothing where lambda is close to 1
    rate = np.log1p(h * 4 * (points + 1) ** 2 * np.sin(angle / 2) ** 2)
    return (np.exp(-np.multiply.outer(np.asarray(i, dtype=np.float64), rate)) * (vectors @ u0)) @ vectors.T


def dahlquist(steps: int, end: float = 5.0) -> dict[str, Any]:
    """``u' = -u``, ``u(0) = 1``, backward Euler; as a system of one equation."""
    from pyparareal import TimeGrid
    from pyparareal.implicit import ImplicitEuler

    grid = TimeGrid(0.0, end, steps)
    return {"fine": ImplicitEuler([], [-1.0], [], grid), "u0": np.ones(1), "grid": grid}
