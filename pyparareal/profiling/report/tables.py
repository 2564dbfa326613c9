# SPDX-License-Identifier: BSD-3-Clause
"""Sections of the page that are tables: time by op, level and region, devices, the host, predictions, longest spans."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from ..analysis.results import Analysis, OpRow, Predicted, Priced
from ..events import Record
from . import words
from .charts import processors
from .packing import Packed
from .words import Cell, figure, share, table

HIDDEN = ("title", "clock", "roofs")  # said elsewhere on the page, or for merging alone
LONGEST = 15  # of work, waiting and phases each
LISTED_SOLVES = 200
LISTED_PREDICTIONS = 12
AROUND = "around its ops"


def by_op(analysis: Analysis) -> str:
    """Own seconds of every op, slowest first."""
    if not analysis.by_op:
        return words.missing("No launches: nothing ran inside an op or a step that is traced.")
    rows = []
    for row in analysis.by_op:
        op = f"{row['op']}, {AROUND}" if row["encloses"] else row["op"]
        name = f"{op} ({', '.join(filter(None, [row['device'], row['dtype']]))})"
        rows.append(
            [
                Cell(name),
                figure(words.seconds(row["seconds"]), row["seconds"], row["share"]),
                figure(share(row["share"]), row["share"]),
                figure(words.count(row["calls"]), row["calls"]),
                figure(words.seconds(row["mean_seconds"]), row["mean_seconds"]),
                figure(words.seconds(row["first_seconds"]), row["first_seconds"]),
                figure(words.seconds(row["largest_seconds"]), row["largest_seconds"]),
                figure(words.amount(row["bytes_per_second"], "B/s"), row["bytes_per_second"]),
                figure(words.amount(row["flops_per_second"], "FLOP/s"), row["flops_per_second"]),
            ]
        )
    head = ["op", "time", "share", "calls", "mean", "first", "longest", "bytes/s", "FLOP/s"]
    why = [f"{words.UNKNOWN}: not known of this op."] if any(_is_unknown(row) for row in analysis.by_op) else []
    if any(row["bytes"] is None and row["flops"] is not None for row in analysis.by_op):
        why.append(
            "Of what torch does inside a piece of a network its products of matrices and convolutions are counted, its "
            "bytes are not; so it is not in the roofline either."
        )
    if any(row["encloses"] for row in analysis.by_op):
        why.append(
            f"{AROUND}: a step that calls ops, which have rows of their own; what is left of it is Python, and counts "
            "as the host's elsewhere on this page."
        )
    return table("Time by op", head, rows) + (words.note(" ".join(why)) if why else "")


def _is_unknown(row: OpRow) -> bool:
    return not row["encloses"] and None in (row["bytes"], row["flops"])


def by_level(analysis: Analysis) -> str:
    """Own seconds of the launches of every level."""
    rows = []
    for row in analysis.by_level:
        ops = ", ".join(f"{op} {words.seconds(seconds)}" for op, seconds in list(row["ops"].items())[:3])
        more = len(row["ops"]) - 3
        rows.append(
            [
                Cell(
                    "outside levels"
                    if row["level"] is None
                    else f"level {row['level']}{' (finest)' * (row['level'] == 0)}"
                ),
                figure(words.seconds(row["seconds"]), row["seconds"], row["share"]),
                figure(share(row["share"]), row["share"]),
                figure(words.count(row["calls"]), row["calls"]),
                Cell(ops + (f" and {more} more" if more > 0 else "")),
            ]
        )
    if len(rows) == 1 and analysis.by_level[0]["level"] is None:
        return ""
    return table("Time by level", ["level", "time", "share", "calls", "mostly"], rows) if rows else ""


def by_region(analysis: Analysis) -> str:
    """Phases: with what is inside them, so that they add up to more than the whole."""
    rows = [
        [
            Cell(row["region"]),
            figure(words.seconds(row["seconds"]), row["seconds"], row["share"]),
            figure(share(row["share"]), row["share"]),
            figure(words.count(row["calls"]), row["calls"]),
            figure(words.seconds(row["launch_seconds"]), row["launch_seconds"]),
            figure(words.seconds(row["overhead_seconds"]), row["overhead_seconds"]),
        ]
        for row in analysis.by_region
    ]
    if not rows:
        return ""
    head = ["phase, with what is inside", "time", "of the run", "calls", "at work", "outside ops"]
    return table("Time by phase", head, rows)


def critical(analysis: Analysis) -> str:
    """What the longest chain of things that waited for one another passes through."""
    path = analysis.critical_path
    if path is None or not path["by_name"]:
        return ""
    whole = path["seconds"] or 1.0
    rows = [
        [Cell(name), figure(words.seconds(seconds), seconds, seconds / whole), figure(share(seconds / whole), seconds)]
        for name, seconds in path["by_name"].items()
    ]
    what = (
        "The critical path is the longest chain of things that waited for one another: only what lies on it makes the "
        f"run longer. It takes {words.seconds(path['seconds'])} and crosses {words.count(path['messages'])} messages."
    )
    return table("Critical path", ["on the critical path", "time", "share"], rows) + words.note(what)


def devices(analysis: Analysis, begin: float) -> str:
    """Busy and idle, per device and stream."""
    if not analysis.devices:
        return words.missing("No device did anything that is traced.")
    rows = []
    for row in analysis.devices:
        gap = row["longest_gap"]
        longest = None if gap is None else gap[1] - gap[0]
        rows.append(
            [
                Cell(
                    f"rank {row['rank']} · {row['device']}" + ("" if row["stream"] is None else f" · {row['stream']}")
                ),
                figure(words.seconds(row["busy_seconds"]), row["busy_seconds"], row["busy_share"]),
                figure(share(row["busy_share"]), row["busy_share"]),
                figure(words.seconds(row["idle_seconds"]), row["idle_seconds"]),
                figure(words.seconds(row["idle_in_work_seconds"]), row["idle_in_work_seconds"]),
                figure(
                    words.UNKNOWN if gap is None else f"{words.seconds(longest)} from {words.seconds(gap[0] - begin)}",
                    longest,
                ),
                figure(words.count(row["launches"]), row["launches"]),
            ]
        )
    head = ["device, stream", "busy", "of the run", "idle", "idle inside the work", "longest idle stretch", "launches"]
    return table("Devices and streams", head, rows)


def host(analysis: Analysis) -> str:
    """What of the work's time no launch accounts for."""
    if not analysis.host_overhead:
        return words.missing("No work on the host was traced.")
    parts = [("in ops", "launch_seconds"), ("copies", "copy_seconds"), ("waiting", "wait_seconds"),
             ("host", "overhead_seconds")]  # fmt: skip
    rows = []
    for row in analysis.host_overhead:
        whole = row["seconds"] or 1.0
        cells = [figure(words.seconds(row[key]), row[key], row[key] / whole) for _, key in parts]  # type: ignore[literal-required]
        rows.append(
            [
                Cell(f"rank {row['rank']}"),
                figure(words.seconds(row["seconds"]), row["seconds"]),
                *cells,
                figure(share(row["overhead_share"]), row["overhead_share"]),
                figure(words.seconds(row["seconds_per_launch"]), row["seconds_per_launch"]),
            ]
        )
    head = ["rank", "inside the work", *(name for name, _ in parts), "host's share", "host per launch"]
    return table("Host overhead", head, rows)


