# SPDX-License-Identifier: BSD-3-Clause
"""What ``pyparareal runs`` shows: a line per cycle, the final table, the JSON document, the picture."""

from __future__ import annotations

import math
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import solve_report
from ._progress import Live
from ._version import __version__
from .problems.pictures import COLOURS, draw_residuals


class Progress:
    """A callback of ``TrainingRuns.run`` that shows every cycle, with a heading for every window."""

    def __init__(self, live: Live, problem: Any, runs: Any) -> None:
        self.live, self.problem, self.runs = live, problem, runs
        self.first, self.lines = -1, solve_report.Progress(live)

    def __call__(self, first: int, k: int, residual: float) -> None:
        if first != self.first:
            self.first, steps = first, min(self.runs.window, self.runs.settings.steps - first)
            self.lines = solve_report.Progress(self.live, self.runs.settings.max_iterations)
            self.lines.tol = self.runs.settings.tol * math.sqrt(steps)
            self.lines.heading = heading(self.problem, self.runs) if first == 0 else ""
            if self.runs.window < self.runs.settings.steps:
                self.lines.heading += f"\nsteps {first} to {first + steps}"
            if k > 1:
                self.live.line(f"{self.lines.heading}\ncycle   residual  factor")
        self.lines(k, None, residual)


def heading(problem: Any, runs: Any) -> str:
    """What is trained and how, two lines."""
    s = runs.settings
    rates = f"learning rate {runs.step.largest_alpha(s.steps):g}, at most {runs.rules.alpha_max:g}"
    return (
        f"{problem.name}: {runs.weights.size} weights, {len(runs.examples.x)} examples, "
        f"{'all of them' if runs.examples.order is None else runs.examples.order.shape[1]} in a step\n"
        f"{s.steps} steps of {runs.optimiser}, {rates}; {s.cycle}-cycles, nu = {s.nu}, m = {s.m}, "
        f"tolerance {s.tol * math.sqrt(runs.window):.2g}"
    )


