# SPDX-License-Identifier: BSD-3-Clause
"""Solves with nothing wrong, among them many that look as if."""

from __future__ import annotations

from typing import Any

import numpy as np

from .chains import (
    CLEAN,
    Forcing,
    chaotic,
    clean,
    dense,
    right_points,
    smooth,
    solve_of,
)

# The catalogue by the methods that solve it with these settings.
SOLVED = {
    "decay": ("parareal", "mgrit", "newton"),
    "dahlquist": ("parareal", "mgrit", "newton"),
    "brusselator": ("parareal",),
    "lorenz": ("parareal", "mgrit"),
    "arenstorf": ("parareal", "mgrit"),
    "heat-1d": ("parareal", "mgrit", "newton"),
    "heat-2d": ("parareal", "mgrit"),
    "advection-1d": ("parareal", "mgrit"),
    "burgers": ("parareal", "mgrit"),
    "allen-cahn": ("parareal", "mgrit"),
}


def catalogue() -> None:
    for name, methods in SOLVED.items():
        for method in methods:
            for dtype in ("float64", "float32"):
                if dtype == "float64" or method == "mgrit" or name in ("decay", "heat-1d"):
                    CLEAN[f"{name}, {method}, {dtype}"] = lambda n=name, k=method, d=dtype: _problem(n, k, d)


def _problem(name: str, method: str, dtype: str) -> tuple[Any, ...]:
    from pyparareal import problems

    given = problems.model_problem(name).arguments()
    given["u0"] = given["u0"].astype(dtype)
    if dtype == "float32":
        given["tol"] = max(given["tol"], 1e-3 * float(np.abs(given["u0"]).max()))
    return {**given, "method": method}, None, {}


catalogue()


# Solves


@clean
def forced_points() -> tuple[Any, ...]:
    return solve_of(Forcing(right_points))


@clean
def right_relax() -> tuple[Any, ...]:
    def relax(self: Any, u: Any, points: slice, m: int, out: Any) -> None:
        v = u
        for j in range(m):
            v = self.step(v, slice(points.start + j, points.stop + j, points.step))
        out[...] = v

    return solve_of(Forcing(right_points, relax))


@clean
def chaos_solved_exactly() -> tuple[Any, ...]:
    step, u0, more = chaotic(lambda u: 3.9 * u * (1 - u), 120, 5, 0.0)
    return step, u0, more


@clean
def matrix_products_round_by_batch() -> tuple[Any, ...]:
    a = np.random.default_rng(0).standard_normal((40, 40)) / 10
    return solve_of(lambda u: 0.5 * u + 0.2 * np.tanh(u @ a), shape=(3, 40))


@clean
def a_counter_that_nobody_reads() -> tuple[Any, ...]:
    calls = [0]

    def step(u: Any) -> Any:
        calls[0] += 1
        return 0.9 * u + 0.1

    return solve_of(step)


@clean
def a_cache_that_is_right() -> tuple[Any, ...]:
    known: dict[float, float] = {}

    def step(u: Any) -> Any:
        return known.setdefault(0.9, 0.9) * u + 0.1

    return solve_of(step)


@clean
def stiff_implicit_steps() -> tuple[Any, ...]:
    a = np.diag(np.full(20, 2.0)) - np.diag(np.ones(19), 1) - np.diag(np.ones(19), -1)
    inverse = np.linalg.inv(np.eye(20) + 400.0 * a)
    return solve_of(lambda u: u @ inverse, shape=(20,), coarse=lambda u: u @ np.linalg.matrix_power(inverse, 4))


@clean
def results_in_another_layout() -> tuple[Any, ...]:
    return solve_of(lambda u: np.asfortranarray(0.9 * u + 0.1))


@clean
def limits_and_absolute_values() -> tuple[Any, ...]:
    return solve_of(lambda u: np.clip(np.abs(0.9 * u - 0.3), 0.05, 0.7))


@clean
def right_hand_side() -> tuple[Any, ...]:
    return solve_of(smooth, rhs=0.1 * np.random.default_rng(1).standard_normal((24, 2, 5)))


@clean
def fused_kernel() -> tuple[Any, ...]:
    from pyparareal import problems

    return problems.model_problem("lorenz", steps=2250), None, {}


@clean
def torch_module_with_gradients() -> tuple[Any, ...]:
    import torch

    step, _, more = solve_of(dense().double(), coarse=lambda u: 0.5 * u)
    return step, torch.rand(3, 6).double(), more


@clean
def torch_float32_deterministic() -> tuple[Any, ...]:
    import torch

    step, _, more = solve_of(dense(), coarse=lambda u: 0.5 * u, deterministic=True)
    return step, torch.rand(3, 6), more


@clean
def a_module_for_every_step() -> tuple[Any, ...]:
    import torch
    from torch import nn

    from pyparareal.propagators import Blocks

    modules = nn.ModuleList(dense().double() for _ in range(12))
    step, _, more = solve_of(Blocks(modules), steps=12, m=3, coarse=lambda u: 0.5 * u)
    return step, torch.rand(3, 6).double(), more
