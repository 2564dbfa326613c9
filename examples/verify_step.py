# SPDX-License-Identifier: BSD-3-Clause
"""A step with a fault, found and named by ``verify``. Usage: python examples/verify_step.py

An oscillator with friction whose step keeps the last force for the next call: right as long as the calls come one after
the other along one chain, wrong as soon as all slices share a call. ``pyparareal verify examples/verify_step.py`` shows
the same, ``examples/verify_step.py:mended`` the mended one.
"""

import numpy as np

from pyparareal import TimeGrid, verify
from pyparareal.propagators import Map

H = 0.05
GRID = TimeGrid(0, 64 * H, 64)


class Oscillator:
    """``x' = v, v' = -x - 0.2 v`` by a step that saves an evaluation of the force."""

    def __init__(self):
        self.force = None

    def __call__(self, u):
        x, v = u[..., 0], u[..., 1]
        force = -x - 0.2 * v
        if self.force is None or self.force.shape != force.shape:
            self.force = force
        mean, self.force = (force + self.force) / 2, force  # of this call and the one before
        return np.stack([x + H * v, v + H * mean], -1)


def step(u):
    """The same without a memory."""
    x, v = u[..., 0], u[..., 1]
    return np.stack([x + H * v, v + H * (-x - 0.2 * v)], -1)


def coarse(u):
    """One long step instead of eight."""
    x, v = u[..., 0], u[..., 1]
    return np.stack([x + 8 * H * v, v + 8 * H * (-x - 0.2 * v)], -1)


def case():
    """What ``pyparareal verify`` takes."""
    return {"fine": Oscillator(), "u0": np.array([[1.0, 0.0]]), "grid": GRID, "m": 8, "coarse": coarse, "tol": 1e-9}


def mended():
    """The same with the step that has no memory, which is element-wise: batch-invariant."""
    invariant = Map(step, batch_invariant=True), Map(coarse, batch_invariant=True)
    return case() | {"fine": invariant[0], "coarse": invariant[1]}


if __name__ == "__main__":
    print(verify(case()).text())
    print("\nmended: ", end="")
    print(verify(mended()).raise_if_bad().text())
