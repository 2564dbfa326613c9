# SPDX-License-Identifier: BSD-3-Clause
"""What ``pyparareal solve`` shows: a line per cycle, the final table, the JSON document, the picture."""

from __future__ import annotations

import math
import os
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import arrays, problems
from ._progress import Live, seconds_words
from ._version import __version__
from .mgrit import MGRIT
from .problems import ModelProblem
from .problems.pictures import draw_residuals, draw_solution
from .solution import Solution, Status

Array = Any
BAR = 40  # characters from the tolerance to the first residual


class Progress:
    """A callback of :func:`pyparareal.solve`: a line per cycle, and on a terminal a bar and the time that is left.

    Parameters
    ----------
    limit : most cycles that are taken, if that is known
    """

    def __init__(self, live: Live, limit: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.live, self.limit, self.tol, self.heading = live, limit, 0.0, ""
        self.first, self.last = math.nan, math.nan
        self._clock, self._begin = clock, clock()

    def __call__(self, k: int, u: Array, residual: float) -> None:
        if k == 1:
            self.live.line(f"{self.heading}\ncycle   residual  factor")
        if math.isnan(self.first):
            self.first = residual
        factor = residual / self.last if 0 < self.last < math.inf and math.isfinite(residual) else math.nan
        shown = "-" if math.isnan(residual) else f"{residual:.2e}"
        line = f"{k:5d} {shown:>10} {'-' if math.isnan(factor) else f'{factor:.3f}':>7}"
        self.live.line(f"{line}  {self._bar(residual)}".rstrip() if self.live.on_terminal else line)
        self.last = residual
        self.live.status(self._rest(k, residual, factor), at_once=True)

    def _rest(self, k: int, residual: float, factor: float) -> str:
        """Cycles and seconds that are left if the residual goes on falling by ``factor``, or up to the limit."""
        elapsed = self._clock() - self._begin
        measured = "" if math.isnan(residual) else f"residual {residual:.2e}, "  # the first cycle may have none
        said = f"cycle {k}, {measured}{seconds_words(elapsed)}"
        left = None if self.limit is None else self.limit - k
        if 0 < factor < 1 and 0 < self.tol < residual:
            by_rate = math.ceil(math.log(self.tol / residual) / math.log(factor))
            left = by_rate if left is None else min(left, by_rate)
        if left is None or not residual > self.tol:
            return said
        return f"{said}; about {left} cycle{'s' * (left != 1)}, {seconds_words(elapsed / k * left)} left"

    def _bar(self, residual: float) -> str:
        """From the tolerance (or, without one, 15 digits below the first residual) up to ``residual``, in decades."""
        if not (residual > 0 and math.isfinite(residual) and self.first > 0):
            return ""
        bottom = min(self.tol, self.first / 10) if self.tol > 0 else self.first * 1e-15
        share = math.log(residual / bottom) / math.log(self.first / bottom)
        return "|" + "#" * min(max(round(BAR * share), 0), 2 * BAR)


def heading(problem: ModelProblem, integrator: str | None, method: MGRIT | str, case: dict[str, Any]) -> str:
    """The equation and what is about to be done, two lines."""
    grid, scheme = case["grid"], integrator or next(iter(problem.integrators))
    how = method if isinstance(method, str) else f"MGRIT ({method.cycle}-cycles, nu = {method.nu})"
    return (
        f"{problem.name}: {problem.equation}\n"
        f"{grid.steps} steps of {scheme} on [{grid.t0:g}, {grid.t1:g}], {problem.u0.size} unknowns; {how}, "
        f"m = {case['m']}, tolerance {case['tol']:g}"
    )


@dataclass(frozen=True)
class Outcome:
    """Both solves with their problem and seconds."""

    problem: ModelProblem
    integrator: str | None
    method: MGRIT | str
    case: dict[str, Any]
    solution: Solution
    serial: Solution
    seconds: float
    serial_seconds: float

    @property
    def what(self) -> str:
        """What the method measures."""
        return "largest change of a slice" if self.method == "parareal" else "residual"

    @cached_property
    def steps(self) -> list[dict[str, float]]:
        """Per level: steps of its grid, steps taken, those one after the other, and the cost of one in fine steps."""
        stats, phi, grid = self.solution.stats, self.case["fine"], self.case["grid"]
        taken = stats.steps_per_level or (stats.fine_steps, stats.coarse_steps)
        critical = stats.critical_steps_per_level or (stats.critical_fine_steps, stats.critical_coarse_steps)
        m, unit, rows = self.case["m"], getattr(phi, "substeps", 1), []
        for level, (all_steps, waiting) in enumerate(zip(taken, critical, strict=True)):
            cost = getattr(phi, "substeps", 1) / unit
            rows.append({"grid": grid.steps, "taken": all_steps, "one_after_another": waiting, "cost": cost})
            if level + 1 < len(taken):
                factor = m[min(level, len(m) - 1)] if isinstance(m, tuple) else m
                phi, grid = phi.rediscretise(factor), grid.coarsen(factor)
        return rows

    @cached_property
    def predicted(self) -> list[tuple[int, float]]:
        """Processors and the speed-up they allow with free communication, counted in fine steps.

        MGRIT takes one level after the other, and no level is done before its work is shared out, nor before what has
        to wait for one another. Parareal starts a slice as soon as its coarse step is there (pipelining), so that only
        ``slices + K`` coarse steps wait: :func:`pyparareal.predicted_speedup`.
        """
        stats, rows, found = self.solution.stats, self.steps, []
        for processors in [p for p in (4, 16, 64, 256) if p < stats.slices] + [stats.slices]:
            if self.method == "parareal":
                waiting = stats.slices + self.solution.iterations
                span = rows[0]["one_after_another"] + waiting * rows[1]["cost"]
                cost = max(span, sum(row["cost"] * row["taken"] for row in rows) / processors)
            else:
                cost = sum(row["cost"] * max(row["one_after_another"], row["taken"] / processors) for row in rows)
            found.append((processors, stats.serial_steps / cost if cost else math.nan))
        return found

    @cached_property
    def errors(self) -> dict[str, float]:
        """Of the solution against the serial one (largest), and of both against the truth (RMS, largest over time)."""
        u = arrays.to_numpy(self.solution.u)
        rows = np.searchsorted(self.serial.points, self.solution.points)
        chain = arrays.to_numpy(self.serial.u)[rows]
        with np.errstate(all="ignore"):
            return {
                "to_serial": float(np.abs(u.astype(np.float64) - chain).max()),
                "to_truth": float(self.problem.error(self.solution.t, u).max()),
                "serial_to_truth": float(self.problem.error(self.solution.t, chain).max()),
            }

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON; NaN and infinity become null."""
        s, stats = self.solution, self.solution.stats
        return {
            "pyparareal": __version__,
            "problem": self.problem.name,
            "equation": self.problem.equation,
            "integrator": self.integrator or next(iter(self.problem.integrators)),
            "dtype": str(s.u.dtype),
            "unknowns": int(self.problem.u0.size),
            "method": "parareal" if self.method == "parareal" else "mgrit",
            "m": self.case["m"],
            "tol": self.case["tol"],
            "status": s.status.name.lower(),
            "message": s.status.value,
            "converged": s.status.ok,
            "iterations": s.iterations,
            "slices": stats.slices,
            "residuals": [_finite(r) for r in s.residuals],
            "levels": self.steps,
            "errors": {key: _finite(value) for key, value in self.errors.items()} | {"truth": self.problem.truth_is},
            "seconds_measured": {"solve": self.seconds, "serial": self.serial_seconds},
            "speedup_predicted": [{"processors": p, "at_most": _finite(x)} for p, x in self.predicted],
            "verdict": self.verdict(),
        }

    def text(self) -> str:
        """The final table and, in plain words, what it means."""
        s, e = self.solution, self.errors
        last = f", last {self.what} {s.residuals[-1]:.2e}" if s.residuals else ""
        truth = {
            "exact": "the exact solution",
            "reference": "a reference solution",
            "semi-discrete": "a reference with the same points in space",
        }[self.problem.truth_is]
        rows = [
            ("status", s.status.value),
            ("iterations", f"{s.iterations} for {s.stats.slices} slices{last} (tolerance {self.case['tol']:g})"),
            ("levels", f"{'steps':>8} {'taken':>8} {'one after another':>19} {'cost of one':>13}"),
            *(
                ("", f"{row['grid']:8.0f} {row['taken']:8.0f} {row['one_after_another']:19.0f} {row['cost']:13g}")
                for row in self.steps
            ),
            ("error", f"{e['to_serial']:.2e} from the serial solution (largest)"),
            ("", f"{e['to_truth']:.2e} from {truth}; the serial solution {e['serial_to_truth']:.2e} (RMS)"),
            ("measured", f"{self.seconds:.3g} s; serial {self.serial_seconds:.3g} s (one run each on one device;"),
            ("", "serial: the same Python steps, no compiled program)"),
            ("predicted", "speed-up at most " + ", ".join(f"{x:.2g} on {p}" for p, x in self.predicted)),
            ("", "processors, with free communication"),
        ]
        table = "\n".join(f"{name:<11} {value}" for name, value in rows)
        return f"\n{table}\n\n{textwrap.fill(f'{self.verdict()} {self.problem.remark}', 100)}"

    def verdict(self) -> str:
        """Whether it pays, and what the measured seconds say about that."""
        if not self.solution.status.ok:
            return f"Not solved after {self.solution.iterations} iterations: {self.solution.status.value}."
        if self.solution.status is Status.SERIAL:
            return "There is only one level, so it was solved serially."
        processors, best = max(self.predicted, key=lambda row: row[1])
        if best < 1:
            pays = (
                f"It does not pay: even on {processors} processors with free communication it would take "
                f"{1 / best:.2g} times as long as the serial chain."
            )
        elif best < 2:
            pays = f"It hardly pays: at best {best:.2g} times faster, on {processors} processors."
        else:
            pays = f"It may pay: at best {best:.2g} times faster, on {processors} processors."
        ratio = self.seconds / self.serial_seconds
        if ratio >= 1:
            return f"{pays} Here one device did all the work, in {ratio:.2g} times the serial time."
        return (
            f"{pays} Here it took {ratio:.2g} of the serial time because one call serves all slices; "
            "a compiled serial program would save those calls without iterating."
        )


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def catalogue() -> list[dict[str, Any]]:
    """The problems as rows for ``--list``."""
    rows = []
    for name in problems.CATALOGUE:
        p = problems.model_problem(name)
        rows.append(
            {
                "name": name,
                "equation": p.equation,
                "integrators": list(p.integrators),
                "method": p.method,
                "steps": p.grid.steps,
                "m": p.m,
                "levels": p.levels,
                "unknowns": int(p.u0.size),
                "solution": p.truth_is,
            }
        )
    return rows


def catalogue_text() -> str:
    """The problems, two lines each; the first integrator is the default."""
    return "\n".join(
        f"{row['name']:<13} {row['equation']}\n{'':<13} {row['method']}, {row['steps']} steps, m = {row['m']}, "
        f"{row['unknowns']} unknowns; {', '.join(row['integrators'])}; {row['solution']} solution"
        for row in catalogue()
    )


def require_drawable(path: Path | None) -> None:
    """Refuse a picture that could not be written, before anything is computed."""
    if path is None:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix[1:].lower() not in known:
        raise ValueError(f"plot: got {str(path)!r}, expected a name that ends in .png, .pdf or .svg")
    if not path.parent.is_dir():
        raise ValueError(f"plot: got {str(path)!r}, but there is no folder {str(path.parent)!r}")


def draw(path: Path, outcome: Outcome) -> None:
    """Residual history and solution; an old picture stays until the new one is whole."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_residuals(left, outcome.solution.residuals, outcome.case["tol"], outcome.what)
    left.set_title(outcome.solution.status.name.lower())
    u, marked = (np.where(np.isfinite(v), v, np.nan) for v in (outcome.serial.u, outcome.solution.u))
    draw_solution(right, outcome.problem, outcome.serial.t, u, outcome.solution.t, marked)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(unfinished, dpi=110)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
