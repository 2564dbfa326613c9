# SPDX-License-Identifier: BSD-3-Clause
"""``pyparareal verify``: is a chain solved rightly in parallel? Of a model problem, or what a function returns."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from . import problems
from ._progress import Live, bar
from .verification import Verification, verify

METHODS = ("parareal", "mgrit", "newton")
EPILOG = """\
TARGET is a model problem (pyparareal solve --list shows them), FILE.py, FILE.py:FUNCTION or MODULE:FUNCTION. The
function (default: case) is called without arguments and returns what pyparareal.verify takes: a network with a batch
as (network, batch), a dict of the arguments of pyparareal.solve, or (model, data, dict of further arguments).

Exit status: 0 right, 1 a fault was found, 2 wrong arguments, 130 interrupted.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.error = partial(_one_line, parser)  # type: ignore[method-assign]
    option = parser.add_argument
    option("target", metavar="TARGET", help=f"one of {', '.join(problems.CATALOGUE)}; or a file or module, see below")
    option("--full", action="store_true", help="probe every step of a slice, not some")
    option("--json", action="store_true", help="print one JSON document and nothing else")
    option("--quiet", action="store_true", help="no line that says what is being done")
    group = parser.add_argument_group("solves only")
    option = group.add_argument
    option("--method", metavar="NAME", help=f"{', '.join(METHODS)} (default: that of the problem)")
    option("--m", type=int, help="fine steps per slice")
    option("--tol", type=float, help="tolerance of the method")
    option("--steps", type=int, metavar="N", help="fine time steps of a model problem")
    option("--points", type=int, metavar="N", help="unknowns per direction of space of a model problem")
    option("--dtype", metavar="TYPE", help="float64 or float32, of a model problem (default: float64)")


def main(args: argparse.Namespace) -> int:
    """Verify and report; 0 right, 1 not."""
    if args.method is not None and args.method not in METHODS:
        raise ValueError(f"method: got {args.method!r}, expected one of {', '.join(METHODS)}")
    model, data, more = _named(args) if args.target in problems.CATALOGUE else _own(args)
    with Live(False if args.json or args.quiet else None) as live:

        def progress(what: str, part: float) -> None:
            live.status(f"{bar(part)}  {what}")

        try:
            found: Verification = verify(model, data, quick=not args.full, progress=progress, **more)
        except TypeError as error:  # what steps raise is a finding: this is of the arguments
            raise ValueError(str(error)) from error
    print(json.dumps(found.as_dict(), indent=1) if args.json else found.text())
    return 0 if found.ok else 1


def _named(args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    problem = problems.model_problem(args.target, points=args.points, steps=args.steps)
    dtype = args.dtype or "float64"
    if dtype not in ("float64", "float32"):
        raise ValueError(f"dtype: got {dtype!r}, expected float64 or float32")
    arguments = {"what": f"{problem.name}: {problem.equation}", "method": problem.method} | problem.arguments()
    arguments["u0"] = arguments["u0"].astype(dtype)
    return arguments | _given(args), None, {}


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name in ("method", "m", "tol") if (value := getattr(args, name)) is not None}


def _own(args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    for name in ("steps", "points", "dtype"):
        if getattr(args, name) is not None:
            raise ValueError(f"{name}: only for a model problem, but the target is {args.target!r}")
    where, _, name = args.target.partition(":")
    function = getattr(_module(where, args.target), name or "case", None)
    if not callable(function):
        raise ValueError(f"TARGET: got {args.target!r}, but {where} has no function {name or 'case'}")
    returned = _asked(args.target, function)
    if not isinstance(returned, tuple):
        returned = (returned,)
    more = returned[-1] if len(returned) > 1 and isinstance(returned[-1], dict) else {}
    rest = returned[:-1] if len(returned) > 1 and isinstance(returned[-1], dict) else returned
    if len(rest) not in (1, 2):
        raise ValueError(
            f"TARGET: {args.target} returned {len(rest)} things, expected (model, data) or (model, data, dict)"
        )
    model, data = (*rest, None)[:2]
    if isinstance(model, dict):
        return model | _given(args), data, more
    return model, data, more | _given(args)


def _asked(target: str, function: Callable[[], Any]) -> Any:
    """What the user's code returns; its errors are none of a chain, and no fault that was found."""
    try:
        return function()
    except Exception as error:
        raise ValueError(f"TARGET: {target} raised {type(error).__name__}: {error} (--traceback says where)") from error


def _module(where: str, target: str) -> Any:
    """The file or module ``where``."""
    if where.endswith(".py"):
        path = Path(where)
        if not path.is_file():
            raise ValueError(f"TARGET: got {target!r}, but there is no file {where!r}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"TARGET: got {target!r}, expected a file of Python")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)
        sys.path.insert(0, str(path.parent.resolve()))
        try:
            _asked(target, partial(spec.loader.exec_module, module))
        finally:
            sys.path.pop(0)
        return module
    if ":" not in target:
        known = ", ".join(problems.CATALOGUE)
        raise ValueError(f"TARGET: got {target!r}, expected one of {known}, FILE.py or MODULE:FUNCTION")
    sys.path.insert(0, "")
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and where.split(".")[0] == error.name.split(".")[0]:
            raise ValueError(f"TARGET: got {target!r}, but there is no module {where!r}") from None
        raise
    finally:
        sys.path.pop(0)


def _one_line(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Instead of the usage, which would be longer than a screen."""
    parser.exit(2, f"{parser.prog}: error: {message} (--help shows the options)\n")
