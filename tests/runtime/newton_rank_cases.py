# SPDX-License-Identifier: BSD-3-Clause
"""Chains that Newton's method must solve over ranks as in one process; every name makes the arguments of ``solve``."""

import numpy as np
import torch
from newton_cases import Cell, Linear, Logistic

from pyparareal import Newton, TimeGrid
from pyparareal.propagators import Map

U0 = np.array([[0.37, 0.2]])


class Rotor:
    """``tanh`` of a sheared rotation of three numbers, all in element by element arithmetic; by it J is full."""

    batch_invariant = True
    jacobians = ("full",)
    matrix = np.array([[0.9, -0.7, 0.2], [0.6, 0.8, -0.4], [-0.3, 0.5, 1.1]])

    def step(self, u, points):
        return self._steps(u, points)[0]

    def linearise(self, u, points, kind):
        u_next, slope = self._steps(u, points)
        return u_next, slope[..., None] * arrays_like(self.matrix, u)

    def _steps(self, u, points):
        a = arrays_like(self.matrix, u)
        x = 0.3 * np.sin(1.0 + np.arange(points.start, points.stop, points.step))
        w = a[:, 0] * u[..., :1] + a[:, 1] * u[..., 1:2] + a[:, 2] * u[..., 2:] + arrays_like(x, u)[:, None, None]
        u_next = 0.99 * w / (1 + w * w)
        return u_next, 0.99 * (1 - w * w) / (1 + w * w) ** 2


def arrays_like(values, u):
    return torch.as_tensor(values, dtype=u.dtype) if isinstance(u, torch.Tensor) else values.astype(u.dtype)


def rotor(steps=240, m=1, batch=2, **more):
    """Nearly 3 x 3 blocks enough for several chunks and groups of a scan; 1 to 4 ranks cut them anywhere."""
    u0 = np.linspace(-0.5, 0.9, 3 * batch).reshape(batch, 3)
    ask = {"u0": u0, "grid": TimeGrid(0, 1, steps), "m": m, "tol": 1e-12, "on_failure": "return"}
    return {"fine": Rotor(), "method": Newton()} | ask | more


def logistic(steps=53, m=4, slope=0.3, method=None, **more):
    """Chaotic, with slopes that are wrong: it takes as many iterations as slices, and the bits forgive nothing."""
    ask = {"u0": U0, "grid": TimeGrid(0, 1, steps), "m": m, "tol": 0.0, "on_failure": "return", "keep_going": True}
    return {"fine": Logistic(slope=slope), "method": method or Newton("full")} | ask | more


def cell(steps=70, m=3, like=None, kind="full", tol=1e-10, **more):
    phi = Cell(steps, features=more.pop("features", 4), keep=more.pop("keep", 0.5), like=like)
    ask = {"u0": phi.u0, "grid": phi.grid, "m": m, "tol": tol, "on_failure": "return"}
    return {"fine": phi, "method": Newton(kind, **more.pop("options", {}))} | ask | more


def linear():
    random = np.random.default_rng(2)
    matrices = np.stack([np.linalg.qr(random.normal(size=(4, 4)))[0] for _ in range(48)])
    ask = {"u0": random.normal(size=(2, 4)), "grid": TimeGrid(0, 1, 48), "m": 2, "tol": 1e-10}
    return {"fine": Linear(matrices, 0.1), "method": Newton("full")} | ask


def in_torch(case, dtype=torch.float64):
    return case | {"u0": torch.as_tensor(np.asarray(case["u0"])).to(dtype)}


def modules(kind="auto", **more):
    """By autograd, deterministic: the steps are taken in blocks of eight slices, their Jacobians all at once."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh()).requires_grad_(False)
    u0 = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(3, 5)
    ask = {"u0": u0, "grid": TimeGrid(0, 1, 43), "m": 2, "tol": 0.0, "on_failure": "return", "deterministic": True}
    return {"fine": net.double(), "method": Newton(kind)} | ask | more


def guess(slices, seed=3):
    return np.random.default_rng(seed).uniform(0.2, 0.8, (slices + 1, *U0.shape))


HALF = Map(lambda u: 0.5 + 0.1 * u, batch_invariant=True)
STIFF = Newton("full", trust=0.3)

CASES = {
    "full": logistic,
    "diagonal": lambda: logistic(method=Newton("diagonal")),
    "none": lambda: logistic(method=Newton("none")),
    "true slopes that overflow": lambda: logistic(steps=90, m=1, slope=None, max_iterations=40),
    "one slice": lambda: logistic(steps=5),
    "three slices": lambda: logistic(steps=14),
    "every point": lambda: logistic(save="all"),
    "guessed": lambda: logistic(initial=guess(13)),
    "guessed by a coarse chain": lambda: logistic(coarse=HALF),
    "fixed": lambda: logistic(tol=None, max_iterations=5),
    "fixed, to the end": lambda: logistic(tol=None, max_iterations=99),
    "not frozen": lambda: rotor(steps=50, freeze=False),
    "gives up": lambda: logistic(slope=None, m=1, keep_going=False),
    "serial at last": lambda: logistic(max_iterations=2, on_failure="serial"),
    "forced": lambda: logistic(rhs=1e-3 * guess(52)),
    "damped": lambda: logistic(method=Newton("full", 0.4)),
    "damped as needed": lambda: logistic(slope=None, m=2, method=Newton("diagonal", "adaptive")),
    "damped, blocks": lambda: rotor(steps=60, method=Newton("full", "adaptive")),
    "trust": lambda: logistic(slope=None, m=1, method=STIFF, max_iterations=30),
    "trust, diagonal": lambda: logistic(slope=None, method=Newton("diagonal", "adaptive", 0.1)),
    "trust, float32": lambda: in_torch(logistic(slope=None, m=1, method=STIFF, max_iterations=30), torch.float32),
    "rms": lambda: rotor(steps=50, norm="rms"),
    "chunks": rotor,
    "groups": lambda: rotor(steps=1200, batch=1),
    "groups, diagonal": lambda: cell(steps=1100, m=1, kind="diagonal", keep=0.9, max_iterations=4),
    "chunks, torch": lambda: in_torch(rotor(steps=300), torch.float32),
    "blocks": lambda: cell(kind="block"),
    "four features": cell,
    "six features, one by one": lambda: cell(features=6),
    "six features in torch": lambda: in_torch(cell(features=6, like=torch.zeros(1, dtype=torch.float64))),
    "float32": lambda: in_torch(logistic(), torch.float32),
    "bfloat16": lambda: in_torch(logistic(slope=0.2, method=Newton("diagonal")), torch.bfloat16),
    "linear": linear,
    "slices per call": logistic,
}
