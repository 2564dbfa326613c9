# SPDX-License-Identifier: BSD-3-Clause
"""FAST, SLOW, SAME or AMBIGUOUS: what two sets of times say of each other, and of many sets at once.

The interval of the ratio of medians is a percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap,
1993, chapter 13). For few samples it is too short: of three samples it is at most their range, which misses the median
in one case of four. So nothing is called FAST or SLOW by it alone: the rank-sum test (Mann and Whitney 1947), exact for
any number of samples of any distribution, must reject that B is at most ``1 + threshold`` times A, or at least
``1 / (1 + threshold)`` times; and it is corrected for the number of sets that are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

FAST, SLOW, SAME, AMBIGUOUS = "FAST", "SLOW", "SAME", "AMBIGUOUS"
THRESHOLD = 0.03  # smaller changes are nobody's business on a machine whose clock and load vary as much
LEVEL = 0.95
RESAMPLES = 300  # of each set; the ends of a 95 % interval are quantiles of their 90,000 pairs
FEWEST = 5  # the range of five samples holds the median in 94 % of cases, that of four in 88 %: too few for SAME
SEED = 0
EXACT = 24  # samples in both sets together up to which ranks are counted exactly; beyond, the normal approximation


@dataclass(frozen=True)
class Comparison:
    """Ratio of the medians, B over A, with its interval, the p-values of "not slower" and "not faster", the
    number of samples in the smaller set, and the least p-value that so many samples can have."""

    ratio: float
    low: float
    high: float
    p_slow: float
    p_fast: float
    samples: int
    least_p: float


def compare(a: Sequence[float], b: Sequence[float], threshold: float = THRESHOLD) -> Comparison:
    """``median(b) / median(a)`` with its bootstrap interval.

    ``p_slow`` is how probable ranks like these are if ``b`` is distributed like ``(1 + threshold) a``, ``p_fast`` if
    like ``a / (1 + threshold)``. Swapping ``a`` and ``b`` exchanges the p-values and inverts ratio and interval.

    Parameters
    ----------
    a, b : positive finite numbers, at least one each
    """
    x, y = _positive(a, "a"), _positive(b, "b")
    spread = np.log(_medians(y)) - np.log(_medians(x))[:, None]  # all pairs of draws: the two sets are independent
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    ratio = math.log(np.median(y)) - math.log(np.median(x))
    return Comparison(
        math.exp(ratio),
        math.exp(min(low, ratio)),
        math.exp(max(high, ratio)),
        rank_p((1 + threshold) * x, y),
        rank_p((1 + threshold) * y, x),
        min(len(x), len(y)),
        1 / math.comb(len(x) + len(y), len(x)),
    )


def verdicts(found: Sequence[Comparison], threshold: float = THRESHOLD, rate: float = 1 - LEVEL) -> list[str]:
    """A verdict for each comparison; of those called FAST or SLOW at most a share ``rate`` is expected to be neither.

    The share is controlled by the step-up procedure of Benjamini and Hochberg 1995 over both p-values of all
    comparisons, but for those that have too few samples ever to be rejected (as Tarone 1990 leaves them out).
    SAME has no such correction: it says that the interval lies within ``threshold``.
    """
    limit = step_up([p for c in found if c.least_p <= rate for p in (c.p_slow, c.p_fast)], rate)
    return [_verdict(c, threshold, limit) for c in found]


def step_up(p_values: Sequence[float], rate: float) -> float:
    """The largest p-value that counts: ``p_(k) <= k rate / m`` for the largest such ``k``; -1 if there is none."""
    ordered, m = sorted(p_values), len(p_values)
    return max((p for k, p in enumerate(ordered, 1) if p <= k * rate / m), default=-1.0)


def rank_p(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Probability, if ``a`` and ``b`` have one distribution, of a rank sum of ``b`` at least as large as this one.

    Ties count against ``b``, which only makes the value larger.
    """
    u = int((b[:, None] > a[None, :]).sum())
    n, m = len(a), len(b)
    if n + m <= EXACT:
        ways = _ways(n, m)
        return sum(ways[u:]) / sum(ways)
    mean, deviation = n * m / 2, math.sqrt(n * m * (n + m + 1) / 12)
    return 0.5 * math.erfc((u - 0.5 - mean) / deviation / math.sqrt(2))


@cache
def _ways(n: int, m: int) -> list[int]:
    """Arrangements of ``n`` and ``m`` samples by the number of pairs in which the second is larger: 0 to ``n m``.

    The largest sample is of the first set, or of the second and then larger than all ``n`` of the first.
    """
    if n == 0 or m == 0:
        return [1]
    first, second = _ways(n - 1, m), _ways(n, m - 1)
    ways = [0] * (n * m + 1)
    for u, count in enumerate(first):
        ways[u] += count
    for u, count in enumerate(second):
        ways[u + n] += count
    return ways


def _verdict(c: Comparison, threshold: float, limit: float) -> str:
    if c.low > 1 + threshold and c.p_slow <= limit:
        return SLOW
    if c.high < 1 / (1 + threshold) and c.p_fast <= limit:
        return FAST
    same = c.low >= 1 / (1 + threshold) and c.high <= 1 + threshold and c.samples >= FEWEST
    return SAME if same else AMBIGUOUS


def _medians(values: NDArray[np.float64]) -> NDArray[np.float64]:
    draws = np.random.default_rng(SEED).choice(values, (RESAMPLES, len(values)))
    return np.asarray(np.median(draws, axis=1))


def _positive(values: Sequence[float], name: str) -> NDArray[np.float64]:
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1 or not len(row) or not np.isfinite(row).all() or (row <= 0).any():
        raise ValueError(f"{name}: got {values!r}, expected at least one positive finite number")
    return row
