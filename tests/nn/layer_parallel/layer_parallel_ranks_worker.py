# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of parallel layers over ranks: ``python layer_parallel_ranks_worker.py RANK RANKS FOLDER``.

Writes ``FOLDER/<rank>.json``: for the first 1, 2, ... ranks how far each case is from one process, and what errors say.
"""

import copy
import faulthandler
import json
import pickle
import sys
import warnings
from pathlib import Path

import torch
from layer_parallel_nets import WIDTH, network
from processes import join
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import pyparareal
from pyparareal.nn import LayerParallel
from pyparareal.nn.layer_parallel.settings import Settings
from pyparareal.runtime.group import checksum

SLOW = Settings(iterations=2, tol=1e-14)

WAIT = 240  # seconds: the last rank waits for all cases of fewer ranks


class Residual(nn.Module):
    """With something that is changed or drawn in training."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, u):
        return u + 0.1 * self.parts(u)


def deep(*kinds, layers=18):
    torch.manual_seed(0)
    blocks = [Residual(nn.Linear(WIDTH, WIDTH), *(kind() for kind in kinds[i % len(kinds) :])) for i in range(layers)]
    return [block.double() for block in blocks]


def normed(**options):
    torch.manual_seed(0)
    blocks = [Residual(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh()) for _ in range(18)]
    return LayerParallel([block.double() for block in blocks], m=3, kernels=False, **options)


def dropped(**options):
    torch.manual_seed(0)
    blocks = [Residual(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3)) for _ in range(18)]
    return LayerParallel([block.double() for block in blocks], m=3, kernels=False, **options)


def mixed(**options):
    return LayerParallel(deep(nn.Tanh, nn.Sigmoid), m=2, kernels=False, **options)


# Kernels, which do not know their company: the same bits.
BITS = {
    "fixed": {},
    "exact": {"forward": 20, "backward": 20},
    "tolerance": {"tol": 1e-9},
    "one-shot": {"policy": "one-shot"},
    "adaptive": {"policy": "adaptive", "forward": 3, "backward": 3},
    "three levels": {"m": [4, 2], "levels": 3, "cycle": "F"},
    "m that does not divide": {"m": 7},
    "F-relaxation": {"nu": 0, "forward": 4, "backward": 4},
    "from zero": {"guess": "zero"},
    "recomputed": {"recompute": True},
    "buffers": {"buffer": (2, 1)},
    "backward serial": {"backward": 0},
    "forward serial": {"forward": 0, "backward": 3},
    "fewer slices than ranks": {"m": 16},
    "fails": {"forward": SLOW, "backward": SLOW},
    "fails, returned": {"forward": SLOW, "backward": SLOW, "on_failure": "return"},
    "serial": {"mode": "serial"},
    "float32": {"dtype": torch.float32},
}
NEAR = {
    "no kernels": lambda **o: network(kernels=False, forward=20, backward=20, **o),
    "batch norm": lambda **o: normed(forward=9, backward=9, **o),
    "dropout": lambda **o: dropped(forward=9, backward=9, **o),
    "two kinds": lambda **o: mixed(forward=9, backward=9, **o),
}


def kernels(runtime, **options):
    dtype = options.pop("dtype", torch.float64)
    return network(runtime=runtime, **options).to(dtype)


