# SPDX-License-Identifier: BSD-3-Clause
"""Do trainings with layers solved in parallel coincide with serial ones? Three tasks, three seeds each.

The trainings go to ``$PYPARAREAL_DEPTH_RUNS`` (default ``runs/depth_training.jsonl``) one by one; a run that was
stopped continues there, and a complete file is only evaluated.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.cases import Result, case

if TYPE_CHECKING:
    from bench.depth_training import Task

TEXT: dict[str, Any] = {"batch": 8, "length": 32, "width": 32, "heads": 4, "layers": 32, "h": 0.25}
FIXED, ADAPTIVE, TIGHT = "fixed", "adaptive", "tolerance"


def record() -> Path:
    """Where finished trainings are."""
    return Path(os.environ.get("PYPARAREAL_DEPTH_RUNS", "runs/depth_training.jsonl"))


def tasks() -> list[Task]:
    """Peaks as in the paper (32 layers of width 8), digits in 128 layers, characters of a text in a transformer."""
    from torch import nn
    from torch.nn.functional import cross_entropy

    from bench import depth_data
    from bench.depth_training import Embedding, PreNorm, Task, of_characters
    from pyparareal.nn.layer_parallel import Policy
    from pyparareal.nn.layer_parallel.dense_step import SmoothReLU

    def dense(layers: int, inputs: int, width: int, outputs: int, activation: Any) -> Any:
        def make() -> Any:
            blocks = [nn.Sequential(nn.Linear(width, width), activation()) for _ in range(layers)]
            return blocks, nn.Sequential(nn.Linear(inputs, width), activation()), nn.Linear(width, outputs)

        return make

    words, characters = depth_data.text(TEXT["batch"], TEXT["length"])

    def transformer() -> Any:
        width = TEXT["width"]
        blocks = [PreNorm(width, TEXT["heads"], TEXT["length"]) for _ in range(TEXT["layers"])]
        closing = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, characters))
        return blocks, Embedding(characters, TEXT["length"], width), closing

    ways: dict[str, dict[str, Any]] = {
        FIXED: {"m": 4, "forward": 2, "backward": 2},
        ADAPTIVE: {"m": 4, "forward": 2, "backward": 2, "policy": partial(Policy, probe_every=20)},
    }
    more = ways | {TIGHT: {"m": 4, "tol": 1e-4}}  # where there are kernels: many iterations
    levels, pixels = depth_data.peaks(5000, 250), depth_data.digits(64)
    return [
        Task("peaks", dense(32, 2, 8, 5, SmoothReLU), 1 / 32, 600, 1e-2, levels, cross_entropy, more),
        Task("digits", dense(128, 64, 32, 10, nn.Tanh), 4 / 128, 400, 2e-3, pixels, cross_entropy, more),
        Task("text", transformer, TEXT["h"], 200, 2e-3, words, of_characters, ways),
    ]  # fmt: skip


@case("depth.training", suite="full")
def training() -> Result:
    """Largest gap between the losses of parallel and serial trainings, in units of the spread over the seeds."""
    from bench import depth_training as dt

    path = record()
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, float] = {}
    for task in tasks():
        records = dt.complete(task, path)
        for mode in task.parallel:
            chosen = [r for r in records if r.mode == mode]
            metrics |= {
                f"{task.name}_{mode}_gap": dt.largest_gap(records, mode),
                f"{task.name}_{mode}_score": float(np.mean([r.score for r in chosen])),
                f"{task.name}_{mode}_forward_most": float(max(max(r.iterations) for r in chosen)),
                f"{task.name}_{mode}_backward_most": float(max(max(r.backward) for r in chosen)),
                f"{task.name}_{mode}_events": float(sum(len(r.events) for r in chosen)),
            }
        metrics[f"{task.name}_serial_score"] = float(np.mean([r.score for r in records if r.mode == "serial"]))
    gap = max(metrics[f"{task.name}_{ADAPTIVE}_gap"] for task in tasks())
    return Result({"largest_gap": gap, **metrics}, gap < 1, notes="gap: in units of the spread over three seeds")
