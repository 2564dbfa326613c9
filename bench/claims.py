# SPDX-License-Identifier: BSD-3-Clause
"""Where each measured number of README.md comes from.

A claim quotes README and names, for every number in the quotation, the metric that it prints. Tests compare the two to
the printed digits, and require an entry for every number of every paragraph that says *measured*: a figure of README
without a record, or one that a new record has overtaken, fails.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# A number as README prints it; not a part of a word (ResNet-1001, FSDP2) and not code
NUMBER = re.compile(r"(?<![\w.`-])[-+]?\d[\d,]*(?:\.\d+)?(?![\w`]|\.\d)")


@dataclass(frozen=True)
class Figure:
    """``metric`` of ``case`` times ``scale``, or one over that."""

    case: str
    metric: str
    scale: float = 1.0
    inverse: bool = False

    def value(self, metrics: dict[str, float]) -> float:
        """The number that README should print, unrounded."""
        return self.scale * (1 / metrics[self.metric] if self.inverse else metrics[self.metric])


@dataclass(frozen=True)
class Claim:
    """``quote`` of README; ``figures`` are its numbers in order: a metric, or in words what else a number is."""

    quote: str
    figures: tuple[Figure | str, ...] = field(default=())


F, SIZE, PREDICTED = Figure, "size of what was run", "predicted by the command named beside it"

CLAIMS = (
    Claim(
        "Heat equation, 16,384 steps on 255 points, 2 cores of an AMD EPYC: a two-level MGRIT cycle takes 1.8 ms on "
        "one "
        "core (8 times faster than a plain C++ loop; one that measures at its end, as PyMGRIT does, 2.8 ms, 58 times "
        "faster than PyMGRIT with a pre-factored step), but a serial C++ solve takes 4.7 ms in all",
        (
            *(SIZE, SIZE, SIZE, F("mgrit.heat_cycle", "ms_two_level")),
            F("mgrit.heat_cycle", "ratio_to_cpp_loop", inverse=True),
            F("mgrit.vs_pymgrit", "ms_heat_two_level"),
            F("mgrit.vs_pymgrit", "heat_two_level"),
            F("mgrit.heat_cycle", "ms_serial"),
        ),
    ),
    Claim(
        "30 s on 2 cores: 99.2 % of 355 test images right against 98.6 % for the serial network (two images: no "
        "difference), a step 1.5 times as long (*measured*, `train.digits`), and 1.6 times faster than the serial step "
        "on 4 devices (*predicted*",
        (
            *(F("train.digits", "seconds"), SIZE),
            F("train.digits", "accuracy_parareal", 100),
            SIZE,
            F("train.digits", "accuracy_serial", 100),
            F("train.digits", "parareal_step_over_serial_step"),
            *(PREDICTED, SIZE),
        ),
    ),
    Claim(
        "in 6 parts takes 0.70 s per step of 8 images in two threads, the serial network 0.93 s with the same two "
        "(*measured*, `train.resnet1001`); in 3 parts it is slower",
        (
            *(SIZE, F("train.resnet1001", "seconds_parallel_6"), SIZE),
            *(F("train.resnet1001", "seconds_network"), SIZE),
        ),
    ),
    Claim(
        "gets 91.8 % right, four parts with the default maps 73.1 %, with one residual unit per coarse net 86.1 %. On "
        "digits no difference to the serial network could be shown (+0.06 points, 95 % interval -0.46 to +0.57",
        (
            F("train.curves_cv", "accuracy_serial"),
            F("train.curves_cv", "accuracy_parareal_4"),
            F("train.curves_cv", "accuracy_unit_coarse_4"),
            *(F("train.digits_cv", "accuracy_gap_pp"), SIZE),
            *(F("train.digits_cv", "ci_low"), F("train.digits_cv", "ci_high")),
        ),
    ),
    Claim(
        "Forward and backward of these 1,024 layers, batch 32, take 0.10 of the time of torch's loop over modules at "
        "width 16, 0.23 at 64 and 0.85 at 128, with gradients right to 0.7 % (*measured*, 2 cores, `depth.dense`). But "
        'on a CPU the same layers one after the other in one fused kernel (`mode="serial"`) take 0.05, 0.14 and 0.54',
        (
            *(SIZE, SIZE, F("depth.dense", "ratio_w16"), SIZE),
            *(F("depth.dense", "ratio_w64"), SIZE, F("depth.dense", "ratio_w128"), SIZE),
            *(F("depth.dense", "gradient_error", 100), SIZE),
            *(F("depth.dense", f"fused_serial_w{width}") for width in (16, 64, 128)),
        ),
    ),
    Claim(
        "Trained on peaks, digits (128 layers) and a text (a transformer), the loss of the adaptive network stays "
        "within "
        "0.71, 0.07 and 0.24 of the spread over three seeds of the serial one; with a fixed 2 + 2 iterations it strays "
        "by up to 3.1",
        (
            SIZE,
            *(F("depth.training", f"{task}_adaptive_gap") for task in ("peaks", "digits", "text")),
            *(SIZE, SIZE, F("depth.training", "text_fixed_gap")),
        ),
    ),
    Claim(
        "16,384 steps, batch 4, 64 numbers, float32, 2 cores (*measured*, `sequence.custom_cell`, `sequence.gru`): a "
        "cell of one's own 43 ms, its loop in Python 563 ms; `nn.GRU` 21 ms, torch's 319 ms, and there one fused "
        "serial "
        "kernel is what wins: chunks side by side take 22 ms",
        (
            *(SIZE, SIZE, SIZE, SIZE),
            *(F("sequence.custom_cell", f"{name}_inference_ms") for name in ("ours", "loop")),
            *(F("sequence.gru", f"{name}_inference_ms") for name in ("ours", "nn_gru", "ours_hybrid")),
        ),
    ),
    Claim(
        "25,600 steps take 0.010 s serially and 0.051 s in parallel (*measured*, 2 cores",
        (SIZE, F("runs.xor", "serial_25600_seconds"), F("runs.xor", "parallel_25600_seconds"), SIZE),
    ),
    Claim(
        "MGRIT 2.0 times as fast, parareal 1.6, **and the serial chain still 11 and 6 times as fast as these**; a "
        "step of "
        "a parareal network of two parts 1.8 times as fast, 1.3 times as fast as `torch.distributed.pipelining` with 4 "
        "or 8 micro-batches (whose network is the serial one); `LayerParallel` with 2 + 2 iterations takes 2.4 "
        "times its "
        "serial step, with gradients 11 % off",
        (
            *(F("devices.scaling", "mgrit_2_ranks"), F("devices.scaling", "parareal_2_ranks")),
            F("devices.scaling", "mgrit_2_ranks_vs_serial", inverse=True),
            F("devices.scaling", "parareal_2_ranks_vs_serial", inverse=True),
            F("devices.scaling", "parareal_net_2_ranks"),
            F("devices.vs_pipelining", "parareal_net_vs_pipeline_4", inverse=True),
            *(SIZE, SIZE, SIZE, SIZE),
            F("devices.vs_pipelining", "layer_parallel_vs_serial"),
            F("devices.vs_pipelining", "gradient_error_layer_parallel", 100),
        ),
    ),
    Claim(
        "at best 3.6 times faster on 40 processors, and next to nothing on Brusselator and Burgers",
        (PREDICTED, PREDICTED),
    ),
    Claim("gives about 1.1 on Lorenz and 2.8 on FitzHugh-Nagumo", (PREDICTED, PREDICTED)),
)


def plain(text: str) -> str:
    """Runs of white space as one space."""
    return " ".join(text.split())


def without_code(text: str) -> str:
    """``text`` with what stands in backticks blanked, character by character."""
    return re.sub(r"`[^`]*`", lambda found: " " * len(found[0]), text)


def numbers(text: str) -> list[str]:
    """The numbers that a text prints, in order, without years of papers."""
    return NUMBER.findall(re.sub(r"[A-Z]\w+ (19|20)\d\d\b", "", without_code(text)))


def agrees(printed: str, value: float) -> bool:
    """Whether ``value`` rounds to ``printed``: half a unit of its last digit, ties either way; 30 has two digits."""
    digits = printed.replace(",", "")
    unit = 10.0 ** -len(digits.partition(".")[2])
    return abs(float(digits) - value) <= unit / 2 * (1 + 1e-9)


def paragraphs(readme: str) -> list[str]:
    """Paragraphs, items and rows of tables, without blocks of code; white space as one space."""
    text = re.sub(r"^```.*?^```", "", readme, flags=re.DOTALL | re.MULTILINE)
    return [plain(part) for part in re.split(r"\n\s*\n|\n(?=- |\| )", text) if part.strip()]
