# SPDX-License-Identifier: BSD-3-Clause
"""A residual network in two parts, each in a process of its own: trained on handwritten digits with the bits of one.

Usage: torchrun --nproc-per-node 2 examples/ranks_parareal_network.py [epochs]

The line that makes the difference is ``over_ranks``. The data come with scikit-learn.
"""

import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F

import pyparareal
from pyparareal.nn import build_parareal, models, over_ranks
from pyparareal.nn.data import batches, digits

BATCH = 128


def build(parts):
    torch.manual_seed(0)  # the same weights on every rank
    serial = models.build("resnet20", channels=1, classes=10, width=16)
    return build_parareal(serial, parts, example=torch.empty(2, 1, 8, 8), coarse_budget=0.1)


def train(network, data, epochs):
    """Loss of the last step, seconds per step, and the bytes that this rank sent in the last step, by name."""
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    begin, steps, sent = time.perf_counter(), 0, None
    for epoch in range(epochs):
        for batch in batches(data.train, BATCH, seed=0, epoch=epoch, start=0, augment="shift"):
            before = getattr(network, "sent", None)
            loss = F.cross_entropy(network(batch.x), batch.y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            steps += 1
            if before is not None and len(batch.x) == BATCH:
                sent = network.sent - before
    return loss.item(), (time.perf_counter() - begin) / steps, sent


@torch.no_grad()
def right(network, images):
    return (network.eval()(images.x).argmax(1) == images.y).float().mean().item()


def main(epochs=6):
    dist.init_process_group("gloo")
    runtime = pyparareal.distributed()
    torch.set_num_threads(1)
    data = digits()

    network = over_ranks(build(runtime.size), runtime)
    loss, seconds, sent = train(network, data, epochs)
    test, weights = right(network, data.test), network.full_state_dict()
    formula = network.communication(torch.empty(BATCH, *data.train.x.shape[1:]))

    # Rank 0 does it again, alone.
    if runtime.rank == 0:
        alone = build(runtime.size)
        loss_alone, seconds_alone, _ = train(alone, data, epochs)
        expected = alone.state_dict()
        same = loss == loss_alone and all(torch.equal(weights[name], value) for name, value in expected.items())
        held = sum(p.numel() for p in network.parameters()), sum(p.numel() for p in alone.parameters())
        print(f"{runtime.size} ranks, {network.parts} parts; rank 0 holds {held[0]} of {held[1]} parameters")
        print(f"{epochs} epochs: loss {loss:.4f}, {test:.1%} of {len(data.test)} test images right")
        print(f"the same bits as one process, loss and weights: {'yes' if same else 'NO'}")
        print(f"a step: {1e3 * seconds:.1f} ms, {1e3 * seconds_alone:.1f} ms in one process")
    for rank in range(runtime.size):
        dist.barrier()
        if rank == runtime.rank:
            parts = network.own
            to_next = formula[parts[-1]].forward_bytes if rank + 1 < runtime.size else 0
            back = formula[parts[0] - 1].backward_bytes if rank > 0 else 0
            told = f"forward {sent['forward']} (formula {to_next}), backward {sent['backward']} (formula {back})"
            print(f"rank {rank} sent, in bytes per step: {told}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
