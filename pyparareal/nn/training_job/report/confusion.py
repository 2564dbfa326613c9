# SPDX-License-Identifier: BSD-3-Clause
"""Which classes a network takes for which: a shaded table, or lists where there are many classes."""

from __future__ import annotations

from html import escape
from typing import Any

MOST_CLASSES = 20  # more columns than these are no longer read
LISTED = 12


def confusion_tables(result: dict[str, Any]) -> str:
    """One table per network."""
    names = result["class_names"]
    return "".join(
        f"<figure><figcaption>{escape(name)}, test images</figcaption>{_one(row['confusion'], names)}</figure>"
        for name, row in result["networks"].items()
    )


def recalls(counts: list[list[int]]) -> list[float | None]:
    """Share of each class's images that is found; None for a class without images."""
    return [row[i] / sum(row) if sum(row) else None for i, row in enumerate(counts)]


def _one(counts: list[list[int]], names: list[str]) -> str:
    escaped = [escape(name) for name in names]
    return _matrix(counts, escaped) if len(counts) <= MOST_CLASSES else _lists(counts, escaped)


def _matrix(counts: list[list[int]], names: list[str]) -> str:
    """Rows are true classes, columns predicted ones. The shade of a cell is its share of the row."""
    # Long names would make the columns too wide for a phone.
    head = "".join(f'<th title="{name}">{name if len(name) <= 2 else j}</th>' for j, name in enumerate(names))
    rows = []
    for i, (row, recall) in enumerate(zip(counts, recalls(counts), strict=True)):
        total = max(1, sum(row))
        cells = "".join(_cell(value, value / total, i == j) for j, value in enumerate(row))
        rows.append(f'<tr><th>{_row_name(i, names[i])}</th>{cells}<td class="recall">{_percent(recall)}</td></tr>')
    return (
        '<div class="scroll"><table class="confusion">'
        f'<tr><th class="corner">true \\ said</th>{head}<th>recall</th></tr>'
        f"{''.join(rows)}</table></div>"
    )


def _row_name(label: int, name: str) -> str:
    return name if len(name) <= 2 else f"{label} {name}"


def _cell(value: int, share: float, right: bool) -> str:
    if not value:
        return '<td class="none">·</td>'
    # One image in many is still to be seen, and the darkest shade still lets the figure be read.
    strength = 0.12 + 0.33 * share if right else 0.25 + 0.3 * share
    return f'<td class="{"right" if right else "wrong"}" style="--shade:{strength:.2f}">{value}</td>'


def _lists(counts: list[list[int]], names: list[str]) -> str:
    pairs = [(n, i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    found = sorted((recall, i) for i, recall in enumerate(recalls(counts)) if recall is not None)
    confused = "".join(f"<tr><td>{names[i]}</td><td>{names[j]}</td><td>{n}</td></tr>" for n, i, j in pairs[:LISTED])
    worst = "".join(f"<tr><td>{names[i]}</td><td>{_percent(recall)}</td></tr>" for recall, i in found[:LISTED])
    return (
        f'<div class="pair"><table><tr><th>true</th><th>said</th><th>images</th></tr>{confused}</table>'
        f"<table><tr><th>class</th><th>recall, lowest first</th></tr>{worst}</table></div>"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %"
