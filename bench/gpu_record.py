# SPDX-License-Identifier: BSD-3-Clause
"""Write ``gpu_run.json``: which CUDA sources, by content hash, a run of ``bench/gpu.sh`` built, tested and sanitized.

``bench/gpu_record.py FILE STAGE=STATUS:SECONDS ... [--junit XML]``; a status is an exit code. ``tests``
counts as passed only if some test really ran: a run in which all were skipped proves nothing.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

if __package__ in (None, ""):  # started as a script: bench is the one beside it, pyparareal an installed one first
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import bench  # noqa: F401

    sys.path.append(sys.path.pop(0))

from bench import gpu_ledger, machine, run


def main(argv: list[str] | None = None) -> int:
    """Write the record; 1 unless every stage passed."""
    parser = argparse.ArgumentParser(prog="bench/gpu_record.py")
    parser.add_argument("file", type=Path)
    parser.add_argument("stages", nargs="+", metavar="STAGE=STATUS:SECONDS")
    parser.add_argument("--junit", type=Path, help="report of the test stage")
    args = parser.parse_args(argv)
    passed, seconds = {}, {}
    for text in args.stages:
        name, _, rest = text.partition("=")
        status, _, taken = rest.partition(":")
        passed[name], seconds[name] = status == "0", int(taken or 0)
    tests = _tests(args.junit)
    if "tests" in passed:
        passed["tests"] = passed["tests"] and tests["passed"] > 0
    record = {
        "kind": "gpu_run",
        "commit": machine.commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "stages": passed,
        "seconds": seconds,
        "tests": tests,
        "sources": gpu_ledger.content_hashes(),
    }
    run.write_json(args.file, record)
    for name, ok in passed.items():
        print(f"{name:10} {'passed' if ok else 'FAILED'} {seconds[name]:4d} s")
    print(f"tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped")
    return 0 if all(passed.values()) else 1


def _tests(report: Path | None) -> dict[str, int]:
    """Counts of a JUnit report; zeros where it is missing or cut off."""
    try:
        suites = list(ET.parse(report).getroot().iter("testsuite")) if report else []
    except (OSError, ET.ParseError):
        suites = []
    total, failed, skipped = (
        sum(int(s.get(key, 0)) for s in suites for key in keys)
        for keys in (("tests",), ("failures", "errors"), ("skipped",))
    )
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


if __name__ == "__main__":
    sys.exit(main())
