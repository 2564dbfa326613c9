# SPDX-License-Identifier: BSD-3-Clause
"""What a parareal network costs, by arithmetic alone: FLOPs, critical path, layers in a row, bytes sent."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from bench.cases import Result, case

if TYPE_CHECKING:
    from pyparareal.nn.critical_path import ForwardCost

BATCH = 8
CIFAR, DIGITS = (3, 32, 32), (1, 8, 8)
# Model, image, numbers of parts. The digits row has the maps of `pyparareal train`, the others automatic ones, each at
# most 10 % of a part.
NETWORKS: tuple[tuple[str, tuple[int, int, int], tuple[int, ...]], ...] = (
    ("resnet20", DIGITS, (2, 3, 4, 6)),
    ("resnet20", CIFAR, (3, 6, 9)),
    ("resnet110", CIFAR, (3, 6, 9, 18)),
    ("resnet1001", CIFAR, (3, 6, 9, 18)),
    ("vgg16", CIFAR, (2, 3, 4, 5)),
)


@case("train.costs", suite="quick")
def costs() -> Result:
    """FLOPs, critical path and layers in a row over the serial network's, coarse over fine, bytes over the interfaces.

    ``checked``: pieces add up to what whole networks cost, and bytes are ``batch * |X_j| * 4`` with interface shapes
    written down from the papers' tables.
    """
    import torch

    from pyparareal.nn import models, partition
    from pyparareal.nn.critical_path import forward_costs

    metrics: dict[str, float] = {}
    checked = True
    for model, image, counts in NETWORKS:
        name = f"{model}_digits" if image == DIGITS else model
        x = torch.empty(BATCH, *image, device="meta")
        net = models.build(model, channels=image[0], classes=10)
        cut = partition(net, 1, "flops", example=x)
        for parts in counts:
            network = _parareal(net, image, parts, cut)
            flops, layers = forward_costs(network, x)
            sent = sum(t.forward_bytes + t.backward_bytes for t in network.communication(x))
            metrics |= _rows(f"{name}_{parts}", flops, layers) | {f"{name}_{parts}_bytes": float(sent)}
            checked &= sent == _paper_bytes(model, image, network.part_sizes)
            if parts == counts[0]:
                checked &= _adds_up(net, network, x, flops)
        metrics[f"{name}_gflop"] = flops.serial_network / BATCH * 1e-9
    return Result(
        metrics,
        checked=checked,
        notes=f"forward; *_flops, *_critical and *_layers (weight layers in a row) relative to the serial network, "
        f"critical path with a device per part; *_gflop per image; bytes per step both ways, batch {BATCH}, float32; "
        "below 1 means less than serial",
    )


def _parareal(net: Any, image: tuple[int, int, int], parts: int, cut: Any) -> Any:
    """The parareal network of ``net``, whose parameters it shares; ``cut`` knows the FLOPs of its blocks."""
    from pyparareal.nn import build_parareal, models
    from pyparareal.nn.balance import balanced_sizes

    if image == DIGITS:
        return models.build_parareal(net, image, parts)
    return build_parareal(dataclasses.replace(cut, sizes=balanced_sizes(cut.flops, parts)))


def _rows(where: str, flops: ForwardCost, layers: ForwardCost) -> dict[str, float]:
    return {
        f"{where}_flops": flops.total / flops.serial_network,
        f"{where}_critical": flops.critical_path / flops.serial_network,
        f"{where}_layers": layers.critical_path / layers.serial_network,
        f"{where}_coarse_over_fine": flops.coarse_over_fine,
    }


def _adds_up(net: Any, network: Any, x: Any, flops: ForwardCost) -> bool:
    """Counted whole, where coarse nets meet residuals and not outputs, and through other code."""
    from pyparareal.nn.costs import count_flops

    return count_flops(net, x) == flops.serial_network and count_flops(network, x) == flops.total


def _paper_bytes(model: str, image: tuple[int, int, int], sizes: tuple[int, ...]) -> int:
    """``2 * batch * 4 * sum_j |X_j|``: He et al. 2015 table in section 4.2, 2016; Simonyan and Zisserman table 1."""
    height = image[1]
    if model == "vgg16":  # behind convolution 2 .. 13: channels, and whether a pooling follows
        widths = [64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
        pooled = [1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1]
        sides = [height >> sum(pooled[: i + 1]) for i in range(12)]
        states = [c * s * s for c, s in zip(widths, sides, strict=True)]
    else:
        units = sum(sizes) // 3
        first = 64 if model == "resnet1001" else 16
        states = [first * 2**stage * (height >> stage) ** 2 for stage in range(3) for _ in range(units)]
    ends = [sum(sizes[: j + 1]) - 1 for j in range(len(sizes) - 1)]
    return 2 * BATCH * 4 * sum(states[end] for end in ends)
