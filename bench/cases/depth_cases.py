# SPDX-License-Identifier: BSD-3-Clause
"""Networks solved in parallel over their layers: against stored histories, and against the loop of torch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.cases import Result, case
from pyparareal import _timing

TESTS = Path(__file__).parents[2] / "tests" / "nn" / "layer_parallel"

LAYERS, BATCH, M, ITERATIONS = 1024, 32, 4, 2
DEPTH = 4.0  # h = DEPTH / LAYERS
WIDTHS = (16, 64, 128)
# float32 against float64: 1024 steps u + h f, whose roundings of 6e-8 add up at random, of gradients as well as states.
ROUNDING = 1e-4


@case("depth.golden", suite="quick")
def golden() -> Result:
    """Histories of TorchBraid's residual layers reproduced, forward and backward, and its acceptance cases."""
    return run_checks(golden_checks())


def golden_checks() -> dict[str, Callable[[], None]]:
    """What is compared, and how closely, is test code."""
    sys.path.append(str(TESTS))
    try:
        import test_depth_acceptance as accepted
        import test_depth_golden as stored
    finally:
        sys.path.remove(str(TESTS))

    checks: dict[str, Callable[[], None]] = {}
    for row in stored.ROWS:
        name = stored.name_of(row)
        checks[f"norms, {name}"] = partial(stored.test_serial_norms, row)
        for propagator in (stored.of_blocks, stored.of_kernels):
            kind = propagator.__name__.removeprefix("of_")
            checks[f"forward, {name}, {kind}"] = partial(stored.test_forward_history, row, propagator)
            checks[f"backward, {name}, {kind}"] = partial(stored.test_backward_history, row, propagator)
        checks[f"network, {name}"] = partial(stored.test_network, row)
    for name, arguments in accepted.CASES.items():
        checks[f"acceptance, {name}"] = partial(accepted.test_acceptance_case, *arguments)
    checks["acceptance, composite"] = accepted.test_composite_network
    return checks


def run_checks(checks: dict[str, Callable[[], None]]) -> Result:
    """How many pass, and what the others differ in."""
    differing, seconds = {}, {}
    for name, check in checks.items():
        begin = time.perf_counter()
        try:
            check()
        except AssertionError as error:
            differing[name] = str(error).strip().splitlines()[0]
        seconds[name] = [time.perf_counter() - begin]
    return Result(
        metrics={"matched": len(checks) - len(differing), "total": len(checks)},
        checked=not differing,
        samples=seconds,
        notes="; ".join(f"{name}: {difference}" for name, difference in differing.items()),
    )


@case("depth.dense", suite="quick")
def dense() -> Result:
    """Forward and backward of 1,024 residual dense layers, 2 + 2 iterations, over the time of torch's loop; float32."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(_timing.cores())
    try:
        return dense_speed(WIDTHS, LAYERS)
    finally:
        torch.set_num_threads(before)


def dense_speed(widths: tuple[int, ...], layers: int, *, repeats: int | None = None) -> Result:
    """``ratio``: parallel over eager; ``fused_serial``: one kernel for all layers over eager; for every width."""
    metrics: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    notes = [
        f"{layers} layers, batch {BATCH}, m = {M}, {ITERATIONS} + {ITERATIONS} iterations, {_timing.cores()} cores"
    ]
    checked, worst = True, 0.0
    for width in widths:
        nets = Networks(width, layers)
        taken = _timing.interleave(nets.ways(), repeats=repeats, min_time=1.5, warmup=2)
        ratios = {
            "ratio": _timing.ratio(taken["parallel"], taken["eager"]),
            "fused_serial": _timing.ratio(taken["fused_serial"], taken["eager"]),
        }
        for name, found in ratios.items():
            metrics |= {
                f"{name}_w{width}": found.value,
                f"{name}_low_w{width}": found.low,
                f"{name}_high_w{width}": found.high,
            }
        metrics |= {f"{way}_ms_w{width}": 1e3 * t.median for way, t in taken.items()}
        metrics |= {f"fastest_{way}_ms_w{width}": 1e3 * t.min for way, t in taken.items()}
        samples |= {f"{way}_w{width}": t.seconds for way, t in taken.items()}
        errors = nets.errors()
        metrics |= {f"{name}_w{width}": value for name, value in errors.items()}
        metrics[f"set_up_ms_w{width}"] = 1e3 * nets.set_up
        worst = max(worst, errors["gradient_error"])
        checked &= errors["fused_serial_error"] < ROUNDING and errors["converged_error"] < ROUNDING
        notes.append(f"width {width}: {nets.report()}")
    return Result({"gradient_error": worst} | metrics, checked, samples, "; ".join(notes))


class Networks:
    """One network with the weights a layer of torch starts from, as a loop over plain modules and as LayerParallel."""

    def __init__(self, width: int, layers: int) -> None:
        import torch
        from torch import nn

        from bench.depth_training import Residual
        from pyparareal.nn import LayerParallel

        torch.manual_seed(width)
        blocks: list[nn.Module] = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers)]
        h = DEPTH / layers
        self.x, self.seed = torch.randn(BATCH, width), torch.randn(BATCH, width)
        self.eager = Residual(blocks, h, nn.Identity(), nn.Identity())
        begin = time.perf_counter()
        self.parallel = LayerParallel(blocks, h=h, m=M, forward=ITERATIONS, backward=ITERATIONS)
        self.step(self.parallel)
        self.set_up = time.perf_counter() - begin
        self.fused = LayerParallel(blocks, h=h, mode="serial")
        # Every slice is exact after a quarter of so many iterations: C-points are two more per iteration.
        self.converged = LayerParallel(blocks, h=h, m=M, forward=12, backward=12)

    def step(self, net: Any, x: Any = None) -> Any:
        """Forward and backward; the gradients of the parameters are set, that of ``x`` is returned."""
        x = (self.x if x is None else x).detach().requires_grad_()
        net.zero_grad(set_to_none=True)
        net(x).backward(self.seed.to(x.dtype))
        return x.grad

    def ways(self) -> dict[str, Callable[[], Any]]:
        nets = {"eager": self.eager, "parallel": self.parallel, "fused_serial": self.fused}
        return {name: partial(self.step, net) for name, net in nets.items()}

    def errors(self) -> dict[str, float]:
        """Relative 2-norm error of all gradients, of the input and of every parameter, against float64."""
        import copy

        exact = self.gradients(copy.deepcopy(self.eager).double(), self.x.double())
        nets = {
            "gradient_error": self.parallel,
            "eager_error": self.eager,
            "fused_serial_error": self.fused,
            "converged_error": self.converged,
        }
        return {n: float((self.gradients(net, self.x) - exact).norm() / exact.norm()) for n, net in nets.items()}

    def gradients(self, net: Any, x: Any) -> Any:
        """All in one vector in float64, by the names of the serial network."""
        import torch

        dx = self.step(net, x)
        found = [dx, *layer_gradients(net)]
        return torch.cat([g.double().flatten() for g in found])

    def report(self) -> str:
        return str(self.parallel.report).replace("\n", ", ")


def layer_gradients(net: Any) -> list[Any]:
    """Weights of all layers, then biases, from plain modules or from stacked parameters."""
    import torch

    from bench.depth_training import Residual

    if isinstance(net, Residual):
        named = ("0.weight", "0.bias")
        return [torch.stack([b.get_parameter(name).grad for b in net.blocks]) for name in named]
    return [p.grad for p in net.parameters()]
