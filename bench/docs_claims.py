# SPDX-License-Identifier: BSD-3-Clause
"""Where the recorded numbers of the pages under docs/ come from: rows of their tables, and sentences.

A paragraph that says *measured* without a case beside it is in :data:`UNRECORDED` with the reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.claims import SIZE, Claim, Figure

F = Figure
PAPER = "the paper's"
OVER = "more than 50 cycles"


@dataclass(frozen=True)
class Row:
    """The only line of ``page`` whose beginning matches ``label``; ``figures`` are the numbers after that."""

    page: str
    label: str
    figures: tuple[Figure | str, ...]


def _depth() -> list[Row]:
    metrics = {"2 + 2 iterations ": ("ratio", 1), "fused serial kernel": ("fused_serial", 1)}
    metrics["error of the gradient"] = ("gradient_error", 100)
    return [
        Row(
            "depth.rst",
            re.escape(label),
            tuple(F("depth.dense", f"{metric}_w{width}", scale) for width in (16, 64, 128)),
        )
        for label, (metric, scale) in metrics.items()
    ]


def _gru() -> list[Row]:
    labels = {
        "loop over ``GRUCell``": "cell_loop",
        "the same, cell compiled": "compiled_cell",
        "the same, blocks compiled": "compiled_loop",
        "``torch.nn.GRU``  ": "nn_gru",
        '``nn.GRU``, "auto" (serial)': "ours",
    }
    rows = [
        Row(
            "recurrences.rst",
            re.escape(label),
            tuple(F("sequence.gru", f"{name}_{what}_ms") for what in ("inference", "training")),
        )
        for label, name in labels.items()
    ]
    hybrid = (*(F("sequence.gru", f"ours_hybrid_{what}_ms") for what in ("inference", "training")),)
    mgrit = (F("sequence.gru", "ours_mgrit_inference_ms"), F("sequence.gru", "mgrit_iterations"))
    rows.append(Row("recurrences.rst", '``nn.GRU``, "hybrid"', (*hybrid, F("sequence.gru", "hybrid_iterations"))))
    return [*rows, Row("recurrences.rst", '``nn.GRU``, "mgrit"', mgrit)]


def _xor() -> list[Row]:
    labels = {
        1: "naive, two levels (table 1)",
        2: "solver 1, two levels (table 2)",
        3: "solver 1, F-cycles (table 3)",
        5: "solver 2, two levels (table 5)",
        6: "solver 2, F-cycles (table 6)",
    }
    steps = [100 * 2**k for k in range(9)]
    over = {(1, n) for n in (6400, 12800, 25600)}
    return [
        Row(
            "training.rst",
            re.escape(label),
            tuple(x for n in steps for x in (OVER if (table, n) in over else F("runs.xor", f"T{table}_{n}"), PAPER)),
        )
        for table, label in labels.items()
    ]


def _accuracy() -> list[Row]:
    rows = []
    for parts in (2, 3, 4, 6):
        names = [f"accuracy_parareal_{parts}", f"accuracy_gap_pp_{parts}", f"ci_low_{parts}", f"ci_high_{parts}"]
        names += [f"{name}_without_correction_{parts}" for name in ("accuracy_gap_pp", "ci_low", "ci_high")]
        names += [f"correction_gain_{name}_{parts}" for name in ("pp", "low", "high")]
        rows.append(Row("accuracy.rst", f"{parts}  +(?=9)", tuple(F("train.digits_cv", name) for name in names)))
    for case, first in (("train.cluttered_cv", r"(?=\d\d\.)"), ("train.curves_cv", r"[\d,]{5,6} +")):
        for label, name in _ACCURACIES:
            if case == "train.cluttered_cv" and name in ("unit_coarse_4", "wide_resnet8"):
                continue
            suffix = name.replace("parareal_", "").replace("uncorrected_", "without_correction_")
            gap = () if name == "serial" else (F(case, f"{what}_{suffix}") for what in _GAP)
            rows.append(Row("accuracy.rst", f"{re.escape(label)}  +{first}", (F(case, f"accuracy_{name}"), *gap)))
    return rows


_GAP = ("accuracy_gap_pp", "ci_low", "ci_high")
_ACCURACIES = (
    ("serial ResNet-20", "serial"),
    ("parareal, 4 parts", "parareal_4"),
    ("parareal, 4, units in coarse nets", "unit_coarse_4"),
    ("parareal, 4, without correction", "uncorrected_4"),
    ("serial ResNet-8", "resnet8"),
    ("serial ResNet-8, twice as wide", "wide_resnet8"),
    ("linear model", "linear"),
)


def _costs() -> list[Row]:
    networks = {
        "ResNet-20, digits": ("resnet20_digits", (2, 3, 4, 6)),
        "ResNet-20": ("resnet20", (3, 6, 9)),
        "ResNet-110": ("resnet110", (3, 6, 9, 18)),
        "ResNet-1001": ("resnet1001", (3, 6, 9, 18)),
        "VGG-16": ("vgg16", (2, 3, 4, 5)),
    }
    return [
        Row(
            "accuracy.rst",
            f"{re.escape(label)} +{parts} +",
            tuple(
                F("train.costs", f"{name}_{parts}_{what}")
                for what in ("flops", "critical", "layers", "coarse_over_fine")
            ),
        )
        for label, (name, counts) in networks.items()
        for parts in counts
    ]


ROWS = (*_depth(), *_gru(), *_xor(), *_accuracy(), *_costs())

PROSE = {
    "depth.rst": (
        Claim(
            "the 95 % intervals end at 0.12, 0.24 and 1.65",
            (SIZE, *(F("depth.dense", f"ratio_high_w{width}") for width in (16, 64, 128))),
        ),
        Claim(
            "in 70 cases the estimate is between 0.29 and 11 times as much for smooth activations, 1.6 in the "
            "median, but "
            "down to 0.02",
            (
                F("depth.estimate", "cases"),
                *(F("depth.estimate", f"estimated_over_true_error_{what}") for what in ("min_smooth", "max", "median")),
                F("depth.estimate", "estimated_over_true_error_min"),
            ),
        ),
        Claim(
            "by at most 0.71, 0.07 and 0.24 of the spread",
            tuple(F("depth.training", f"{task}_adaptive_gap") for task in ("peaks", "digits", "text")),
        ),
        Claim(
            "falls behind by 3.1 times the spread (on peaks 1.5, on digits 0.5)",
            tuple(F("depth.training", f"{task}_fixed_gap") for task in ("text", "peaks", "digits")),
        ),
    ),
    "ranks.rst": (
        Claim(
            "points, batch 16 - 2.03 - the serial chain takes 0.09 of",
            (SIZE, F("devices.scaling", "mgrit_2_ranks"), F("devices.scaling", "mgrit_2_ranks_vs_serial")),
        ),
        Claim(
            "parareal, 32 slices, K = 13 - 1.62 - serial 0.17;",
            (
                *(SIZE, F("devices.scaling", "parareal_iterations"), F("devices.scaling", "parareal_2_ranks")),
                F("devices.scaling", "parareal_2_ranks_vs_serial"),
            ),
        ),
        Claim("batch 1,024 - 1.79 -", (SIZE, F("devices.scaling", "parareal_net_2_ranks"))),
        Claim(
            "over their serial step - 0.41 - gradients 11 % off",
            (
                F("devices.vs_pipelining", "layer_parallel_vs_serial", inverse=True),
                F("devices.vs_pipelining", "gradient_error_layer_parallel", 100),
            ),
        ),
        Claim(
            "takes 0.57, 0.71, 0.77 and 0.78 of the time",
            tuple(F("devices.vs_pipelining", f"parareal_net_vs_pipeline_{n}") for n in (1, 2, 4, 8)),
        ),
    ),
    "recurrences.rst": (
        Claim(
            "chunks take 199 ms for inference and 1,834 ms for a training step, the loop 1,524 and 17,098, with "
            "the cell "
            "compiled 2,290 and 12,030, with blocks of 8 steps compiled 850 and 6,316, after 129 s in the compiler",
            (
                *(
                    F("sequence.compiled_cell", f"{a}_{b}_ms")
                    for a in ("ours", "loop")
                    for b in ("inference", "training")
                ),
                *(F("sequence.compiled_cell", f"compiled_cell_{b}_ms") for b in ("inference", "training")),
                SIZE,
                *(F("sequence.compiled_cell", f"compiled_loop_{b}_ms") for b in ("inference", "training")),
                F("sequence.compiled_cell", "compiled_loop_compile_s"),
            ),
        ),
        Claim(
            "19 ms for the sequence above where the steps one by one took 90, but the serial kernel is 21 times "
            "as fast",
            (
                F("sequence.gru_kernel", "ms_newton_fused_2_threads"),
                F("sequence.gru_kernel", "ms_newton_unfused_2_threads"),
                F("sequence.gru_kernel", "newton_vs_serial_kernel_2_threads", inverse=True),
            ),
        ),
    ),
    "training.rst": (
        Claim(
            "25,600 steps take 0.010 s serially in the fused kernel, and 0.051 s in parallel",
            (SIZE, F("runs.xor", "serial_25600_seconds"), F("runs.xor", "parallel_25600_seconds")),
        ),
    ),
    "accuracy.rst": (
        Claim(
            "give +0.06 again, and -0.44 to +0.55:",
            tuple(F("train.digits_cv_more", name) for name in ("accuracy_gap_pp", "ci_low", "ci_high")),
        ),
    ),
}

# How a paragraph that says *measured* begins, and why no case stands in it
UNRECORDED = {
    "A parareal network is another architecture": "what the page is about: its cases stand over its tables",
    "``cluttered_digits`` needs more than a linear model": "one seed, to choose a task; the case is train.cluttered_cv",
    "- **On a CPU the fused serial kernel wins**": "one ratio on one core, once, beside the recorded table",
    "With a number of iterations that follows": "gaps of depth.training, above; errors along one training, once",
    "* - a figure that is": "a legend",
    "For states of up to 8 numbers": "says so itself: once, not in the records",
    "The states are one array": "says so itself: once",
    "Adder, 24-128-64-12": "bench/results/adder_rows.jsonl, by runs.adder",
    "The rows of 160 steps": "names bench/results/adder_rows.jsonl",
}
