# SPDX-License-Identifier: BSD-3-Clause
"""Run bench cases: ``bench/run.py --list | --case NAME ... | --suite quick|full|gpu|multi_gpu  [--json FILE|-]``.

A line per case goes to standard error if that is a terminal (``--quiet``: not even then, ``--progress``: anyway).
The JSON is a list with one self-contained entry per case (fields: :data:`FIELDS`). Exit status: 0 all
cases ran and agreed with the reference, 1 some case failed (its entry tells why, the others ran),
2 the command line was wrong, 130 interrupted (entries so far are written).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import difflib
import json
import math
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

if __package__ in (None, ""):  # started as a script: bench is the one beside it, pyparareal an installed one first
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import bench  # noqa: F401

    sys.path.append(sys.path.pop(0))

from bench import cases, machine
from pyparareal._progress import Live, seconds_words, wanted

FIELDS = {
    "case": str,
    "suite": str,
    "device": str,
    "commit": str,
    "versions": dict,
    "checked": bool,
    "metrics": dict,
    "samples": dict,
    "notes": str,
    "error": str,  # empty, or the reason; then ``checked`` is false and ``metrics`` is empty
    "machine": dict,
    "date": str,  # ISO 8601, UTC
    "command": str,
    "seconds": float,
}


def main(argv: list[str] | None = None) -> int:
    """Parse, run, report; returns the exit status."""
    args = _parser().parse_args(argv)
    if args.quiet and args.progress:
        print("progress: got --quiet and --progress, expected at most one of them", file=sys.stderr)
        return 2
    live = Live(wanted(args.quiet, args.progress))
    cases.discover()
    if args.list:
        for name, entry in sorted(cases.CASES.items()):
            print(f"{name:34} {entry.suite:6} {entry.device}")
        for module, error in cases.BROKEN.items():
            print(f"{module}: not available: {error}", file=sys.stderr)
        return 1 if cases.BROKEN else 0
    names = args.case or cases.chosen(args.suite)
    if unknown := [name for name in names if name not in cases.CASES]:
        for name in unknown:
            print(_unknown(name), file=sys.stderr)
        return 2
    command = "bench/run.py " + shlex.join(sys.argv[1:] if argv is None else argv)
    with _json_only_stdout(args.json == "-") as stdout:
        return _run(names, whole_suite=not args.case, json_to=args.json, stdout=stdout, command=command, live=live)


def _run(names: list[str], *, whole_suite: bool, json_to: str | None, stdout: TextIO, command: str, live: Live) -> int:
    shared = {"commit": machine.commit(), "machine": machine.describe(), "command": command}
    entries: list[dict[str, Any]] = []
    if whole_suite:
        entries = [_failed(module, error) | shared | _stamp() for module, error in cases.BROKEN.items()]
    interrupted, begin = False, time.monotonic()
    for number, name in enumerate(names, 1):
        live.line(f"[{number}/{len(names)}] {name}{_rest(begin, number - 1, len(names))}")
        try:
            entries.append(run_case(cases.CASES[name]) | shared)
        except KeyboardInterrupt:
            interrupted = True
        validate(entries[-1:])
        if json_to not in (None, "-"):
            write_json(Path(json_to), entries)  # after each case: a run that is stopped keeps what it has
        if interrupted:
            break
    if json_to == "-":
        stdout.write(_dumps(entries))
    elif json_to is None:
        for entry in entries:
            _show(entry)
    for entry in entries:
        if entry["error"]:
            print(f"{entry['case']}: {entry['error']}", file=sys.stderr)
        elif not entry["checked"]:
            print(f"{entry['case']}: differs from the reference", file=sys.stderr)
    if interrupted:
        return 130
    return 0 if all(entry["checked"] and not entry["error"] for entry in entries) else 1


def run_case(entry: cases.Case) -> dict[str, Any]:
    """Fields of one case; an exception becomes an entry with ``error``. Its traceback goes to stderr."""
    begin = time.perf_counter()
    described = {"case": entry.name, "suite": entry.suite, "device": entry.device}
    try:
        if entry.device == "cuda" and (reason := machine.cuda_missing()):
            return _failed(entry.name, reason) | described | _stamp()
        result = _checked_result(entry.run())
    except Exception as error:  # one failing case must not take the others with it
        traceback.print_exc(file=sys.stderr)
        return _failed(entry.name, error) | described | _stamp(begin)
    outcome = {
        "checked": result.checked,
        "metrics": {key: float(value) for key, value in result.metrics.items()},
        "samples": {key: [float(f"{v:.6g}") for v in values] for key, values in result.samples.items()},
        "notes": result.notes,
        "error": "",
    }
    return described | outcome | _stamp(begin)


def validate(entries: Any) -> None:
    """Raise ValueError, naming the field, unless ``entries`` is a list of results as FIELDS says."""
    if not isinstance(entries, list):
        raise ValueError(f"results: got {type(entries).__name__}, expected a list")
    for entry in entries:
        if missing := FIELDS.keys() ^ entry.keys():
            raise ValueError(f"result: missing or unknown fields: {', '.join(sorted(missing))}")
        for key, kind in FIELDS.items():
            if not isinstance(entry[key], kind):
                raise ValueError(f"result {entry['case']!r}: {key}: got {entry[key]!r}, expected {kind.__name__}")
        for key, value in entry["metrics"].items():
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"result {entry['case']!r}: metrics: {key}: got {value!r}, expected a finite number")
        for key, values in entry["samples"].items():
            if not isinstance(values, list) or not all(type(x) in (int, float) and math.isfinite(x) for x in values):
                raise ValueError(f"result {entry['case']!r}: samples: {key}: expected a list of finite numbers")
        if entry["error"] and (entry["checked"] or entry["metrics"]):
            raise ValueError(f"result {entry['case']!r}: an error and metrics exclude each other")


def write_json(path: Path, content: Any) -> None:
    """Write beside ``path``, then rename: a reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(_dumps(content))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _checked_result(result: Any) -> cases.Result:
    if not isinstance(result, cases.Result):
        raise TypeError(f"a case returns Result, got {type(result).__name__}")
    bad = {key: value for key, value in result.metrics.items() if not math.isfinite(float(value))}
    if bad:
        raise ValueError(f"metrics must be finite: {bad}")
    if odd := [name for name, values in result.samples.items() if not all(math.isfinite(float(x)) for x in values)]:
        raise ValueError(f"samples must be finite: {', '.join(odd)}")
    return cases.Result(dict(result.metrics), bool(result.checked), dict(result.samples), result.notes)


