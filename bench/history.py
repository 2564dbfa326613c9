# SPDX-License-Identifier: BSD-3-Clause
"""Write ``bench/report.html``: every case over all commits that recorded it, one page that works offline.

``bench/history.py [--out FILE]`` (``make bench-report``). Records come from the files of ``bench/results``, as they are
and as all commits of HEAD's history have them. The page is not committed: the next commit would make it stale.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

if __package__ in (None, ""):  # started as a script: bench is the one beside it, pyparareal an installed one first
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import bench  # noqa: F401

    sys.path.append(sys.path.pop(0))

from bench import compare, history_page, machine, records, verdicts
from bench.records import Entry


def series(versions: Iterable[Iterable[Entry]]) -> dict[str, list[Entry]]:
    """The different records of each case, oldest first, by the date of the run; one that failed counts as well."""
    found: dict[str, dict[str, Entry]] = {}
    for entries in versions:
        for entry in entries:
            found.setdefault(entry["case"], {})[entry["date"]] = entry
    return {case: [runs[date] for date in sorted(runs)] for case, runs in sorted(found.items())}


def last_steps(cases: Mapping[str, list[Entry]]) -> dict[str, list[compare.Row]]:
    """The latest record of each case against the one before it; the verdicts consider all cases together."""
    several = [runs for runs in cases.values() if len(runs) > 1]
    rows = compare.compare([runs[-2] for runs in several], [runs[-1] for runs in several], threshold=verdicts.THRESHOLD)
    return {runs[-1]["case"]: [row for row in rows if row.case == runs[-1]["case"]] for runs in several}


def collected(root: Path = machine.ROOT) -> dict[str, list[Entry]]:
    """Records of all commits and of the working tree; ValueError where there is neither."""
    folder, versions = root / "bench" / "results", []
    for path in sorted(folder.glob("*.json")):
        try:
            now = records.read(str(path))
        except ValueError:
            continue  # of another kind, such as the register of kernels
        versions += [version.entries for version in records.history(path.relative_to(root).as_posix(), root)]
        versions.append(now)
    if not versions:
        raise ValueError(f"{folder}: no records there")
    return series(versions)


def main(argv: list[str] | None = None) -> int:
    """Write the page; 0 written, 2 wrong arguments or no records."""
    parser = argparse.ArgumentParser(prog="bench/history.py", description="All records over all commits as one page.")
    default = machine.ROOT / "bench" / "report.html"
    parser.add_argument("--out", type=Path, default=default, metavar="FILE", help="default: bench/report.html")
    args = parser.parse_args(argv)
    try:
        cases = collected()
        text = history_page.page(cases, last_steps(cases), machine.commit())
        write(args.out, text)
    except (ValueError, OSError) as error:
        print(f"bench/history.py: error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out}: {len(cases)} cases, {sum(map(len, cases.values()))} records")
    return 0


def write(path: Path, text: str) -> None:
    """Beside ``path``, then renamed: the old page stays until the new one is whole."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
