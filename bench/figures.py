# SPDX-License-Identifier: BSD-3-Clause
"""Write ``docs/figures.rst``: every headline figure of the records, with where it comes from, the losing ones first.

``bench/figures.py`` writes it (``make figures``), ``--check`` only says whether it is what the records give: exit
status 0 it is, 1 it is not. Two records of one case: the later one counts.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a script: bench is the one beside it, pyparareal an installed one first
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import bench  # noqa: F401

    sys.path.append(sys.path.pop(0))

from bench import cases, records, verdicts
from bench.headlines import ELSEWHERE, HEADLINES, NOT_HEADLINES, SECTIONS, Headline
from bench.machine import ROOT
from bench.records import Entry

PAGE = ROOT / "docs" / "figures.rst"
RESULTS = ROOT / "bench" / "results"

HEAD = """\
.. Written by bench/figures.py from bench/results: run "make figures" instead of changing it.

Figures
=======

Every headline figure of this project with its case, and what is behind it: *measured* (timed or trained on the machine
named below), *tested* (counts of what was right) or *computed* (FLOPs of shapes, nothing was run). *Predicted* figures
are at the end. In brackets the 95 % interval where there is one: that of the case, or a bootstrap of its samples.

In the source tree ``pyparareal bench --case NAME`` measures a case again, and ``pyparareal bench --compare OLD NEW``
says whether two records differ (:doc:`profiling`).
"""

PREDICTED = """\
Predicted
---------

.. list-table::
   :header-rows: 1
   :widths: 60 40

   * - figure
     - command
   * - Parareal on five problems: at best 3.6 times faster on 40 processors, counted in right-hand sides
     - ``python examples/when_it_pays.py``
   * - A parareal network on more devices, free communication
     - ``make train``, last lines of its report
   * - A solve on more processors, from the costs of its steps measured here
     - ``pyparareal solve NAME``, ``pyparareal runs``; ``pyparareal.prediction``
"""


def recorded(folder: Path = RESULTS) -> dict[str, Entry]:
    """The latest good record of each case, by the date of its run."""
    found: dict[str, Entry] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            entries = records.read(str(path))
        except ValueError:
            continue  # of another kind: registers of kernels, the record of a GPU run
        for entry in entries:
            old = found.get(entry["case"])
            if not entry["error"] and (old is None or entry["date"] > old["date"]):
                found[entry["case"]] = entry
    return found


def value(row: Headline, entry: Entry) -> float:
    """The figure in its unit."""
    return float(entry["metrics"][row.metric]) * row.scale


def interval(row: Headline, entry: Entry) -> tuple[float, float] | None:
    """Ends of the 95 % interval in the unit of the figure, or None where nothing is known of it.

    Samples that are milliseconds in the figure are recorded in seconds: the interval is stretched by value over median.
    """
    if not row.interval:
        return None
    metrics, samples = entry["metrics"], entry["samples"]
    if row.interval[0] in metrics and row.interval[0] not in samples:
        low, high = (metrics[name] for name in row.interval)
        return low * row.scale, high * row.scale
    x = samples[row.interval[0]]
    y = samples[row.interval[1]] if len(row.interval) == 2 else [1.0]
    found = verdicts.compare(y, x)
    unit = value(row, entry) / (statistics.median(x)) if len(row.interval) == 1 else 1.0
    return found.low * unit, found.high * unit


def said(x: float, digits: int = 3) -> str:
    """So many digits, thousands with commas; whole numbers whole."""
    if x == 0:
        return "0"
    if float(x).is_integer() and abs(x) < 1e6:
        return f"{x:,.0f}"
    if abs(x) < 1e-3 or abs(x) >= 1e6:
        return f"{x:.{digits - 1}e}"
    return f"{x:,.{max(digits - 1 - math.floor(math.log10(abs(x))), 0)}f}"


def figure(row: Headline, entry: Entry) -> str:
    """``0.90 [0.84, 0.97] times``."""
    ends = interval(row, entry)
    words = said(value(row, entry), row.digits)
    if ends:
        words += f" [{said(ends[0], row.digits)}, {said(ends[1], row.digits)}]"
    return f"{words} {row.unit}".rstrip()


def page(found: dict[str, Entry], known: Mapping[str, cases.Case]) -> str:
    """The whole page; ``known`` are all cases there are."""
    parts = [HEAD, _heading("The losing ones"), _LOSING]
    parts.append(_figures([row for row in HEADLINES if row.losing], found))
    for name, rows in SECTIONS.items():
        if table := _figures([row for row in rows if not row.losing], found):
            parts += [_heading(name), table]
    parts += [PREDICTED, _heading("Where they come from"), _origins(found)]
    parts += [_heading("Cases without a record"), _missing(found, known)]
    return "\n".join(parts)


_ORIGINS = """\
Load: processes that ran or waited when it began ("load average"), the machine's other work among them. Commits that end
in "-dirty" had changes that were not committed yet.
"""

_LOSING = """\
Where this project, or the way of computing that it is about, is slower or worse than something else or than was wanted.
"""


def _figures(rows: Sequence[Headline], found: dict[str, Entry]) -> str:
    lines = [
        (row.words, figure(row, found[row.case]), row.goal, f"``{row.case}``", f"*{row.kind}*")
        for row in rows
        if row.case in found
    ]
    return _table(("what", "figure", "goal", "case", "kind"), lines, (38, 22, 12, 18, 10)) if lines else ""


def _origins(found: dict[str, Entry]) -> str:
    lines = []
    for name in sorted(found):
        entry = found[name]
        words = (records.machine_words(entry), f"load {entry['machine']['load_average']:g}")
        checked = "yes" if entry["checked"] else "**no**"
        commit, dirty, _ = entry["commit"].partition("-dirty")
        where = f"{commit[:10]}{dirty}"
        note = NOT_HEADLINES.get(name, "")
        shown = f"``pyparareal bench --case {name}``" + (f" (no headline: {note})" if note else "")
        lines.append((shown, ", ".join(words), f"``{where}``", entry["date"][:10], checked))
    return f"{_ORIGINS}\n" + _table(("command", "machine", "commit", "date", "checked"), lines, (40, 24, 14, 12, 10))


def _missing(found: dict[str, Entry], known: Mapping[str, cases.Case]) -> str:
    rows = []
    missing = sorted(set(known) - set(found))
    for suite in sorted({known[name].suite for name in missing}):
        names = (name for name in missing if known[name].suite == suite)
        cells = ", ".join(f"``{name}``" + (f" ({ELSEWHERE[name]})" if name in ELSEWHERE else "") for name in names)
        rows.append(f"- suite *{suite}*: {cells}")
    return "\n".join(["No figure is given of cases that never ran where a record was kept:\n", *rows]) + "\n"


def _heading(words: str) -> str:
    return f"{words}\n{'-' * len(words)}\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {' '.join(map(str, widths))}", ""]
    for row in (head, *rows):
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}".rstrip() for i, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(prog="bench/figures.py", description="docs/figures.rst from the records.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; 1 if the page is not what the records give"
    )
    args = parser.parse_args(argv)
    cases.discover()
    text = page(recorded(), cases.CASES)
    if args.check:
        if PAGE.exists() and PAGE.read_text() == text:
            return 0
        print(f"{PAGE.relative_to(ROOT)} is not what bench/results gives: run make figures", file=sys.stderr)
        return 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
