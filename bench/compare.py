# SPDX-License-Identifier: BSD-3-Clause
"""Compare two records of measurements: ``bench/compare.py OLD NEW  [--case NAME ...] [--metric TEXT ...] [--json]``.

OLD and NEW are files that ``bench/run.py --json`` wrote, or ``COMMIT:PATH``, such a file as git has it. Every set of
times that both have gets a verdict of NEW against OLD: FAST, SLOW, SAME or AMBIGUOUS (:mod:`bench.verdicts`). Metrics
without samples are shown with their change; counts that must not change (``matched``, ``identical``, ...) are EQUAL
or DIFFER. Times of different machines get no verdict without ``--force``.

Exit status: 0 nothing got worse, 1 something is SLOW, differs, fails, or is no longer checked, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script: bench is the one beside it, pyparareal an installed one first
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import bench  # noqa: F401

    sys.path.append(sys.path.pop(0))

from bench import records, verdicts
from bench.records import Entry

EQUAL, DIFFERS, BROKEN, NO_VERDICT = "EQUAL", "DIFFERS", "BROKEN", ""
ORDER = (verdicts.SLOW, verdicts.FAST, verdicts.SAME, verdicts.AMBIGUOUS)
WORSE = {verdicts.SLOW, DIFFERS, BROKEN}
# Metrics that count what was right: a change is a change of the program or of the test, never noise.
COUNTS = {
    *("matched", "total", "held", "bitwise_points", "total_points", "exact_too_early", "identical", "compared"),
    *("rows_in_band", "rows_total", "bitwise", "injected", "recovered", "found", "planted", "false_alarms"),
}
NOT_TIMES = ("accuracy",)  # how the names of sample sets begin that are not seconds; larger is not slower


@dataclasses.dataclass(frozen=True)
class Row:
    """One line: a set of times with its verdict, a metric with its change, or what is wrong with a case."""

    case: str
    name: str
    kind: str  # "times", "metric" or "case"
    verdict: str = NO_VERDICT
    old: float | None = None
    new: float | None = None
    note: str = ""
    found: verdicts.Comparison | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ratio and interval beside the rest."""
        said = {key: getattr(self, key) for key in ("case", "name", "kind", "verdict", "old", "new", "note")}
        ratio = self.found and {"ratio": self.found.ratio, "low": self.found.low, "high": self.found.high}
        return said | (ratio or {})


def compare(
    old: Sequence[Entry],
    new: Sequence[Entry],
    *,
    metric: Sequence[str] = (),
    threshold: float = verdicts.THRESHOLD,
    force: bool = False,
) -> list[Row]:
    """Rows for every case of either record, in the order of ``old``.

    Parameters
    ----------
    metric : only sample sets and metrics whose name holds one of these texts; empty: all
    threshold : largest change that is called SAME; the verdicts consider all sets of times together
    force : compare times of different machines too
    """
    before, after = ({entry["case"]: entry for entry in entries} for entries in (old, new))
    rows: list[Row] = []
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in before or name not in after:
            rows.append(Row(name, "", "case", note=f"only in {'OLD' if name in before else 'NEW'}"))
            continue
        a, b = before[name], after[name]
        if problem := _problem(a, b):
            rows.append(problem)
        if not (a["error"] or b["error"]):
            rows += [row for row in _rows(a, b, threshold, force) if not metric or any(m in row.name for m in metric)]
    timed = [i for i, row in enumerate(rows) if row.found is not None]
    found = verdicts.verdicts([rows[i].found for i in timed], threshold)  # type: ignore[misc]
    for i, verdict in zip(timed, found, strict=True):
        rows[i] = dataclasses.replace(rows[i], verdict=verdict)
    return rows


def status(rows: Iterable[Row]) -> int:
    """1 if something got worse, else 0."""
    return int(any(row.verdict in WORSE for row in rows))


def _problem(a: Entry, b: Entry) -> Row | None:
    """The row of a case that fails or is no longer checked, or did in OLD."""
    if b["error"]:
        return Row(b["case"], "", "case", NO_VERDICT if a["error"] else BROKEN, note=f"NEW: {b['error']}")
    if not b["checked"]:
        return Row(b["case"], "", "case", BROKEN if a["checked"] else NO_VERDICT, note="NEW differs from the reference")
    if a["error"] or not a["checked"]:
        return Row(b["case"], "", "case", note=f"OLD: {a['error'] or 'differed from the reference'}")
    return None


