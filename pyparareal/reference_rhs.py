# SPDX-License-Identifier: BSD-3-Clause
"""The right-hand sides ``relax_rk`` has compiled in, in plain NumPy: :data:`RIGHT_HAND_SIDES` of the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def _dahlquist(p: Sequence[float], u: Array) -> Array:
    (rate,) = p
    return rate * u


def _lorenz(p: Sequence[float], u: Array) -> Array:
    (sigma, rho, beta), (x, y, z) = p, np.moveaxis(u, -1, 0)
    return np.stack([sigma * (y - x), rho * x - y - x * z, x * y - beta * z], -1)


def _brusselator(p: Sequence[float], w: Array) -> Array:
    (a, b), (u, v) = p, np.moveaxis(w, -1, 0)
    autocatalysis = u * u * v
    return np.stack([a + autocatalysis - (b + 1) * u, b * u - autocatalysis], -1)


def _fitzhugh_nagumo(p: Sequence[float], w: Array) -> Array:
    (a, b, c), (u, v) = p, np.moveaxis(w, -1, 0)
    return np.stack([c * (u - u * u * u / 3 + v), (u - a + b * v) / -c], -1)


def _van_der_pol(p: Sequence[float], u: Array) -> Array:
    (mu,), (x, y) = p, np.moveaxis(u, -1, 0)
    return np.stack([y, mu * (1 - x * x) * y - x], -1)


def _arenstorf(p: Sequence[float], u: Array) -> Array:
    (moon,), (x, y, vx, vy) = p, np.moveaxis(u, -1, 0)
    earth = 1 - moon
    # d^3 as sqrt(d^6): pow and its bits differ between libraries, sqrt does not
    d1, d2 = (x + moon) * (x + moon) + y * y, (x - earth) * (x - earth) + y * y
    d1, d2 = np.sqrt(d1 * d1 * d1), np.sqrt(d2 * d2 * d2)
    ax = x + 2 * vy - earth * (x + moon) / d1 - moon * (x - earth) / d2
    ay = y - 2 * vx - earth * y / d1 - moon * y / d2
    return np.stack([vx, vy, ax, ay], -1)


# name: components, parameters, slope. Equations and the order of operations are those of pyparareal.problems.
RIGHT_HAND_SIDES: dict[str, tuple[int, int, Any]] = {
    "dahlquist": (1, 1, _dahlquist),  # rate
    "lorenz": (3, 3, _lorenz),  # sigma, rho, beta
    "brusselator": (2, 2, _brusselator),  # a, b
    "fitzhugh_nagumo": (2, 3, _fitzhugh_nagumo),  # a, b, c
    "van_der_pol": (2, 1, _van_der_pol),  # mu
    "arenstorf": (4, 1, _arenstorf),  # mass of the lighter body as a share of both
}
