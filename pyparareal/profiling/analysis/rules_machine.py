# SPDX-License-Identifier: BSD-3-Clause
"""Findings about the machine: launches, copies, waiting, idle parts, roofs, warm-up."""

from __future__ import annotations

from collections.abc import Iterator

from .results import Analysis, DeviceRow, Finding, HostRow, Point
from .rules import WORTH, finding, severity
from .wording import count, digits, duration, percent, rate

HOST_SHARE = 0.3  # of the work with nothing at work on any device
LAUNCHES = 50  # below, a share of the host says little
CALLING = 1e-3  # seconds: no call costs more, a busy machine or not; what lies between is something else
SMALL = 5e-5  # seconds: what takes less is mostly the cost of calling it
UNEVEN = 0.3  # of the work, between the busiest and the idlest
WAITING = 0.2
COPYING = 0.15
SETTING_UP = 0.5
FAR_BELOW, NEAR = 0.1, 0.5  # of a roof
OP_SHARE = 0.15  # of all launches, for an op to be worth a word
SMALL_SHARE = 0.02  # of the work: below, a cost is not worth a word
WARM_UP = 10.0  # times the mean of the others


def small_launches(analysis: Analysis) -> Iterator[Finding]:
    """Python between the launches takes a large part of the work."""
    rows = [row for row in analysis.host_overhead if _is_called_often(row)]
    if not rows:
        return
    row = max(rows, key=lambda one: one["overhead_seconds"])
    if row["overhead_share"] < HOST_SHARE:
        return
    each = row["launch_seconds"] / row["launches"]
    yield finding(
        "small-launches",
        severity(analysis, row["overhead_seconds"]),
        "The launches are too small",
        f"{percent(row['overhead_share'])} of the work, {duration(row['overhead_seconds'])}, passed between "
        f"{row['launches']} launches{_on(analysis, row['rank'])}, in Python and in what is not traced: "
        f"{duration(row['seconds_per_launch'])} for each, which itself runs for {duration(each)}.",
        {"overhead_share": row["overhead_share"], "launches": row["launches"], "launch_seconds": each},
        "Give each launch more to do: more points, a larger batch, more slices at once; or take a fused propagator, "
        "whose m steps are one launch (RungeKutta with a compiled right-hand side, LinearDiagonal, a GRU layer), "
        "or on a GPU runtime=GraphRuntime().",
        row["overhead_seconds"],
    )


def _is_called_often(row: HostRow) -> bool:
    """So that what lies between its launches is likely to be the cost of calling them."""
    return row["launches"] >= LAUNCHES and row["seconds_per_launch"] < CALLING


def outside_launches(analysis: Analysis) -> Iterator[Finding]:
    """Little of the work is in steps and ops, and calling them is not the reason."""
    rows = [row for row in analysis.host_overhead if row["launches"] and not _is_called_often(row)]
    for row in sorted(rows, key=lambda one: -one["overhead_seconds"])[:1]:
        if row["overhead_share"] >= HOST_SHARE:
            yield finding(
                "outside-launches",
                severity(analysis, row["overhead_seconds"]),
                "Most of the work is outside steps and ops"
                if row["overhead_share"] > 0.5
                else "Much of the work is outside steps and ops",
                f"{percent(row['overhead_share'])} of the work, {duration(row['overhead_seconds'])}, passed outside "
                f"the {count(row['launches'], 'launch', 'launches')}{_on(analysis, row['rank'])}: in Python, or in "
                "operations of torch and NumPy, which are not traced.",
                {"overhead_share": row["overhead_share"], "launches": row["launches"]},
                "torch.profiler shows torch's operations, python -m cProfile the functions; a faster op changes "
                "little here.",
                row["overhead_seconds"],
            )


def waiting(analysis: Analysis) -> Iterator[Finding]:
    """A rank waits for messages, threads or devices."""
    waits = {row["rank"]: row["wait_seconds"] / row["seconds"] for row in analysis.host_overhead if row["seconds"] > 0}
    for row in sorted(analysis.host_overhead, key=lambda one: -one["wait_seconds"])[:1]:
        share = waits.get(row["rank"], 0.0)
        if share >= WAITING:
            yield finding(
                "waiting",
                severity(analysis, row["wait_seconds"]),
                f"Waiting takes {percent(share)}{_on(analysis, row['rank'])}",
                f"For {duration(row['wait_seconds'])} of {duration(row['seconds'])} nothing ran"
                f"{_on(analysis, row['rank'])}: it waited for messages, threads or a device.",
                {f"rank {rank}": one for rank, one in waits.items()},
                "Share the work more evenly, or use fewer ranks or threads; a larger m means fewer messages.",
                row["wait_seconds"],
            )


