# SPDX-License-Identifier: BSD-3-Clause
"""Residual dense layers, fused: all slices at once and one after the other, beside torch.

``gflops`` counts the products alone, ``2 batch d^2`` of a layer; ``of_bmm`` is the share of what ``torch.bmm`` reaches
on the same products as one batch, which leaves out the activation and could not be used for a chain. ``vs_eager`` is
how many times as fast as a loop of ``u + h tanh(linear(u))``. A single row leaves most lanes of a vector empty: there
``torch.bmm`` is faster, and least is gained over the loop where layers are wide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.cases import Result, case
from pyparareal import _timing

Tensor = Any
LAYERS, BATCH, M, H = 1024, 32, 4, 1 / 64
WIDTHS = (16, 64, 128)
# layers, batch, d
OTHERS = {"one_row": (1024, 1, 64), "one_row_d512": (64, 1, 512), "d512": (64, 32, 512), "batch_256": (256, 256, 64)}
# A chain of steps 1 + h J of norms near one: errors of a sum of 128 terms of size one in float32, times a few layers
# that matter (1024 h = 16 units of time of a contraction or slow growth).
TOLERANCE = 1e-3


class _Net:
    """The weights of a residual net, in slices, and what its passes write."""

    def __init__(self, layers: int, batch: int, d: int, m: int) -> None:
        import torch

        torch.manual_seed(1)
        self.layers, self.m, slices = layers, m, layers // m
        self.weight, self.bias = torch.randn(layers, d, d) / d**0.5, torch.randn(layers, d)
        self.u, self.start = torch.randn(slices, batch, d), torch.randn(1, batch, d)
        self.slopes = torch.empty(slices, m, batch, d)
        self.out, self.end = torch.empty_like(self.u), torch.empty_like(self.start)
        self.rows, self.products = torch.randn(layers, batch, d), torch.empty(layers, batch, d)
        self.flops = 2.0 * layers * batch * d * d

    def forward(self, *, serial: bool = False, slopes: bool = False, threads: int = 1) -> Tensor:
        from pyparareal import ops

        m = self.layers if serial else self.m
        u, out = (self.start, self.end) if serial else (self.u, self.out)
        of = (len(u), m)
        weight, bias = self.weight.view(*of, *self.weight.shape[1:]), self.bias.view(*of, -1)
        kept = self.slopes.view(*of, *self.slopes.shape[2:]) if slopes else None
        return ops.relax_dense(u, weight, bias, H, m, slopes=kept, out=out, threads=threads)

    def adjoint(self, *, serial: bool = False, threads: int = 1) -> Tensor:
        from pyparareal import ops

        m = self.layers if serial else self.m
        u, out = (self.start, self.end) if serial else (self.u, self.out)
        of = (len(u), m)
        weight, slopes = self.weight.view(*of, *self.weight.shape[1:]), self.slopes.view(*of, *self.slopes.shape[2:])
        return ops.relax_dense_adjoint(u, weight, slopes, m, out=out, threads=threads)

    def bmm(self) -> Tensor:
        import torch

        return torch.bmm(self.rows, self.weight.transpose(1, 2), out=self.products)

    def eager(self, requires_grad: bool = False) -> Tensor:
        import torch

        u = self.start[0].clone().requires_grad_(requires_grad)
        state = u
        with torch.set_grad_enabled(requires_grad):
            for weight, bias in zip(self.weight, self.bias, strict=True):
                state = state + H * torch.tanh(torch.nn.functional.linear(state, weight, bias))
        if requires_grad:
            return state, torch.autograd.grad(state, u, torch.ones_like(state))[0]
        return state

    def agree(self) -> bool:
        """End state and gradient of the start state are those of the loop, to rounding."""
        end, gradient = self.eager(requires_grad=True)
        if (self.forward(serial=True, slopes=True)[0] - end).abs().max() > TOLERANCE * end.abs().max():
            return False
        self.start.fill_(1)
        got = self.adjoint(serial=True)[0]
        return bool((got - gradient).abs().max() <= TOLERANCE * gradient.abs().max())


@case("ops.relax_dense", suite="quick")
def relax_dense() -> Result:
    """GFLOP/s of both directions, sliced and serial, the share of ``torch.bmm``, times as fast as eager; float32."""
    import torch

    before = torch.get_num_threads()
    total = Result({}, True, {}, f"float32; {LAYERS} layers, {BATCH} rows, slices of {M}; seconds of a pass")
    try:
        for threads in dict.fromkeys((1, _timing.cores())):
            torch.set_num_threads(threads)
            end = f"_{threads}_thread" + "s" * (threads > 1)
            for d in WIDTHS:
                _measure(total, f"d{d}{end}", _Net(LAYERS, BATCH, d, M), threads)
            for name, (layers, batch, d) in OTHERS.items():
                _measure(total, f"{name}{end}", _Net(layers, batch, d, M), threads)
    finally:
        torch.set_num_threads(before)
    return total


def _measure(total: Result, name: str, net: _Net, threads: int) -> None:
    t = {"threads": threads}
    ways: dict[str, Callable[[], Any]] = {
        "forward": lambda: net.forward(**t),
        "slopes": lambda: net.forward(slopes=True, **t),
        "adjoint": lambda: net.adjoint(**t),
        "serial": lambda: net.forward(serial=True, **t),
        "serial_adjoint": lambda: net.adjoint(serial=True, **t),
        "bmm": net.bmm,
        "eager": net.eager,
    }
    net.forward(slopes=True)
    taken = _timing.interleave(ways, repeats=5, warmup=1, cold_cache=False, max_calls=1)
    seconds = {way: samples.median for way, samples in taken.items()}
    total.samples |= {f"{name}_{way}": samples.seconds for way, samples in taken.items()}
    total.metrics |= {f"gflops_{way}_{name}": net.flops / s / 1e9 for way, s in seconds.items()}
    total.metrics |= {f"of_bmm_{way}_{name}": seconds["bmm"] / seconds[way] for way in ("forward", "slopes", "adjoint")}
    total.metrics[f"vs_eager_sliced_{name}"] = seconds["eager"] / seconds["forward"]
    total.metrics[f"vs_eager_serial_{name}"] = seconds["eager"] / seconds["serial"]
    total.checked &= net.agree()
