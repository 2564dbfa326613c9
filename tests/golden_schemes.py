# SPDX-License-Identifier: BSD-3-Clause
"""The base of the propagators of ``golden_problems.py``, and the adaptive one."""

import numpy as np

from pyparareal.time_grid import shift_points


class Scheme:
    """What all propagators here share: times at both ends of the steps, shaped to broadcast against the states."""

    batch_invariant = False

    def __init__(self, grid):
        self.grid = grid

    def rediscretise(self, m):
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.grid = self.grid.coarsen(m)
        return other

    def times(self, points, u):
        """``t`` and ``h`` of the steps that start at ``points``."""
        shape = (-1,) + (1,) * (u.ndim - 1)
        t, dt = self.grid.times(points), self.grid.dt(points)
        return t.reshape(shape), np.broadcast_to(dt, t.shape).reshape(shape)


class AdaptiveRK45(Scheme):
    """``u' = rhs(u)`` over every step with the Dormand-Prince pair and its usual step-size control.

    Tolerances ``1e-3`` relative, ``1e-6`` absolute; the first step size is Hairer's estimate. Every slice has its
    own step sizes; a round advances all that have not arrived.
    """

    A = (
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    )
    B = (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
    E = (-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)

    def __init__(self, grid, rhs, rtol=1e-3, atol=1e-6):
        super().__init__(grid)
        self.rhs, self.rtol, self.atol = rhs, rtol, atol

    def first_size(self, y, f, span):
        scale = self.atol + np.abs(y) * self.rtol
        d0, d1 = rms(y / scale), rms(f / scale)
        h0 = np.minimum(np.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1), span)
        d2 = rms((self.rhs(y + h0[:, None] * f) - f) / scale) / h0
        h1 = np.where(
            (d1 <= 1e-15) & (d2 <= 1e-15), np.maximum(1e-6, h0 * 1e-3), (0.01 / np.maximum(d1, d2)) ** (1 / 5)
        )
        return np.minimum(np.minimum(100 * h0, h1), span)

    def step(self, u, points):
        t, end = self.grid.times(points).copy(), self.grid.times(shift_points(points, 1))
        y, f = u.copy(), self.rhs(u)
        size = self.first_size(y, f, end - t)
        rejected = np.zeros(len(y), bool)
        busy = np.arange(len(y))
        while len(busy):
            t_new = np.minimum(t[busy] + size[busy], end[busy])
            h = (t_new - t[busy])[:, None]
            old = y[busy]
            k = [f[busy]]
            for row in self.A:
                k.append(self.rhs(old + h * sum(a * kj for a, kj in zip(row, k, strict=True))))
            new = old + h * sum(b * kj for b, kj in zip(self.B, k, strict=True))
            k.append(self.rhs(new))
            scale = self.atol + np.maximum(np.abs(old), np.abs(new)) * self.rtol
            error = rms(h * sum(e * kj for e, kj in zip(self.E, k, strict=True)) / scale)
            ok = error < 1
            with np.errstate(divide="ignore"):
                factor = 0.9 * error**-0.2
            grow = np.where(rejected[busy], np.minimum(1.0, factor), np.minimum(10.0, factor))
            size[busy] = h[:, 0] * np.where(ok, grow, np.maximum(0.2, factor))
            rejected[busy] = ~ok
            done = busy[ok]
            y[done], f[done], t[done] = new[ok], k[-1][ok], t_new[ok]
            busy = busy[t[busy] < end[busy]]
        return y


def rms(x):
    return np.sqrt((x * x).mean(1))