def _rows(a: Entry, b: Entry, threshold: float, force: bool) -> list[Row]:
    rows, same = [], records.same_machine(a, b)
    for name in _both(a["samples"], b["samples"]):
        x, y = a["samples"][name], b["samples"][name]
        if name.startswith(NOT_TIMES) or not (x and y) or min(*x, *y) <= 0:
            continue
        medians = {"old": _median(x), "new": _median(y)}
        if same or force:
            note = "" if same else "different machines"
            rows.append(Row(a["case"], name, "times", note=note, **medians, found=verdicts.compare(x, y, threshold)))
        else:
            rows.append(Row(a["case"], name, "times", note="different machines: no verdict", **medians))
    for name in _both(a["metrics"], b["metrics"]):
        x, y = a["metrics"][name], b["metrics"][name]
        verdict = NO_VERDICT if name not in COUNTS else EQUAL if x == y else DIFFERS
        rows.append(Row(a["case"], name, "metric", verdict, x, y))
    for kind in ("samples", "metrics"):
        if gone := [name for name in a[kind] if name not in b[kind]]:
            counts = [name for name in gone if kind == "metrics" and name in COUNTS]
            note = f"{kind} only in OLD: {', '.join(gone)}"
            rows.append(Row(a["case"], "", "case", DIFFERS if counts else NO_VERDICT, note=note))
    return rows


def _both(a: Iterable[str], b: Iterable[str]) -> list[str]:
    there = set(b)
    return [name for name in a if name in there]


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def text(rows: Sequence[Row], everything: bool) -> str:
    """Lines by case; without ``everything`` only those with a verdict or a note, and the sums."""
    lines, case = [], None
    for row in rows:
        if not (everything or row.verdict or row.note):
            continue
        if row.case != case:
            lines.append(row.case)
            case = row.case
        lines.append("  " + _line(row))
    counts = Counter(row.verdict for row in rows if row.kind == "times" and row.verdict)
    sums = ", ".join(f"{counts[word]} {word}" for word in ORDER if counts[word]) or "no times compared"
    other = Counter(row.verdict for row in rows if row.verdict in (EQUAL, DIFFERS, BROKEN))
    return "\n".join([*lines, f"times: {sums}" + "".join(f"; {n} {word}" for word, n in other.items())])


def _line(row: Row) -> str:
    if row.kind == "case":
        return f"{row.verdict:9} {row.note}"
    old, new = row.old or 0.0, row.new or 0.0
    change = f"x {new / old:.3g}" if old else ""
    if row.found is not None:
        change = f"x {row.found.ratio:.3f}  [{row.found.low:.3f}, {row.found.high:.3f}]"
    unit = " s" if row.kind == "times" else ""
    return f"{row.verdict:9} {row.name:44} {old:.4g}{unit} -> {new:.4g}{unit}  {change}  {row.note}".rstrip()


def main(argv: list[str] | None = None) -> int:
    """Read, compare, report; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        if not (math.isfinite(args.threshold) and args.threshold > 0):
            raise ValueError(f"--threshold: got {args.threshold}, expected a number above 0, such as 0.03")
        old, new = (_chosen(records.read(where), args.case, where) for where in (args.old, args.new))
        rows = compare(old, new, metric=args.metric or (), threshold=args.threshold, force=args.force)
    except (ValueError, OSError) as error:
        print(f"bench/compare.py: error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps({"threshold": args.threshold, "rows": [row.as_dict() for row in rows]}, indent=1))
    else:
        print(text(rows, args.all))
    for where, entries in ((args.old, old), (args.new, new)):
        if busy := _busy(entries, {row.case for row in rows if row.found}):
            print(f"{where}: other work may have shared the machine of {', '.join(busy)}", file=sys.stderr)
    if not args.force and any("different machines" in row.note for row in rows):
        print("times of different machines have no verdict; --force compares them", file=sys.stderr)
    return status(rows)


def _busy(entries: Sequence[Entry], compared: set[str]) -> list[str]:
    """Cases that began while more processes ran than half the cores take: their noise is that of other work."""
    found = (entry for entry in entries if entry["case"] in compared)
    return [e["case"] for e in found if e["machine"].get("load_average", 0) > e["machine"].get("cores", 1) / 2]


def _chosen(entries: list[Entry], names: Sequence[str] | None, where: str) -> list[Entry]:
    if not names:
        return entries
    if unknown := sorted(set(names) - {entry["case"] for entry in entries}):
        raise ValueError(f"--case: {where} has no {', '.join(unknown)}")
    return [entry for entry in entries if entry["case"] in names]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench/compare.py",
        description="FAST, SLOW, SAME or AMBIGUOUS: one record of measurements against another.",
    )
    parser.add_argument("old", metavar="OLD", help="a file of results, or COMMIT:PATH")
    parser.add_argument("new", metavar="NEW", help="the same")
    parser.add_argument("--case", action="append", metavar="NAME", help="only this case (may be repeated)")
    parser.add_argument("--metric", action="append", metavar="TEXT", help="only times and metrics whose name has TEXT")
    parser.add_argument(
        "--threshold",
        type=float,
        default=verdicts.THRESHOLD,
        metavar="SHARE",
        help="largest SAME (default: %(default)s)",
    )
    parser.add_argument("--all", action="store_true", help="also metrics without a verdict")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--force", action="store_true", help="compare times of different machines")
    return parser


if __name__ == "__main__":
    sys.exit(main())
