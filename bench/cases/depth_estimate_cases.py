# SPDX-License-Identifier: BSD-3-Clause
"""Is the estimated error of a layer-parallel gradient the true one? Several kinds of networks, and of iterations."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.cases import Result, case

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST = 1e-9  # a true error below this is rounding's in part; an estimate is not asked for one
ITERATIONS = ((2, 2), (3, 3), (2, 4), (4, 2), (0, 3))  # forward, backward; 0: exact


@dataclass
class Network:
    """Blocks, what goes in, and the loss of what comes out; float64."""

    name: str
    blocks: list[nn.Module]
    h: float | None
    u: Tensor
    loss: Callable[[Tensor], Tensor]
    options: dict[str, Any] = field(default_factory=dict)


def networks() -> Iterator[Network]:
    """Dense, convolutional and transformer blocks; weights that vary smoothly in depth, at random, or are trained."""
    import torch

    for seed, (layers, width, depth, scale, activation, smooth, head, options) in enumerate(
        [
            (64, 8, 4.0, 1.0, "Tanh", True, "entropy", {}),
            (64, 8, 4.0, 1.0, "Tanh", False, "entropy", {}),
            (256, 16, 10.0, 1.0, "Tanh", True, "entropy", {}),
            (256, 16, 10.0, 2.0, "Tanh", True, "squares", {}),
            (256, 16, 4.0, 1.0, "ReLU", True, "entropy", {}),
            (256, 16, 4.0, 1.0, "SiLU", False, "entropy", {"m": 8}),
            (128, 16, 6.4, 1.0, "SiLU", True, "squares", {}),
            (512, 32, 20.0, 1.0, "Tanh", True, "entropy", {"m": 8}),
            (128, 16, 1.0, 0.5, "Tanh", True, "squares", {}),
            (256, 16, 8.0, 0.7, "Tanh", True, "entropy", {"levels": 3}),
            (128, 16, 4.0, 1.0, "Tanh", True, "entropy", {"nu": 0}),
        ]
    ):
        torch.manual_seed(seed)
        blocks, u, loss = dense(layers, width, scale, activation, smooth, head)
        name = f"dense {layers} x {width} {activation} T={depth} {'smooth' if smooth else 'random'} {head} {options}"
        yield Network(name, blocks, depth / layers, u, loss, options)
    torch.manual_seed(100)
    yield trained()
    torch.manual_seed(101)
    yield convolutions()
    torch.manual_seed(102)
    yield transformer()


def dense(
    layers: int, width: int, scale: float, activation: str, smooth: bool, head: str
) -> tuple[list[nn.Module], Tensor, Callable[[Tensor], Tensor]]:
    """``act(W_l u + b_l)`` with ``W`` of four cosines in depth, or random."""
    import torch
    from torch import nn

    weight = torch.randn(layers, width, width, dtype=torch.float64) * scale / math.sqrt(width)
    if smooth:
        t = torch.linspace(0, 1, layers, dtype=torch.float64)[:, None, None]
        waves = torch.randn(4, width, width, dtype=torch.float64) * scale / math.sqrt(width)
        weight = sum((torch.cos(math.pi * k * t) * waves[k] / (1 + k) for k in range(4)), torch.zeros(()).double())
    blocks: list[nn.Module] = []
    for w in weight:
        linear = nn.Linear(width, width).double()
        linear.load_state_dict({"weight": w, "bias": 0.1 * torch.randn(width)})
        blocks.append(nn.Sequential(linear, getattr(nn, activation)()))
    return blocks, torch.randn(16, width, dtype=torch.float64), loss_of(head, width)


def loss_of(head: str, width: int) -> Callable[[Tensor], Tensor]:
    """Cross entropy of five classes behind a linear layer, or squared differences to targets."""
    import torch
    from torch.nn import functional as F

    last = torch.randn(width, 5, dtype=torch.float64) / math.sqrt(width)
    labels, targets = torch.randint(0, 5, (16,)), torch.randn(16, width, dtype=torch.float64)
    if head == "entropy":
        return lambda u: F.cross_entropy(u.flatten(1)[:, :width] @ last, labels)
    return lambda u: F.mse_loss(u, targets)


def trained() -> Network:
    """A dense network after some steps of Adam on labels."""
    import torch

    from pyparareal.nn import LayerParallel

    blocks, u, loss = dense(64, 8, 0.5, "Tanh", True, "entropy")
    net = LayerParallel(blocks, h=0.1, mode="serial")
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-2)
    for _ in range(60):
        optimiser.zero_grad()
        loss(net(u)).backward()
        optimiser.step()
    return Network("dense 64 x 8, trained", list(net.serial().blocks), 0.1, u, loss)


def convolutions() -> Network:
    """Residual convolutions of 4 channels on 6 x 6 pixels."""
    import torch
    from torch import nn

    blocks = [
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1)).double()
        for _ in range(64)
    ]
    return Network("convolutions", blocks, 0.1, torch.randn(16, 4, 6, 6, dtype=torch.float64), loss_of("entropy", 144))


def transformer() -> Network:
    """Pre-LN blocks of width 16 with two heads, on 6 tokens."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
            self.norm = nn.LayerNorm(16)

        def forward(self, u: Tensor) -> Tensor:
            v = self.norm(u)
            a = self.attention(v, v, v, need_weights=False)[0]
            return a + self.mlp(u + a)

    blocks = [Block().double() for _ in range(32)]
    return Network("transformer", blocks, 1 / 16, torch.randn(16, 6, 16, dtype=torch.float64), loss_of("entropy", 96))


def gradient(net: nn.Module, network: Network) -> list[Tensor]:
    """With respect to the input and all parameters, the latter stacked."""
    import torch

    u = network.u.clone().requires_grad_()
    return list(torch.autograd.grad(network.loss(net(u)), [u, *net.parameters()]))


def compared() -> Iterator[tuple[str, float, float]]:
    """Name, estimated and true relative error for every network and number of iterations."""
    from pyparareal.nn import LayerParallel

    for network in networks():
        make = {"h": network.h, "on_failure": "return", **network.options}
        exact = gradient(LayerParallel(network.blocks, mode="serial", **make), network)
        size = math.sqrt(sum(float(g.square().sum()) for g in exact))
        for forward, backward in ITERATIONS:
            net = LayerParallel(network.blocks, forward=forward, backward=backward, **make)
            found = gradient(net, network)
            true = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(found, exact, strict=True))) / size
            assert net.report is not None
            yield f"{network.name}, {forward} + {backward}", net.report.gradient_error, true


@case("depth.estimate", suite="quick")
def estimate() -> Result:
    """The estimate over the true error of layer-parallel gradients: least and most over networks and iterations.

    Units with a kink change sides, which an estimate from the size of errors cannot see: the least of the others too.
    """
    begin = time.perf_counter()
    ratios = {name: estimated / true for name, estimated, true in compared() if true > SMALLEST}
    least, most = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    smooth = min(ratio for name, ratio in ratios.items() if "ReLU" not in name)
    return Result(
        metrics={
            "estimated_over_true_error_min": ratios[least],
            "estimated_over_true_error_max": ratios[most],
            "estimated_over_true_error_median": sorted(ratios.values())[len(ratios) // 2],
            "estimated_over_true_error_min_smooth": smooth,
            "cases": len(ratios),
        },
        checked=all(math.isfinite(ratio) and ratio > 0 for ratio in ratios.values()),
        samples={"all": [time.perf_counter() - begin]},
        notes=f"least: {least}; most: {most}",
    )