def copying(analysis: Analysis) -> Iterator[Finding]:
    """Bytes on the way from one memory to another hold the work up."""
    for row in analysis.host_overhead:
        share = row["copy_seconds"] / row["seconds"] if row["seconds"] > 0 else 0.0
        if share >= COPYING:
            yield finding(
                "copying",
                severity(analysis, row["copy_seconds"]),
                f"Copies take {percent(share)}",
                f"{duration(row['copy_seconds'])} of {duration(row['seconds'])} went into copies while nothing ran"
                f"{_on(analysis, row['rank'])}.",
                {"share": share, "rank": row["rank"]},
                "Keep the states where they are used; share the slices so that fewer of them cross devices.",
                row["copy_seconds"],
            )


def idle(analysis: Analysis) -> Iterator[Finding]:
    """One rank, device or stream works while another does not."""
    whole = [row for row in analysis.devices if row["stream"] is None]
    parts = [row for row in analysis.devices if row["stream"] is not None]
    for rows in (whole, *_by_device(parts)):
        if len(rows) < 2:
            continue
        busiest, least = max(rows, key=_busy), min(rows, key=_busy)
        lost = busiest["busy_seconds"] - least["busy_seconds"]
        if lost < UNEVEN * analysis.summary["work_seconds"]:
            continue
        yield finding(
            "idle",
            severity(analysis, lost / len(rows)),
            f"{_name(analysis, least)} is idle most of the time",
            f"{_name(analysis, least)} worked for {duration(least['busy_seconds'])}, {_name(analysis, busiest)} for "
            f"{duration(busiest['busy_seconds'])} of {duration(analysis.summary['work_seconds'])}.",
            {"busy": {_name(analysis, row): row["busy_seconds"] for row in rows}},
            "Give it a larger share (shares=...), use fewer parts, or make more slices, so that every part has some.",
            lost / len(rows),
        )


def _by_device(rows: list[DeviceRow]) -> list[list[DeviceRow]]:
    keys = {(row["rank"], row["device"]) for row in rows}
    return [[row for row in rows if (row["rank"], row["device"]) == key] for key in sorted(keys)]


def _busy(row: DeviceRow) -> float:
    return row["busy_seconds"]


def _name(analysis: Analysis, row: DeviceRow) -> str:
    words = [f"Rank {row['rank']}"] if analysis.summary["ranks"] > 1 else []
    if row["stream"] is not None:
        words.append(f"{'thread' if row['device'] == 'cpu' else 'stream'} {row['stream']} of {row['device']}")
    elif not words or row["device"] != "cpu":
        words.append(row["device"])
    text = ", ".join(words)
    return text[0].upper() + text[1:]


def set_up(analysis: Analysis) -> Iterator[Finding]:
    """Most of the wall time is outside solves and training steps."""
    summary = analysis.summary
    outside = summary["seconds"] - summary["work_seconds"]
    if summary["seconds"] > 0 and outside >= SETTING_UP * summary["seconds"] and outside > 1e-3:
        yield finding(
            "set-up",
            "warning",
            "Most of the time is not solving",
            f"{duration(outside)} of {duration(summary['seconds'])} passed outside solves and training steps: building "
            "the problem, reading data, importing.",
            {"outside_seconds": outside},
            "Build once and solve often; what is outside the timed part of your program is no cost of the method.",
            outside,
        )


def warm_up(analysis: Analysis) -> Iterator[Finding]:
    """The first call of an op is far slower than the others."""
    rows = []
    for row in analysis.by_op:
        if row["calls"] < 3 or row["encloses"]:
            continue
        others = (row["seconds"] - row["first_seconds"]) / (row["calls"] - 1)
        extra = row["first_seconds"] - others
        if row["first_seconds"] >= WARM_UP * others and extra >= WORTH * analysis.summary["work_seconds"]:
            rows.append((extra, others, row))
    if rows:
        extra, others, row = max(rows, key=lambda one: one[0])
        lost = sum(one[0] for one in rows)
        yield finding(
            "warm-up",
            severity(analysis, lost),
            "First calls are slower",
            f"The first call of {row['op']} took {duration(row['first_seconds'])}, the others {duration(others)} on "
            "average: threads start, memory is touched for the first time, code is compiled or chosen.",
            {"ops": [one[2]["op"] for one in rows], "seconds": lost},
            "It is paid once. Leave the first solve or step out of what you measure.",
            lost,
        )


