# SPDX-License-Identifier: BSD-3-Clause
"""One rank of a run that goes on when one of them dies: ``torchrun ... fault_jobs.py FOLDER JOB PLACE:RANK,...``.

At the first ``PLACE`` the rank kills itself, after the restart at the second, and so on. Then the job is done again,
undisturbed. ``FOLDER/<rank>.json`` has the bits of both; ``FOLDER/starts`` the step that each start went on from.
"""

import functools
import hashlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import pyparareal
from pyparareal import MGRIT, TimeGrid, solve
from pyparareal.nn import PararealNetwork, ShardedCheckpoint
from pyparareal.nn.checkpoints import folder as files
from pyparareal.nn.checkpoints import sharded
from pyparareal.nn.ranks import over_ranks
from pyparareal.propagators import Map
from pyparareal.runtime import join
from pyparareal.training import TrainingRuns

LIMIT = 30.0  # seconds


class Faults:
    """The places at which ranks die, in order; how many have died is in ``folder``, as what they knew is not."""

    def __init__(self, folder, rank, places):
        self.folder, self.rank = folder, rank
        self.places = [place.split(":") for place in places.split(",") if place]
        self.passed = {}

    @property
    def dead(self):
        return len(list(self.folder.glob("died *")))

    def here(self, place):
        """``place`` is passed, for which a fault can name "place" or, the third time, "place#3"."""
        self.passed[place] = self.passed.get(place, 0) + 1
        if self.dead < len(self.places):
            at, rank = self.places[self.dead]
            name, _, number = at.partition("#")
            if (name, int(number or 1), int(rank)) == (place, self.passed[place], self.rank):
                (self.folder / f"died {self.dead} {at.replace('/', ' ')} {rank}").touch()
                os.kill(os.getpid(), signal.SIGKILL)

    def around(self, module, name):
        """``before name`` and ``after name`` are places."""
        original = getattr(module, name)

        @functools.wraps(original)
        def watched(*arguments, **named):
            self.here(f"before {name}")
            found = original(*arguments, **named)
            self.here(f"after {name}")
            return found

        setattr(module, name, watched)

    def went_on(self, step):
        if self.rank == 0 and self.places:
            with (self.folder / "starts").open("a") as file:
                file.write(f"{step}\n")


def digest(tensors):
    return {n: hashlib.sha256(repr(t.tolist()).encode()).hexdigest()[:16] for n, t in tensors.items()}


class Watched(nn.Module):
    """A place forward and one backward."""

    def __init__(self, faults):
        super().__init__()
        self.faults = faults

    def forward(self, x):
        self.faults.here("forward")
        if x.requires_grad:
            x.register_hook(lambda _: self.faults.here("backward"))
        return x


def network(faults):
    """Six parts with dropout and batch norm."""
    torch.manual_seed(1)
    blocks = [
        nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2), Watched(faults)) for _ in range(6)
    ]
    guesses, coarse = [nn.Linear(4, 6) for _ in range(6)], [nn.Linear(6, 6) for _ in range(5)]
    return PararealNetwork(blocks, [1] * 6, preprocess=guesses, coarse=coarse, head=nn.Linear(6, 3))


def train(runtime, faults, folder):
    """A parareal network over the ranks; two epochs of five batches, a checkpoint after every second batch."""
    net = over_ranks(network(faults), runtime)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [3, 7], gamma=0.5)
    order = np.random.default_rng(2)
    state = {
        "net": net,
        "optimiser": optimiser,
        "schedule": schedule,
        "order": order,
        "dropout": torch.default_generator,
    }
    examples, targets = torch.randn(40, 4, generator=torch.Generator().manual_seed(3)), torch.arange(40) % 3
    checkpoint = ShardedCheckpoint(folder / "checkpoints", runtime)
    found = checkpoint.load(state)
    done, rows = (found.step, found.progress) if found else (0, None)
    faults.went_on(done)
    while done < 10:
        if done % 5 == 0:
            rows = order.permutation(40).tolist()  # of an epoch: drawn once, and part of where the run stands
        now = rows[8 * (done % 5) : 8 * (done % 5) + 8]
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(examples[now]), targets[now]).backward()
        faults.here("step")
        optimiser.step()
        schedule.step()
        done += 1
        if done % 2 == 0:
            checkpoint.save(done, state, rows)
    moments = {}
    for name, parameter in net.named_parameters():
        moments |= {f"{name}.{slot}": value for slot, value in optimiser.state[parameter].items()}
    return digest(net.state_dict() | moments)


def windows(runtime, faults, folder):
    """A map of two numbers over eight windows of the time grid, a checkpoint between two."""

    def step(u):
        faults.here("fine step")
        return u + 0.2 * torch.sin(3 * u) + 0.01

    u = torch.tensor([[0.37, 0.2]], dtype=torch.float64)
    checkpoint = ShardedCheckpoint(folder / "checkpoints", runtime)
    found = checkpoint.load({"u": u})
    done, residuals = (found.step, found.progress) if found else (0, [])
    faults.went_on(done)
    for window in range(done, 8):
        fine = Map(step, batch_invariant=True)
        coarse = Map(lambda u: u + 0.4 * torch.sin(2.5 * u), batch_invariant=True)
        solution = solve(
            fine, u, TimeGrid(0, 1, 24), coarse=coarse, m=2, method=("parareal", MGRIT())[window % 2], tol=1e-13,
            max_iterations=12, runtime=runtime,
        )  # fmt: skip
        u = solution.u[-1]
        residuals.append([repr(r) for r in solution.residuals])
        checkpoint.save(window + 1, {"u": u}, residuals)
    return digest({"u": u}) | {"residuals": repr(residuals)}


def runs(runtime, faults, folder):
    """Training steps solved in parallel, which write their own checkpoint after every cycle."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(6))
    job = TrainingRuns(
        net, nn.MSELoss(), (x, x.sum(1, keepdim=True)), steps=48, lr=0.05, m=4, window=24, tol=1e-9, fused=False,
        deterministic=True, runtime=runtime,
    )  # fmt: skip
    path = folder / "runs.checkpoint"
    faults.went_on(int(path.exists()))
    result = job.run(checkpoint=path, callback=lambda *_: faults.here("cycle"))
    return digest(result.weights) | {"residuals": repr(result.residuals)}


JOBS = {"train": train, "windows": windows, "runs": runs}


def main(folder, job, places):
    global RUNTIME  # it may live as long as the process: nothing goes wrong at the end
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    join(timeout=LIMIT)
    RUNTIME = runtime = pyparareal.distributed(timeout=LIMIT)
    faults = Faults(folder, runtime.rank, places)
    faults.here("start")
    for module, name in (
        (sharded, "write_tensors"),
        (sharded, "describe"),
        (files, "write_manifest"),
        (files, "publish"),
    ):
        faults.around(module, name)
    bits = JOBS[job](runtime, faults, folder)
    again = folder / "undisturbed"
    again.mkdir(exist_ok=True)
    dist.barrier()
    undisturbed = JOBS[job](runtime, Faults(again, runtime.rank, ""), again)
    (folder / f"{runtime.rank}.json").write_text(json.dumps({"bits": bits, "undisturbed": undisturbed}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
