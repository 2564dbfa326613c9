# SPDX-License-Identifier: BSD-3-Clause
"""Line charts: training loss and validation error by epoch, seconds per step by number of devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....pages import svg
from ....pages.ticks import decades, ticks

WIDTH, HEIGHT = 350, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 62, 36


@dataclass(frozen=True)
class Series:
    name: str  # empty: not in the legend
    css: str  # colour, and maybe "dashed"
    points: Sequence[tuple[float, float]]
    rings: bool = False  # instead of a line


def charts(result: dict[str, Any]) -> str:
    """Three pictures."""
    loss, wrong, speed = [], [], []
    for name, row in result["networks"].items():
        history = row["history"]
        loss.append(Series(name, name, [(entry["epoch"], entry["train_loss"]) for entry in history]))
        errors = [(entry["epoch"], 100 * (1 - entry["validation_accuracy"])) for entry in history]
        wrong.append(Series(name, name, errors))
        predicted = row["predicted_seconds_per_step"].items()
        speed.append(Series(f"{name}, predicted", f"{name} dashed", [(int(p), 1e3 * s) for p, s in predicted]))
        speed.append(Series("measured" * (name == "parareal"), name, [(1, 1e3 * row["seconds_per_step"])], rings=True))
    return "".join(
        [
            chart("Training loss, cross-entropy", "epoch", loss, logarithmic=True),
            chart("Validation error, % of images", "epoch", wrong),
            chart("Training step, ms", "devices", speed),
        ]
    )


def chart(title: str, x_label: str, series: Sequence[Series], *, logarithmic: bool = False) -> str:
    """One picture; the vertical axis begins at zero unless ``logarithmic``."""
    xs = [x for row in series for x, _ in row.points]
    ys = [y for row in series for _, y in row.points]
    positive = [y for y in ys if y > 0] or [1.0]
    x_ticks = [x for x in ticks(min(xs), max(xs), 6) if x == int(x) and min(xs) <= x <= max(xs)]
    y_ticks = decades(min(positive), max(positive)) if logarithmic else ticks(0, max(ys) or 1.0, 5)
    lowest, highest = y_ticks[0], y_ticks[-1]
    span = max(xs) - min(xs)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - min(xs)) / span if span else 0.5
        if logarithmic:
            up = math.log(max(y, lowest) / lowest) / math.log(highest / lowest)
        else:
            up = (y - lowest) / (highest - lowest)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    drawn = [svg.text(LEFT, 16, title, anchor="start", css="bold")]
    for y in y_ticks:
        height = place(min(xs), y)[1]
        drawn.append(svg.line([(LEFT, height), (WIDTH - RIGHT, height)], css="grid"))
        drawn.append(svg.text(LEFT - 6, height + 4, f"{y:g}", anchor="end"))
    for x in x_ticks:
        drawn.append(svg.text(place(x, lowest)[0], HEIGHT - BOTTOM + 16, f"{x:g}"))
    drawn.append(svg.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x_label))
    for row in series:
        drawn += _curve([place(x, y) for x, y in row.points], row)
    drawn += _legend(series)
    return svg.picture(WIDTH, HEIGHT, drawn, f"{title} by {x_label}", css="fit")


def _curve(places: list[tuple[float, float]], row: Series) -> list[str]:
    if row.rings:
        return [svg.circle(x, y, 5, css=f"ring {row.css}", title=row.name) for x, y in places]
    few = len(places) <= 12
    points = [svg.circle(x, y, 2.5, css=f"dot {row.css}") for x, y in places] if few else []
    return [svg.line(places, css=f"curve {row.css}"), *points]


def _legend(series: Sequence[Series]) -> list[str]:
    drawn, x, y = [], float(LEFT), 30
    for row in (row for row in series if row.name):
        width = 32 + 6.2 * len(row.name)  # about that of the letters
        if x + width > WIDTH:
            x, y = float(LEFT), y + 16
        mark = svg.circle(x + 8, y, 4, css=f"ring {row.css}") if row.rings else ""
        drawn += [
            mark or svg.line([(x, y), (x + 16, y)], css=f"curve {row.css}"),
            svg.text(x + 20, y + 4, row.name, anchor="start"),
        ]
        x += width
    return drawn