def solves(analysis: Analysis) -> str:
    """Every solve, its iterations and how it ended."""
    if not analysis.solves:
        return ""
    rows = [
        [
            figure(str(k), k),
            Cell(row["method"]),
            figure(words.seconds(row["seconds"]), row["seconds"]),
            figure(words.count(row["iterations"]), row["iterations"]),
            Cell(row["status"]),
            figure(
                words.UNKNOWN if not row["residuals"] else f"{row['residuals'][-1]:.2e}",
                row["residuals"][-1] if row["residuals"] else None,
            ),
            figure(words.UNKNOWN if row["factor"] is None else f"{row['factor']:.3g}", row["factor"]),
        ]
        for k, row in enumerate(analysis.solves[:LISTED_SOLVES], 1)
    ]
    head = ["solve", "method", "time", "iterations", "ended", "last residual", "factor per iteration"]
    left = len(analysis.solves) - LISTED_SOLVES
    return table("Solves", head, rows) + (words.note(f"{left} more solves are not listed.") if left > 0 else "")


def predicted(analysis: Analysis) -> str:
    """What the model says beside what was measured, each marked."""
    if not analysis.predicted:
        return words.missing("No prediction: nothing in this run has a schedule that the model prices.")
    left = len(analysis.predicted) - LISTED_PREDICTIONS
    more = words.note(f"{left} more predictions are not shown.") if left > 0 else ""
    return (
        "".join(_predicted(found, analysis.summary["ranks"]) for found in analysis.predicted[:LISTED_PREDICTIONS])
        + more
    )


