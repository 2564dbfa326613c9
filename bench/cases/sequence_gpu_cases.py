# SPDX-License-Identifier: BSD-3-Clause
"""``nn.GRU`` on one GPU against cuDNN and against our fused serial kernel there, with weights that were trained.

Over batch, length and hidden size, since where the device is full there is nothing to gain: the table says where.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from bench.cases import Result, case
from bench.cases.gru_cases import newton_calls
from pyparareal import _timing

TOLERANCE = 1e-5  # of the largest state, against float64


@dataclass(frozen=True)
class NewtonSizes:
    """Length, batch and hidden sizes."""

    shapes: tuple[tuple[int, int, int], ...] = ((16_384, 8, 256), (16_384, 8, 64), (16_384, 64, 64))
    repeats: int = 5


@case("sequence.gpu_newton_step", suite="gpu", device="cuda")
def gpu_newton_step() -> Result:
    """An iteration of Newton's method on a GRU, fused and by its parts."""
    return newton_step_on("cuda")


def newton_step_on(device: str, sizes: NewtonSizes = NewtonSizes()) -> Result:
    """``sequence.gpu_newton_step`` on torch tensors of ``device``."""
    import torch

    total, lines = Result({}, True), []
    for length, batch, hidden in sizes.shapes:
        torch.manual_seed(0)
        weight = torch.randn(3 * hidden, hidden, device=device) * 0.3 / hidden**0.5
        gates = torch.randn(length, batch, 3 * hidden, device=device)
        guess = torch.zeros(length + 1, batch, hidden, device=device)
        calls = newton_calls(gates, weight, torch.zeros(hidden, device=device), guess)
        prefix = f"T{length}_B{batch}_H{hidden}_"
        error = (calls["newton_fused"]() - calls["newton_unfused"]()).abs().max()
        total.checked &= bool(error <= 2 * TOLERANCE)  # states are of size one, each way has its error
        taken = _timing.interleave(calls, device=device, repeats=sizes.repeats, warmup=1)
        total.samples |= {f"{prefix}{name}": list(s.seconds) for name, s in taken.items()}
        total.metrics |= {f"{prefix}{name}_ms": s.median * 1e3 for name, s in taken.items()}
        ratio = _timing.ratio(taken["newton_unfused"], taken["newton_fused"]).value
        total.metrics[f"{prefix}fused_vs_unfused"] = ratio
        if ratio < 1:
            lines.append(f"T {length}, batch {batch}, hidden {hidden}: unfused wins, {1 / ratio:.2g} x")
    total.notes = "; ".join(lines) or "fused wins everywhere"
    return total


@dataclass(frozen=True)
class GruSizes:
    """``table``: lengths, batches and hidden sizes, all with all; ``main``: the one whose metrics have no prefix."""

    table: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] = ((2048, 16_384), (1, 8, 64), (64, 256))
    main: tuple[int, int, int] = (16_384, 8, 256)
    trained: tuple[int, int, int] = (100, 32, 512)  # updates, batch and length of the adding problem
    repeats: int = 2


@case("sequence.gpu_gru", suite="gpu", device="cuda")
def gpu_gru() -> Result:
    """Chunks side by side, with torch's kernels and with ours, against cuDNN and the serial kernel."""
    return gru_on("cuda")


def gru_on(device: str, sizes: GruSizes = GruSizes()) -> Result:
    """``sequence.gpu_gru`` on torch tensors of ``device``."""
    total, lines = Result({}, True), []
    weights = {hidden: trained(hidden, sizes, device) for hidden in sizes.table[2]}
    for length, batch, hidden in product(*sizes.table):
        ways = Ways(weights[hidden], length, batch, device)
        prefix = "" if (length, batch, hidden) == sizes.main else f"T{length}_B{batch}_H{hidden}_"
        for kind, calls in (("inference", ways.inference), ("training", ways.training)):
            taken = _timing.interleave(calls, device=device, repeats=sizes.repeats, warmup=1)
            total.samples |= {f"{prefix}{name}_{kind}": list(s.seconds) for name, s in taken.items()}
            total.metrics |= {f"{prefix}{name}_{kind}_ms": s.median * 1e3 for name, s in taken.items()}
            best = min((n for n in taken if n.startswith("chunks")), key=lambda n: taken[n].median)
            for baseline in ("cudnn", "serial_kernel"):
                ratio = _timing.ratio(taken[baseline], taken[best]).value
                total.metrics[f"{prefix}{kind}_vs_{baseline}"] = ratio
                if ratio < 1:
                    lines.append(
                        f"T {length}, batch {batch}, hidden {hidden}, {kind}: {baseline} wins, {1 / ratio:.2g} x"
                    )
        found = ways.found()
        total.metrics |= {f"{prefix}{name}": value for name, value in found.items()}
        total.checked &= found["max_rel_err"] <= TOLERANCE
    total.notes = "; ".join(lines) or "chunks win everywhere"
    return total