@dataclass(frozen=True)
class Outcome:
    """A run with its serial twin, its speed, and accuracies where there are held-out examples."""

    problem: Any
    runs: Any
    result: Any
    difference: float
    speed: Any
    accuracy: float | None
    serial_accuracy: float | None

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON; NaN and infinity become null."""
        r, speed, settings = self.result, self.speed, self.runs.settings
        return {
            "pyparareal": __version__,
            "problem": self.problem.name,
            "steps": settings.steps,
            "weights": self.runs.weights.size,
            "optimiser": repr(self.runs.optimiser),
            "learning_rates": list(r.windows[0].alphas),
            "cycle": settings.cycle,
            "m": settings.m,
            "tol": settings.tol,
            "path": r.path,
            "why_not_fused": r.why_not_fused,
            "status": r.status.name.lower(),
            "message": r.message,
            "converged": r.status.name == "CONVERGED",
            "windows": [
                {
                    "first": w.first, "steps": w.steps, "status": w.status.name.lower(),
                    "failure": None if w.failure is None else w.failure.name.lower(), "iterations": w.iterations,
                    "residuals": [_finite(x) for x in w.residuals], "levels": w.levels, "exact": w.exact,
                    "steps_per_level": list(w.steps_per_level),
                }
                for w in r.windows
            ],
            "largest_difference_to_serial": _finite(self.difference),
            "accuracy": self.accuracy,
            "accuracy_serial": self.serial_accuracy,
            "seconds_measured": {"parallel": r.seconds, "serial": dict(speed.serial)},
            "serial_steps_timed": dict(speed.serial_steps),
            "speedup_measured": _finite(speed.measured),
            "speedup_sigma": _finite(speed.sigma),
            "seconds_driver": _finite(speed.driver),
            "speedup_predicted": [
                {"processors": p.processors, "speedup": _finite(p.speedup), "efficiency": p.speedup / p.processors}
                for p in speed.predictions
            ],
            "verdict": self.verdict(),
        }  # fmt: skip

    def text(self) -> str:
        """The final table and, in plain words, what it means."""
        r, speed = self.result, self.speed
        residuals = [x for w in r.windows for x in w.residuals]
        cycles = ", ".join(str(w.iterations) for w in r.windows[:8]) + (", ..." if len(r.windows) > 8 else "")
        last = f", last residual {residuals[-1]:.2e}" if residuals else ""
        rows = [
            ("status", r.message),
            ("cycles", f"{cycles}{last}; {', '.join(map(str, r.steps_taken))} steps taken on the levels"),
            ("error", f"{self.difference:.2e} from the weights of serial training (largest)"),
        ]
        if self.accuracy is not None:
            rows.append(("accuracy", f"{self.accuracy:.4f}, serial {self.serial_accuracy:.4f}, on held-out examples"))
        rows.append(("step", "one kernel for all slices" if r.path == "fused" else f"torch ({r.why_not_fused})"))
        how = "serially, in windows," if self.is_serial else "in parallel"
        rows.append(("measured", f"{r.seconds:.3g} s {how} on one device"))
        rows += [("", f"{seconds:.3g} s serially by {name}") for name, seconds in speed.serial.items()]
        if speed.predictions:
            found = ", ".join(f"{p.speedup:.2g} on {p.processors}" for p in speed.predictions)
            over = f"over {speed.best_serial}, from the steps measured here"
            rows.append(("predicted", f"speed-up {found} processors {over}{self._driver()}"))
        if math.isfinite(speed.sigma) and not self.is_serial:
            rows.append(("", f"speed-up {speed.sigma:.2g} by the paper's count of steps, a processor per slice"))
        wrapped = [(name, textwrap.wrap(value, 100) or [""]) for name, value in rows]
        table = "\n".join(
            f"{name if i == 0 else '':<11} {line}" for name, part in wrapped for i, line in enumerate(part)
        )
        return f"\n{table}\n\n{textwrap.fill(self.verdict(), 100)}"

    @property
    def is_serial(self) -> bool:
        """Whether no window had a coarse level."""
        return bool(self.result.status.name == "SERIAL")

    def _driver(self) -> str:
        """What the measured run has and the predicted ones have not."""
        speed = self.speed
        if not speed.driver > 0:
            return ", without driver overhead"
        return (
            f", without driver overhead; measured on 1: {speed.measured:.2g}, with {speed.driver:.2g} s of driver "
            f"overhead in {speed.parallel:.2g} s"
        )

    def verdict(self) -> str:
        """Whether it pays, here and elsewhere."""
        speed = self.speed
        if not self.result.status.ok:
            return f"Not trained: {self.result.status.value}."
        best_serial = f"the best serial program ({speed.best_serial})"
        here = (
            f"Here it was {speed.measured:.3g} times as fast as {best_serial}."
            if speed.measured >= 1
            else f"Here it took {1 / speed.measured:.3g} times as long as {best_serial}."
        )
        if self.is_serial:
            return f"Nothing was solved in parallel. {here}"
        if not speed.predictions:
            return here
        best = max(speed.predictions, key=lambda p: p.speedup)
        share = f"{100 * best.speedup / best.processors:.2g} % of each processor"
        if best.speedup < 1:
            either = " either" if speed.measured < 1 else ", as predicted"
            return f"{here} It does not pay with {best.processors} processors{either}."
        most = f"at most {best.speedup:.2g} times, {share}, without driver overhead"
        return f"{here} It may pay where {best.processors} processors are idle: {most}."


def outcome(problem: Any, runs: Any, result: Any) -> Outcome:
    """``result`` beside serial training, both measured."""
    from .training.speed import speed

    measured = speed(runs, result)
    serial = runs.serial()
    serial_accuracy = problem.accuracy() if problem.test else None
    if result.status.ok:
        result.load(runs.module)
    accuracy = problem.accuracy() if problem.test and result.status.ok else None
    difference = max(float((result.weights[name] - serial.weights[name]).abs().max()) for name in serial.weights)
    return Outcome(problem, runs, result, difference, measured, accuracy, serial_accuracy)


def draw(path: Path, found: Outcome) -> None:
    """Residual per cycle and speed-up by processors; an old picture stays until the new one is whole."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    residuals = [x for window in found.result.windows for x in window.residuals]
    settings, predictions = found.runs.settings, found.speed.predictions
    draw_residuals(left, residuals, settings.tol * math.sqrt(found.runs.window), "residual")
    left.set_title(f"{found.problem.name}, {settings.steps} steps: {found.result.status.name.lower()}")
    label = "predicted, without driver overhead"
    right.plot(
        [p.processors for p in predictions], [p.speedup for p in predictions], "o-", color=COLOURS[0], label=label
    )
    right.axhline(1, color=COLOURS[-1], lw=1)
    right.axhline(found.speed.measured, color=COLOURS[1], ls="--", label="measured on one device, driver included")
    if math.isfinite(found.speed.sigma):
        right.axhline(
            found.speed.sigma, color=COLOURS[2], ls=":", label="the paper's count of steps, a processor per slice"
        )
    over = f"speed-up over {found.speed.best_serial}"
    right.set(xscale="log", xlabel="processors", ylabel=over, title="predicted and measured")
    right.legend(fontsize="small")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(unfinished, dpi=110)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
