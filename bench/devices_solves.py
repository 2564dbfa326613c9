# SPDX-License-Identifier: BSD-3-Clause
"""Solves on a rank that are bound by arithmetic: a reaction with diffusion, each step a product of dense matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import ranks

TOL = 1e-6
ROUNDS = 5
METHODS = ("parareal", "mgrit")


class Reaction:
    """``u_t = u_xx + 9 (u - u^3)`` on ``[0, 1]``: diffusion implicit by a dense inverse, the reaction explicit.

    Nothing but products of matrices, as a step of a user's own code may be.
    """

    batch_invariant = False

    def __init__(self, points: int, grid: Any, device: str) -> None:
        import torch

        self.points, self.grid, self.device = points, grid, device
        self.h = (grid.t1 - grid.t0) / grid.steps
        one = torch.eye(points, dtype=torch.float64)
        beside = torch.diag(torch.ones(points - 1, dtype=torch.float64), 1)
        second = (points + 1) ** 2 * (beside + beside.T - 2 * one)
        self.inverse = torch.linalg.inv(one - self.h * second).T.contiguous().to(device)

    def step(self, u: Any, points: slice) -> Any:
        return (u + self.h * 9 * (u - u**3)) @ self.inverse

    def rediscretise(self, m: int) -> Reaction:
        return Reaction(self.points, self.grid.coarsen(m), self.device)


def reaction(device: str, batch: int = 16, points: int = 255, steps: int = 4096) -> dict[str, Any]:
    """From random initial values, in fixed blocks of slices, as products round differently by their size."""
    import torch

    from pyparareal import TimeGrid

    grid = TimeGrid(0, 1.0, steps)
    torch.manual_seed(0)
    u0 = torch.randn(batch, points, dtype=torch.float64).to(device)
    return {"fine": Reaction(points, grid, device), "u0": u0, "grid": grid, "deterministic": True}


def methods() -> dict[str, dict[str, Any]]:
    from pyparareal import MGRIT

    return {"parareal": {"method": "parareal", "m": 128}, "mgrit": {"method": MGRIT(levels=3, nu=1), "m": 8}}


def solves_on_a_rank() -> dict[str, Any]:
    """On each rank: the same solves on rank 0 alone and on all, in turn."""
    import torch

    import pyparareal
    from pyparareal import LocalRuntime, serial_solve, solve

    runtime = pyparareal.distributed(timeout=120)
    problem, first, count = reaction(ranks.device()), runtime.rank == 0, runtime.size
    chain = problem | {"deterministic": False}  # the best there is
    work = {"serial": _only(first, lambda: serial_solve(**chain, save="coarse", m=problem["grid"].steps))}
    metrics: dict[str, float] = {}
    checked = True
    for name, more in methods().items():
        ask = problem | more | {"tol": TOL}
        alone = _only(first, lambda ask=ask: solve(**ask, runtime=LocalRuntime()))
        work |= {f"{name}_1_rank": alone, f"{name}_{count}_ranks": lambda ask=ask: solve(**ask, runtime=runtime)}
        before, ours = runtime.volume, work[f"{name}_{count}_ranks"]()
        sent, one = runtime.volume - before, alone()
        metrics |= {f"{name}_iterations": float(ours.iterations), f"{name}_residual": ours.residuals[-1]}
        metrics |= {f"{name}_states_sent": float(sent["states"]), f"{name}_bytes_sent": float(sent["bytes"])}
        if one is not None:
            checked &= torch.equal(one.u, ours.u) and repr(one.residuals) == repr(ours.residuals)
            checked &= sent["bytes"] == sent["states"] * problem["u0"].nbytes
    samples = ranks.in_turn(work, ROUNDS)
    # One for the starting guess, and in every iteration the end of the block and what the coarse chain hands on.
    checked &= not first or metrics["parareal_states_sent"] == 2 * metrics["parareal_iterations"] + 1
    return {"metrics": metrics, "checked": bool(checked), "samples": {n: one.seconds for n, one in samples.items()}}


def _only(mine: bool, work: Callable[[], Any]) -> Callable[[], Any]:
    """``work``, on other ranks nothing."""
    return work if mine else lambda: None