@dataclass(frozen=True)
class PrecisionSizes:
    """``table``: slices, steps of each, batch and hidden size; a single slice is the serial kernel."""

    table: tuple[tuple[int, int, int, int], ...] = (
        (1, 2048, 8, 64),
        (1, 2048, 8, 256),
        (1, 2048, 64, 128),
        (128, 128, 8, 64),
        (128, 128, 8, 128),
        (128, 128, 8, 256),
        (128, 128, 64, 128),
        (128, 128, 64, 256),
    )
    precisions: tuple[str, ...] = ("exact", "tf32x3", "tf32")
    repeats: int = 3


# Of the largest state against float64. The error of a step is in gru_ops.py; here are up to 2,048 steps of an untrained
# unit, which forgets its errors within tens of steps.
PRECISION_TOLERANCES = {"exact": 1e-5, "tf32x3": 1e-5, "tf32": 1e-2}


@case("sequence.gpu_gru_precision", suite="gpu", device="cuda")
def gpu_gru_precision() -> Result:
    """``relax_gru`` and its adjoint, exact and on tensor cores, and cuDNN on as many steps of the same sequences."""
    return precision_on("cuda")


def precision_on(device: str, sizes: PrecisionSizes = PrecisionSizes()) -> Result:
    """``sequence.gpu_gru_precision`` on torch tensors of ``device``."""
    total, lines = Result({}, True), []
    for slices, steps, batch, hidden in sizes.table:
        prefix = f"N{slices}_m{steps}_B{batch}_H{hidden}_"
        call = Precisions(slices, steps, batch, hidden, device)
        taken = _timing.interleave(call.calls(sizes.precisions), device=device, repeats=sizes.repeats, warmup=1)
        total.samples |= {prefix + name: list(s.seconds) for name, s in taken.items()}
        total.metrics |= {f"{prefix}{name}_ms": s.median * 1e3 for name, s in taken.items()}
        for precision in sizes.precisions:
            for direction in ("forward", "adjoint"):
                ratio = _timing.ratio(taken[f"{direction}_exact"], taken[f"{direction}_{precision}"]).value
                total.metrics[f"{prefix}{direction}_{precision}_vs_exact"] = ratio
            versus = _timing.ratio(taken["cudnn"], taken[f"forward_{precision}"]).value
            total.metrics[f"{prefix}forward_{precision}_vs_cudnn"] = versus
            error = call.error(precision)
            total.metrics[f"{prefix}{precision}_max_rel_err"] = error
            total.checked &= error <= PRECISION_TOLERANCES[precision]
        best = min(sizes.precisions, key=lambda p: taken[f"forward_{p}"].median)
        lines.append(f"{prefix[:-1]}: {best}")
    total.notes = "fastest forward: " + "; ".join(lines)
    return total


class Precisions:
    """One recurrence of ``slices * steps`` steps, cut into slices that start at zero, for the stopwatch.

    cuDNN takes all of its steps one after the other from one start state: what slices are there to avoid.
    """

    def __init__(self, slices: int, steps: int, batch: int, hidden: int, device: str) -> None:
        import torch

        torch.manual_seed(hidden)
        self.steps, self.theirs = steps, torch.nn.GRU(8, hidden).to(device)
        self.x = torch.randn(slices * steps, batch, 8, device=device)
        with torch.no_grad():
            bias = torch.cat([self.theirs.bias_hh_l0[: 2 * hidden], torch.zeros(hidden, device=device)])
            sides = self.x @ self.theirs.weight_ih_l0.T + self.theirs.bias_ih_l0 + bias
        self.gates = sides.reshape(slices, steps, batch, 3 * hidden)
        self.weight = self.theirs.weight_hh_l0.detach()
        self.bias = self.theirs.bias_hh_l0.detach()[2 * hidden :].clone()
        self.start = torch.zeros(slices, batch, hidden, device=device)
        self.every = torch.empty(slices, steps, batch, hidden, device=device)
        self.d_end = torch.randn(slices, batch, hidden, device=device)
        self.d_gates = torch.empty_like(self.gates)

    def calls(self, precisions: tuple[str, ...]) -> dict[str, Callable[[], Any]]:
        """cuDNN, and both directions with every precision."""
        calls: dict[str, Callable[[], Any]] = {"cudnn": self._theirs}
        for precision in precisions:
            calls[f"forward_{precision}"] = lambda p=precision: self._forward(p)
            calls[f"adjoint_{precision}"] = lambda p=precision: self._adjoint(p)
        return calls

    def _theirs(self) -> None:
        import torch

        with torch.no_grad():
            self.theirs(self.x)

    def _forward(self, precision: str) -> Any:
        from pyparareal import ops

        given = (self.start, self.gates, self.weight, self.bias, self.steps)
        return ops.relax_gru(*given, every=self.every, precision=precision)

    def _adjoint(self, precision: str) -> Any:
        from pyparareal import ops

        given = (self.every, self.gates, self.weight, self.bias, self.d_end)
        return ops.relax_gru_adjoint(*given, d_gates=self.d_gates, precision=precision)

    def error(self, precision: str) -> float:
        """Of the states after all steps of the slices, against float64, in units of the largest."""
        from pyparareal import ops

        self._forward(precision)
        wide = [a.double() for a in (self.start, self.gates, self.weight, self.bias)]
        exact = ops.relax_gru(*wide, self.steps)
        return float((self.every[:, -1] - exact).abs().max() / exact.abs().max())


