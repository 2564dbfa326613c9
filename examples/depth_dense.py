# SPDX-License-Identifier: BSD-3-Clause
"""A deep residual network, one layer after the other and all at once. Usage: python examples/depth_dense.py [layers]

The same weights three times: a loop over plain modules, all slices of layers side by side by multigrid, and one fused
serial kernel. On a CPU the last one wins; the second is what more processors than one could share.
"""

import sys
import time

import torch
from torch import nn

from pyparareal.nn import LayerParallel


class Loop(nn.Module):
    def __init__(self, blocks, h):
        super().__init__()
        self.blocks, self.h = nn.ModuleList(blocks), h

    def forward(self, u):
        for block in self.blocks:
            u = u + self.h * block(u)
        return u


def train_step(net, x):
    net.zero_grad()
    u = x.clone().requires_grad_()
    net(u).square().mean().backward()
    return u.grad


def timed(work):
    work()  # the first call measures and allocates
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def main(layers):
    torch.manual_seed(0)
    width, h = 32, 4 / layers
    blocks = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers)]
    networks = {
        "loop": Loop(blocks, h),
        "2 + 2 iterations": LayerParallel(blocks, h=h, m=4, forward=2, backward=2),
        "4 + 4 iterations": LayerParallel(blocks, h=h, m=4, forward=4, backward=4),
        "fused serial": LayerParallel(blocks, h=h, mode="serial"),
    }
    x = torch.randn(32, width)
    exact = train_step(networks["loop"], x)
    for name, net in networks.items():
        seconds, found = timed(lambda net=net: train_step(net, x))
        error = float((found - exact).norm() / exact.norm())
        print(f"{name:16}  {1e3 * seconds:7.1f} ms  gradient differs by {error:.1e}")
    print(networks["2 + 2 iterations"].report)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)
