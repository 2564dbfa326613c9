# SPDX-License-Identifier: BSD-3-Clause
"""A deep network trained with its layers on several processes: values and gradients, to the bit, of one process.

Usage: torchrun --nproc-per-node 2 examples/ranks_layer_parallel.py
"""

import time

import torch
import torch.distributed as dist
from torch import nn

import pyparareal
from pyparareal.nn import LayerParallel

LAYERS, WIDTH, BATCH, STEPS = 256, 128, 64, 3


def trained(runtime, mode="parallel"):
    """A few steps of gradient descent: the losses, the parameters, the last report and the seconds."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(LAYERS)]
    net = LayerParallel(blocks, h=2 / LAYERS, m=8, forward=3, backward=3, mode=mode, runtime=runtime)
    optimiser = torch.optim.SGD(net.parameters(), lr=10.0)
    x, losses, begin = torch.randn(BATCH, WIDTH), [], time.perf_counter()
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss = (net(x) - 1).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses, list(net.parameters()), net.report, time.perf_counter() - begin


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    runtime = pyparareal.distributed()
    trained(None)  # warms up
    expected, of_alone, _, before = trained(None)
    losses, of_ours, report, after = trained(runtime)
    serial, _, _, one_by_one = trained(None, mode="serial")
    same = losses == expected and all(torch.equal(a, b) for a, b in zip(of_ours, of_alone, strict=True))
    if runtime.rank == 0:
        print(f"{LAYERS} layers, {STEPS} steps of training, {runtime.size} ranks")
        for name, direction in (("forward", report.forward), ("backward", report.backward[-1])):
            changes = " ".join(f"{residual:.1e}" for residual in direction.residuals)
            print(f"  {name}: {direction.iterations} iterations, relative changes {changes}")
        print("  losses " + " ".join(f"{loss:.6f}" for loss in losses))
        print("  losses " + " ".join(f"{loss:.6f}" for loss in serial) + " of the serial network")
        print(f"  the same bits as one process: {'yes' if same else 'NO'}")
        print(f"  {before:.2f} s with each process for itself, {after:.2f} s together; serially {one_by_one:.2f} s")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
