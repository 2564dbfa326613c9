# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests with several processes: ``python layer_parallel_worker.py RANK RANKS FOLDER``.

Writes ``FOLDER/<rank>.json``: for each case the largest difference of a gradient to one process with the whole batch.
"""

import json
import math
import sys
import warnings
from pathlib import Path

import torch
from processes import join
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pyparareal.nn import LayerParallel

WIDTH, BATCH, STEPS = 6, 4, 3


def network(**options):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(24)]
    ends = {"opening": nn.Linear(3, WIDTH), "closing": nn.Linear(WIDTH, 2)}
    return LayerParallel(blocks, h=0.1, m=3, **ends, **options).double()


def gradients(net, x, pieces=1, hold=None):
    net.zero_grad()
    for i, piece in enumerate(x.chunk(pieces)):
        if hold is not None and i + 1 < pieces:
            with hold():
                (net(piece).square().mean() / pieces).backward()
        else:
            (net(piece).square().mean() / pieces).backward()
    return [whole(p.grad).clone() for p in net.parameters()]


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def worst(ours, theirs, rank, ranks, **more):
    error = 0.0
    optimisers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (ours, theirs)]
    for step in range(STEPS):  # a reducer of gradients rebuilds its buckets after the first
        torch.manual_seed(step)
        x = torch.randn(ranks * BATCH, 3, dtype=torch.float64)
        expected, got = gradients(theirs, x), gradients(ours, x.chunk(ranks)[rank], **more)
        error = max(error, *(float((g - e).norm() / (1e-3 + e.norm())) for g, e in zip(got, expected, strict=True)))
        for optimiser in optimisers:
            optimiser.step()
    return error


def data_parallel(rank, ranks, case, **options):
    ours, theirs = network(**case), network(mode="serial", buffer=case.get("buffer", (0, 0)))
    wrapped = DistributedDataParallel(ours, **options)
    found = worst(wrapped, theirs, rank, ranks)
    return max(found, worst(wrapped, theirs, rank, ranks, pieces=2, hold=wrapped.no_sync))


def sharded(rank, ranks, case, **options):
    from torch.distributed.fsdp import fully_shard

    ours, theirs = network(**case), network(mode="serial", buffer=case.get("buffer", (0, 0)))
    fully_shard(ours, **options)
    return worst(ours, theirs, rank, ranks)


def sharded_in_parts(rank, ranks):
    from torch.distributed.fsdp import fully_shard

    net = network()
    fully_shard(net.stack)
    try:
        net(torch.zeros(BATCH, 3, dtype=torch.float64))
    except TypeError as error:
        return str(error)
    return "nothing raised"


def saved_and_loaded():
    """The largest difference of what a sharded network saves to the whole one, and what loading into it says."""
    from torch.distributed.fsdp import fully_shard

    net, expected = network(), network().state_dict()
    fully_shard(net)
    found = {name: whole(tensor) for name, tensor in net.state_dict().items()}
    assert found.keys() == expected.keys()
    try:
        net.load_state_dict(expected)
    except TypeError as error:
        return max(float((found[name] - t).abs().max()) for name, t in expected.items()), str(error)
    return math.inf, "nothing raised"


def cases(rank, ranks):
    exact = {"forward": 20, "backward": 20}
    yield "ddp", data_parallel(rank, ranks, exact)
    yield "ddp, recomputed", data_parallel(rank, ranks, {**exact, "recompute": True, "kernels": False})
    yield "ddp, buffers", data_parallel(rank, ranks, {**exact, "buffer": (2, 1)}, find_unused_parameters=True)
    yield "ddp, adaptive", data_parallel(rank, ranks, {"policy": "adaptive", "forward": 8, "backward": 8})
    yield "fsdp", sharded(rank, ranks, exact)
    yield "fsdp, resharded", sharded(rank, ranks, exact, reshard_after_forward=True)
    yield "fsdp, recomputed", sharded(rank, ranks, {**exact, "recompute": True, "kernels": False})
    yield "fsdp, buffers", sharded(rank, ranks, {**exact, "buffer": (2, 1)})
    yield "fsdp, saved and loaded", saved_and_loaded()
    yield "fsdp in parts", sharded_in_parts(rank, ranks)


def main(rank, ranks, folder):
    warnings.simplefilter("ignore")  # of torch's own collectives
    join(rank, ranks, folder)
    try:
        found = dict(cases(rank, ranks))
    finally:
        torch.distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
