# SPDX-License-Identifier: BSD-3-Clause
"""``pyparareal bench``: the measurements behind the figures, run or compared; they are part of the source tree only."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

EPILOG = """\
Exit status: 0 all ran and agree with the reference (or, comparing, nothing is worse), 1 not, 2 wrong arguments,
130 interrupted. bench/README.md says what a result holds.
"""
SUITES = ("quick", "full", "gpu", "multi_gpu")  # those of bench/cases, which a wheel has not


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options: those of ``bench/run.py``, and ``--compare`` with those of ``bench/compare.py``."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    option = parser.add_argument
    option("--list", action="store_true", help="names, suites and devices of the cases")
    option("--case", action="append", metavar="NAME", help="only this case (may be repeated)")
    option("--suite", choices=SUITES, help="run a suite (default: quick)")
    option("--json", nargs="?", const="-", metavar="FILE", help="write the results here, else to standard output")
    option("--quiet", action="store_true", help="no progress")
    option("--progress", action="store_true", help="progress also where standard error is no terminal")
    group = parser.add_argument_group("comparing")
    option = group.add_argument
    option("--compare", nargs=2, metavar=("OLD", "NEW"), help="two files of results, or COMMIT:PATH")
    option("--metric", action="append", metavar="TEXT", help="only times and metrics whose name has TEXT")
    option("--threshold", type=float, metavar="SHARE", help="largest SAME (default: 0.03)")
    option("--all", action="store_true", help="also metrics without a verdict")
    option("--force", action="store_true", help="compare times of different machines")


def main(args: argparse.Namespace) -> int:
    """Run ``bench/run.py`` or ``bench/compare.py`` of the tree this package is in; its exit status."""
    program, words = ("compare", _comparison(args)) if args.compare else ("run", _run(args))
    return int(_load(program).main(words))


def _run(args: argparse.Namespace) -> list[str]:
    for name in ("metric", "threshold", "all", "force"):
        if getattr(args, name):
            raise ValueError(f"{name}: only with --compare")
    if sum(map(bool, (args.list, args.case, args.suite))) > 1:
        raise ValueError("list, case, suite: got more than one of them, expected at most one")
    words = [f"--{name}" for name in ("list", "quiet", "progress") if getattr(args, name)]
    words += [word for name in args.case or () for word in ("--case", name)]
    words += ["--suite", args.suite] if args.suite else []
    return words + (["--json", args.json] if args.json else [])


def _comparison(args: argparse.Namespace) -> list[str]:
    if args.list or args.suite or args.json not in (None, "-"):
        raise ValueError("compare: not with --list, --suite or a file for --json")
    words = list(args.compare) + [f"--{name}" for name in ("all", "force", "json") if getattr(args, name)]
    words += [
        word for name in ("case", "metric") for value in getattr(args, name) or () for word in (f"--{name}", value)
    ]
    return words + (["--threshold", str(args.threshold)] if args.threshold is not None else [])


def _load(program: str) -> ModuleType:
    """``bench.<program>`` of the source tree, found beside the package and not through the path."""
    tree = Path(__file__).resolve().parents[1] / "bench"
    if not (tree / f"{program}.py").is_file():
        raise FileNotFoundError(
            "the cases are no part of an installed pyparareal: they are in the folder bench of its source tree; "
            "there, run 'pip install -e .' or 'python bench/run.py'"
        )
    if "bench" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "bench", tree / "__init__.py", submodule_search_locations=[str(tree)]
        )
        assert spec is not None  # the file is there
        sys.modules["bench"] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"bench.{program}")
