# SPDX-License-Identifier: BSD-3-Clause
"""A function of this package in several processes at once, which are the ranks of one group on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.yardstick.children import ROOT

DEVICE = "PYPARAREAL_BENCH_DEVICE"
LIMIT = 600  # seconds for all that the ranks do
# The tree comes last on the path: an installed pyparareal is what is measured.
START = """
import importlib, json, sys
sys.path.append(sys.argv[1])
from bench.ranks import joined
module, function, arguments = sys.argv[2:5]
with joined(sys.argv[5], int(sys.argv[6]), int(sys.argv[7])):
    found = getattr(importlib.import_module(module), function)(**json.loads(arguments))
print(json.dumps(found))
"""


def call(module: str, function: str, ranks: int, *, device: str = "cpu", **arguments: Any) -> list[Any]:
    """What ``module.function(**arguments)`` returned on each rank, of one thread each; all passes as JSON.

    With ``device`` "cuda" every rank has a GPU of its own, which :func:`device` names.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory() as folder:
        order = [sys.executable, "-c", START, str(ROOT), module, function, json.dumps(arguments), folder]
        workers = [
            subprocess.Popen(
                [*order, str(rank), str(ranks)],
                cwd=folder,
                env=os.environ | threads | {"GLOO_SOCKET_IFNAME": "lo", DEVICE: device},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        try:
            told = [worker.communicate(timeout=LIMIT) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    for rank, (worker, (_, error)) in enumerate(zip(workers, told, strict=True)):
        if worker.returncode:
            raise RuntimeError(f"{module}.{function}({arguments}), rank {rank} of {ranks}: {error[-2000:].strip()}")
    return [json.loads(out.splitlines()[-1]) for out, _ in told]


class joined:
    """In a process of :func:`call`: the group of all ranks, while it lasts."""

    def __init__(self, folder: str, rank: int, ranks: int) -> None:
        import torch

        torch.set_num_threads(1)
        where = f"file://{Path(folder) / 'store'}"
        on_gpus = os.environ[DEVICE] == "cuda"
        if on_gpus:
            torch.cuda.set_device(rank)
        backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
        torch.distributed.init_process_group(backend, init_method=where, rank=rank, world_size=ranks)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        import torch

        torch.distributed.destroy_process_group()


def device() -> str:
    """Where this rank computes."""
    import torch

    return f"cuda:{torch.cuda.current_device()}" if os.environ.get(DEVICE) == "cuda" else "cpu"


def in_turn(alternatives: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Samples of alternatives that all ranks call in the same order; each begins and ends together.

    An alternative of one process is one in which the other ranks do nothing but wait.
    """
    import torch

    from pyparareal._timing import interleave

    on_gpu = device() != "cpu"

    def barrier() -> None:
        if on_gpu:
            torch.cuda.synchronize()
        torch.distributed.barrier()

    def together(work: Callable[[], Any]) -> Callable[[], None]:
        def timed() -> None:
            work()
            barrier()

        return timed

    timed = {name: together(work) for name, work in alternatives.items()}
    # As many rounds on every rank, and no call more on one than on another.
    return interleave(timed, repeats=rounds, warmup=1, cold_cache=False, max_calls=1, setup=barrier)
