# SPDX-License-Identifier: BSD-3-Clause
"""The fused gated recurrent unit, one step after the other and in slices, beside ``torch.nn.GRU`` and a loop of cells.

Layers are compared whole: the product with the inputs, the recurrence, and for a training step their backward pass.
``kernel`` is the recurrence alone. Of the large shapes the products fill a processor without any fusion: what is gained
is least there, or lost.

An iteration of Newton's method, ``newton_fused``, stands beside the same by steps, Jacobians and a scan, and beside
what it competes with: the serial kernel, which ``newton_iterations`` of it replace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.cases import Result, case
from pyparareal import _timing

Tensor = Any
LENGTH, BATCH, HIDDEN = 16_384, 4, 64
SHORT, LOOP = 2_048, 512  # steps of torch's, whose cost is that of a step times their number
SLICES = 64
LARGE = {"batch_256": (256, 256, 64), "hidden_512": (32, 64, 512)}  # length, batch, hidden
# A contracting cell: errors are those of a few steps, each of sums of 64 or 512 terms of size one in float32.
TOLERANCE = 2e-5


@case("sequence.gru_kernel", suite="quick")
def gru_kernel() -> Result:
    """Microseconds a step of ``relax_gru``, alone and as a layer, and times as fast as torch's; float32."""
    import torch

    before = torch.get_num_threads()
    total = Result(
        {},
        True,
        {},
        f"float32; steps of {BATCH} rows, {HIDDEN} units unless named; seconds of a step; agreement over {SHORT} steps",
    )
    try:
        for threads in dict.fromkeys((1, _timing.cores())):
            torch.set_num_threads(threads)
            _serial(total, threads)
            _newton(total, threads)
        for name, shape in LARGE.items():
            _large(total, name, *shape)
    finally:
        torch.set_num_threads(before)
    return total


class _Layer:
    """A layer of torch, and the same by the kernels."""

    def __init__(self, length: int, batch: int, hidden: int) -> None:
        import torch

        torch.manual_seed(1)
        self.module = torch.nn.GRU(hidden, hidden)
        self.cell = torch.nn.GRUCell(hidden, hidden)
        self.x = torch.randn(length, batch, hidden)
        self.h0 = torch.zeros(batch, hidden)
        self.hidden = hidden

    def gates(self) -> Tensor:
        import torch

        m = self.module
        bias = m.bias_ih_l0 + torch.cat([m.bias_hh_l0[: 2 * self.hidden], m.bias_hh_l0.new_zeros(self.hidden)])
        return torch.nn.functional.linear(self.x, m.weight_ih_l0, bias)

    def own(self) -> Tensor:
        from pyparareal.torch_gru import gru_states

        m = self.module
        return gru_states(self.gates(), m.weight_hh_l0, m.bias_hh_l0[2 * self.hidden :], self.h0)

    def torchs(self) -> Tensor:
        return self.module(self.x)[0]

    def short(self) -> Tensor:
        return self.module(self.x[:SHORT])[0]

    def loop(self) -> Tensor:
        h = self.h0
        for x in self.x[:LOOP]:
            h = self.cell(x, h)
        return h

    def forward(self, states: Callable[[], Tensor]) -> Callable[[], Tensor]:
        import torch

        def call() -> Tensor:
            with torch.no_grad():
                return states()

        return call

    def training(self, states: Callable[[], Tensor]) -> Callable[[], Any]:
        import torch

        parameters = [*self.module.parameters()] if states != self.loop else [*self.cell.parameters()]

        def call() -> Any:
            return torch.autograd.grad(states().sum(), parameters)

        return call

    def agree(self) -> bool:
        """Values and gradients, those of torch in float32, to rounding."""
        self.x = self.x[:SHORT]
        ways = [self.own, self.torchs]
        mine, other = (self.forward(way)() for way in ways)
        if (mine - other).abs().max() > TOLERANCE:
            return False
        pairs = zip(*(self.training(way)() for way in ways), strict=True)
        return all((a - b).abs().max() <= 20 * TOLERANCE * (1 + b.abs().max()) for a, b in pairs)


def _measure(total: Result, name: str, ways: dict[str, tuple[Callable[[], Any], int]]) -> dict[str, float]:
    """Median microseconds of a step of every way, which takes so many in a call."""
    taken = _timing.interleave(
        {way: call for way, (call, _) in ways.items()}, repeats=5, warmup=1, cold_cache=False, max_calls=1
    )
    steps = {way: count for way, (_, count) in ways.items()}
    total.samples |= {f"{name}_{way}": [s / steps[way] for s in t.seconds] for way, t in taken.items()}
    return {way: t.median / steps[way] * 1e6 for way, t in taken.items()}


