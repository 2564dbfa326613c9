# SPDX-License-Identifier: BSD-3-Clause
"""Networks solved in parallel over their layers on one GPU, against the serial network as a CUDA graph.

Dense, convolutional and transformer blocks, over width and batch: where one layer fills the device there is nothing to
gain, and the table says where. Iterations are as few as give the gradient to 1e-3.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from bench.cases import Result, case
from pyparareal import _timing

TOLERANCE = 1e-3  # of the gradient in the 2-norm, against the serial network in float64
DEPTH = 4.0  # h = DEPTH / layers


@dataclass(frozen=True)
class DepthSizes:
    """``dense``: (layers, width, batch); ``main`` is the one without a prefix; the others one size each."""

    dense: tuple[tuple[int, int, int], ...] = (
        (1024, 64, 32),
        (1024, 128, 32),
        (1024, 256, 32),
        (1024, 64, 1),
        (1024, 64, 256),
        (1024, 64, 2048),
        (256, 64, 32),
    )
    main: tuple[int, int, int] = (1024, 128, 32)
    convolution: tuple[int, int, int, int] = (256, 16, 16, 8)  # layers, channels, pixels a side, batch
    transformer: tuple[int, int, int, int] = (128, 64, 32, 8)  # layers, width, tokens, batch
    factors: tuple[int, ...] = (4, 16)
    most: int = 8
    precisions: tuple[str, ...] = ("exact", "tf32x3")  # of the kernels; exact on a CPU whatever is said
    repeats: int = 3
    seconds: float = 90.0  # no further network is begun after so long: the suite's minutes are few


@case("depth.gpu", suite="gpu", device="cuda")
def gpu() -> Result:
    """Forward and backward: eager, graphed, one fused kernel, and in parallel with torch's products and with ours,
    on tensor cores too."""
    return depth_on("cuda")


def depth_on(device: str, sizes: DepthSizes = DepthSizes()) -> Result:
    """``depth.gpu`` on torch tensors of ``device``; on a CPU the graphed network is the eager one."""
    total, lines, begin = Result({}, True), [], time.perf_counter()
    for name, make in networks(sizes).items():
        if name and time.perf_counter() - begin > sizes.seconds:
            lines.append(f"{name}: not run, out of time")
            continue
        blocks, x = make(device)
        ways = Ways(blocks, x, sizes)
        taken = _timing.interleave(ways.calls, device=device, repeats=sizes.repeats, warmup=1)
        total.samples |= {f"{name}{way}": list(s.seconds) for way, s in taken.items()}
        total.metrics |= {f"{name}{way}_ms": s.median * 1e3 for way, s in taken.items()}
        total.metrics |= {f"{name}{key}": value for key, value in ways.found.items()}
        total.checked &= ways.serial_agrees
        best = min((way for way in ways.parallel), key=lambda way: taken[way].median, default=None)
        if best is None:
            lines.append(f"{name or 'main'}: no {sizes.most} iterations give the gradient to {TOLERANCE}")
            continue
        for baseline in [way for way in taken if way not in ways.parallel]:
            ratio = _timing.ratio(taken[baseline], taken[best]).value
            total.metrics[f"{name}vs_{baseline}"] = ratio
            if ratio < 1:
                lines.append(f"{name or 'main'}: {baseline} wins, {1 / ratio:.2g} x {best}")
    total.notes = "; ".join(lines) or "parallel wins everywhere"
    return total


def networks(sizes: DepthSizes) -> dict[str, Callable[[str], tuple[list[Any], Any]]]:
    """By prefix, what makes the blocks and the input on a device."""
    from torch import nn

    found: dict[str, Callable[[str], tuple[list[Any], Any]]] = {}
    for layers, width, batch in sorted(sizes.dense, key=lambda size: size != sizes.main):
        prefix = "" if (layers, width, batch) == sizes.main else f"L{layers}_W{width}_B{batch}_"
        block = partial(lambda width: nn.Sequential(nn.Linear(width, width), nn.Tanh()), width)
        found[prefix] = partial(made, block, layers, (batch, width))
    layers, channels, side, batch = sizes.convolution
    conv = partial(lambda c: nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU()), channels)
    found["convolution_"] = partial(made, conv, layers, (batch, channels, side, side))
    layers, width, tokens, batch = sizes.transformer
    found["transformer_"] = partial(made, partial(pre_norm, width), layers, (batch, tokens, width))
    return found


def made(block: Callable[[], Any], layers: int, shape: tuple[int, ...], device: str) -> tuple[list[Any], Any]:
    import torch

    torch.manual_seed(layers)
    return [block().to(device) for _ in range(layers)], torch.randn(shape).to(device)


def pre_norm(width: int) -> Any:
    """``phi1(u) + phi2(u + phi1(u))``: attention and a multilayer perceptron behind layer norms."""
    return _block_class()(width)


@cache
def _block_class() -> Any:
    import torch
    from torch import nn
    from torch.nn import functional as F

    class PreNorm(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def forward(self, u: torch.Tensor) -> torch.Tensor:
            heads = self.mix(self.first(u)).unflatten(-1, (3, 4, -1)).transpose(-4, -2)
            q, k, v = heads.unbind(-3)
            attended = self.out(F.scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2))
            return attended + self.mlp(self.second(u + attended))

    return PreNorm


class Ways:
    """The ways to take one training step's forward and backward pass, for the stopwatch.

    Attributes
    ----------
    calls : dict of callables
    parallel : list of str
        Those solved in parallel that reach ``TOLERANCE``.
    found : dict
        Gradient errors and iterations.
    """

    def __init__(self, blocks: list[Any], x: Any, sizes: DepthSizes) -> None:
        import torch

        from bench.depth_training import Residual
        from pyparareal.nn import LayerParallel

        self.x, self.h = x, DEPTH / len(blocks)
        torch.manual_seed(1)
        self.seed = torch.randn_like(x)
        eager = Residual(blocks, self.h, torch.nn.Identity(), torch.nn.Identity())
        self.exact = self._gradient(copy.deepcopy(eager).double(), x.double())
        self.calls: dict[str, Callable[[], Any]] = {
            "eager": partial(self._step, eager),
            "graphed": self._graphed(eager),
        }
        dense = isinstance(blocks[0], torch.nn.Sequential) and isinstance(blocks[0][0], torch.nn.Linear)
        self.found = {"eager_error": self._error(eager)}
        self.parallel: list[str] = []
        if dense:
            fused = LayerParallel(blocks, h=self.h, mode="serial")
            self.calls["fused_serial"] = partial(self._with_kernels, fused)
            self.found["fused_serial_error"] = self._with_kernels(fused, self._error)
        self.serial_agrees = max(self.found.values()) < TOLERANCE / 10
        for m in sizes.factors:
            for precision in (None, *sizes.precisions) if dense else (None,):
                name = f"parallel_m{m}" + {None: "", "exact": "_kernel"}.get(precision, f"_{precision}")
                net = LayerParallel(blocks, h=self.h, m=m, kernels=precision is not None, recompute=False)
                run = partial(self._with_kernels, net, precision=precision) if precision else partial(self._step, net)
                if self._fit(name, net, sizes.most, precision):
                    self.calls[name] = run
                    self.parallel.append(name)

    def _fit(self, name: str, net: Any, most: int, precision: str | None) -> bool:
        """Set the fewest iterations that give the gradient; whether there are some."""
        from dataclasses import replace

        for k in range(1, most + 1):
            net.forward_settings = replace(net.forward_settings, iterations=k)
            net.backward_settings = replace(net.backward_settings, iterations=k)
            error = self._with_kernels(net, self._error, precision) if precision else self._error(net)
            self.found |= {f"{name}_error": error, f"{name}_iterations": float(k)}
            if error <= TOLERANCE:
                return True
        return False

    def _step(self, net: Any, x: Any = None) -> Any:
        x = (self.x if x is None else x).detach().requires_grad_()
        net.zero_grad(set_to_none=True)
        net(x).backward(self.seed.to(x.dtype))
        return x.grad

    def _with_kernels(self, net: Any, run: Callable[[Any], Any] | None = None, precision: str = "exact") -> Any:
        """A step with our kernels on this device too."""
        from pyparareal.nn.layer_parallel.dense_step import DenseStep

        before = DenseStep.kernel_devices, DenseStep.precision
        DenseStep.kernel_devices, DenseStep.precision = ("cpu", "cuda"), precision
        try:
            return (run or self._step)(net)
        finally:
            DenseStep.kernel_devices, DenseStep.precision = before

    def _graphed(self, net: Any) -> Callable[[], Any]:
        """The step as one CUDA graph."""
        import torch

        if self.x.device.type != "cuda":
            return partial(self._step, net)
        x = self.x.detach().clone().requires_grad_()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                net.zero_grad(set_to_none=True)
                x.grad = None
                net(x).backward(self.seed)
        torch.cuda.current_stream().wait_stream(side)
        net.zero_grad(set_to_none=True)
        x.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            net(x).backward(self.seed)
        self._held = graph, x
        return graph.replay

    def _gradient(self, net: Any, x: Any) -> Any:
        """Of the input and of all parameters, in one vector in float64, by the order of the parameters of a block."""
        import torch

        dx = self._step(net, x)
        parts = [p.grad for p in net.parameters()]
        if hasattr(net, "blocks") and not hasattr(net, "stack"):
            names = [n for n, _ in net.blocks[0].named_parameters()]
            parts = [torch.stack([b.get_parameter(n).grad for b in net.blocks]) for n in names]
        found = torch.cat([g.double().flatten() for g in (dx, *parts)])
        net.zero_grad(set_to_none=True)
        return found

    def _error(self, net: Any) -> float:
        return float((self._gradient(net, self.x) - self.exact).norm() / self.exact.norm())
