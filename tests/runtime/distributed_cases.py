# SPDX-License-Identifier: BSD-3-Clause
"""Problems that several processes must solve as one does, bit for bit; every name makes the arguments of ``solve``."""

import numpy as np
import torch
from mgrit_cases import LOGISTIC, POOR, U0, DecayWithResidual, decay, logistic
from test_kept_cycles import heat, random_options

from pyparareal import MGRIT, TimeGrid
from pyparareal.hierarchy import Transfer
from pyparareal.propagators import Map


def parareal(steps=50, m=4, **more):
    """A chaotic chain, whose bits forgive nothing; 50 steps leave 2 trailing."""
    grid = TimeGrid(0, 1, steps)
    ask = {"u0": U0, "grid": grid, "m": m, "tol": 0.0, "on_failure": "return", "keep_going": True}
    return {"fine": LOGISTIC, "coarse": POOR[0]} | ask | more


def smooth(**more):
    case = decay(tol=1e-9)
    return case | {"method": "parareal"} | more


def in_torch(case, dtype=torch.float64):
    return case | {"u0": torch.from_numpy(case["u0"]).to(dtype)}


def modules():
    """Not batch-invariant, so deterministic: matrix products in blocks of eight slices."""
    torch.manual_seed(0)
    nets = [torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh()).requires_grad_(False) for _ in range(2)]
    grid = TimeGrid(0, 1, 43)
    u0 = torch.linspace(-1, 1, 15).reshape(3, 5)
    ask = {"u0": u0, "grid": grid, "m": 2, "tol": 0.0, "on_failure": "return", "deterministic": True}
    return {"fine": nets[0], "coarse": nets[1]} | ask


def in_space(levels=3):
    """Fields of 8 numbers, of which coarser levels see half each time."""
    transfer = Transfer(lambda u: u[..., ::2].copy(), lambda v: np.repeat(v, 2, axis=-1))
    case = logistic(steps=61, m=2, levels=levels, transfer=transfer, stagnation=None)
    return case | {"u0": np.linspace(0.1, 0.8, 8)[None], "max_iterations": 7}


def with_residual():
    grid = TimeGrid(0, 8, 64)
    method = MGRIT(levels=3, nu=1, final_residual=True)
    ask = {"u0": U0, "grid": grid, "m": 2, "tol": 1e-9, "method": method, "on_failure": "return"}
    return {"fine": DecayWithResidual(grid)} | ask


class Searching:
    """Backward Euler for ``u' = -u^3`` by two Newton steps from a guess: the bits are those of the guess."""

    batch_invariant = True

    def __init__(self, grid):
        self.grid = grid

    def step(self, u, points):
        return self.step_from(u, points, u)

    def step_from(self, u, points, guess):
        h, v = self.grid.dt(), guess
        for _ in range(2):
            v = v - (v + h * v**3 - u) / (1 + 3 * h * v**2)
        return v

    def rediscretise(self, m):
        return Searching(self.grid.coarsen(m))


def searching(**more):
    grid = TimeGrid(0, 3, 50)
    ask = {"u0": np.array([[1.7, -0.9]]), "grid": grid, "m": 4, "tol": 1e-11, "on_failure": "return"}
    return {"fine": Searching(grid), "method": MGRIT(storage="all", levels=2)} | ask | more


def guess(slices, seed=3):
    return np.random.default_rng(seed).uniform(0.2, 0.8, (slices + 1, *U0.shape))


CASES = {
    "parareal": parareal,
    "parareal, one slice": lambda: parareal(steps=5),
    "parareal, three slices": lambda: parareal(steps=14),
    "parareal, guessed": lambda: parareal(initial=guess(12)),
    "parareal, not frozen": lambda: smooth(freeze=False),
    "parareal, tolerance": smooth,
    "parareal, rms": lambda: smooth(norm="rms"),
    "parareal, fixed": lambda: parareal(tol=None, max_iterations=5),
    "parareal, every point": lambda: parareal(save="all"),
    "parareal, non-finite": lambda: parareal(coarse=Map(lambda u: u / (u - u), batch_invariant=True), keep_going=False),
    "parareal, serial at last": lambda: parareal(max_iterations=2, on_failure="serial"),
    "parareal, forced": lambda: parareal(rhs=1e-3 * guess(49)),
    "parareal, heat": lambda: heat() | {"method": "parareal", "max_iterations": 20},
    "parareal, torch": lambda: in_torch(parareal()),
    "parareal, float32": lambda: in_torch(heat() | {"method": "parareal", "max_iterations": 20}, torch.float32),
    "parareal, bfloat16": lambda: in_torch(smooth(tol=1e-1), torch.bfloat16),
    "parareal, modules": modules,
    "F": lambda: logistic(steps=50, nu=0),
    "FCF": lambda: logistic(steps=50),
    "FCFCF": lambda: logistic(steps=50, nu=2),
    "FCF, one slice": lambda: logistic(steps=5, min_coarse=1),
    "FCF, one level": lambda: logistic(steps=5, levels=1),
    "FCF, every point": lambda: logistic(steps=50, save="all"),
    "FCF, guessed": lambda: logistic(steps=50, initial=guess(12)),
    "FCF, fixed": lambda: logistic(steps=50, max_iterations=3) | {"tol": None},
    "FCF, weighted": lambda: logistic(steps=50, omega=1.2, max_iterations=9),
    "FCF, measured at the end": lambda: logistic(steps=50, measure="end", final_residual=True),
    "FCF, jump": lambda: logistic(steps=50, stopping="jump", relative="state", lag=1),
    "FCF, local": lambda: decay(scope="local", relative="first", temporal_norm="inf"),
    "FCF, diverged": lambda: decay(divergence=1.1, stagnation=1, tol=0.0, on_failure="return"),
    "FCF, residual": with_residual,
    "FCF, modules": lambda: modules() | {"method": MGRIT()},
    "FCF, heat in torch": lambda: in_torch(heat()),
    "FCF, every point stored": searching,
    "FCF, every point stored, guessed": lambda: searching(initial=guess(12), save="all"),
    "three levels": lambda: logistic(steps=75, m=3, levels=3),
    "three levels, F-cycle": lambda: logistic(steps=110, m=3, levels=3, cycle="F"),
    "three levels, nested": lambda: logistic(steps=120, m=3, levels=3, nested=True),
    "three levels, space": in_space,
    "three levels, other factors": lambda: logistic(steps=101, m=[5, 2], levels=3, nu=[0, 1]),
    "four levels, W-cycle": lambda: logistic(steps=139, m=2, levels=4, cycle="W", max_iterations=9),
    "four levels, relaxed to the end": lambda: logistic(steps=139, m=2, levels=4, coarsest_sweeps=2, max_iterations=9),
    "all levels": lambda: decay(levels=None, m=2),
}


def random_case(seed):
    problem, size, _ = random_options(seed)
    return problem, size