def _serial(total: Result, threads: int) -> None:
    import torch

    from pyparareal import ops

    layer, name = _Layer(LENGTH, BATCH, HIDDEN), f"{threads}_thread" + "s" * (threads > 1)
    with torch.no_grad():
        gates, weight = layer.gates(), layer.module.weight_hh_l0.detach()
        bias = layer.module.bias_hh_l0.detach()[2 * HIDDEN :]
    u, every = layer.h0[None], torch.empty(1, LENGTH, BATCH, HIDDEN)
    m = LENGTH // SLICES
    starts, chunks = torch.zeros(SLICES, BATCH, HIDDEN), gates.unflatten(0, (SLICES, m))
    ends = torch.empty_like(starts)
    d, d_every = torch.zeros_like(u), torch.ones_like(every)
    d_gates, d_hidden = torch.empty_like(gates[None]), torch.empty_like(every)
    t = {"threads": threads}
    forward = _measure(total, f"forward_{name}", {
        "kernel": (lambda: ops.relax_gru(u, gates[None], weight, bias, LENGTH, every=every, **t), LENGTH),
        "slices": (lambda: ops.relax_gru(starts, chunks, weight, bias, m, out=ends, **t), LENGTH),
        "adjoint": (lambda: ops.relax_gru_adjoint(
            every, gates[None], weight, bias, d, d_every=d_every, out=d, d_gates=d_gates, d_hidden=d_hidden, **t
        ), LENGTH),
        "layer": (layer.forward(layer.own), LENGTH),
        "nn_gru": (layer.forward(layer.short), SHORT),
        "loop": (layer.forward(layer.loop), LOOP),
    })  # fmt: skip
    training = _measure(total, f"training_{name}", {
        "layer": (layer.training(layer.own), LENGTH),
        "nn_gru": (layer.training(layer.short), SHORT),
        "loop": (layer.training(layer.loop), LOOP),
    })  # fmt: skip
    total.metrics |= {f"us_{way}_{name}": value for way, value in forward.items()}
    total.metrics |= {f"us_training_{way}_{name}": value for way, value in training.items()}
    for other in ("nn_gru", "loop"):
        total.metrics[f"vs_{other}_{name}"] = forward[other] / forward["layer"]
        total.metrics[f"training_vs_{other}_{name}"] = training[other] / training["layer"]
    total.checked &= layer.agree()


def _large(total: Result, name: str, length: int, batch: int, hidden: int) -> None:
    layer = _Layer(length, batch, hidden)
    for kind in ("forward", "training"):
        around = getattr(layer, kind)
        ways = {"layer": (around(layer.own), length), "nn_gru": (around(layer.torchs), length)}
        median = _measure(total, f"{kind}_{name}", ways)
        total.metrics[f"{kind}_vs_nn_gru_{name}"] = median["nn_gru"] / median["layer"]
    total.checked &= layer.agree()


def newton_calls(gates: Tensor, weight: Tensor, bias: Tensor, guess: Tensor) -> dict[str, Callable[[], Tensor]]:
    """One iteration on ``guess [T + 1, batch, hidden]``, by the fused step and by its parts, each from the same guess.

    The states are copied first, which both pay for.
    """
    import torch

    from pyparareal import TimeGrid
    from pyparareal.linearise import Linearised, source_of
    from pyparareal.newton import NewtonIteration
    from pyparareal.newton_fused import FusedNewton
    from pyparareal.nn.recurrent.cells import GRUStep
    from pyparareal.runtime import LocalRuntime

    def iteration(kind: Any) -> Callable[[], Tensor]:
        before = GRUStep.kernel_devices
        GRUStep.kernel_devices = ("cpu", "cuda") if kind is FusedNewton else before
        try:
            step = GRUStep(gates, weight, bias)
        finally:
            GRUStep.kernel_devices = before
        made = kind(
            step,
            Linearised(step, source_of(step, guess[:1]), "diagonal"),
            None,
            TimeGrid(0, len(gates), len(gates)),
            1,
            damping=0.0,
            trust=None,
            tol=1e-5,
            max_iterations=1,
            norm="inf",
            freeze=True,
            keep_going=False,
            runtime=LocalRuntime(),
        )
        u, f = torch.empty_like(guess), torch.empty_like(guess[1:])
        made.jacobians = torch.empty_like(f)

        def call() -> Tensor:
            u.copy_(guess)
            with torch.no_grad():
                made._iterate(u, f, 0)
            return u

        return call

    return {"newton_fused": iteration(FusedNewton), "newton_unfused": iteration(NewtonIteration)}


def _newton(total: Result, threads: int) -> None:
    import torch

    from pyparareal import ops
    from pyparareal.nn import GRU

    layer, name = _Layer(LENGTH, BATCH, HIDDEN), f"{threads}_thread" + "s" * (threads > 1)
    with torch.no_grad():
        gates, weight = layer.gates(), layer.module.weight_hh_l0.detach()
        bias = layer.module.bias_hh_l0.detach()[2 * HIDDEN :]
    calls = newton_calls(gates, weight, bias, torch.zeros(LENGTH + 1, BATCH, HIDDEN))
    total.checked &= bool((calls["newton_fused"]() - calls["newton_unfused"]()).abs().max() <= TOLERANCE)
    u, every = layer.h0[None], torch.empty(1, LENGTH, BATCH, HIDDEN)
    serial = {"serial": lambda: ops.relax_gru(u, gates[None], weight, bias, LENGTH, every=every, threads=threads)}
    taken = {way: (call, LENGTH) for way, call in (calls | serial).items()}
    median = _measure(total, f"newton_{name}", taken)
    for way in calls:
        total.metrics[f"ms_{way}_{name}"] = median[way] * LENGTH / 1e3
    total.metrics[f"newton_fused_vs_unfused_{name}"] = median["newton_unfused"] / median["newton_fused"]
    module = GRU.from_torch(layer.module, method="newton", jacobian="diagonal")
    with torch.no_grad():
        module(layer.x)
    count = float(module.report[0].iterations)
    ratio = median["serial"] / (count * median["newton_fused"])
    total.metrics |= {"newton_iterations": count, f"newton_vs_serial_kernel_{name}": ratio}
    if ratio < 1:
        total.notes += f"; {name}: the serial kernel wins against {count:.0f} fused iterations, {1 / ratio:.2g} x"
