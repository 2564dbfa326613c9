# SPDX-License-Identifier: BSD-3-Clause
"""Do deep networks train the same? Usage: python examples/depth_training.py [figure.png [records.jsonl]]

Draws what the bench case ``depth.training`` recorded (default: the records in ``bench/results``): the losses of
trainings whose layers were solved one after the other and side by side, and below how many iterations the latter took,
forward and backward, and by how much an iteration reduced the residual.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # behind an installed pyparareal

from bench import depth_training as dt  # noqa: E402
from bench.cases.depth_training_cases import ADAPTIVE, FIXED, TIGHT, tasks  # noqa: E402

STYLES = {
    "serial": {"color": "#555555", "lw": 3, "alpha": 0.4},
    FIXED: {"color": "#d55e00", "lw": 1},
    ADAPTIVE: {"color": "#0072b2", "lw": 1},
    TIGHT: {"color": "#000000", "lw": 1, "ls": ":"},
}
LABELS = {
    "serial": "serial",
    FIXED: "2 + 2 iterations",
    ADAPTIVE: "adaptive",
    TIGHT: "to a tolerance of 1e-4",
}
TITLES = {
    "peaks": "peaks: 32 layers of 8",
    "digits": "digits: 128 layers of 32",
    "text": "text: transformer, 32 blocks",
}


def smoothed(row, window=10):
    return np.convolve(row, np.ones(window) / window, mode="valid")


def draw(records, above, below):
    """Losses of all seeds above; below the adaptive trainings' iterations."""
    for mode, style in STYLES.items():
        of_mode = [r for r in records if r.mode == mode]
        for record in of_mode:
            row = smoothed(record.loss)
            label = LABELS[mode] if record is of_mode[0] else None
            above.plot(np.arange(1, len(row) + 1), row, **style, label=label)
    above.set(yscale="log", xlabel="step")
    for record in records:
        if record.mode == ADAPTIVE:
            steps = np.arange(1, len(record.iterations) + 1)
            first = record.seed == dt.SEEDS[0]
            below.plot(steps, record.iterations, color="#0072b2", lw=1, label="forward" if first else None)
            below.plot(steps, record.backward, color="#009e73", lw=1, ls="--", label="backward" if first else None)
    below.set(xlabel="step", ylim=(0, None))


def main(figure="depth_training.png", records=ROOT / "bench" / "results" / "depth_training.jsonl"):
    found = dt.load(Path(records))
    chosen = [(task, [r for r in found if r.task == task.name]) for task in tasks()]
    drawn, axes = plt.subplots(2, len(chosen), figsize=(4.4 * len(chosen), 6.4), layout="constrained", sharex="col")
    for column, (task, of_task) in enumerate(chosen):
        draw(of_task, axes[0, column], axes[1, column])
        axes[0, column].set_title(TITLES[task.name])
    axes[0, 0].set_ylabel("loss, mean of 10 steps")
    axes[0, 1].legend(frameon=False)
    axes[1, 0].set_ylabel("iterations, adaptive")
    axes[1, 1].legend(frameon=False)
    drawn.savefig(figure, dpi=120)
    for task, of_task in chosen:
        for mode in task.parallel:
            gap = dt.largest_gap(of_task, mode)
            print(f"{task.name}, {LABELS[mode]}: largest gap to serial {gap:.2g} times the spread over the seeds")


if __name__ == "__main__":
    main(*sys.argv[1:])