def far_below_roof(analysis: Analysis) -> Iterator[Finding]:
    """An op that takes a large part of the time reaches a small part of what the machine can do."""
    for point, share in _large(analysis):
        each = point["seconds"] / point["calls"]
        lost = point["seconds"] * (1 - point["fraction"])
        if point["fraction"] >= FAR_BELOW or lost < SMALL_SHARE * analysis.summary["work_seconds"]:
            continue
        reason = (
            f"A call runs for {duration(each)} only, mostly the cost of calling it."
            if each < SMALL
            else "It works on too little at a time to use all of the machine, or waits for its own results."
        )
        yield finding(
            "far-below-roof",
            severity(analysis, lost),
            f"{point['op']} is far below its roof",
            f"{point['op']} takes {percent(share)} of the time in launches and reaches {percent(point['fraction'])} of "
            f"what this machine can do there ({_reached(point)}). {reason}",
            {"fraction": point["fraction"], "seconds_per_call": each, "intensity": point["intensity"]},
            "More slices or a larger batch in a call make it faster per state.",
            lost,
        )


def at_the_roof(analysis: Analysis) -> Iterator[Finding]:
    """An op that takes a large part of the time is as fast as the machine allows, and by what it is held."""
    for point, share in _large(analysis):
        if point["fraction"] < NEAR:
            continue
        if point["in_caches"] and point["bound"] == "bytes":
            held = f"its states live in caches: {rate(point['bytes_per_second'], 'B')}, more than memory gives"
        else:
            held = f"held by {'memory' if point['bound'] == 'bytes' else 'arithmetic'}: {_reached(point)}"
        yield finding(
            "at-the-roof",
            "note",
            f"{point['op']} is as fast as this machine allows",
            f"{point['op']}, {percent(share)} of the time in launches, reaches {percent(point['fraction'])} of its "
            f"roof, {held}.",
            {"fraction": point["fraction"], "bound": point["bound"], "in_caches": point["in_caches"]},
        )


def _large(analysis: Analysis) -> Iterator[tuple[Point, float]]:
    """Points of ops that take a large part of all launches, with that part."""
    shares = {(row["op"], row["device"], row["dtype"]): row["share"] for row in analysis.by_op}
    for point in analysis.roofline["points"]:
        share = shares.get((point["op"], point["device"], point["dtype"]), 0.0)
        if share >= OP_SHARE:
            yield point, share


def _reached(point: Point) -> str:
    intensity = f"{digits(point['intensity'])} FLOP for each byte"
    if point["bound"] == "bytes":
        return f"{rate(point['bytes_per_second'], 'B')} at {intensity}"
    return f"{rate(point['flops_per_second'], 'FLOP')} at {intensity}"


def few_slices(analysis: Analysis) -> Iterator[Finding]:
    """Fewer slices than threads that could take them."""
    threads = max((roof["threads"] or 0 for roof in analysis.roofline["roofs"]), default=0)
    for number, solve in enumerate(analysis.solves, 1):
        slices = solve["slices"]
        if solve["method"] in ("parareal", "mgrit", "newton") and slices and 1 < slices < threads:
            idle_seconds = solve["seconds"] * (1 - slices / threads)
            yield finding(
                "few-slices",
                severity(analysis, idle_seconds),
                "Fewer slices than threads",
                f"{count(slices, 'slice')} leave {threads - slices} of {threads} threads without work.",
                {"solve": number, "slices": slices, "threads": threads},
                "A smaller m makes more slices.",
                idle_seconds,
            )


def _on(analysis: Analysis, rank: int) -> str:
    return f" on rank {rank}" if analysis.summary["ranks"] > 1 else ""


RULES = (
    small_launches, outside_launches, waiting, copying, idle, set_up, warm_up, far_below_roof, at_the_roof, few_slices,
)  # fmt: skip
