# SPDX-License-Identifier: BSD-3-Clause
"""A deep transformer of torch's own layers, trained with its depth in parallel.

Usage: python examples/depth_transformer.py [steps]

It learns to sort digits. The policy starts with 2 iterations forward and 2 backward, looks every 10 steps how wrong
gradients are, and does more, or goes serial, before that harms.
"""

import sys

import torch
from torch import nn

from pyparareal.nn import LayerParallel
from pyparareal.nn.layer_parallel import Policy


def main(steps):
    torch.manual_seed(0)
    width, length, layers = 32, 12, 68
    blocks = [
        nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.05, norm_first=True, batch_first=True)
        for _ in range(layers)
    ]
    for block in blocks:  # as GPT-2 starts: many layers add up to something of size one
        for last in (block.self_attn.out_proj, block.linear2):
            nn.init.normal_(last.weight, std=0.02 / (2 * layers) ** 0.5)
    net = LayerParallel(
        blocks,  # each is the whole map of a layer, so there is no h
        m=4,
        buffer=(2, 2),  # the first and last layers, which change most, stay serial
        policy=Policy(2, 2, tol=0.2, probe_every=10),
        opening=nn.Sequential(nn.Embedding(10, width), Places(length, width)),
        closing=nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10)),
    )
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    for step in range(steps):
        x = torch.randint(0, 10, (16, length))
        loss = nn.functional.cross_entropy(net(x).flatten(0, 1), x.sort(1).values.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 10 == 0:
            report = net.report
            counts = f"{report.forward.iterations} + {report.backward[0].iterations} iterations"
            error = f"estimated error of the gradient {report.gradient_error:.1e}"
            print(f"step {step:3}  loss {loss.item():.3f}  {counts}, {error}")
    for event in net.policy.events:
        print(event)

    net.eval()  # no dropout: the parallel network is the serial one
    with torch.no_grad():
        x = torch.randint(0, 10, (16, length))
        exact = net.serial().eval()(x)
        print(f"values differ from the serial network's by {float((net(x) - exact).norm() / exact.norm()):.1e}")


class Places(nn.Module):
    def __init__(self, length, width):
        super().__init__()
        self.of = nn.Parameter(0.1 * torch.randn(length, width))

    def forward(self, u):
        return u + self.of


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
