# SPDX-License-Identifier: BSD-3-Clause
"""Figures with their units, and the few shapes of HTML that the page is made of. Everything is escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

UNKNOWN = "-"
TALL = 30  # rows, beyond which a table scrolls in its frame
SPACE = "\u00a0"  # a figure and its unit stay on one line
_SMALL = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
_LARGE = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def seconds(value: float | None) -> str:
    """ "1.23 ms"; at most three digits and none lost above."""
    if value is None or not math.isfinite(value):
        return UNKNOWN if value is None else str(value)
    if value == 0:
        return f"0{SPACE}s"
    scale, prefix = next(((s, p) for s, p in _SMALL if abs(value) >= s * 0.9995), _SMALL[-1])
    return f"{_digits(value / scale)}{SPACE}{prefix}s"


def amount(value: float | None, unit: str) -> str:
    """With a decimal prefix: "1.23 GB/s"."""
    if value is None or not math.isfinite(value):
        return UNKNOWN if value is None else f"{value} {unit}"
    scale, prefix = next(((s, p) for s, p in _LARGE if abs(value) >= s), (1.0, ""))
    return f"{_digits(value / scale)}{SPACE}{prefix}{unit}"


def share(value: float | None) -> str:
    """Per cent."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{_digits(100 * value)}{SPACE}%"


def count(value: int | float | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def level(value: int | None) -> str:
    return "no level" if value is None else f"{value}"


def _digits(value: float) -> str:
    if value == 0:
        return "0"
    places = max(0, 2 - math.floor(math.log10(abs(value) * (1 + 1e-12))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


_SHOW = ' <button type=button data-event={} hidden aria-label="Show in the timeline">show</button>'


class Cell(NamedTuple):
    """What a cell shows, what it is sorted by, a bar of this share under it, and a button for this event."""

    words: str
    value: float | None = None
    bar: float | None = None
    show: int | None = None


def figure(words: str, value: float | None, bar: float | None = None) -> Cell:
    """A number: set to the right; sorted by ``value``, unknown ones last."""
    return Cell(words, math.nan if value is None else value, bar)


def table(label: str, head: Sequence[str], rows: Iterable[Sequence[Cell | str]], *, sortable: bool = True) -> str:
    """A table that scrolls in its own frame on narrow screens; words to the left, figures to the right."""
    cells = [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    left = [all(row[j].value is None for row in cells) for j in range(len(head))]
    heads = "".join(
        f"<th{_words(at)} scope=col>{f'<button type=button>{escape(name)}</button>' if sortable else escape(name)}</th>"
        for name, at in zip(head, left, strict=True)
    )
    body = "".join(f"<tr>{''.join(_cell(cell, at) for cell, at in zip(row, left, strict=True))}</tr>" for row in cells)
    tall = " tall" if len(cells) > TALL else ""
    return (
        f'<div class="scroll{tall}" tabindex=0 role=region aria-label="{escape(label)}"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def note(words: str) -> str:
    return f"<p class=note>{escape(words)}</p>"


def missing(words: str) -> str:
    """What cannot be shown, and why."""
    return f"<p class=missing>{escape(words)}</p>"


def keyed(pairs: Iterable[tuple[str, Any]]) -> str:
    """Names and their values, which may be of any kind and length."""
    rows = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(as_text(value))}</td></tr>" for name, value in pairs
    )
    return f"<table class=facts><tbody>{rows}</tbody></table>"


def as_text(value: Any) -> str:
    """A fact: mappings and lists on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {as_text(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(as_text, value))
    return f"{value:.6g}" if isinstance(value, float) else "unknown" if value is None else str(value)


def _words(left: bool) -> str:
    return " class=words" if left else ""


def _cell(cell: Cell, left: bool) -> str:
    key = "" if cell.value is None else f' data-value="{cell.value if math.isfinite(cell.value) else ""}"'
    bar = ""
    if cell.bar is not None:
        part = 100 * min(1.0, max(0.0, cell.bar)) if math.isfinite(cell.bar) else 0.0
        bars = f'<rect class=whole width="100%" height="5"/><rect width="{part:.1f}%" height="5"/>'
        bar = f'<svg class=bar width="100%" height="5" aria-hidden=true>{bars}</svg>'
    show = "" if cell.show is None else _SHOW.format(cell.show)
    return f"<td{_words(left)}{key}>{escape(cell.words)}{show}{bar}</td>"
