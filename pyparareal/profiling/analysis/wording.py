# SPDX-License-Identifier: BSD-3-Clause
"""Numbers as people read them."""

from __future__ import annotations

import math

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def duration(seconds: float) -> str:
    """``12.3 ms``: three digits at most."""
    if not math.isfinite(seconds):
        return "an unknown time"
    for size, unit in _UNITS:
        if abs(seconds) >= size:
            return f"{digits(seconds / size)} {unit}"
    return "0 s" if seconds == 0 else f"{seconds * 1e9:.2g} ns"


def percent(share: float) -> str:
    """``61 %``; small shares with a digit behind the point."""
    return f"{share * 100:.0f} %" if share >= 0.095 or share == 0 else f"{share * 100:.1f} %"


def digits(value: float) -> str:
    """Three digits, without exponent below a million."""
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 9.95 else f"{value:.2g}"


def rate(per_second: float, unit: str) -> str:
    """``13.4 GB/s``"""
    for size, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if per_second >= size:
            return f"{digits(per_second / size)} {name}{unit}/s"
    return f"{digits(per_second)} {unit}/s"


def count(number: int, one: str, many: str | None = None) -> str:
    """``1 call``, ``3 calls``"""
    return f"{number} {one if number == 1 else many or one + 's'}"
