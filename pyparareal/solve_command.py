# SPDX-License-Identifier: BSD-3-Clause
"""``pyparareal solve``: a model problem solved in parallel in time, watched, and compared with the serial chain."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from . import problems, solve_report
from ._progress import Live, wanted
from .mgrit import MGRIT
from .problems import ModelProblem
from .solver import serial_solve, solve

Array = Any
METHODS = ("parareal", "mgrit")
DTYPES = ("float64", "float32")
ONLY_MGRIT = ("levels", "cycle", "nu", "omega", "nested")

EPILOG = """\
Exit status: 0 converged, 1 not converged or failed, 2 wrong arguments, 130 interrupted.
Options that are not given are those that suit the problem; --list shows the problems.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.error = partial(_one_line, parser)  # type: ignore[method-assign]
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"one of {', '.join(problems.CATALOGUE)}")
    option = parser.add_argument
    option("--list", action="store_true", help="show the problems and their integrators")
    option("--method", metavar="NAME", help=" or ".join(METHODS))
    option("--m", type=_row(int), metavar="M[,M...]", help="coarsening factor in time, one for all levels or one each")
    option("--tol", type=float, help="of the residual (MGRIT) or of the last change of a slice (parareal)")
    option("--max-iterations", type=int, metavar="K", help="default: as many as make every slice exact")
    option("--steps", type=int, metavar="N", help="fine time steps")
    option("--points", type=int, metavar="N", help="unknowns per direction of space")
    option("--integrator", metavar="NAME", help="of the fine steps, on all levels")
    option("--dtype", default="float64", metavar="TYPE", help=f"{' or '.join(DTYPES)} (default: float64)")
    group = parser.add_argument_group("MGRIT only")
    option = group.add_argument
    option("--levels", type=int, metavar="L", help="at most so many, the finest included")
    option("--cycle", metavar="KIND", help="V, F or W (default: V)")
    option("--nu", type=_row(int), metavar="N[,N...]", help="extra C- and F-relaxations: 0 is F-, 1 FCF- (default: 1)")
    option("--omega", type=_row(float), metavar="W[,W...]", help="weight of the C-relaxation (default: 1)")
    option("--nested", action="store_true", default=None, help="start on the coarsest level and go up")
    group = parser.add_argument_group("output")
    option = group.add_argument
    option("--json", action="store_true", help="print one JSON document and nothing else")
    option("--plot", type=Path, metavar="FILE", help="draw residuals and solution; needs matplotlib")
    option("--quiet", action="store_true", help="no line per cycle")
    option("--progress", action="store_true", help="lines also where standard error is no terminal")


def _row(number: Callable[[str], Any]) -> Callable[[str], Any]:
    """One number, or several as a tuple."""

    def read(text: str) -> Any:
        row = tuple(number(word) for word in text.split(","))
        return row if len(row) > 1 else row[0]

    read.__name__ = f"{number.__name__} or row of {number.__name__}s"  # what argparse calls it in its errors
    return read


def main(args: argparse.Namespace) -> int:
    """Solve and report; 0 converged, 1 not."""
    if args.list:
        print(json.dumps(solve_report.catalogue(), indent=1) if args.json else solve_report.catalogue_text())
        return 0
    if args.name is None:
        raise ValueError(f"NAME: got nothing, expected one of {', '.join(problems.CATALOGUE)} (--list shows more)")
    problem = problems.model_problem(args.name, points=args.points, steps=args.steps)
    method = method_of(args, problem)
    solve_report.require_drawable(args.plot)
    try:
        with Live(wanted(args.quiet, args.progress)) as live:
            outcome = run(problem, method, args, live)
    except MemoryError:
        print("pyparareal solve: error: not enough memory for so many points and steps", file=sys.stderr)
        return 1
    if args.plot is not None:
        solve_report.draw(args.plot, outcome)
    if args.json:
        print(json.dumps(outcome.as_dict(), indent=1))
    else:
        print(outcome.text())
        if args.plot is not None:
            print(f"wrote {args.plot}")
    if outcome.solution.status.ok:
        return 0
    print(f"pyparareal solve: not solved: {outcome.solution.status.value}", file=sys.stderr)
    return 1


def method_of(args: argparse.Namespace, problem: ModelProblem) -> MGRIT | str:
    """What ``solve`` takes as ``method``, or the mistake in the options."""
    name = args.method or problem.method
    if name not in METHODS:
        raise ValueError(f"method: got {name!r}, expected {' or '.join(METHODS)}")
    if args.dtype not in DTYPES:
        raise ValueError(f"dtype: got {args.dtype!r}, expected {' or '.join(DTYPES)}")
    given = {key: value for key in ONLY_MGRIT if (value := getattr(args, key)) is not None}
    if name == "parareal":
        if given:
            raise ValueError(f"{next(iter(given))}: only for --method mgrit, but the method is parareal")
        if isinstance(args.m, tuple):
            raise ValueError(f"m: got {','.join(map(str, args.m))}, but parareal has one coarsening factor")
        return name
    levels = len(args.m) + 1 if isinstance(args.m, tuple) else problem.levels
    return dataclasses.replace(MGRIT(levels=levels), **given)


def case_of(problem: ModelProblem, args: argparse.Namespace) -> dict[str, Any]:
    """What ``solve`` takes besides the method."""
    case = problem.arguments(args.integrator)
    case["u0"] = case["u0"].astype(args.dtype)
    if args.m is not None:
        case["m"] = args.m
    if args.tol is not None:
        case["tol"] = args.tol
    return case


def run(problem: ModelProblem, method: MGRIT | str, args: argparse.Namespace, live: Live) -> solve_report.Outcome:
    """Both solves, timed, one run each."""
    case = case_of(problem, args)
    progress = solve_report.Progress(live, args.max_iterations)
    progress.tol, progress.heading = case["tol"], solve_report.heading(problem, args.integrator, method, case)
    factor = case["m"][0] if isinstance(case["m"], tuple) else case["m"]
    with np.errstate(all="ignore"):  # a step that overflows is reported by its status
        begin = time.perf_counter()
        solution = solve(
            **case,
            method=method,
            max_iterations=args.max_iterations,
            on_failure="return",
            callback=progress if live.active else None,
        )
        live.status("the serial chain, to compare", at_once=True)
        middle = time.perf_counter()
        save = "coarse" if args.plot is None else "all"
        serial = serial_solve(case["fine"], case["u0"], case["grid"], m=factor, save=save, on_failure="return")
        end = time.perf_counter()
    return solve_report.Outcome(problem, args.integrator, method, case, solution, serial, middle - begin, end - middle)


def _one_line(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Instead of the usage, which would be longer than a screen."""
    parser.exit(2, f"{parser.prog}: error: {message} (--help shows the options)\n")
