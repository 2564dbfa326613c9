# SPDX-License-Identifier: BSD-3-Clause
"""What the cases of MGRIT on a GPU share: solves for the stopwatch, CUDA graphs of torch's work, the roof."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.cases import Result
from pyparareal import _timing
from pyparareal.profiling import roofs

WARM_UP = 3  # calls before a capture: lazily loaded kernels, cuBLAS' workspace


class Solves:
    """Solves by MGRIT as callables for the stopwatch, each also as CUDA graphs.

    Attributes
    ----------
    ways : by name, with ``_graph`` behind it where it runs as graphs
    solutions : the last one of each way
    first : seconds of the first solve of each, in which factors and memory are made
    """

    def __init__(self, device: str) -> None:
        self.device, self.ways, self.solutions = device, dict[str, Callable[[], Any]](), dict[str, Any]()
        self.first, self.names = dict[str, float](), list[str]()
        self.graphs, self.refused = _graph_runtime(), list[str]()

    def add(self, name: str, given: dict[str, Any], **options: Any) -> None:
        """Take ``solve(**given, **options)`` up and run it once; as graphs only if it runs so."""
        self.names.append(name)
        self._take(name, _solver(self.solutions, name, given, None, **options))
        if self.graphs is None:
            return
        try:
            self._take(f"{name}_graph", _solver(self.solutions, f"{name}_graph", given, self.graphs, **options))
        except Exception as error:  # told in the notes: what runs without graphs is still measured
            self.refused.append(f"{name}_graph: {type(error).__name__}: {error}")

    def _take(self, name: str, way: Callable[[], None]) -> None:
        begin = time.perf_counter()
        way()
        if self.device == "cuda":
            synchronize()
        self.first[name] = time.perf_counter() - begin
        self.ways[name] = way

    def metrics_of(self, name: str) -> dict[str, float]:
        """Cycles, the last residual that was measured, and the steps that had to wait for one another."""
        solution = self.solutions[name]
        known = [r for r in solution.residuals if np.isfinite(r)]
        stats = solution.stats
        return {
            f"cycles_{name}": float(solution.iterations),
            f"residual_{name}": known[-1] if known else -1.0,
            f"critical_steps_{name}": float(stats.critical_fine_steps + stats.critical_coarse_steps),
        }

    def graphs_agree(self) -> bool:
        """Whether graphs gave the same residuals and states, bit for bit."""
        pairs = [(self.solutions[n], self.solutions[f"{n}_graph"]) for n in self.names if f"{n}_graph" in self.ways]
        return all(a.iterations == b.iterations and bool((a.u == b.u).all()) for a, b in pairs)

    def notes(self) -> str:
        """What became of the graphs."""
        if self.graphs is None:
            return "GraphRuntime: absent"
        modes = {name: self.solutions[name].stats.mode for name in self.ways if name.endswith("_graph")}
        return "; ".join([*(f"{name}: {mode}" for name, mode in modes.items()), *self.refused])


def _solver(
    solutions: dict[str, Any], name: str, given: dict[str, Any], runtime: Any, **options: Any
) -> Callable[[], None]:
    import torch

    from pyparareal import MGRIT, solve

    method = {key: options.pop(key) for key in ("levels", "nu", "temporal_norm") if key in options}

    def run() -> None:
        where = {} if runtime is None else {"runtime": runtime()}
        with torch.no_grad():
            solutions[name] = solve(
                **given, **options, **where, method=MGRIT(stagnation=None, **method), on_failure="return"
            )

    return run


def _graph_runtime() -> Any:
    try:
        from pyparareal.runtime import GraphRuntime
    except ImportError:
        return None
    return GraphRuntime


def synchronize() -> None:
    import torch

    torch.cuda.synchronize()


def graphed(work: Callable[[], Any]) -> Callable[[], Any]:
    """``work`` on torch tensors as one CUDA graph, run on a side stream first."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def hold_against(
    total: Result, name: str, roof: roofs.Roof, flops: float, nbytes: float, taken: _timing.Samples
) -> None:
    """Add what ``flops`` and ``nbytes`` in the time ``taken`` are of the roof, and which of the two is its limit."""
    total.samples[name] = taken.seconds
    total.metrics |= {
        f"{name}_roof_fraction": roof.fraction(flops, nbytes, taken.median),
        f"{name}_bound_by_flops": float(roof.bound(flops, nbytes) == "flops"),
        f"{name}_gflops": flops / taken.median * 1e-9,
        f"{name}_gb_per_s": nbytes / taken.median * 1e-9,
        "roof_gflops": roof.flops * 1e-9,
        "roof_gb_per_s": roof.bytes * 1e-9,
    }
