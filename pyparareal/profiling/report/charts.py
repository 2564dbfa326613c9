# SPDX-License-Identifier: BSD-3-Clause
"""Residuals, roofline, predicted seconds and memory as pictures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise

from ..analysis.results import Point, Predicted, Roof, Roofline
from ..events import Record, Sample, Solve
from . import words
from .axes import Axis, Chart, linear, logarithmic

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
CURVES = 6  # of one chart; their colours and dashes
MOST_POINTS = 400  # of a curve: more than a screen has pixels for it
MOST_MARKS = 60  # on one: each can be focused
LISTED = 24  # solves with a chart of their own curve


def residuals(solves: Sequence[Solve]) -> str:
    """Of the solves that iterated, with their tolerances."""
    shown = [(k, solve) for k, solve in enumerate(solves) if solve.residuals]
    if not shown:
        return words.missing("No residuals: no solve of this run iterated.")
    pictures = []
    for begin in range(0, min(len(shown), LISTED), CURVES):
        pictures.append(_residuals(shown[begin : min(begin + CURVES, LISTED)], single=len(shown) == 1))
    left = len(shown) - LISTED
    more = words.note(f"{left} more solves are not drawn; all are in the table.") if left > 0 else ""
    return f"<div class=charts>{''.join(pictures)}</div>{more}"


def _residuals(shown: Sequence[tuple[int, Solve]], *, single: bool) -> str:
    tolerances = {tol for _, solve in shown if (tol := _tolerance(solve)) is not None}
    values = [value for _, solve in shown for value in solve.residuals]
    y = logarithmic("residual", [*values, *tolerances], power)
    longest = max(len(solve.residuals) for _, solve in shown)
    x = linear("iteration", [max(longest, 2)], lambda value: f"{value:g}")
    x = Axis(x.label, [tick for tick in x.ticks if tick == int(tick)], x.words)
    chart = Chart("Residual by iteration, logarithmic", x, y)
    for tol in sorted(tolerances):
        chart.line([(x.low, tol), (x.high, tol)], "tolerance")
        chart.text(x.low, tol, f" tolerance {tol:.2g}")
    broken, keys = 0, []
    for place, (number, solve) in enumerate(shown):
        first = 0 if len(solve.residuals) > solve.iterations else 1  # with that of the guess
        points = [(k, value) for k, value in enumerate(solve.residuals, first)]
        good = [(k, value) for k, value in points if 0 < value < math.inf]
        broken += sum(not math.isfinite(value) for _, value in points)
        chart.line(good[:: math.ceil(len(good) / MOST_POINTS) or 1], f"c{place}")
        for k, value in good[:: math.ceil(len(good) / MOST_MARKS)] if good else []:
            name = solve.method if single else f"solve {number + 1}, {solve.method}"
            chart.point(k, value, f"c{place}", [f"{name}, iteration {k}", f"residual\t{value:.4g}"], 3)
        if not single:
            keys.append(_key(f"c{place}", f"{number + 1}: {solve.method}, {solve.status}"))
    zero = sum(value == 0 for value in values)
    note = (
        words.note(f"Not drawn, as they are no finite numbers: {broken} of {len(values)} residuals.") if broken else ""
    )
    note += words.note(f"Below the chart, as they are exactly zero: {zero} of {len(values)} residuals.") if zero else ""
    return f"<figure>{chart.picture()}<p class=keys>{''.join(keys)}</p>{note}</figure>"


def _tolerance(solve: Solve) -> float | None:
    """What its residuals are compared with; None for no tolerance, or one that is relative to other norms."""
    tol, relative = solve.facts.get("tol"), solve.facts.get("options", {}).get("relative")
    if not isinstance(tol, (int, float)):
        return None
    if relative == "first":
        tol *= next((value for value in solve.residuals if math.isfinite(value)), math.nan)
    return float(tol) if relative in (None, "first") and 0 < tol < math.inf else None


def roofline(found: Roofline) -> str:
    """Ops by their FLOP per byte and FLOP per second, under the roofs measured in this run."""
    if not found["points"] and not found["roofs"]:
        unknown = f" {_unknown(found['unknown'])}." if found["unknown"] else ""
        return words.missing(f"No roofline: the roofs of this machine were not measured in this run.{unknown}")
    points = [p for p in found["points"] if p["intensity"] > 0 and p["flops_per_second"] > 0]
    ridges = [r["flops_per_second"] / r["bytes_per_second"] for r in found["roofs"] if r["bytes_per_second"] > 0]
    x = logarithmic("FLOP per byte", [*(p["intensity"] for p in points), *(8 * v for v in ridges), 0.02], _plain, 5)
    tops = [roof["flops_per_second"] for roof in found["roofs"]]
    y = logarithmic(
        "FLOP/s",
        [*(rate / 10 for rate in [*tops, *(p["flops_per_second"] for p in points)]), *tops],
        lambda v: words.amount(v, ""),
        6,
    )
    chart = Chart("Roofline: FLOP per second by FLOP per byte, both logarithmic", x, y)
    keys = []
    for place, roof in enumerate(found["roofs"]):
        _roof(chart, roof, place)
        keys.append(_key(f"roof r{place % 4}", roof_words(roof)))
    ops: dict[str, int] = {}
    for point in points:
        place = ops.setdefault(point["op"], len(ops)) % CURVES
        chart.point(point["intensity"], point["flops_per_second"], f"c{place}", point_tip(point), 5)
    keys += [_key(f"dot c{place % CURVES}", op) for op, place in ops.items()]
    note = words.note(_unknown(found["unknown"]) + ".") if found["unknown"] else ""
    none = words.missing("No op whose FLOPs and bytes are known ran: roofs alone.") if not points else ""
    return f"<figure>{chart.picture()}<p class=keys>{''.join(keys)}</p>{none}{note}</figure>"


def _roof(chart: Chart, roof: Roof, place: int) -> None:
    rate, top = roof["bytes_per_second"], roof["flops_per_second"]
    if not (rate > 0 and top > 0):
        return
    # A slope under the left edge of the chart would bend at it, so it begins where it enters.
    begin = max(chart.x.low, chart.y.low / rate)
    chart.line([(begin, min(top, begin * rate)), (top / rate, top), (chart.x.high, top)], f"roof r{place % 4}")


def roof_words(roof: Roof) -> str:
    threads = "" if roof["threads"] is None else f", {roof['threads']} thread{'s' * (roof['threads'] != 1)}"
    rates = f"{words.amount(roof['bytes_per_second'], 'B/s')}, {words.amount(roof['flops_per_second'], 'FLOP/s')}"
    return f"roof of {roof['device']} {roof['dtype']}{threads}: {rates} (measured)"


def point_tip(point: Point) -> list[str]:
    """What is said of an op on the roofline."""
    what = "copy bandwidth" if point["bound"] == "bytes" else "arithmetic roof"
    return [
        f"{point['op']}, {point['device']} {point['dtype']}",
        f"FLOP/s\t{words.amount(point['flops_per_second'], 'FLOP/s')}",
        f"bytes/s\t{words.amount(point['bytes_per_second'], 'B/s')}{' (from caches)' * point['in_caches']}",
        f"FLOP per byte\t{point['intensity']:.3g}",
        f"reached\t{words.share(point['fraction'])} of the {what}",
        f"took\t{words.seconds(point['seconds'])} in {point['calls']:,} calls",
    ]


def processors(found: Predicted, ranks: int) -> str:
    """*Predicted* time by number of processors, the serial chain, and what was *measured* on so many ``ranks``."""
    rows, unit = found["processors"], found["unit"]
    if not rows:
        return ""
    tell = words.seconds if unit == "seconds" else lambda value: words.amount(value, unit)
    measured = found["measured_seconds"] if unit == "seconds" else None
    serial = found["serial_seconds"]
    x = logarithmic("processors", [row["processors"] for row in rows], _plain)
    x = Axis(
        x.label, sorted({float(row["processors"]) for row in rows} | ({2.0} if len(rows) < 2 else set())), _plain, True
    )
    values = [value for value in [*(row["seconds"] for row in rows), serial, measured] if value]
    chart = Chart(f"Predicted {unit} by processors", x, logarithmic(unit, values, tell, 5))
    keys = [_key("predicted", "predicted: this schedule")]
    if serial:
        chart.line([(x.low, serial), (x.high, serial)], "serial")
        keys.append(_key("serial", "predicted: the serial chain on one processor"))
    chart.line([(row["processors"], row["seconds"]) for row in rows], "predicted")
    for row in rows:
        tip = [f"predicted, {row['processors']} processors", f"{unit}\t{tell(row['seconds'])}",
               f"against serial\t{row['speedup']:.3g} times"]  # fmt: skip
        chart.point(row["processors"], row["seconds"], "predicted", tip)
    if measured:
        where = f"measured: this run, {ranks} rank{'s' * (ranks != 1)}"
        chart.point(ranks, measured, "measured", [where, f"{unit}\t{tell(measured)}"], 5)
        keys.append(_key("dot measured", where))
    return f"<figure>{chart.picture()}<p class=keys>{''.join(keys)}</p></figure>"


def memory(record: Record, begin: float) -> str:
    """Counters of bytes over time, with their high-water marks."""
    rows = _series(record, lambda counter: "bytes" in counter)
    if not rows:
        return words.missing("No memory samples: nothing was counted in this run.")
    pictures = [_memory(name, rank, row, begin) for (rank, name), row in rows.items()]
    return f"<div class=charts>{''.join(pictures[:LISTED])}</div>"


def counters(record: Record, begin: float) -> str:
    """What else was counted, over time: the loss of training steps."""
    rows = _series(record, lambda counter: "bytes" not in counter and counter != "residual")
    pictures = []
    for (rank, name), row in list(rows.items())[:LISTED]:
        chart = Chart(f"{name} over time, rank {rank}", _time(row, begin), linear(name, [s.value for s in row], _plain))
        chart.line([(sample.time - begin, sample.value) for sample in _thinned(row)], "c0")
        for sample in row[:: math.ceil(len(row) / MOST_MARKS)]:
            tip = [f"{name}, rank {rank}", f"value\t{sample.value:.4g}", f"at\t{words.seconds(sample.time - begin)}"]
            chart.point(sample.time - begin, sample.value, "c0", tip, 3)
        pictures.append(f"<figure><figcaption>{escape(f'{name}, rank {rank}')}</figcaption>{chart.picture()}</figure>")
    return f"<div class=charts>{''.join(pictures)}</div>" if pictures else ""


def _series(record: Record, wanted: Callable[[str], bool]) -> dict[tuple[int, str], list[Sample]]:
    """By rank and counter, in the order of time; values that are finite."""
    rows: dict[tuple[int, str], list[Sample]] = defaultdict(list)
    for sample in sorted(record.samples, key=lambda sample: (sample.rank, sample.counter)):
        if wanted(sample.counter) and math.isfinite(sample.value) and math.isfinite(sample.time):
            rows[sample.rank, sample.counter].append(sample)
    return {key: sorted(row, key=lambda sample: sample.time) for key, row in rows.items()}


def _time(row: Sequence[Sample], begin: float) -> Axis:
    return linear("time", [row[-1].time - begin], words.seconds, 4)


def _memory(name: str, rank: int, row: Sequence[Sample], begin: float) -> str:
    peak = max(row, key=lambda sample: sample.value)
    bytes_axis = linear("bytes", [peak.value], lambda value: words.amount(value, "B"))
    chart = Chart(f"{name} over time, rank {rank}", _time(row, begin), bytes_axis)
    points = [(sample.time - begin, sample.value) for sample in _thinned(row)]
    steps = [pair for (a, b), (c, _) in pairwise(points) for pair in ((a, b), (c, b))]
    chart.line([*steps, points[-1]], "c0")
    tip = [f"highest {name}", f"bytes\t{words.amount(peak.value, 'B')}", f"at\t{words.seconds(peak.time - begin)}"]
    chart.point(peak.time - begin, peak.value, "measured", tip, 5)
    title = f"{name}, rank {rank}: at most {words.amount(peak.value, 'B')}"
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart.picture()}</figure>"


def _thinned(row: Sequence[Sample]) -> list[Sample]:
    """Of every stretch of samples the highest, so that no peak is lost, and the last of all."""
    size = math.ceil(len(row) / MOST_POINTS)
    kept = [max(row[k : k + size], key=lambda sample: sample.value) for k in range(0, len(row), size)]
    return kept if kept[-1] is row[-1] else [*kept, row[-1]]


def _key(css: str, text: str) -> str:
    mark = "<circle cx=11 cy=6 r=5 />" if css.startswith("dot") else "<line x1=0 x2=22 y1=6 y2=6 />"
    return f'<span><svg class="sample {css}" width=22 height=12 aria-hidden=true>{mark}</svg>{escape(text)}</span>'


def _unknown(ops: Sequence[str]) -> str:
    return f"FLOPs or bytes are not known of {', '.join(ops)}"


def power(value: float) -> str:
    """A tick of a logarithmic axis: 10⁻⁷, 2·10⁻⁷; small whole powers as they are."""
    if 0.01 <= value < 1000:
        return f"{value:g}"
    factor, exponent = f"{value:.0e}".split("e")
    raised = str(int(exponent)).translate(_RAISED)
    return f"10{raised}" if factor == "1" else f"{factor}·10{raised}"


def _plain(value: float) -> str:
    return f"{value:g}"
