# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the test of DistributedDataParallel: ``python ddp_worker.py RANK RANKS FOLDER``.

Writes ``FOLDER/<rank>.json``: for each case the mode that ran and the largest relative error of a gradient.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from execution_nets import residual_net
from processes import join
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pyparareal.nn import PararealNetwork

STEPS, BATCH = 3, 8  # the reducer rebuilds its buckets after the first step


def layer_norm_net():
    """Without batch statistics, so that the gradient of a batch is the mean of those of its halves."""
    torch.manual_seed(0)

    def part():
        return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 5))

    guesses, coarse = [nn.Linear(5, 5) for _ in range(3)], [nn.Linear(5, 5) for _ in range(2)]
    return PararealNetwork([part() for _ in range(3)], preprocess=guesses, coarse=coarse, head=nn.Linear(5, 2))


def data(shape, step):
    torch.manual_seed(100 + step)
    return torch.randn(shape)


def gradients(net, x, accumulate=None):
    """Of the mean loss; with ``accumulate`` in two passes, the first of them under that context."""
    net.zero_grad()
    pieces = x.chunk(2) if accumulate else [x]
    for i, piece in enumerate(pieces):
        with accumulate() if accumulate and i == 0 else nullcontext():
            (net(piece).square().mean() / len(pieces)).backward()
    return {n.removeprefix("module."): p.grad.clone() for n, p in net.named_parameters()}


def worst(got, expected):
    assert got.keys() == expected.keys()
    return max(float((g - expected[n]).norm() / (expected[n].norm() + 1e-3)) for n, g in got.items())


def against_one_process(mode, rank, ranks, accumulate=False, **options):
    """The same steps of gradient descent, here on a share of each batch and in one process on all of it."""
    alone, net = layer_norm_net(), layer_norm_net()
    net.execution = mode
    wrapped = DistributedDataParallel(net, **options)
    error = 0.0
    for step in range(STEPS):
        x = data((ranks * BATCH, 5), step)
        expected = gradients(alone, x)
        got = gradients(wrapped, x.chunk(ranks)[rank], wrapped.no_sync if accumulate else None)
        error = max(error, worst(got, expected))
        for module in (alone, net):
            torch.optim.SGD(module.parameters(), lr=0.1).step()
    return {"executed": net.executed, "error": error}


def batch_norm_against_serial(mode, rank, ranks):
    """Statistics are those of each rank's share, running ones rank 0's: compared with the serial mode, too in DDP."""
    torch.manual_seed(0)
    nets = [residual_net() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[1].execution = mode
    wrapped = [DistributedDataParallel(net) for net in nets]
    error = 0.0
    for step in range(STEPS):
        x = data((ranks * BATCH, 1, 6, 6), step).chunk(ranks)[rank]
        expected, got = (gradients(net, x) for net in wrapped)
        buffers = [{n: b.double() for n, b in net.named_buffers()} for net in nets]
        error = max(error, worst(got, expected), worst(buffers[1], buffers[0]))
    return {"executed": nets[1].executed, "error": error}


def cases(rank, ranks):
    many_buckets = {"bucket_cap_mb": 2e-4}  # some 25 float64 values each: hooks of several buckets, in an order
    for mode in ("serial", "batched", "parallel", "auto"):
        yield mode, against_one_process(mode, rank, ranks)
        yield f"{mode}, static graph", against_one_process(mode, rank, ranks, static_graph=True)
        yield f"{mode}, many buckets", against_one_process(mode, rank, ranks, **many_buckets)
        yield f"{mode}, unused looked for", against_one_process(mode, rank, ranks, find_unused_parameters=True)
        yield f"{mode}, accumulated", against_one_process(mode, rank, ranks, accumulate=True)
        yield f"{mode}, batch norm", batch_norm_against_serial(mode, rank, ranks)


def main(rank, ranks, folder):
    join(rank, ranks, folder)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(3)  # a thread per part in parallel mode
    try:
        found = dict(cases(rank, ranks))
    finally:
        torch.distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
