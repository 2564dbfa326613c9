# SPDX-License-Identifier: BSD-3-Clause
"""``pyparareal COMMAND``: one table of commands, each a module that is imported only when it is chosen."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from pyparareal._version import __version__

# A command's module has configure(parser) and main(args) -> exit status.
COMMANDS = {
    "train": ("pyparareal.nn.train_command", "train a parareal network and compare it with the serial network"),
    "solve": ("pyparareal.solve_command", "solve a model problem in parallel in time, watched and checked"),
    "runs": ("pyparareal.runs_command", "solve training steps in parallel and compare with serial training"),
    "verify": ("pyparareal.verify_command", "is a chain solved rightly in parallel? what is wrong, and where"),
    "profile": ("pyparareal.profile_command", "watch a solve, a training step or a program: where did the time go?"),
    "bench": ("pyparareal.bench_command", "run the measurements behind the figures, or compare two records of them"),
    "doctor": ("pyparareal._doctor", "show what is installed, what works, and how to mend what does not"),
}

# Modules the train extra brings; asked only after an import has failed.
_EXTRA_MODULES = ("torch", "sklearn", "scipy", "PIL", "safetensors", "matplotlib")

CALLERS_MISTAKE = 2
FAILED = 1
INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
CUT_OFF = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 caller's mistake, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="pyparareal", description="Serial chains made parallel.")
    parser.add_argument("--version", action="version", version=f"pyparareal {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    try:
        command: ModuleType | None = None
        for name, (module, text) in COMMANDS.items():
            subparser = commands.add_parser(name, help=text, description=text)
            if name == chosen:
                command = importlib.import_module(module)
                command.configure(subparser)
        args = parser.parse_args(argv)
        if command is None:
            parser.error(f"COMMAND: got {args.command!r}, expected one of {', '.join(COMMANDS)}")
        status = int(command.main(args))
        sys.stdout.flush()  # a closed pipe shows here, and not after the last line of the program
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as head, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CUT_OFF
    except Exception as error:
        if "--traceback" in argv or not (message := _explain(error)):
            raise
        print(f"pyparareal: error: {message}", file=sys.stderr)
        return CALLERS_MISTAKE if isinstance(error, ValueError) else FAILED


def _explain(error: Exception) -> str:
    """The line to print instead of a traceback, or nothing where a traceback is the better report."""
    from pyparareal.errors import PararealError

    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "").partition(".")[0]
        return f"{missing} is missing; pip install 'pyparareal[train]'" if missing in _EXTRA_MODULES else ""
    return str(error) if isinstance(error, (PararealError, ValueError, OSError)) else ""
