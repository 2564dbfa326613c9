# SPDX-License-Identifier: BSD-3-Clause
"""The pieces of one training step in time: as measured in one process, and as predicted on one device per part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....pages import svg
from ....pages.ticks import ticks
from ..step_time import Bar, StepTimes

ROW, BAR = 26, 20  # pixels
NAMES = {
    "preprocess": "preprocessing C",
    "fine": "parts g",
    "coarse": "coarse chain F",
    "head": "head and loss h",
    "update": "update",
}
LETTERS = {"preprocess": "C", "fine": "g", "coarse": "F", "head": "h", "update": "up"}
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Row:
    name: str
    bars: Sequence[Bar]
    whole: float | None = None  # the whole step, measured at once


@dataclass(frozen=True)
class Group:
    title: str
    rows: Sequence[Row]
    end: float | None = None  # of the critical path


def timeline(result: dict[str, Any]) -> str:
    """The picture, once for wide and once for narrow screens, and what its colours mean."""
    groups = _groups(result)
    wide = _picture(groups, 1000, 86, "wide")
    return wide + _picture(groups, 350, 58, "narrow") + _legend()


def predicted_factor(times: StepTimes) -> float:
    """What the pieces' times are multiplied by, so that in one process they add up to the measured step."""
    return times.predicted_step(1) / max(bar.end for bar in times.schedule(1))


def _groups(result: dict[str, Any]) -> list[Group]:
    measured, predicted = [], []
    for name, row in result["networks"].items():
        times = StepTimes(**row["pieces"])
        measured.append(Row(name, [bar._replace(critical=False) for bar in times.schedule(1)], times.step))
        if name == "parareal":
            devices, factor = len(times.fine), predicted_factor(times)
            bars = [b._replace(start=factor * b.start, seconds=factor * b.seconds) for b in times.schedule(devices)]
            rows = [Row(f"device {d + 1}", [bar for bar in bars if bar.device == d]) for d in range(devices)]
            end = times.predicted_step(devices)
            words = f"predicted, {devices} devices: {1e3 * end:.3g} ms on the outlined critical path"
            predicted.append(Group(words, rows, end))
    return [Group("measured, one process: pieces one by one; line: the whole step", measured), *predicted]


def _picture(groups: Sequence[Group], width: float, left: float, css: str) -> str:
    latest = max(max([bar.end for bar in row.bars] + [row.whole or 0.0]) for group in groups for row in group.rows)
    scale = (width - left - 12) / latest
    drawn: list[str] = []
    y = 4.0
    for group in groups:
        for words in wrapped(group.title, int(width / 7.2)):
            drawn.append(svg.text(0, y + 14, words, anchor="start", css="bold"))
            y += 18
        y += 4
        top = y
        for row in group.rows:
            name = row.name if css == "wide" else row.name.replace("device ", "dev. ")
            drawn.append(svg.text(left - 8, y + 15, name, anchor="end"))
            for bar in row.bars:
                drawn += _bar(bar, left + scale * bar.start, y, scale * bar.seconds)
            if row.whole is not None:
                x = left + scale * row.whole
                drawn.append(svg.line([(x, y - 3), (x, y + BAR + 3)], css="mark"))
            y += ROW
        if group.end is not None:
            x = left + scale * group.end
            drawn.append(svg.line([(x, top - 2), (x, y)], css="mark"))
        y += 8
    drawn += _axis(left, y, scale, latest, 8 if css == "wide" else 4)
    return svg.picture(width, y + 34, drawn, "Timeline of one training step", css=f"{css} timeline")


def _bar(bar: Bar, x: float, y: float, width: float) -> list[str]:
    number = "" if bar.piece in ("head", "update") else str(bar.number).translate(SUPERSCRIPT)
    words = LETTERS[bar.piece] + number
    way = "" if bar.piece == "update" else ", backward" if bar.backward else ", forward"
    title = f"{NAMES[bar.piece]}{number}{way}: {1e3 * bar.seconds:.3g} ms"
    css = f"bar {bar.piece}{' back' * bar.backward}{' critical' * bar.critical}"
    drawn = [svg.box(x, y, max(width, 0.5), BAR, css=css, title=title)]
    if width > 7.5 * len(words) + 3:
        drawn.append(svg.text(x + width / 2, y + 14.5, words, css="inside" if not bar.backward else ""))
    return drawn


def _axis(left: float, y: float, scale: float, latest: float, count: int) -> list[str]:
    marks = [t for t in ticks(0, 1e3 * latest, count) if t <= 1e3 * latest * (1 + 1e-9)]
    drawn = [svg.line([(left, y), (left + scale * latest, y)], css="axis")]
    for t in marks:
        x = left + scale * t / 1e3
        drawn += [svg.line([(x, y), (x, y + 5)], css="axis"), svg.text(x, y + 18, f"{t:g}")]
    return [*drawn, svg.text(left - 8, y + 18, "ms", anchor="end")]


def wrapped(words: str, letters: int) -> list[str]:
    lines = [""]
    for word in words.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > letters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _legend() -> str:
    keys = "".join(f'<span><i class="key {piece}"></i>{words}</span>' for piece, words in NAMES.items())
    return f'<p class="keys">{keys}<span><i class="key fine back"></i>pale: backward</span></p>'
