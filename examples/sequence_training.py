# SPDX-License-Identifier: BSD-3-Clause
"""Do recurrent networks train the same? Usage: python examples/sequence_training.py [figure.png [records.jsonl]]

Draws what the bench case ``sequence.training`` recorded (default: the records in ``bench/results``): the losses of
trainings whose sequences were solved one step after the other and side by side, and below how many iterations the
latter took and how fast small differences grew.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # behind an installed pyparareal

from bench import sequence_training as st  # noqa: E402
from bench.cases.sequence_training_cases import tasks  # noqa: E402

SERIAL, PARALLEL, GROWTH = "#555555", "#0072b2", "#d55e00"
TITLES = {
    "digits": "digits, pixel by pixel",
    "rows_permuted": "digits enlarged, rows permuted",
    "adding": "adding problem",
    "adding_cell": "adding problem, own cell",
    "adding_long": "adding problem, gates near 1",
    "adding_long_chunks": "the same, chunks alone",
}


def draw(task, records, above, below):
    """Losses of all seeds above, iterations and exponents of the parallel trainings below."""
    for mode, style in (
        ("serial", {"color": SERIAL, "lw": 3, "alpha": 0.4}),
        ("parallel", {"color": PARALLEL, "lw": 1}),
    ):
        for seed, row in enumerate(st.losses(records, mode)):
            above.plot(np.arange(1, len(row) + 1), row, **style, label=mode if seed == 0 else None)
    method, failed = task.parallel["method"], sum(r.fallbacks for r in records)
    if failed:
        method = f"{method}: {failed} of {sum(len(r.iterations) for r in records)} fell back"
    scale = "linear" if task.outputs > 1 else "log"  # cross entropy, or a squared error
    above.set(title=f"{TITLES[task.name]}\nT = {task.length}, {method}", yscale=scale, xlabel="step")
    growth = below.twinx()
    for record in records:
        if record.mode == "parallel":
            steps = np.arange(1, len(record.iterations) + 1)
            below.plot(steps, record.iterations, color=PARALLEL, lw=1)
            growth.plot(steps, np.array(record.exponent, dtype=float), color=GROWTH, lw=1)
    growth.axhline(0, color=GROWTH, lw=0.5, ls=":")
    growth.tick_params(axis="y", colors=GROWTH)
    below.tick_params(axis="y", colors=PARALLEL)
    below.set(xlabel="step", ylim=(0, None))
    return growth


def main(figure="sequence_training.png", records=ROOT / "bench" / "results" / "sequence_training.jsonl"):
    found = st.load(Path(records))
    chosen = [(task, [r for r in found if r.task == task.name]) for task in tasks()]
    drawn, axes = plt.subplots(4, 3, figsize=(12, 12), layout="constrained")
    for n, (task, of_task) in enumerate(chosen):
        row, column = 2 * (n // 3), n % 3
        growth = draw(task, of_task, axes[row, column], axes[row + 1, column])
        if column == 0:
            axes[row, 0].set_ylabel("loss")
            axes[row + 1, 0].set_ylabel("iterations", color=PARALLEL)
        if column == 2:
            growth.set_ylabel("exponent per step", color=GROWTH)
    axes[0, 0].legend(frameon=False)
    drawn.savefig(figure, dpi=120)
    for task, of_task in chosen:
        print(f"{task.name}: largest gap to serial {st.largest_gap(of_task):.2g} times the spread over the seeds")


if __name__ == "__main__":
    main(*sys.argv[1:])
