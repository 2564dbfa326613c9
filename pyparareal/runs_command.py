# SPDX-License-Identifier: BSD-3-Clause
"""``pyparareal runs``: training steps solved in parallel, watched, and compared with serial training."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from . import runs_report, solve_report
from ._progress import Live, wanted

PROBLEMS = ("xor", "adder", "digits")
EPILOG = """\
Exit status: 0 converged or trained serially, 1 failed, 2 wrong arguments, 130 interrupted.
Solvers are those of Schroder, arXiv 1708.02276: naive, solver1, solver2, slow.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.error = partial(_one_line, parser)  # type: ignore[method-assign]
    option = parser.add_argument
    option("--problem", default="xor", metavar="NAME", help=f"{', '.join(PROBLEMS)} (default: xor)")
    option("--steps", type=int, default=400, metavar="N", help="optimiser updates (default: 400)")
    option("--seed", type=int, default=1, metavar="S", help="of the initial weights, adder: and examples (default: 1)")
    option("--optimiser", default="sgd", metavar="NAME", help="sgd, momentum, nesterov, adam or adamw (default: sgd)")
    option("--lr", type=float, help="learning rate of the finest level (default: the problem's)")
    option("--rules", default="solver1", metavar="NAME", help="naive, solver1, solver2 or slow (default: solver1)")
    option("--alpha-max", type=float, metavar="A", help="largest learning rate of a level (default: the problem's)")
    option("--batch", type=int, metavar="B", help="examples per step; solver2 only (default: 1)")
    option("--m", type=int, default=2, help="coarsening factor (default: 2)")
    option("--levels", type=int, metavar="L", help="at most so many (default: until one has at most 10 steps)")
    option("--cycle", default="F", metavar="KIND", help="V, F or W (default: F)")
    option("--tol", type=float, help="of the residual, per root of the steps (default: 1e-9)")
    option("--max-iterations", type=int, default=50, metavar="K", help="cycles per window (default: 50)")
    option("--guess", default="zeros", metavar="KIND", help="zeros, constant or coarse (default: zeros)")
    option("--window", type=int, metavar="N", help="steps solved at a time (default: all that memory holds)")
    option("--deterministic", action="store_true", help="the same bits whatever shares a call")
    option("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, ... or auto (default: cpu)")
    group = parser.add_argument_group("output")
    option = group.add_argument
    option("--checkpoint", type=Path, metavar="FILE", help="written after every cycle; the run goes on from it")
    option("--json", action="store_true", help="print one JSON document and nothing else")
    option("--plot", type=Path, metavar="FILE", help="draw residuals and speed-ups; needs matplotlib")
    option("--quiet", action="store_true", help="no line per cycle")
    option("--progress", action="store_true", help="lines also where standard error is no terminal")


def main(args: argparse.Namespace) -> int:
    """Train in parallel and serially, and report; 0 trained, 1 not."""
    if args.problem not in PROBLEMS:
        raise ValueError(f"problem: got {args.problem!r}, expected one of {', '.join(PROBLEMS)}")
    solve_report.require_drawable(args.plot)
    if args.plot is not None and args.plot.is_dir():
        raise ValueError(f"plot: got {str(args.plot)!r}, a folder, expected a file")
    shown = wanted(args.quiet, args.progress)
    problem, runs = runs_of(args)
    with Live(shown) as live:
        progress = runs_report.Progress(live, problem, runs) if live.active else None
        result = runs.run(checkpoint=args.checkpoint, callback=progress)
        live.status("serial training, to compare", at_once=True)
        outcome = runs_report.outcome(problem, runs, result)
    print(json.dumps(outcome.as_dict(), indent=1) if args.json else outcome.text(), flush=True)
    if args.plot is not None:  # last: the numbers are not lost with the picture
        runs_report.draw(args.plot, outcome)
        if not args.json:
            print(f"wrote {args.plot}")
    if result.status.ok:
        return 0
    print(f"pyparareal runs: not trained: {result.message}", file=sys.stderr)
    return 1


def runs_of(args: argparse.Namespace) -> tuple[Any, Any]:
    """The problem and its :class:`pyparareal.training.TrainingRuns`."""
    from .nn.training_job.device import resolve
    from .training import problems, rules

    if not 0 <= args.seed < 2**32:  # what NumPy's generator takes
        raise ValueError(f"seed: got {args.seed}, expected an integer from 0 to {2**32 - 1}")
    device = resolve(args.device, "float32")
    problem = problems.CATALOGUE[args.problem](seed=args.seed).to(device)
    found = rules.find(args.rules)
    if args.batch is not None:
        if found.data == "full":
            raise ValueError(f"batch: got {args.batch} for --rules {args.rules}, whose steps see all examples")
        found = dataclasses.replace(found, batch=args.batch)
    options = {
        name: getattr(args, name)
        for name in ("optimiser", "m", "levels", "cycle", "tol", "max_iterations", "guess", "window", "deterministic")
    }
    if args.lr is not None:
        options["lr"] = args.lr
    alpha_max = problem.alpha_max if args.alpha_max is None else args.alpha_max
    return problem, problem.runs(args.steps, rules=found, alpha_max=alpha_max, **options)


def _one_line(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Instead of the usage, which would be longer than a screen."""
    parser.exit(2, f"{parser.prog}: error: {message} (--help shows the options)\n")
