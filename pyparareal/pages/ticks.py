# SPDX-License-Identifier: BSD-3-Clause
"""Round numbers on axes."""

from __future__ import annotations

import math

FEW = 30  # a ratio of highest to lowest, up to which whole powers would leave most of an axis empty


def ticks(low: float, high: float, count: int) -> list[float]:
    """At most ``count + 1`` round numbers from at most ``low`` to at least ``high`` (from ``low`` if that is round)."""
    rough = (high - low) / count or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten around ``low`` and ``high``, with 2 and 5 between them where there are few or no others fit."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    factors = (1, 2, 5) if last - first <= 1 or high / low <= FEW else (1,)
    found = [f * 10.0**k for k in range(first, last + 1) for f in factors]
    below = max((v for v in found if v <= low), default=found[0])
    above = min((v for v in found if v >= high and v > below), default=found[-1])
    return [v for v in found if below <= v <= above]
