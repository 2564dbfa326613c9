# SPDX-License-Identifier: BSD-3-Clause
"""Training over ranks of which one dies: torchrun restarts, the run goes on, the weights are those of one undisturbed.

Usage: torchrun --nproc-per-node 2 --max-restarts 3 examples/ranks_restart.py
"""

import os
import shutil
import signal
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import pyparareal
from pyparareal.nn import PararealNetwork, ShardedCheckpoint
from pyparareal.nn.ranks import over_ranks
from pyparareal.runtime import join

STEPS, EVERY, DIES_AFTER = 30, 10, 17


def network():
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Dropout(0.1)) for _ in range(8)]
    guesses, coarse = [nn.Linear(16, 32) for _ in range(4)], [nn.Linear(32, 32) for _ in range(3)]
    return PararealNetwork(blocks, [2] * 4, preprocess=guesses, coarse=coarse, head=nn.Linear(32, 3))


def train(runtime, folder, after_step=lambda step: None):
    """This rank's share of the weights after ``STEPS`` steps, from the last complete checkpoint in ``folder`` on."""
    net = over_ranks(network(), runtime)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    batches = torch.Generator().manual_seed(1)
    state = {"net": net, "optimiser": optimiser, "batches": batches, "dropout": torch.default_generator}
    checkpoint = ShardedCheckpoint(folder, runtime)
    found = checkpoint.load(state)
    if found and runtime.rank == 0:
        print(f"goes on from step {found.step}", flush=True)
    for step in range(found.step + 1 if found else 1, STEPS + 1):
        x = torch.randn(64, 16, generator=batches)
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), x[:, :3].argmax(1)).backward()
        optimiser.step()
        after_step(step)
        if step % EVERY == 0:
            checkpoint.save(step, state)
    return net.state_dict()


def main():
    torch.set_num_threads(1)
    join()  # as init_process_group, which does not survive a restart
    runtime = pyparareal.distributed()
    start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    folder = Path(tempfile.gettempdir()) / f"ranks_restart_{os.getppid()}"  # of torchrun, which outlives its ranks

    def die(step):
        if (step, start, runtime.rank) == (DIES_AFTER, 0, runtime.size - 1):
            print(f"rank {runtime.rank} kills itself after step {step}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    ours = train(runtime, folder / "run", die)
    undisturbed = train(runtime, folder / "undisturbed")
    same = all(torch.equal(ours[name], undisturbed[name]) for name in ours)
    with runtime.failing() as ranks:
        same = all(ranks.texts(same, "comparing the weights"))
    if runtime.rank == 0:
        print(f"{runtime.size} ranks, start {start + 1}; the weights of an undisturbed run: {'yes' if same else 'NO'}")
        for part in ("run", "undisturbed"):
            print(f"  {part}: checkpoints of steps {ShardedCheckpoint(folder / part).steps()}")
        shutil.rmtree(folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
