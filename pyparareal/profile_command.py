# SPDX-License-Identifier: BSD-3-Clause
"""``pyparareal profile``: watch a solve, a training step or a program of your own; a page of where the time went."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from . import profile_cases, profile_runs
from ._progress import Live, wanted
from .nn.atomic_files import write_files
from .profiling.analysis import Analysis, analyse
from .profiling.analysis.wording import count, duration, percent
from .profiling.events import Record

MARK = b"pyparareal: where the time went"  # in the head of every report
SHOWN = 3  # findings in the summary

EPILOG = """\
CASE is one of those that --list shows, with its own options after it; SCRIPT.py runs as python would run it, with the
arguments after it. An argument that is also an option of this command goes after --.

  pyparareal profile train
  pyparareal profile heat-1d --levels 3 --m 8 --out heat.html
  pyparareal profile my_program.py data.csv --ranks 2 --out mine.html

Exit status: 0, or that of the program; 1 failed, 2 wrong arguments, 130 interrupted. The report is written anyway.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.usage = "pyparareal profile [options] CASE|SCRIPT.py [arguments]"
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.error = partial(_one_line, parser)  # type: ignore[method-assign]
    option = parser.add_argument
    option("what", nargs="?", metavar="CASE|SCRIPT.py", help="what to watch")
    option("--list", action="store_true", help="show the cases")
    option("--out", type=Path, metavar="FILE", help="the report (default: profile-NAME.html)")
    option("--json", type=Path, metavar="FILE", help="also the timeline, for ui.perfetto.dev; .json or .json.gz")
    option("--ranks", type=int, metavar="N", help="in so many processes of this machine, as torchrun would start them")
    option("--repeat", action="store_true", help="run it once before, unwatched: first calls are not in the report")
    option("--force", action="store_true", help="overwrite files that are none of ours")
    option("--quiet", action="store_true", help="nothing but the files")
    option("--progress", action="store_true", help="progress also where standard error is no terminal")
    option("--record", type=Path, help=argparse.SUPPRESS)  # of a rank: its timeline, and no report
    known = parser.parse_known_args
    parser.parse_known_args = partial(_split, parser, known)  # type: ignore[assignment,method-assign]


def _split(
    parser: argparse.ArgumentParser, known: Any, args: Sequence[str] | None = None, namespace: Any = None
) -> tuple[argparse.Namespace, list[str]]:
    """Our options from anywhere; what else there is, in its order, belongs to the case or script."""
    left = list(sys.argv[1:] if args is None else args)
    mine: list[str] = []
    rest: list[str] = []
    what: str | None = None
    while left:
        word = left.pop(0)
        option = parser._option_string_actions.get(word.partition("=")[0])
        if word == "--":
            rest += left
            break
        if option is not None:
            mine.append(word)
            if option.nargs is None and "=" not in word and left:
                mine.append(left.pop(0))
        elif what is None and not word.startswith("-"):
            what = word
        else:
            rest.append(word)
    if what is not None:
        mine.append(what)
    elif rest:
        parser.error(f"CASE: got {rest[0]!r} before any, expected a case or a script first")
    found, unknown = known(mine, namespace)
    found.rest = rest
    return found, unknown


def main(args: argparse.Namespace) -> int:
    """Watch, and report; the status of what was watched."""
    if args.list:
        print(profile_cases.listing())
        return 0
    if args.what is None:
        raise ValueError("CASE: got nothing, expected a case (--list shows them) or a SCRIPT.py")
    if args.ranks is not None and not 1 <= args.ranks <= 64:
        raise ValueError(f"ranks: got {args.ranks}, expected 1 to 64")
    script = profile_runs.script_of(args.what)
    if script is None and args.what not in profile_cases.CASES:
        names = ", ".join(profile_cases.CASES)
        raise ValueError(f"CASE: got {args.what!r}, expected one of {names}, or a file SCRIPT.py")
    out = args.out or Path(f"profile-{script.stem if script else args.what}.html")
    if args.record is not None:  # a rank, which is told by an interrupt to save what it has seen
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background deaf to them
    else:
        _require_writable("out", out, args.force, _is_report, (".html", ".htm"))
        if args.json is not None:
            _require_writable("json", args.json, args.force, _is_timeline, (".json", ".json.gz"))
    with Live(wanted(args.quiet or args.record is not None, args.progress)) as live:
        if args.ranks is not None and args.ranks > 1 and args.record is None:
            record, status = profile_runs.over_ranks(args, live)
        else:
            record, status = _watched(args, script, live)
        if record is None:
            return status or 1
        if args.record is not None:
            profile_runs.save_rank(record, args.record)
            return status
        live.status("measuring what this machine can do", at_once=True)
        _with_roofs(record)
        live.status("writing the report", at_once=True)
        analysis = analyse(record)
        _write(record, analysis, out, args.json)
    if not args.quiet:
        print(summary(analysis, out), flush=True)
    return status


def _watched(args: argparse.Namespace, script: Path | None, live: Live) -> tuple[Record, int]:
    if script is not None:
        return profile_runs.watched_script(script, args.rest, args.repeat)
    return profile_cases.watched(args.what, args.rest, args.repeat, live)


def _with_roofs(record: Record) -> None:
    from .profiling import roofs

    record.about["roofs"] = roofs.of_record(record)


def summary(analysis: Analysis, out: Path) -> str:
    """At most five lines: what was watched, what there is to mend, and where the report is."""
    seen = analysis.summary
    title = seen["title"] or "run"
    lines = [
        f"{title}: {duration(seen['seconds'])}, {count(seen['launches'], 'launch', 'launches')}, "
        f"something at work {percent(seen['busy_share'])} of the time"
    ]
    for found in analysis.findings[:SHOWN]:
        lines.append(f"- {found['title']}: {found['words']}")
    return "\n".join([*lines, f"wrote {out}"])


def _write(record: Record, analysis: Analysis, out: Path, json: Path | None) -> None:
    from .profiling import chrome
    from .profiling.report import page

    if json is not None:
        chrome.write(record, json)
    write_files(out.parent, {out.name: page(record, analysis).encode()})


def _require_writable(name: str, path: Path, force: bool, ours: Any, endings: tuple[str, ...]) -> None:
    """Before anything runs: what would be overwritten, and what could not be written."""
    if not path.name.endswith(endings):
        raise ValueError(f"{name}: got {str(path)!r}, expected a name that ends in {' or '.join(endings)}")
    if path.is_dir():
        raise ValueError(f"{name}: got {str(path)!r}, a folder, expected a file")
    if path.exists() and not force and not ours(path):
        raise ValueError(f"{name}: {path} is there and none of ours; --force overwrites it")
    if not path.parent.is_dir():
        raise ValueError(f"{name}: got {str(path)!r}, but there is no folder {path.parent}")


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK in file.read(1 << 14)


def _is_timeline(path: Path) -> bool:
    from .profiling import chrome

    try:
        chrome.read(path)
    except (ValueError, OSError):
        return False
    return True


def _one_line(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Instead of the usage, which would be longer than a screen."""
    parser.exit(2, f"{parser.prog}: error: {message} (--help shows the options)\n")
