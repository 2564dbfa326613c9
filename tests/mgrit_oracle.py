# SPDX-License-Identifier: BSD-3-Clause
"""MGRIT written a second time, one point after the other: the oracle of ``test_golden_mgrit.py``.

Full approximation scheme with one right-hand side per point, plain Python lists, no batching and nothing of
``pyparareal.mgrit``. It knows the two conventions of the stored histories: XBraid measures the residual on the way
down, PyMGRIT after the correction.
"""

import math

import numpy as np

NORMS = {"l2": lambda r: math.sqrt(float((r * r).sum())), "inf": lambda r: float(np.abs(r).max())}
TEMPORAL = {"l2": lambda a: math.sqrt(sum(x * x for x in a)), "l1": sum, "inf": max}


def copy(u):
    return u


class Oracle:
    """``phis[l].step(u[None], slice(i, i + 1, 1))`` is ``Phi_l``; ``factors[l]`` coarsens level ``l``."""

    def __init__(self, phis, factors, u0, initial=None, transfer=None, **options):
        self.phis, self.factors, self.levels = phis, factors, len(phis)
        self.transfer = transfer or [(copy, copy)] * (self.levels - 1)
        self.options = {
            "nu": 1, "omega": 1.0, "cycle": "V", "nested": False, "skip_first_down": False, "coarsest_sweeps": None,
            "measure": "descent", "temporal_norm": "l2", "norm": "l2", "initial_values": None,
        } | options  # fmt: skip
        self.custom = hasattr(phis[0], "residual")
        self.u, start = [], u0
        for at, phi in enumerate(phis):
            if at:
                start = self.transfer[at - 1][0](start)
            self.u.append([start] + [np.zeros_like(start)] * phi.grid.steps)
        self.v, self.f = [None] * self.levels, [None] * self.levels
        if initial is not None:
            for k in range(1, len(initial)):
                self.u[0][k * factors[0]] = np.array(initial[k])
        self.history = []

    def step(self, at, u, i, f=None):
        """``u[i]`` from ``u[i - 1]``, or the solution of ``A(u[i], u[i - 1]) = f[i]``."""
        here = slice(i - 1, i, 1)
        if f is None:
            return self.phis[at].step(u[i - 1][None], here)[0]
        if self.custom:
            return self.phis[at].step_with(u[i - 1][None], here, f[i][None])[0]
        return self.phis[at].step(u[i - 1][None], here)[0] + f[i]

    def f_relax(self, at, m=None):
        u, m = self.u[at], m or self.factors[at]
        for i in range(1, len(u)):
            if i % m:
                u[i] = self.step(at, u, i, self.f[at])

    def c_relax(self, at, m=None, weight=1.0):
        u, m = self.u[at], m or self.factors[at]
        new = {i: self.step(at, u, i, self.f[at]) for i in range(m, len(u), m)}
        for i, value in new.items():
            u[i] = value if weight == 1.0 else weight * value + (1 - weight) * u[i]

    def residual(self, at, i):
        u, f = self.u[at], self.f[at]
        if self.custom:
            a = self.phis[at].residual(u[i][None], u[i - 1][None], slice(i - 1, i, 1))[0]
            return -a if f is None else f[i] - a
        return self.step(at, u, i, f) - u[i]

    def norm(self, residuals):
        return TEMPORAL[self.options["temporal_norm"]]([NORMS[self.options["norm"]](r) for r in residuals])

    def option(self, name, at):
        value = self.options[name]
        return value[at] if isinstance(value, (list, tuple)) else value

    def relax(self, at):
        for _ in range(self.option("nu", at)):
            self.f_relax(at)
            self.c_relax(at, weight=self.option("omega", at))
        self.f_relax(at)

    def restrict(self, at):
        m, down = self.factors[at], self.transfer[at][0]
        u, points = self.u[at], range(0, len(self.u[at]) - (len(self.u[at]) - 1) % m, m)
        r = [None] + [self.residual(at, i) for i in points[1:]]
        if at == 0:
            self.history.append(self.norm(r[1:]))
        v = self.v[at + 1] = [down(u[i]) for i in points]
        self.u[at + 1], f = list(v), [None]
        for k in range(1, len(v)):
            if self.custom:
                tau = self.phis[at + 1].residual(v[k][None], v[k - 1][None], slice(k - 1, k, 1))[0]
            else:
                tau = v[k] - self.step(at + 1, v, k)
            f.append(down(r[k]) + tau)
        self.f[at + 1] = f

    def correct(self, at):
        m, up = self.factors[at], self.transfer[at][1]
        for k in range(1, len(self.u[at + 1])):
            self.u[at][k * m] = self.u[at][k * m] + up(self.u[at + 1][k] - self.v[at + 1][k])
        self.f_relax(at)

    def solve_coarsest(self):
        at, sweeps = self.levels - 1, self.options["coarsest_sweeps"]
        for i in range(1, len(self.u[at])) if sweeps is None else ():
            self.u[at][i] = self.step(at, self.u[at], i, self.f[at])
        for _ in range(sweeps or 0):
            self.f_relax(at, self.factors[-1])
            self.c_relax(at, self.factors[-1])
        if sweeps is not None:
            self.f_relax(at, self.factors[-1])

    def cycle(self, at, kind):
        self.relax(at)
        self.restrict(at)
        self.visit(at + 1, kind)
        self.correct(at)

    def visit(self, at, kind):
        """V: one cycle; F: an F-cycle, then a V-cycle; W: two W-cycles."""
        if at == self.levels - 1:
            self.solve_coarsest()
            return
        self.cycle(at, kind)
        if kind != "V":
            self.cycle(at, "V" if kind == "F" else "W")

    def nested_iteration(self):
        """Coarsest solve, copied to the finer C-points, and a V-cycle on every level between."""
        self.solve_coarsest()
        for at in range(self.levels - 2, -1, -1):
            for k in range(1, len(self.u[at + 1])):
                self.u[at][k * self.factors[at]] = self.transfer[at][1](self.u[at + 1][k])
            if at:
                self.cycle(at, "V")

    def skipped(self, kind):
        """The first cycle without its way down: every level starts from the restricted guess."""
        for at in range(self.levels - 1):
            self.v[at + 1] = [self.transfer[at][0](u) for u in self.u[at][:: self.factors[at]]]
            self.u[at + 1] = list(self.v[at + 1])
        self.solve_coarsest()
        for at in range(self.levels - 2, -1, -1):
            self.correct(at)
            if kind == "F" and at > 0:
                self.cycle(at, "V")
        self.history.append(math.nan)

    def solve(self, tol, max_iterations, callback=None):
        o, m = self.options, self.factors[0]
        if o["nested"]:
            self.nested_iteration()
        for k in range(max_iterations):
            if k == 0 and o["skip_first_down"]:
                self.skipped(o["cycle"])
            else:
                self.cycle(0, o["cycle"])
            if o["measure"] == "end":
                self.history[-1] = self.norm([self.residual(0, i) for i in range(m, len(self.u[0]), m)])
            if (callback and callback(k + 1, np.array(self.u[0][::m]), self.history[-1])) or self.history[-1] < tol:
                break
        return self.history
