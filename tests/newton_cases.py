# SPDX-License-Identifier: BSD-3-Clause
"""Chains for the tests of Newton's method, with Jacobians of their own."""

import numpy as np

from pyparareal import arrays
from pyparareal.time_grid import TimeGrid


class Logistic:
    """``u (1 - u) rate``, element by element; ``slope`` is what it says of its derivative, if not the truth."""

    batch_invariant = True

    def __init__(self, rate=3.9, slope=None):
        self.rate, self.slope, self.taken = rate, slope, 0

    def step(self, u, points):
        return self.rate * u * (1 - u)

    def linearise(self, u, points, kind):
        self.taken += 1
        true = self.rate * (1 - 2 * u)
        d = true if self.slope is None else true * 0 + self.slope
        if kind == "diagonal":
            return self.step(u, points), d
        flat = d.reshape(*d.shape[:2], -1)
        full = flat[..., None] * arrays.float64_like(np.eye(flat.shape[-1]), u)
        return self.step(u, points), full


class Cell:
    """``keep u + (1 - keep) tanh(W u + x_i)``, any array library, with full and diagonal Jacobians and blocks of two.

    ``|W| = gain`` in the 2-norm: a contraction by ``keep + (1 - keep) gain``.
    """

    batch_invariant = False
    jacobians = ("full", "diagonal", "block")
    block = 2

    def __init__(self, steps, features=4, batch=3, gain=0.9, keep=0.0, seed=0, like=None):
        random = np.random.default_rng(seed)
        weight = random.normal(size=(features, features))
        self.weight = gain * weight / np.linalg.norm(weight, 2)
        self.x = 0.5 * random.normal(size=(steps, batch, features))
        if like is not None:
            self.weight, self.x = arrays.float64_like(self.weight, like), arrays.float64_like(self.x, like)
        self.keep, self.eye = keep, self.weight * 0
        self.eye[range(features), range(features)] = 1
        self.grid = TimeGrid(0, 1, steps)
        self.u0 = self.x[0] * 0

    def step(self, u, points):
        xp = arrays.namespace(u)
        return self.keep * u + (1 - self.keep) * xp.tanh(u @ self.weight.T + self.x[points])

    def linearise(self, u, points, kind):
        u_next = self.step(u, points)
        slope = 1 - arrays.namespace(u).tanh(u @ self.weight.T + self.x[points]) ** 2
        full = self.keep * self.eye + (1 - self.keep) * slope[..., None] * self.weight
        if kind == "diagonal":
            return u_next, arrays.namespace(u).diagonal(full, 0, -2, -1)
        if kind == "block":
            pairs = range(0, full.shape[-1], 2)
            return u_next, arrays.namespace(u).stack([full[..., i : i + 2, i : i + 2] for i in pairs], -3)
        return u_next, full


class Linear:
    """``A_i u + b_i`` for matrices of a given size; full Jacobians, the same for every state."""

    batch_invariant = False
    jacobians = ("full",)
    linear = True

    def __init__(self, matrices, source=0.0):
        self.matrices, self.source, self.taken = matrices, source, 0

    def step(self, u, points):
        return (self.matrices[points][:, None] @ u[..., None])[..., 0] + self.source

    def linearise(self, u, points, kind):
        self.taken += 1
        a = self.matrices[points]
        return self.step(u, points), np.broadcast_to(a[:, None], (*u.shape, u.shape[-1]))


class Shear:
    """``A u`` with ``A^2 = -1`` and a diagonal of 2 and -2: it never grows, and by the diagonal it does."""

    batch_invariant = False
    jacobians = ("full", "diagonal")
    matrix = np.array([[2.0, -5.0], [1.0, -2.0]])

    def __init__(self, linear):
        self.linear = linear

    def step(self, u, points):
        return u @ self.matrix.T

    def linearise(self, u, points, kind):
        if kind == "full":
            return self.step(u, points), np.broadcast_to(self.matrix, (*u.shape, 2))
        return self.step(u, points), np.broadcast_to(np.diag(self.matrix), u.shape)