def inputs(width, dtype=torch.float64, seed=1):
    return torch.randn(5, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def trained(net, width=3, steps=2):
    """Values, gradients and buffers of some steps of gradient descent, and the reports."""
    values, gradients, reports = [], [], []
    dtype = next(net.parameters()).dtype
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what fails says so
        for step in range(steps):
            torch.manual_seed(step)  # of what is dropped
            x = inputs(width, dtype, step).requires_grad_()
            optimiser.zero_grad()
            y = net(x)
            y.square().sum().backward()
            values += [y.detach(), x.grad]
            gradients += [p.grad.clone() for p in net.parameters()]
            reports.append(repr(net.report))
            optimiser.step()
        net.eval()
        with torch.no_grad():
            values.append(net(inputs(width, dtype)))
    values += [b.clone() for b in net.buffers() if b.is_floating_point()]
    return values, gradients, reports


def apart(a, b):
    """Largest difference, over the largest entry."""
    return max(float((u - v).abs().max() / max(v.abs().max(), 1e-3)) for u, v in zip(a, b, strict=True))


def compared(runtime):
    for name, options in BITS.items():
        ours, alone = trained(kernels(runtime, **options)), trained(kernels(None, **options))
        yield name, told(ours, alone)
    for name, make in NEAR.items():
        width = 3 if name == "no kernels" else WIDTH
        ours, alone = trained(make(runtime=runtime), width), trained(make(), width)
        yield name, told(ours, alone)


def told(ours, alone):
    return {
        "bits": all(torch.equal(a, b) for a, b in zip(ours[0], alone[0], strict=True)),
        "gradients": all(torch.equal(a, b) for a, b in zip(ours[1], alone[1], strict=True)),
        "reports": [a == b for a, b in zip(ours[2], alone[2], strict=True)],
        "differs": "" if ours[2] == alone[2] else "\n".join([*ours[2], *alone[2]]),
        "apart": max(apart(ours[0], alone[0]), apart(ours[1], alone[1])),
        "sum": checksum([*ours[0], *ours[1]]),
    }


def on_a_mesh(rank):
    """Two replicas with half of the batch each, on two ranks each: how far the gradients are from one process.

    Twice by DDP, once by FSDP2 of the whole network.
    """
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "pint"))
    runtime = pyparareal.distributed(mesh, timeout=60)
    options = {"forward": 20, "backward": 20}
    wrapped = DistributedDataParallel(network(runtime=runtime, **options), process_group=mesh.get_group("dp"))
    alone, found = network(**options), []
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for _ in range(2):
        for net, part in ((wrapped, x.chunk(2)[rank // 2]), (alone, x)):
            net.zero_grad()
            net(part).square().mean().backward()
        found.append(apart([p.grad for p in wrapped.parameters()], [p.grad for p in alone.parameters()]))
    sharded = fully_shard(network(runtime=runtime, **options), mesh=mesh["dp"])
    sharded(x.chunk(2)[rank // 2]).square().mean().backward()
    whole = [p.grad.full_tensor() for p in sharded.parameters()]
    return [*found, apart(whole, [p.grad for p in alone.parameters()])]


def error_of(work):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def wrong(runtime, rank):
    """What every rank says to arguments that are wrong on rank 1; the runtime works on."""
    odd = rank == 1

    def call(x=None, seed=0, **options):
        return lambda: network(seed=seed, runtime=runtime, **options)(inputs(3) if x is None else x)

    def changed():
        net = network(runtime=runtime)
        with torch.no_grad():
            next(net.stack.parameters())[3].mul_(1 + odd)
        net(inputs(3))

    def seeded():
        net = dropped(runtime=runtime)
        torch.manual_seed(rank)
        net(inputs(WIDTH))

    def backward():
        (network(runtime=runtime)(inputs(3)).sum() * (2 if odd else 1)).backward()

    cases = {
        "input": call(inputs(3, seed=9 if odd else 1)),
        "weights": call(seed=rank),
        "weights of blocks": changed,
        "iterations": call(forward=3 if odd else 2),
        "m": call(m=8 if odd else 4),
        "masks": seeded,
        "gradient": backward,
        "not finite": call(torch.full((5, 3), float("nan") if odd else 1.0, dtype=torch.float64)),
        "type": call(3 if odd else None),
        "raises": call(forward=SLOW, on_failure="raise"),
        "runtime": lambda: network(runtime="x"),
    }
    found = {name: error_of(case) for name, case in cases.items()}
    found["bits"] = torch.equal(network(runtime=runtime)(inputs(3)), network()(inputs(3)))
    return found


def copies(runtime):
    """A copy and a finer network have the runtime, a pickle and the state_dict have not."""
    net, x = network(runtime=runtime), inputs(3)
    twin, thawed, finer = copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net.refine()
    same = [torch.equal(one(x), net(x)) for one in (twin, thawed)]
    names = net.state_dict().keys() == network().state_dict().keys()
    return [twin.runtime is runtime, thawed.runtime is None, finer.runtime is runtime, *same, names]


class Failing(nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH).double()

    def forward(self, u):
        Failing.calls += 1
        if Failing.calls == 200 and torch.distributed.get_rank() == 1:
            raise OverflowError("too much")
        return u + 0.1 * self.linear(u)


def failing():
    runtime = pyparareal.distributed(timeout=60)
    net = LayerParallel([Failing() for _ in range(24)], m=3, forward=8, runtime=runtime)

    def work():
        for _ in range(40):
            net(inputs(WIDTH))

    return [error_of(work), error_of(lambda: net(inputs(WIDTH)))]


def main(rank, ranks, folder):
    faulthandler.dump_traceback_later(270, exit=True)  # before the test gives up, and says less
    join(rank, ranks, folder)
    found = {"mesh": on_a_mesh(rank) if ranks == 4 else []}
    groups = {count: torch.distributed.new_group(range(count)) for count in range(1, ranks + 1)}
    for count, group in groups.items():
        if rank < count:
            runtime = pyparareal.distributed(group, timeout=WAIT)
            found[count] = dict(compared(runtime))
    found["wrong"], found["copies"], found["failing"] = wrong(runtime, rank), copies(runtime), failing()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
