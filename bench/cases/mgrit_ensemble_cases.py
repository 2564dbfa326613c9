# SPDX-License-Identifier: BSD-3-Clause
"""MGRIT on one GPU against the serial kernel, for ensembles that fill more and more of the device.

A trajectory is a thread of the serial kernel. While there are fewer than the device has room for, slices in time are
threads that cost nothing; from there on every cycle costs what a serial solve costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.cases import Result, case
from bench.cases.relax_cases import LORENZ_RK4_FLOPS
from bench.gpu_solves import Solves, hold_against
from pyparareal import _timing
from pyparareal.profiling import roofs

Array = Any
BRUSSELATOR_RK4_FLOPS = 56  # per step: 4 slopes of 7, 3 stages of 4, weights of 16
ITEM = 8  # bytes of a float64
# The end of the time interval, in which 1/512 of it is still a step that follows the solution; operations of a step.
EQUATIONS = {"lorenz": (10.0, LORENZ_RK4_FLOPS), "brusselator": (64.0, BRUSSELATOR_RK4_FLOPS)}


@dataclass(frozen=True)
class Sizes:
    """``ways``: factors of each hierarchy, taken while its C-points fit into ``most_bytes``; ``shown`` trajectories."""

    steps: int = 1 << 18
    ensembles: tuple[int, ...] = (1, 16, 256, 4096, 65536)
    tol: float = 1e-9
    ways: tuple[tuple[int, ...], ...] = ((512,), (64, 8))
    most_bytes: int = 1 << 30
    repeats: int = 2
    shown: int = 2
    relaxed: tuple[int, int, int] = (512, 4096, 64)  # slices, trajectories, steps
    roof: tuple[int, int] = (1 << 22, 1 << 30)  # elements, bytes


@case("mgrit.gpu_ensembles", suite="gpu", device="cuda")
def gpu_ensembles() -> Result:
    """Lorenz and Brusselator, 1 to 65,536 trajectories: from where on the ensemble alone fills the device."""
    return ensembles_on("cuda")


def ensembles_on(device: str, sizes: Sizes = Sizes()) -> Result:
    """``mgrit.gpu_ensembles`` on torch tensors of ``device``."""
    total, notes = Result({}, True), []
    roof, total.checked = roofs.measure(device, elements=sizes.roof[0], copied=sizes.roof[1])
    for name in EQUATIONS:
        _relaxation(total, name, roof, sizes, device)
        lost = [count for count in sizes.ensembles if _ensemble(total, notes, name, count, sizes, device) < 1]
        # 0 where MGRIT pays for all.
        total.metrics[f"{name}_no_longer_pays_from"] = float(min(lost, default=0))
    graphs = sorted(set(filter(None, notes)))
    total.notes = (
        f"{sizes.steps} steps of RK4 to t = {', '.join(f'{end:g} ({n})' for n, (end, _) in EQUATIONS.items())}; all "
        f"residuals below {sizes.tol:g} in the maximum norm; speedup: the fastest solve over the faster serial kernel; "
        f"{'; '.join(graphs)}; {roof.how}; times of one solve in seconds"
    )
    return total


class Ensemble:
    """``count`` trajectories of one equation from neighbouring starts, and the serial kernel for them."""

    def __init__(self, name: str, count: int, sizes: Sizes, device: str) -> None:
        import torch

        from pyparareal import TimeGrid, ops
        from pyparareal.problems import published
        from pyparareal.propagators import RungeKutta
        from pyparareal.tableaux import RK4

        problem = getattr(published, name)()
        self.grid = TimeGrid(0.0, EQUATIONS[name][0], sizes.steps)
        self.fine = RungeKutta(problem.rhs, self.grid, RK4)
        self.kernel = (problem.rhs.name, problem.rhs.parameters, RK4, self.grid.dt())
        starts = np.array(problem.u0) + 0.1 * np.random.default_rng(1).standard_normal((count, len(problem.u0)))
        self.u0, self.m = torch.from_numpy(starts).to(device), sizes.ways[0][0]
        self.end = torch.full_like(self.u0[None], math.nan)
        self.c = self.u0.new_full((sizes.steps // self.m + 1, *self.u0.shape), math.nan)
        self.c[0] = self.u0
        relax = ops.relax_rk
        relax(self.c[:1], *self.kernel, 1, out=self.end)  # the kernel is loaded before the clock starts
        self.ways: dict[str, Callable[[], Any]] = {
            "serial_end": lambda: relax(self.c[:1], *self.kernel, sizes.steps, out=self.end),
            "serial_c_points": lambda: relax(self.c[:1], *self.kernel, sizes.steps, every=self.c[None, 1:]),
        }

    @property
    def given(self) -> dict[str, Any]:
        return {"fine": self.fine, "u0": self.u0, "grid": self.grid}

    def on_cpu(self, u0: Array, slices: int, m: int) -> Array:
        """``[slices + 1, *u0.shape]`` by the CPU's kernel, ``m`` steps each."""
        from pyparareal import ops

        c = np.empty((slices + 1, *u0.shape))
        c[0] = u0
        for n in range(slices):
            ops.relax_rk(c[n : n + 1], *self.kernel, m, out=c[n + 1 : n + 2])
        return c

    def serial_agrees(self, shown: int) -> bool:
        """Whether some trajectories have the bits of the CPU's kernel, and its first steps those of the reference."""
        from pyparareal import reference

        u0 = self.u0[:shown].cpu().numpy()
        c = self.on_cpu(u0, len(self.c) - 1, self.m)
        first = reference.relax_rk(u0[None], *self.kernel, self.m)
        right = np.array_equal(first[0], c[1]) and np.array_equal(self.c[:, :shown].cpu().numpy(), c)
        return bool(right and np.array_equal(self.end[0, :shown].cpu().numpy(), c[-1]))

    def solution_agrees(self, solution: Any, tol: float, shown: int) -> bool:
        """Whether the CPU's kernel finds some trajectories' residuals below ``tol``, and the slices that must be exact.

        The first cycle goes up only; each of the others makes one more slice final, bit for bit.
        """
        from pyparareal import ops

        u = solution.u[:, :shown].cpu().numpy()
        m = self.grid.steps // len(u[1:])
        residual = np.abs(ops.relax_rk(u[:-1], *self.kernel, m) - u[1:]).max()
        exact = min(solution.iterations - 1, len(u) - 1)
        right = np.array_equal(u[: exact + 1], self.on_cpu(u[0], exact, m))
        return bool(solution.status.name == "CONVERGED" and residual < tol and right)


