# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the test of replicas: ``python ranked_replicas_worker.py RANK RANKS FOLDER``, a mesh of 2 x 2 ranks.

Writes ``FOLDER/<rank>.json``: for each way of data parallelism the largest relative errors of a gradient, a weight and
a buffer, against one process that has the whole batch.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from processes import join
from ranked_cases import mlp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from pyparareal import distributed
from pyparareal.nn import over_ranks

STEPS, SHARE = 3, 8


def ddp(net, mesh, **options):
    return DistributedDataParallel(net, process_group=mesh.get_group("dp"), **options)


def fsdp(net, mesh):
    for j in net.own:
        fully_shard(net.fine[j], mesh=mesh["dp"])
    return fully_shard(net, mesh=mesh["dp"])


def gradients(net, *pieces):
    """Of the mean of the pieces' losses; the statistics are those of the last piece."""
    net.zero_grad()
    before = {name: b.clone() for name, b in net.named_buffers()}
    for x in pieces:
        net.load_state_dict(before, strict=False)
        (net(x).square().mean() / len(pieces)).backward()
    found = {name.removeprefix("module."): p.grad for name, p in net.named_parameters()}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g.clone() for name, g in found.items()}


def worst(got, expected):
    return max(float((g - expected[n]).norm() / (expected[n].norm() + 1e-3)) for n, g in got.items())


def against_one_process(mesh, runtime, wrap, make, replica):
    """Some steps of gradient descent: ``worst`` of gradients and, of the first replica, buffers."""
    alone, net = make(), over_ranks(make(), runtime)
    wrapped, error = wrap(net, mesh), 0.0
    for step in range(STEPS):
        torch.manual_seed(step)
        x = torch.randn(2 * SHARE, 4)
        # Only the first rank of a replica has its share of the batch.
        mine = x.chunk(2)[replica] if runtime.rank == 0 else torch.zeros(SHARE, 4)
        expected = gradients(alone, *reversed(x.chunk(2)))
        got = gradients(wrapped, mine)
        error = max(error, worst(got, expected))
        for module in (alone, net):
            torch.optim.SGD(module.parameters(), lr=0.1).step()
    norms = torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.01), net.clip_grad_norm_(0.01)
    ours = {name: getattr(p.grad, "full_tensor", p.grad.clone)() for name, p in net.named_parameters()}
    error = max(error, worst(ours, {name: p.grad for name, p in alone.named_parameters()}))
    error = max(error, float((norms[1] - norms[0]).abs() / norms[0]))
    whole, state = net.full_state_dict(), alone.state_dict()
    weights = worst({n: whole[n] for n, _ in alone.named_parameters()}, state)
    buffers = {name: b for name, b in net.named_buffers() if b.is_floating_point()}
    of_buffers = worst(buffers, dict(alone.named_buffers())) if buffers and replica == 0 else 0.0
    return {"gradients": error, "buffers": of_buffers, "weights": weights, "compared": len(got)}


def main(rank, ranks, folder):
    warnings.simplefilter("ignore")
    join(rank, ranks, folder)
    torch.set_default_dtype(torch.float64)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "pint"))
    runtime = distributed(mesh, "pint", timeout=60)
    found, replica = {}, mesh.get_local_rank("dp")
    for name, wrap in {"DDP": ddp, "FSDP": fsdp}.items():
        for norm in (False, True):
            found[name + ", batch norm" * norm] = against_one_process(
                mesh, runtime, wrap, lambda norm=norm: mlp(norm=norm), replica
            )
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