class Ways:
    """The ways to run one layer on one input, for the stopwatch."""

    def __init__(self, weights: dict[str, Any], length: int, batch: int, device: str) -> None:
        import torch

        from pyparareal.nn import GRU

        inputs, hidden = weights["weight_ih_l0"].shape[1], weights["weight_hh_l0"].shape[1]
        torch.manual_seed(0)
        self.x = torch.randn(length, batch, inputs, device=device)
        self.seed = torch.randn(length, batch, hidden, device=device)
        self.theirs = torch.nn.GRU(inputs, hidden).to(device)
        self.theirs.load_state_dict(weights)
        self.chunks = {
            f"chunks_{method}": GRU.from_torch(self.theirs, method=method, max_iterations=32)
            for method in ("hybrid", "mgrit")
        }
        calls: dict[str, Callable[[Any], Any]] = {"cudnn": lambda x: self.theirs(x)[0], "serial_kernel": self._serial}
        for name, module in self.chunks.items():
            calls[name] = lambda x, module=module: module(x)[0]
            calls[f"{name}_kernel"] = lambda x, module=module: self._with_kernels(module, x)
        self.states: dict[str, Any] = {}
        self.inference = {name: lambda name=name, run=run: self._infer(name, run) for name, run in calls.items()}
        self.training = {
            name: lambda run=run: self._train(run)
            for name, run in calls.items()
            if "mgrit" not in name  # what it costs backward is no less, and the suite's minutes are few
        }

    def _infer(self, name: str, run: Callable[[Any], Any]) -> None:
        import torch

        with torch.no_grad():
            self.states[name] = run(self.x)

    def _train(self, run: Callable[[Any], Any]) -> None:
        x = self.x.clone().requires_grad_()
        (run(x) * self.seed).sum().backward()

    def _with_kernels(self, module: Any, x: Any) -> Any:
        """``module(x)`` with ``relax_gru`` for its chunks on this device too."""
        from pyparareal.nn.recurrent.cells import GRUStep

        before = GRUStep.kernel_devices
        GRUStep.kernel_devices = ("cpu", "cuda")
        try:
            return module(x)[0]
        finally:
            GRUStep.kernel_devices = before

    def _serial(self, x: Any) -> Any:
        """One layer by ``relax_gru`` with a single slice."""
        import torch
        from torch.nn import functional as F

        from pyparareal.torch_gru import gru_states

        theirs = self.theirs
        hidden = theirs.hidden_size
        bias = theirs.bias_ih_l0 + F.pad(theirs.bias_hh_l0[: 2 * hidden], (0, hidden))
        gates = F.linear(x, theirs.weight_ih_l0, bias)
        h0 = torch.zeros(x.shape[1], hidden, device=x.device)
        return gru_states(gates, theirs.weight_hh_l0, theirs.bias_hh_l0[2 * hidden :], h0)

    def found(self) -> dict[str, float]:
        """Iterations, exponent, and the largest error of all ways against float64 on the same device."""
        import torch

        with torch.no_grad():
            wide = self.theirs.double()
            exact = wide(self.x.double())[0]
            errors = [float((u - exact).abs().max() / exact.abs().max()) for u in self.states.values()]
        metrics = {"max_rel_err": max(errors)}
        for name, module in self.chunks.items():
            report = module.report[0]
            metrics |= {f"{name}_iterations": float(report.iterations), f"{name}_chunk": float(report.chunk)}
            metrics[f"{name}_failed"] = float(report.failure is not None)
            metrics["exponent"] = report.exponent
        return metrics


def trained(hidden: int, sizes: GruSizes, device: str) -> dict[str, Any]:
    """The weights of a GRU after some updates on the adding problem."""
    import numpy as np
    import torch

    from bench.sequence_training import adding

    updates, batch, length = sizes.trained
    torch.manual_seed(hidden)
    rnn, head = torch.nn.GRU(2, hidden).to(device), torch.nn.Linear(hidden, 1).to(device)
    optimiser = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=1e-3)
    batches = adding(batch, length)(np.random.default_rng(0))
    for _ in range(updates):
        x, y = (t.to(device) for t in next(batches))
        loss = torch.nn.functional.mse_loss(head(rnn(x)[0][-1])[:, 0], y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {name: value.detach().clone() for name, value in rnn.state_dict().items()}