def _predicted(found: Predicted, ranks: int) -> str:
    title = f"Solve {found['solve'] + 1}, {found['what']}" if found["solve"] >= 0 else f"The {found['what']}"
    title = f"<h3>{escape(title)}</h3>"
    if found["reason"]:
        return title + words.missing(f"Not predicted: {found['reason']}.")
    tell: Callable[[float | None], str] = words.seconds if found["unit"] == "seconds" else _in(found["unit"])
    rows: list[Sequence[Cell]] = [
        [
            Cell(row["region"]),
            figure(tell(row["predicted"]), row["predicted"]),
            figure(words.seconds(row["measured"]), row["measured"]),
        ]
        for row in found["regions"]
    ]
    whole = figure(tell(found["model_seconds"]), found["model_seconds"])
    rows.append([Cell("all"), whole, figure(words.seconds(found["measured_seconds"]), found["measured_seconds"])])
    parts = [title, '<div class="beside">', processors(found, ranks), "<div>"]
    head = ["phase", "predicted", "measured"]
    parts.append(table("Predicted beside measured", head, rows, sortable=False))
    if found["ratio"] is not None:
        many = "one processor" if ranks == 1 else f"{ranks} processors with free communication"
        text = f"Predicted for {many}, measured on {ranks} rank{'s' * (ranks != 1)}: "
        parts.append(words.note(text + f"{found['ratio']:.3g} times what the model says of the same schedule."))
    if found["serial_wins"] is not None:
        parts.append(_verdict(found))
    parts.append("</div></div>")
    if found["what_if"]:
        parts.append(_what_if(found["what_if"], tell))
    return "".join(parts)


def _verdict(found: Predicted) -> str:
    if found["serial_wins"]:
        text = "Predicted: the serial chain on one processor is faster than this schedule on every number priced here."
        if found["solve"] >= 0 and (found["serial_measured"] or 0.0) > found["measured_seconds"]:
            text += " This run was faster than the serial chain measured beside it."
    else:
        best = max(found["processors"], key=lambda row: row["speedup"])
        text = (
            f"Predicted: {best['speedup']:.3g} times the serial chain's speed on {best['processors']} processors, the "
        )
        text += "best number priced here."
    return f"<p class=verdict>{escape(text)}</p>"


def _what_if(rows: Sequence[Priced], tell: Callable[[float | None], str]) -> str:
    cells = [
        [
            Cell(row["change"]),
            figure(words.count(row["processors"]), row["processors"]),
            figure(tell(row["seconds"]), row["seconds"]),
            figure(f"{row['speedup']:.3g}x", row["speedup"]),
            figure(share(row["coarse_share"]), row["coarse_share"]),
        ]
        for row in rows
    ]
    head = ["what if (predicted)", "processors", "time", "of serial speed", "coarse chain"]
    return table("What if, predicted", head, cells) + words.note(
        "The number of iterations is kept: another m or more levels may need more of them."
    )


def longest(packed: Packed) -> str:
    """The longest events of every kind in words: the timeline for those who cannot see it."""
    order = sorted(range(len(packed.events)), key=lambda k: packed.events[k].start - packed.events[k].end)
    chosen: list[int] = []
    for kinds in (("launch", "copy"), ("wait", "message"), ("region", "verb")):
        chosen += [k for k in order if packed.events[k].kind in kinds][:LONGEST]
    rows = []
    for k in chosen:
        event = packed.events[k]
        rows.append(
            [
                Cell(event.name, show=k),
                Cell(event.kind),
                figure(words.seconds(event.seconds), event.seconds),
                figure(words.seconds(event.start - packed.begin), event.start - packed.begin),
                figure("" if event.level is None else str(event.level), event.level),
                Cell(event.region if event.region != event.name else ""),
                Cell(f"rank {event.rank} · {event.device} · {event.stream}"),
            ]
        )
    head = ["name", "kind", "lasted", "began at", "level", "in", "on"]
    body = table("The longest events", head, rows)
    return f"<details><summary>The longest events as a table</summary>{body}</details>"


def facts(record: Record) -> str:
    """Command, machine, versions, and how the clocks of the ranks were laid on one another."""
    about: dict[str, Any] = {key: value for key, value in record.about.items() if key not in HIDDEN}
    if isinstance(about.get("seconds"), (int, float)):
        about["seconds"] = words.seconds(about["seconds"])
    clocks = [
        [
            figure(str(clock.rank), clock.rank),
            figure(words.seconds(clock.offset), clock.offset),
            figure(f"± {words.seconds(clock.error)}" if math.isfinite(clock.error) else "unknown", clock.error),
            Cell(clock.how),
        ]
        for clock in record.clocks
    ]
    head = ["rank", "clock moved by", "right to", "how"]
    return words.keyed(about.items()) + "<h3>Clocks</h3>" + table("Clocks of the ranks", head, clocks, sortable=False)


def _in(unit: str) -> Callable[[float | None], str]:
    return lambda value: words.amount(value, unit)
