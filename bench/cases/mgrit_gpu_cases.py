# SPDX-License-Identifier: BSD-3-Clause
"""MGRIT on one GPU against the best serial programs there: one trajectory of the heat equation.

The processor's own serial time stands beside them. Nothing here is differentiated, and the solves say so: with grad on,
torch's states make ``solve`` take a first step through torch, to see what it depends on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.cases import Result, case
from bench.cases.relax_cases import TRIDIAGONAL_FLOPS
from bench.gpu_solves import Solves, graphed, hold_against
from pyparareal import _timing
from pyparareal.profiling import roofs

Array = Any
ITEM = 8  # bytes of a float64


@dataclass(frozen=True)
class HeatSizes:
    """``ways``: factor and levels of each hierarchy; ``shown``: slices compared with the reference."""

    steps: int = 1 << 16
    points: int = 1 << 10
    tol: float = 1e-7
    ways: tuple[tuple[int, int], ...] = ((16, 5), (4, 8))
    repeats: int = 2
    shown: int = 2
    relaxed: int = 4096  # slices of the relaxation that is held against the roof
    roof: tuple[int, int] = (1 << 22, 1 << 30)  # elements, bytes


@case("mgrit.gpu_heat", suite="gpu", device="cuda")
def gpu_heat() -> Result:
    """Heat equation, one trajectory of 1024 numbers: MGRIT to a tolerance against the serial kernel."""
    return heat_on("cuda")


def heat_on(device: str, sizes: HeatSizes = HeatSizes()) -> Result:
    """``mgrit.gpu_heat`` on torch tensors of ``device``."""
    import torch

    from bench.yardstick import problems

    total = Result({}, True)
    given = problems.heat(sizes.steps, sizes.points)
    serial = SerialHeat(given, sizes, device)
    solves = Solves(device)
    for m, levels in sizes.ways:
        fresh = problems.heat(sizes.steps, sizes.points)  # a step that has not made its factors
        fresh["u0"] = torch.from_numpy(fresh["u0"]).to(device)
        solves.add(f"m{m}", fresh, m=m, tol=sizes.tol, levels=levels)
    total.metrics |= {f"first_{name}_ms": seconds * 1e3 for name, seconds in solves.first.items()}
    taken = _timing.interleave(serial.ways | solves.ways, device=device, repeats=sizes.repeats, warmup=0)
    total.samples.update({name: s.seconds for name, s in taken.items()})
    total.metrics |= {f"{name}_ms": s.median * 1e3 for name, s in taken.items()}
    on_cpu, total.samples["cpu_serial"] = serial.on_cpu()
    total.metrics["cpu_serial_ms"] = total.samples["cpu_serial"][0] * 1e3
    total.checked &= serial.agrees(on_cpu) and solves.graphs_agree()
    best = min(solves.ways, key=lambda name: taken[name].median)
    for name in serial.ways:
        total.metrics[f"speedup_over_{name}"] = _timing.ratio(taken[name], taken[best]).value
    total.metrics["speedup"] = total.metrics["speedup_over_serial_c_points"]
    total.metrics["speedup_over_cpu_serial"] = total.metrics["cpu_serial_ms"] / (taken[best].median * 1e3)
    for name in solves.names:
        solution = solves.solutions[name]
        residual, error, bound = _heat_error(solution, serial, on_cpu)
        found = {"final_residual": residual, "error": error, "error_bound": bound}
        total.metrics |= solves.metrics_of(name) | {f"{key}_{name}": value for key, value in found.items()}
        total.checked &= bool(solution.status.name == "CONVERGED" and residual < sizes.tol and error <= bound)
    roof = _heat_relaxations(total, serial, sizes, device)
    faster = [name for name in (*serial.ways, "cpu_serial") if total.metrics[f"speedup_over_{name}"] < 1]
    total.notes = (
        f"{sizes.steps} steps of {sizes.points} numbers; speedup: {best} over serial_c_points; "
        f"serial programs that are faster than MGRIT: {', '.join(faster) or 'none'}; {solves.notes()}; {roof}; "
        "serial_dense multiplies by the inverse; a first solve makes factors and memory; times of one solve in seconds"
    )
    return total


class SerialHeat:
    """Serial programs for the same chain, each with preallocated outputs.

    ``serial_end``: one launch, which keeps the last state alone; ``serial_c_points``: one launch, C-points kept;
    ``serial_dense``: a product with the inverse matrix per step, parallel in space, as CUDA graphs of a slice.
    """

    def __init__(self, given: dict[str, Any], sizes: HeatSizes, device: str) -> None:
        import torch

        from pyparareal import ops, reference

        operator, h = given["fine"].operator, given["grid"].dt()
        rows = (-h * operator.lower, 1 - h * operator.diagonal, -h * operator.upper)
        self.numbers = reference.factorise_tridiagonal(*rows)
        self.m, self.sizes, self.device, self.u0 = sizes.ways[0][0], sizes, device, given["u0"]
        slices = sizes.steps // self.m
        self.factors = [torch.from_numpy(x).to(device) for x in self.numbers]
        start = torch.from_numpy(given["u0"][None]).to(device)
        nan = float("nan")
        self.end = torch.full_like(start, nan)
        self.c, self.dense = (start.new_full((slices + 1, sizes.points), nan) for _ in range(2))
        self.c[0] = self.dense[0] = start[0]
        relax, factors = ops.relax_tridiagonal, self.factors
        relax(start, *factors, 1, out=self.end)  # the kernel is loaded before the clock starts
        matrix = np.diag(rows[1]) + np.diag(rows[0], -1) + np.diag(rows[2], 1)
        self.ways: dict[str, Callable[[], Any]] = {
            "serial_end": lambda: relax(start, *factors, sizes.steps, out=self.end),
            "serial_c_points": lambda: relax(start, *factors, sizes.steps, every=self.c[None, 1:]),
            "serial_dense": _dense(torch.from_numpy(np.linalg.inv(matrix)).to(device), self.dense, self.m),
        }

    def on_cpu(self) -> tuple[Array, list[float]]:
        """C-points ``[slices + 1, points]`` by the CPU's kernel on one thread, and the seconds that took."""
        from pyparareal import ops

        c = np.empty((self.sizes.steps // self.m + 1, self.sizes.points))
        c[0] = self.u0

        def run() -> None:
            ops.relax_tridiagonal(c[:1], *self.numbers, self.sizes.steps, every=c[None, 1:], threads=1)

        taken = _timing.measure(run, repeats=1, warmup=0, cold_cache=False, max_calls=1)
        return c, taken.seconds

    def agrees(self, on_cpu: Array) -> bool:
        """Whether all ways give the bits of the CPU's kernel, the dense one but for rounding, and that the reference's.

        An entry of a product of ``points`` terms, whose weights add up to less than 1, rounds by ``points`` units in
        the last place at most, the inverse's own errors by as much again; steps do not magnify it.
        """
        from pyparareal import reference

        shown = self.sizes.shown
        expected = reference.relax_tridiagonal(on_cpu[:shown], *self.numbers, self.m)
        right = np.array_equal(expected, on_cpu[1 : shown + 1])
        right &= np.array_equal(self.c.cpu().numpy(), on_cpu)
        right &= np.array_equal(self.end.cpu().numpy(), on_cpu[-1:])
        rounding = 2 * self.sizes.steps * self.sizes.points * 2.0**-52 * np.abs(self.u0).max()
        return bool(right and np.abs(self.dense.cpu().numpy() - on_cpu).max() <= rounding)


def _dense(inverse: Array, c: Array, m: int) -> Callable[[], None]:
    """All C-points ``c [slices + 1, points]`` by ``m`` products each; on a GPU the products of a slice are a graph."""
    import torch

    states = [torch.empty_like(c[0]) for _ in range(m + 1)]

    def products() -> None:
        for j in range(m):
            torch.mv(inverse, states[j], out=states[j + 1])

    launch: Callable[[], Any] = products
    if c.is_cuda:
        launch = graphed(products)

    def run() -> None:
        states[0].copy_(c[0])
        for n in range(len(c) - 1):
            launch()
            c[n + 1].copy_(states[m])
            states[0].copy_(states[m])

    return run


def _heat_error(solution: Any, serial: SerialHeat, on_cpu: Array) -> tuple[float, float, float]:
    """The residual of what was returned, the largest 2-norm of an error at its C-points, and what that can be at most.

    A step is a contraction in the 2-norm, so errors are at most the sum of the residuals: the square root of their
    number times their 2-norm. Rounding adds a few units in the last place of a state per step.
    """
    from pyparareal import ops

    u, steps = solution.u, serial.sizes.steps
    m = steps // len(u[1:])
    residual = float((ops.relax_tridiagonal(u[:-1], *serial.factors, m) - u[1:]).norm())
    ours, exact = u.cpu().numpy()[:: max(serial.m // m, 1)], on_cpu[:: max(m // serial.m, 1)]
    error = float(np.sqrt(((ours - exact) ** 2).sum(1)).max())
    rounding = 16 * steps * 2.0**-53 * float(np.sqrt((on_cpu[0] ** 2).sum()))
    return residual, error, float(np.sqrt(len(u[1:])) * residual + rounding)


def _heat_relaxations(total: Result, serial: SerialHeat, sizes: HeatSizes, device: str) -> str:
    """The relaxation of many slices, alone and with a pair of right-hand sides and all states kept, under the roof."""
    import torch

    from pyparareal import ops

    roof, right = roofs.measure(device, elements=sizes.roof[0], copied=sizes.roof[1])
    shape = (sizes.relaxed, serial.m, sizes.points)
    f, g = (torch.rand(shape, dtype=torch.float64, device=device) for _ in range(2))
    u = torch.rand(shape[::2], dtype=torch.float64, device=device)
    every, out = torch.full_like(f, float("nan")), torch.full_like(u, float("nan"))
    taken = _timing.interleave(
        {
            "relax": lambda: ops.relax_tridiagonal(u, *serial.factors, serial.m, out=out),
            "relax_pair": lambda: ops.relax_tridiagonal(u, *serial.factors, serial.m, f=f, g=g, every=every),
        },
        device=device,
        repeats=7,
    )
    flops = TRIDIAGONAL_FLOPS * f.numel()
    moved = {"relax": 2 * ITEM * u.numel(), "relax_pair": ITEM * (u.numel() + 3 * f.numel())}
    for name, nbytes in moved.items():
        more = 2 * f.numel() if name == "relax_pair" else 0
        hold_against(total, name, roof, flops + more, nbytes, taken[name])
    some = [x[: sizes.shown].cpu().numpy() for x in (u, f, g)]
    kept = np.empty_like(some[1])
    expected = ops.relax_tridiagonal(some[0], *serial.numbers, serial.m)
    ops.relax_tridiagonal(some[0], *serial.numbers, serial.m, f=some[1], g=some[2], every=kept)
    right &= np.array_equal(out[: sizes.shown].cpu().numpy(), expected)
    total.checked &= bool(right and np.array_equal(every[: sizes.shown].cpu().numpy(), kept))
    return roof.how
