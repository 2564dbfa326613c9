# SPDX-License-Identifier: BSD-3-Clause
"""A small residual network in parallel layers, and its gradients under the names of the serial network."""

import torch
from torch import nn

from pyparareal.nn import LayerParallel

WIDTH, BATCH = 6, 5
# float64; 40 layers whose Jacobians I + h J have norms up to 1.2, sums of 6 products, batched in another order:
# 40 * 1.2^40 * 6 u = 4e-11 in the worst case, for numbers of order 1.
ROUNDING = 4e-11


def dense(layers, width=WIDTH, seed=0):
    torch.manual_seed(seed)
    return [nn.Sequential(nn.Linear(width, width), nn.Tanh()).double() for _ in range(layers)]


def network(layers=40, seed=0, **options):
    blocks = dense(layers, seed=seed)
    ends = {"opening": nn.Linear(3, WIDTH).double(), "closing": nn.Linear(WIDTH, 2).double()}
    return LayerParallel(blocks, **{"h": 4 / max(layers, 4), **ends, **options})


def inputs(seed=1):
    torch.manual_seed(seed)
    return torch.randn(BATCH, 3, dtype=torch.float64)


def gradients(net, x):
    """Of a loss that is not linear, by the names of the serial network; and that of the input."""
    x = x.clone().requires_grad_()
    net.zero_grad()
    y = net(x)
    y.square().mul(torch.linspace(0.5, 1.5, y.shape[-1], dtype=y.dtype)).sum().backward()
    found = {}
    for name, view in named(net).items():
        assert view.grad is not None, name
        found[name] = view.grad
    return y.detach(), found | {"x": x.grad}


class View:
    def __init__(self, grad):
        self.grad = grad


def named(net):
    """Parameters by their serial names, with their part of a stacked gradient."""
    if not isinstance(net, LayerParallel):
        return dict(net.named_parameters())
    found = {n: p for n, p in net.named_parameters() if n.startswith(("opening", "closing"))}
    for home, layers in net._firsts().items():
        stack = getattr(net, home)
        for block, parameter in stack.named_parameters():
            kind, place, *rest = block.split(".")
            if kind == "blocks":
                found[f"blocks.{layers.start + int(place)}.{'.'.join(rest)}"] = parameter
                continue
            for row, layer in enumerate(stack._pieces[int(place)]):
                grad = None if parameter.grad is None else parameter.grad[row]
                found[f"blocks.{layers.start + layer}.{'.'.join(rest)}"] = View(grad)
    return found


def difference(net, other, x):
    """The largest relative differences of values and gradients."""
    (y, ours), (z, theirs) = gradients(net, x), gradients(other, x)
    assert ours.keys() == theirs.keys()
    worst = max(float((ours[n] - g).norm() / (1e-3 + g.norm())) for n, g in theirs.items())
    return float((y - z).norm() / z.norm()), worst