def _failed(name: str, error: Exception | str) -> dict[str, Any]:
    reason = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    empty = {"checked": False, "metrics": {}, "samples": {}, "notes": ""}
    return {"case": name, "suite": "", "device": "", "error": reason} | empty


def _stamp(begin: float | None = None) -> dict[str, Any]:
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    seconds = 0.0 if begin is None else round(time.perf_counter() - begin, 3)
    return {"date": date, "seconds": seconds, "versions": machine.versions()}


def _dumps(content: Any) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _show(entry: dict[str, Any]) -> None:
    verdict = "ERROR" if entry["error"] else "checked" if entry["checked"] else "DIFFERS FROM THE REFERENCE"
    print(f"{entry['case']}  ({entry['device']}, {entry['seconds']:.1f} s, {verdict})")
    for key, value in entry["metrics"].items():
        print(f"    {key:44} {value:.6g}")
    for text in (entry["notes"], entry["error"]):
        if text:
            print(f"    {text}")


def _rest(begin: float, done: int, total: int) -> str:
    """Time so far, and what is left if the other cases take as long."""
    if not done:
        return ""
    elapsed = time.monotonic() - begin
    return f"  ({seconds_words(elapsed)}, about {seconds_words(elapsed / done * (total - done))} left)"


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, cases.CASES, n=3, cutoff=0.4) or sorted(cases.CASES)
    broken = "".join(f"; {module} did not import: {error}" for module, error in cases.BROKEN.items())
    return f"--case: got {name!r}, which is no case; nearest: {', '.join(near)}{broken}"


@contextlib.contextmanager
def _json_only_stdout(wanted: bool) -> Iterator[TextIO]:
    """While cases run, whatever they or C code print to stdout goes to stderr; the JSON alone to the real stdout."""
    if not wanted:
        yield sys.stdout
        return
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(saved), "w") as stdout:
            yield stdout
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/run.py", description="Run bench cases and report them as JSON.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="names, suites and devices of the cases")
    what.add_argument("--case", action="append", metavar="NAME", help="run this case (may be repeated)")
    what.add_argument("--suite", choices=cases.SUITES, default="quick", help="run a suite (default: quick)")
    parser.add_argument("--json", metavar="FILE", help="write the results here; - is stdout")
    parser.add_argument("--quiet", action="store_true", help="no line per case")
    parser.add_argument("--progress", action="store_true", help="lines also where standard error is no terminal")
    return parser


if __name__ == "__main__":
    sys.exit(main())
