# SPDX-License-Identifier: BSD-3-Clause
"""Do trainings with sequences solved in parallel coincide with serial ones? Six tasks, three seeds each.

The trainings go to ``$PYPARAREAL_SEQUENCE_RUNS`` (default ``runs/sequence_training.jsonl``) one by one; a run that was
stopped continues there, and a complete file is only evaluated.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.cases import Result, case

if TYPE_CHECKING:
    from bench.sequence_training import Task

LENGTH = 4096  # of the adding problem


def record() -> Path:
    """Where finished trainings are."""
    return Path(os.environ.get("PYPARAREAL_SEQUENCE_RUNS", "runs/sequence_training.jsonl"))


def tasks() -> list[Task]:
    """Digits by pixels, the same enlarged with permuted rows, and the adding problem, in four ways.

    With the GRU as it starts, with gates near 1 by multigrid and by chunks alone, and with a cell of our own.
    """
    import torch

    from bench.sequence_training import MinimalGatedUnit, Task, adding, digits, squared

    entropy = torch.nn.functional.cross_entropy
    hybrid, mgrit = {"method": "hybrid"}, {"method": "mgrit"}
    pixels, sums = digits(64), adding(16, LENGTH)
    rows = digits(64, 28, rows_permuted=True)
    return [
        Task("digits", 64, 1, 32, 10, 300, 3e-3, pixels, entropy, parallel=mgrit, control=True),
        Task("rows_permuted", 784, 1, 32, 10, 150, 3e-3, rows, entropy, parallel=hybrid),
        Task("adding", LENGTH, 2, 32, 1, 100, 3e-3, sums, squared, parallel=hybrid),
        Task("adding_cell", LENGTH, 2, 32, 1, 30, 3e-3, sums, squared, cell=MinimalGatedUnit, parallel=hybrid),
        Task("adding_long", LENGTH, 2, 32, 1, 150, 3e-3, sums, squared, memory=LENGTH, parallel=mgrit),
        Task("adding_long_chunks", LENGTH, 2, 32, 1, 30, 3e-3, sums, squared, memory=LENGTH, parallel=hybrid),
    ]


@case("sequence.training", suite="full")
def training() -> Result:
    """Largest gap between the losses of parallel and serial trainings, in units of the spread over the seeds."""
    from bench import sequence_training as st

    path = record()
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, float] = {}
    for task in tasks():
        records = st.complete(task, path)
        parallel = [r for r in records if r.mode == "parallel"]
        known = [e for r in parallel for e in r.exponent if e is not None]
        metrics |= {
            f"{task.name}_gap": st.largest_gap(records),
            f"{task.name}_iterations_first": float(np.mean([r.iterations[0] for r in parallel])),
            f"{task.name}_iterations_last": float(np.mean([r.iterations[-1] for r in parallel])),
            f"{task.name}_iterations_most": float(max(max(r.iterations) for r in parallel)),
            f"{task.name}_fallbacks": float(sum(r.fallbacks for r in parallel)),
        }
        if task.control:
            metrics[f"{task.name}_gap_of_rounding"] = st.largest_gap(records, mode="torch")
        if known:
            metrics[f"{task.name}_exponent_most"] = max(known)
    gap = max(metrics[f"{task.name}_gap"] for task in tasks())
    return Result({"largest_gap": gap, **metrics}, gap < 1, notes="gap: in units of the spread over three seeds")
