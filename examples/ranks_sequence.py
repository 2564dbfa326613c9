# SPDX-License-Identifier: BSD-3-Clause
"""A long sequence through a GRU in several processes: chunks side by side, forward and backward.

Usage: torchrun --nproc-per-node 2 examples/ranks_sequence.py
"""

import time

import torch
import torch.distributed as dist

import pyparareal
from pyparareal import nn

STEPS, BATCH, INPUTS, HIDDEN = 16_384, 8, 16, 128


def trained(runtime):
    """A forward and a backward pass: output, gradients, report, and the seconds of both."""
    torch.manual_seed(0)
    gru = nn.GRU(INPUTS, HIDDEN, method="hybrid", jacobian="none", chunk=256, exponent=False, runtime=runtime)
    x = torch.randn(STEPS, BATCH, INPUTS)
    begin = time.perf_counter()
    output, _ = gru(x)
    middle = time.perf_counter()
    output.square().mean().backward()
    seconds = middle - begin, time.perf_counter() - middle
    return output.detach(), [p.grad for p in gru.parameters()], gru.report[0], seconds


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    runtime = pyparareal.distributed()
    alone, of_alone, _, before = trained(None)
    ours, of_ours, report, after = trained(runtime)
    apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(of_ours, of_alone, strict=True))
    if runtime.rank == 0:
        print(f"{STEPS} steps, {runtime.size} ranks: {report.iterations} passes, {report.status.name.lower()}")
        print("  residuals " + " ".join(f"{residual:.1e}" for residual in report.residuals))
        print(f"  the same bits as one process: {'yes' if torch.equal(ours, alone) else 'NO'}")
        print(f"  gradients of weights, added up in another order: {apart:.0e} apart")
        for name, one, other in zip(("forward", "backward"), before, after, strict=True):
            print(f"  {name} {one:.2f} s with each process for itself, {other:.2f} s together")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
