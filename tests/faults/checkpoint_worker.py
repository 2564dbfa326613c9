# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of sharded checkpoints: ``python checkpoint_worker.py RANK RANKS FOLDER``.

``FOLDER/<rank>.json`` has what was found, by name: an empty text where all is well, else what differs.
"""

import contextlib
import json
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from processes import join

import pyparareal
from pyparareal.nn import ShardedCheckpoint
from pyparareal.nn.checkpoints import sharded

PARTS = 5
WIDTH = 3


class Share(torch.nn.Module):
    """The parts ``first`` to ``last - 1`` of a chain, under the names they have in the whole; and what all have."""

    def __init__(self, first, last):
        super().__init__()
        self.parts = torch.nn.ModuleDict({str(i): torch.nn.Linear(WIDTH, WIDTH) for i in range(first, last)})
        self.common = torch.nn.Linear(WIDTH, 2)


def fill(share, seed):
    """Weights that depend on the part alone."""
    for name, parameter in share.named_parameters():
        generator = torch.Generator().manual_seed(seed + sum(name.encode()))
        parameter.data = torch.randn(parameter.shape, generator=generator)


def a_share(rank, ranks, seed, parts=PARTS):
    """What a rank holds after two steps of its own; the same for a part, wherever it is."""
    share = Share(parts * rank // ranks, parts * (rank + 1) // ranks)
    fill(share, seed)
    optimiser = torch.optim.Adam(share.parameters(), lr=0.1)
    for step in range(2):
        for parameter in share.parameters():
            parameter.grad = parameter.detach() * (step + seed)
        optimiser.step()
    draws = {f"dropout.{name}": torch.Generator().manual_seed(seed + int(name)) for name in share.parts}
    return {"net": share, "optimiser": optimiser, "data": np.random.default_rng(seed), **draws}


def bits(state):
    found = {name: tensor.tolist() for name, tensor in state["net"].state_dict().items()}
    for name, parameter in state["net"].named_parameters():
        found |= {f"{name}.{slot}": v.tolist() for slot, v in state["optimiser"].state[parameter].items()}
    found |= {name: thing.get_state().tolist() for name, thing in state.items() if name.startswith("dropout")}
    return found | {"data": repr(state["data"].bit_generator.state)}


def raised(call, kind, says):
    """Empty if ``call()`` raised what it should."""
    try:
        call()
    except Exception as error:
        right = type(error).__name__ == kind and says in str(error)
        return "" if right else f"{type(error).__name__}: {error}, expected {kind}: {says}"
    return f"nothing was raised, expected {kind}: {says}"


def from_ranks_to_ranks(rank, saving, loading, folder, parts=PARTS):
    """Written by some, read by others."""
    for size, runtime in saving.items():
        if rank < size:
            checkpoint = ShardedCheckpoint(folder / f"{parts} of {size}", runtime)
            checkpoint.save(7, a_share(rank, size, 1, parts), {"epoch": 3})
    dist.barrier()
    for size in saving:
        for other, runtime in loading.items():
            if rank >= other:
                continue
            name = f"{parts} parts from {size} to {other} ranks"
            state, read = a_share(rank, other, 2, parts), []
            with reading(read):
                found = ShardedCheckpoint(folder / f"{parts} of {size}", runtime).load(state)
            expected = bits(a_share(rank, other, 1, parts))
            wrong = [key for key, value in bits(state).items() if value != expected[key]]
            own = len(state["net"].state_dict()) + 3 * len(list(state["net"].parameters())) + len(state["net"].parts)
            yield name, f"{wrong[:3]} differ" if wrong or (found.step, found.progress) != (7, {"epoch": 3}) else ""
            yield f"{name}, tensors read", "" if len(read) == own else f"{len(read)} instead of {own}"


@contextlib.contextmanager
def reading(names):
    """The tensors that this rank reads."""
    original = sharded.read_tensors

    def noted(path, targets):
        names.extend(targets)
        original(path, targets)

    sharded.read_tensors = noted
    try:
        yield
    finally:
        sharded.read_tensors = original


def mistakes(rank, runtime, folder):
    """One rank of three does otherwise; all raise, nothing is written, and the runtime goes on."""
    good = a_share(rank, 3, 1)
    checkpoint = ShardedCheckpoint(folder, runtime)
    checkpoint.save(1, good, 0)
    one = rank == 1
    yield (
        "step",
        raised(lambda: checkpoint.save(3 if one else 2, good), "ValueError", "step: rank 1 has 3, rank 0 has 2"),
    )
    yield (
        "progress",
        raised(lambda: checkpoint.save(2, good, rank), "ValueError", "progress: rank 1 has 1, rank 0 has 0"),
    )
    yield (
        "thing",
        raised(
            lambda: checkpoint.save(2, good | {"x": print} if one else good),
            *(("TypeError", "state: x: got builtin") if one else ("RankError", "rank 1 failed: TypeError: state: x")),
        ),
    )
    x = torch.tensor([0.0, -0.0 if one else 0.0])
    yield (
        "bits",
        raised(
            lambda: checkpoint.save(2, good | {"x": x}), "ValueError", "'x' has another bits on rank 1 than on rank 0"
        ),
    )
    x = torch.zeros(2, dtype=torch.float64 if one else torch.float32)
    yield "kind", raised(lambda: checkpoint.save(2, good | {"x": x}), "ValueError", "'x' has another kind on rank 1")
    data = {"data": np.random.default_rng(rank // 2)}
    yield (
        "value",
        raised(
            lambda: checkpoint.save(2, good | data), "ValueError", "'data' has another value on rank 2 than on rank 0"
        ),
    )
    yield "earlier", raised(lambda: checkpoint.save(1, good), "ValueError", "step: got 1, but ")
    yield "no such step", raised(lambda: checkpoint.load(good, 5), "CheckpointError", "step: got 5, of which ")
    before = bits(good)
    other = good | {"more": torch.zeros(1)} if one else good
    yield (
        "loaded by another",
        raised(lambda: checkpoint.load(other), "CheckpointError", "tensor 'more' is missing there"),
    )
    fewer = {name: thing for name, thing in good.items() if not (one and name.startswith("dropout"))}
    yield "loaded by less", raised(lambda: checkpoint.load(fewer), "CheckpointError", "'dropout.1' is unknown here")
    yield "nothing changed", "" if bits(good) == before else "something changed"
    yield "goes on", "" if checkpoint.steps() == [1] and checkpoint.save(2, good).is_dir() else "no"


def accidents(rank, runtime, folder):
    """A disk that is full for one rank, a file that is damaged, and a folder that not all see."""
    checkpoint, good = ShardedCheckpoint(folder, runtime), a_share(rank, 3, 1)
    checkpoint.save(1, good)
    for place in ("write_tensors", "describe"):
        original = getattr(sharded, place)

        def full(*arguments, original=original):
            if rank == 2:
                original(*arguments)
                raise OSError(28, "No space left on device")
            return original(*arguments)

        setattr(sharded, place, full)
        yield f"full disk in {place}", raised(lambda: checkpoint.save(2, good), "OSError", "No space left on device")
        setattr(sharded, place, original)
    yield (
        "nothing there",
        "" if sorted(p.name for p in folder.iterdir()) == [".lock", "step_000000001"] else "something",
    )
    checkpoint.save(2, good)
    dist.barrier(runtime.group)
    if rank == 0:
        damaged = sorted((folder / "step_000000002").glob("*.safetensors"))[-1]
        data = damaged.read_bytes()
        damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    dist.barrier(runtime.group)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        state = a_share(rank, 3, 2)
        found = checkpoint.load(state)
    yield "skipped", "" if found.step == 1 and [*found.skipped] == [2] and bits(state) == bits(good) else repr(found)
    yield "one word", "" if len(warned) == (rank == 0) else str([str(w.message) for w in warned])
    yield "by name", raised(lambda: checkpoint.load(state, 2), "CheckpointError", "its SHA-256 is another")
    elsewhere = ShardedCheckpoint(folder / "elsewhere" if rank == 2 else folder, runtime)
    yield "another folder", raised(lambda: elsewhere.load(state), "ValueError", "folder: rank 2 has")


def global_tensors(rank, groups, runtimes, folder):
    """DTensors, as FSDP2 has them: cut over two ranks, read over three, and as one."""
    from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor

    whole = torch.arange(35.0).reshape(7, 5)
    meshes = {n: DeviceMesh.from_group(groups[n], "cpu") for n in (2, 3) if rank < n}
    if rank < 2:
        ShardedCheckpoint(folder, runtimes[2]).save(1, {"w": distribute_tensor(whole, meshes[2], [Shard(0)])})
    dist.barrier()
    if rank < 3:
        target = distribute_tensor(torch.zeros(7, 5), meshes[3], [Shard(1)])
        ShardedCheckpoint(folder, runtimes[3]).load({"w": target})
        yield "cut otherwise", "" if torch.equal(target.full_tensor(), whole) else str(target.full_tensor())
    if rank == 3:
        plain = torch.zeros(7, 5)
        ShardedCheckpoint(folder).load({"w": plain})
        yield "in one", "" if torch.equal(plain, whole) else str(plain)


def death(rank, runtime, folder):
    """The last rank dies while all write; the others notice, and what was there before is whole."""
    checkpoint, good = ShardedCheckpoint(folder, runtime), a_share(rank, runtime.size, 1)
    checkpoint.save(1, good)
    if rank == runtime.size - 1:
        yield "alive", ""
        sharded.write_tensors = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    yield "noticed", raised(lambda: checkpoint.save(2, good), "RankError", "writing the files")
    yield "ended", raised(lambda: checkpoint.save(2, good), "RankError", "this runtime ended with an error")
    alone = a_share(0, 1, 2)
    found = ShardedCheckpoint(folder).load(alone)
    yield "whole", "" if found.step == 1 and bits(alone) == bits(a_share(0, 1, 1)) else repr(found)


def main():
    rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    join(rank, ranks, folder)
    groups = {n: dist.new_group(range(n)) for n in range(1, ranks + 1)}
    runtimes = {n: pyparareal.distributed(groups[n], timeout=60) if rank < n else None for n in groups}
    found = {}
    found |= from_ranks_to_ranks(rank, runtimes, runtimes, folder / "ranks")
    found |= from_ranks_to_ranks(rank, {4: runtimes[4]}, {1: runtimes[1], 4: runtimes[4]}, folder / "few", parts=2)
    if rank < 3:
        found |= mistakes(rank, runtimes[3], folder / "mistakes")
        found |= accidents(rank, runtimes[3], folder / "accidents")
    dist.barrier()
    found |= global_tensors(rank, groups, runtimes, folder / "global")
    for name, what in death(rank, runtimes[4], folder / "death"):
        found[name] = what
        (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        raise
