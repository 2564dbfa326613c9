# SPDX-License-Identifier: BSD-3-Clause
"""Ranks killed at every place that matters; torchrun restarts them, and the bits at the end are counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from . import Result, case

RANKS = 3
JOBS = Path(__file__).resolve().parents[2] / "tests" / "faults" / "fault_jobs.py"
TORCHRUN = ["-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]

# Job, place (its second, third ... time): on each rank, or on those named. Only rank 0 writes manifests and names.
PLACES = [
    ("train", "forward#5", range(RANKS)),
    ("train", "backward#5", range(RANKS)),
    ("train", "step#3", range(RANKS)),
    ("train", "before write_tensors#2", range(RANKS)),
    ("train", "after write_tensors#2", range(RANKS)),
    ("train", "after describe#1", range(RANKS)),
    ("train", "before write_manifest#1", [0]),
    ("train", "before publish#2", [0]),
    ("train", "after publish#1", [0]),
    ("windows", "fine step#20", range(RANKS)),
    ("windows", "fine step#60", range(RANKS)),
    ("windows", "before publish#2", [0]),
    ("runs", "cycle#2", range(RANKS)),
]


@case("devices.faults", suite="full")
def faults() -> Result:
    """kill -9 of one of three ranks at each place in turn: at most three in a launch, which torchrun restarts.

    ``checked``: every launch died where it was told to, ended, and every rank has the bits of an undisturbed run.
    """
    killed: Counter[str] = Counter()
    recovered: Counter[str] = Counter()
    seconds = []
    for job, faults in _launches():
        with tempfile.TemporaryDirectory() as folder:
            died, ended, took = _launch(job, faults, Path(folder))
        seconds.append(took)
        for place in died:
            killed[f"{job}: {place.partition('#')[0]}"] += 1
            recovered[f"{job}: {place.partition('#')[0]}"] += ended
    total = sum(len(faults) for _, faults in _launches())
    detail = {f"recovered, {place}": float(recovered[place]) for place in killed}
    return Result(
        metrics={"injected": float(killed.total()), "recovered": float(recovered.total())} | detail,
        checked=killed.total() == recovered.total() == total,
        samples={"seconds of a launch": seconds},
        notes=f"{RANKS} processes, gloo on loopback, one machine; parareal network, solves, training runs",
    )


def _launches() -> list[tuple[str, list[str]]]:
    """Job and up to three faults, each on another rank or at another place."""
    found: list[tuple[str, list[str]]] = []
    for name in dict.fromkeys(job for job, *_ in PLACES):
        mine = [f"{place}:{rank}" for job, place, ranks in PLACES if job == name for rank in ranks]
        found += [(name, mine[first : first + 3]) for first in range(0, len(mine), 3)]
    return found


def _launch(job: str, faults: list[str], folder: Path) -> tuple[list[str], bool, float]:
    """Where ranks died; whether all ended with the right bits; seconds."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in (str(JOBS.parents[2]), environment.get("PYTHONPATH")) if p)
    arguments = ["--nproc-per-node", str(RANKS), "--max-restarts", str(len(faults)), str(JOBS), str(folder), job]
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *TORCHRUN, *arguments, ",".join(faults)], env=environment, capture_output=True, timeout=600
    )
    seconds = time.perf_counter() - begin
    died = [path.name.split(" ", 2)[2] for path in sorted(folder.glob("died *"))]
    told = [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9].json"))]
    ended = done.returncode == 0 and len(told) == RANKS and all(one["bits"] == one["undisturbed"] for one in told)
    return died, ended, seconds
