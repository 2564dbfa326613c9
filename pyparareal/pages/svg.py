# SPDX-License-Identifier: BSD-3-Clause
"""Inline SVG in the colours of the page: classes only, so that light and dark share one picture."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def picture(width: float, height: float, content: Iterable[str], label: str, *, css: str = "") -> str:
    """An ``<svg>`` of this natural size in pixels; ``label`` is what a screen reader says."""
    return (
        f'<svg class="{css}" viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" height="{_n(height)}" '
        f'role="img" aria-label="{escape(label)}">{"".join(content)}</svg>'
    )


def text(x: float, y: float, words: str, *, anchor: str = "middle", css: str = "") -> str:
    return f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}"{_class(css)}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, *, css: str, title: str = "", radius: float = 0) -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    corner = f' rx="{_n(radius)}"' if radius else ""
    return (
        f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"{corner}{_class(css)}>{inner}</rect>'
    )


def line(points: Iterable[tuple[float, float]], *, css: str, arrow: bool = False) -> str:
    """A polyline, with an arrow head of its own at the end if asked."""
    row = list(points)
    drawn = f'<polyline points="{" ".join(f"{_n(x)},{_n(y)}" for x, y in row)}"{_class(css)}/>'
    return drawn + (_head(row[-2], row[-1]) if arrow else "")


def circle(x: float, y: float, radius: float, *, css: str, title: str = "") -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"{_class(css)}>{inner}</circle>'


def _head(before: tuple[float, float], tip: tuple[float, float]) -> str:
    """A triangle at ``tip``; lines end horizontally or vertically."""
    (a, b), (x, y) = before, tip
    if a == x:
        back = y - 7 if y > b else y + 7
        corners = [(x, y), (x - 3.5, back), (x + 3.5, back)]
    else:
        back = x - 7 if x > a else x + 7
        corners = [(x, y), (back, y - 3.5), (back, y + 3.5)]
    return f'<polygon points="{" ".join(f"{_n(p)},{_n(q)}" for p, q in corners)}" class="tip"/>'


def _class(css: str) -> str:
    return f' class="{css}"' if css else ""


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
