# SPDX-License-Identifier: BSD-3-Clause
"""The main job: a parareal network and its serial twin on real handwritten digits."""

from __future__ import annotations

import tempfile
from pathlib import Path

from . import Result, case


@case("train.digits", suite="full")
def train_digits() -> Result:
    """``pyparareal train --model resnet20 --data digits --parts 4 --compare-serial``, in this process.

    ``checked``: the weights on disk, loaded into newly built networks, give the accuracies reported.
    """
    from pyparareal.nn.training_job import report
    from pyparareal.nn.training_job.job import recheck, run_job
    from pyparareal.nn.training_job.settings import Settings

    with tempfile.TemporaryDirectory() as folder:
        result = run_job(Settings(), Path(folder))
        checked = recheck(Path(folder)) == {name: row["test_accuracy"] for name, row in result["networks"].items()}
    networks = result["networks"]
    return Result(
        metrics={
            "accuracy_serial": networks["serial"]["test_accuracy"],
            "accuracy_parareal": networks["parareal"]["test_accuracy"],
            "seconds": result["seconds"],
            "parareal_step_over_serial_step": 1.0 / report.speed_ratios(result)["measured"],
        },
        checked=checked,
        notes="accuracy on 355 held-out images; all parts in one process, so the parareal step is the slower one",
    )
