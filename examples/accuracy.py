# SPDX-License-Identifier: BSD-3-Clause
"""Is accuracy preserved? Usage: python examples/accuracy.py [figure.png [folder of records]]

Draws what the bench cases ``train.digits_cv``, ``train.cluttered_cv`` and ``train.curves_cv`` recorded (default: the
records in ``bench/results``): held-out accuracy while training, and the mean difference to the serial network.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # behind an installed pyparareal

from bench import cross_validation as cv  # noqa: E402
from bench import intervals  # noqa: E402
from bench.cases import accuracy_cases as cases  # noqa: E402

SERIAL, PARAREAL, WITHOUT, OTHER, WIDE, UNIT = "#555555", "#0072b2", "#d55e00", "#cc79a7", "#009e73", "#56b4e9"
LABELS = {
    "serial": ("serial ResNet-20", SERIAL),
    "parareal-4": ("parareal, 4 parts", PARAREAL),
    "unit_coarse-4": ("parareal, 4 parts, units in the coarse nets", UNIT),
    "uncorrected-4": ("4 parts without the coarse correction", WITHOUT),
    "resnet8": ("serial ResNet-8", OTHER),
    "wide_resnet8": ("serial ResNet-8, twice as wide", WIDE),
}


def curves(axes, study, records, lowest):
    """Mean over the trainings, and the band that holds the middle 80 % of them."""
    for network, (label, colour) in LABELS.items():
        if network not in study.networks:
            continue
        rows = 100 * cv.curves(study, records, network, "test_accuracy")
        epochs = np.arange(1, rows.shape[1] + 1)
        axes.fill_between(epochs, *np.quantile(rows, [0.1, 0.9], axis=0), color=colour, alpha=0.18, lw=0)
        axes.plot(epochs, rows.mean(0), color=colour, lw=1.8, label=label)
    axes.set(xlabel="epoch", ylabel="held-out accuracy in %", ylim=(lowest, 100.5))
    axes.legend(frameon=False, loc="lower right")


def gaps(study, records):
    """Mean difference of each network to the first, with interval, in percentage points."""
    base = cv.outcomes(study, records, study.networks[0])
    folds = np.array(cv.fold_accuracies(study, base))
    for network in study.networks[1:]:
        difference = 100 * (np.array(cv.fold_accuracies(study, cv.outcomes(study, records, network))) - folds)
        yield network, intervals.corrected_t(difference, 1 / (study.folds - 1))


def draw_gaps(axes, rows):
    """One mark with its interval per network."""
    for position, (network, found) in enumerate(rows):
        kind, _, parts = network.partition("-")
        colours = {"parareal": PARAREAL, "unit_coarse": UNIT, "uncorrected": WITHOUT, "wide_resnet8": WIDE}
        colour = colours.get(kind, OTHER)
        texts = {"parareal": f"{parts} parts", "uncorrected": f"{parts} parts, without correction"}
        texts["unit_coarse"] = f"{parts} parts, units in the coarse nets"
        text = texts.get(kind) or LABELS[kind][0].removeprefix("serial ")
        axes.errorbar(
            found.mean, position, xerr=found.high - found.mean, fmt="o", color=colour, capsize=3, lw=1.8, ms=6
        )
        axes.annotate(
            f"{text}: {found.mean:+.2f}",
            (found.mean, position),
            (0, 6),
            textcoords="offset points",
            ha="center",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
        )
        print(f"{network:16s} {found.mean:+.2f}  [{found.low:+.2f}, {found.high:+.2f}]")
    axes.margins(x=0.2)  # for the words
    axes.axvline(0, color="black", lw=0.8, zorder=0)
    axes.axvspan(-cases.BAND, cases.BAND, color="#000000", alpha=0.07, lw=0)
    axes.set(xlabel="difference to serial ResNet-20 in percentage points", yticks=[], ylim=(len(rows) - 0.4, -0.8))


def main():
    """Draw the studies whose records are there."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "accuracy.png")
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "bench" / "results"
    studies = [(cases.digits_study(), 94.0), (cases.cluttered_study(), 0.0), (cases.curves_study(), 20.0)]
    figure, axes = plt.subplots(3, 2, figsize=(12, 12.75), layout="constrained")
    for (study, lowest), (left, right) in zip(studies, axes, strict=True):
        records = cv.Records(folder / f"{study.name}_cv.jsonl")
        if not all(study.key(*job) in records.found for job in study.trainings()):
            raise SystemExit(
                f"{records.path}: not complete; PYPARAREAL_CV_RUNS={folder} with bench/run.py completes it"
            )
        print(study.name)
        curves(left, study, records, lowest)
        # A linear model is too far away to be drawn to scale.
        draw_gaps(right, [row for row in gaps(study, records) if row[0] != "linear"])
        count = study.folds * study.repetitions
        left.set_title(f"{study.name}: mean of {count} trainings, band: the middle 80 %")
        right.set_title(f"{study.name}: mean difference, 95 % interval, band ±{cases.BAND}")
        for each in (left, right):
            each.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