def _ensemble(total: Result, notes: list[str], name: str, count: int, sizes: Sizes, device: str) -> float:
    """One ensemble of one equation; returns how much faster the fastest solve is than the faster serial kernel."""
    ensemble, solves = Ensemble(name, count, sizes, device), Solves(device)
    options = {"tol": sizes.tol, "norm": "inf", "nu": 0, "temporal_norm": "inf"}
    for factors in sizes.ways:
        fits = ensemble.u0.numel() * ITEM * (sizes.steps // factors[0]) <= sizes.most_bytes
        if fits or factors == sizes.ways[0]:
            m = list(factors)
            solves.add(f"{len(m) + 1}_levels", ensemble.given, m=m, levels=len(m) + 1, **options)
    taken = _timing.interleave(ensemble.ways | solves.ways, device=device, repeats=sizes.repeats, warmup=0)
    at = f"{name}_{count}"
    total.samples.update({f"{at}_{way}": s.seconds for way, s in taken.items()})
    total.metrics |= {f"{at}_{way}_ms": s.median * 1e3 for way, s in taken.items()}
    total.checked &= ensemble.serial_agrees(sizes.shown) and solves.graphs_agree()
    for way in solves.names:
        solution = solves.solutions[way]
        total.checked &= ensemble.solution_agrees(solution, sizes.tol, sizes.shown)
        total.metrics |= {f"{at}_{key}": value for key, value in solves.metrics_of(way).items()}
        # Not checked: what the equation makes of a residual. Lorenz's magnifies it a thousand times.
        total.metrics[f"{at}_error_{way}"] = float((solution.u[-1] - ensemble.end[0]).abs().max())
    serial = min(ensemble.ways, key=lambda way: taken[way].median)
    best = min(solves.ways, key=lambda way: taken[way].median)
    total.metrics[f"{at}_speedup"] = _timing.ratio(taken[serial], taken[best]).value
    notes.append(solves.notes())
    return total.metrics[f"{at}_speedup"]


def _relaxation(total: Result, name: str, roof: roofs.Roof, sizes: Sizes, device: str) -> None:
    """The relaxation kernel on more trajectories than fit the device, under the roof."""
    import torch

    from pyparareal import ops

    slices, count, m = sizes.relaxed
    ensemble = Ensemble(name, count, sizes, device)
    u = ensemble.u0.expand(slices, *ensemble.u0.shape).contiguous()
    out = torch.full_like(u, math.nan)
    taken = _timing.measure(lambda: ops.relax_rk(u, *ensemble.kernel, m, out=out), device=device, repeats=7)
    flops = EQUATIONS[name][1] * slices * count * m
    hold_against(total, f"{name}_relax", roof, flops, 2 * ITEM * u.numel(), taken)
    expected = ensemble.on_cpu(ensemble.u0[: sizes.shown].cpu().numpy(), 1, m)[1]
    total.checked &= bool((out[:, : sizes.shown].cpu() == torch.from_numpy(expected)).all())
