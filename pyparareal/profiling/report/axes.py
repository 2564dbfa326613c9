# SPDX-License-Identifier: BSD-3-Clause
"""Axes of a chart, linear or logarithmic, and marks on them that say what they are when pointed at or focused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from ...pages import svg
from ...pages.ticks import decades, ticks

WIDTH, HEIGHT = 350, 260  # a phone's width: on wider screens charts stand side by side or are scaled up
SMALLEST = 1e-30  # of the largest value of a logarithmic axis: what is below is drawn at its low end
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 40


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high`` with ``ticks``; ``words`` writes a tick."""

    label: str
    ticks: Sequence[float]
    words: Callable[[float], str]
    logarithmic: bool = False

    @property
    def low(self) -> float:
        return self.ticks[0]

    @property
    def high(self) -> float:
        return self.ticks[-1]

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one; what lies beyond is at the end."""
        if self.logarithmic:
            value = min(max(value, self.low), self.high)
            return math.log(value / self.low) / math.log(self.high / self.low)
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


def linear(label: str, values: Iterable[float], words: Callable[[float], str], count: int = 5) -> Axis:
    """From zero to the largest of the ``values``."""
    highest = max([value for value in values if math.isfinite(value)], default=1.0)
    return Axis(label, ticks(0, highest if highest > 0 else 1.0, count), words)


def logarithmic(label: str, values: Iterable[float], words: Callable[[float], str], most: int = 7) -> Axis:
    """Around the ``values`` that are positive and finite, at most about ``most`` ticks."""
    seen = [min(value, 1e290) for value in values if 0 < value < math.inf] or [1.0]
    lowest = max(SMALLEST * max(seen), 1e-290)
    seen = [max(value, lowest) for value in seen]
    found = decades(min(seen), max(seen))
    step = math.ceil((len(found) - 1) / most) if len(found) > most + 1 else 1
    kept = found[::-1][::step][::-1]
    if kept[0] > found[0]:
        kept.insert(0, kept[0] * (kept[0] / kept[1]))
    return Axis(label, kept, words, True)


@dataclass
class Chart:
    """A picture with two axes; ``label`` is what a screen reader says of all of it."""

    label: str
    x: Axis
    y: Axis
    drawn: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """In pixels."""
        return (
            LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - self.y.place(y) * (HEIGHT - TOP - BOTTOM),
        )

    def line(self, points: Iterable[tuple[float, float]], css: str) -> None:
        row = [self.at(x, y) for x, y in points]
        if len(row) > 1:
            self.drawn.append(svg.line(row, css=f"curve {css}"))

    def point(self, x: float, y: float, css: str, tip: Sequence[str], size: float = 4.0) -> None:
        """``tip``: a title, then lines of name and value with a tab between them."""
        (a, b), said = self.at(x, y), ", ".join(tip).replace("\t", " ")
        shape = svg.circle(a, b, size, css=f"point {css}")
        self.drawn.append(
            f'<g tabindex="0" role="img" data-tip="{escape(chr(10).join(tip))}" aria-label="{escape(said)}">'
            f"{svg.circle(a, b, 9, css='reach')}{shape}</g>"
        )

    def text(self, x: float, y: float, words: str, *, anchor: str = "start", up: float = 5.0, css: str = "") -> None:
        a, b = self.at(x, y)
        self.drawn.append(svg.text(a, b - up, words, anchor=anchor, css=css))

    def picture(self) -> str:
        frame = []
        for value in self.y.ticks:
            y = self.at(self.x.low, value)[1]
            frame.append(svg.line([(LEFT, y), (WIDTH - RIGHT, y)], css="grid"))
            frame.append(svg.text(LEFT - 6, y + 4, self.y.words(value), anchor="end"))
        for value in self.x.ticks:
            x = self.at(value, self.y.low)[0]
            frame.append(svg.line([(x, HEIGHT - BOTTOM), (x, HEIGHT - BOTTOM + 4)], css="axis"))
            frame.append(svg.text(x, HEIGHT - BOTTOM + 17, self.x.words(value)))
        frame.append(svg.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, f"{self.x.label}; up: {self.y.label}"))
        # Points can be focused, so the whole is a group of pictures, not one.
        picture = svg.picture(WIDTH, HEIGHT, [*frame, *self.drawn], self.label, css="fit")
        return picture.replace('role="img"', 'role="group"', 1)
