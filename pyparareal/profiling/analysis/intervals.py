# SPDX-License-Identifier: BSD-3-Clause
"""Sets of moments as rows of disjoint intervals ``[n, 2]``, float64, in order: unions and what is left of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

Intervals = np.ndarray[Any, np.dtype[np.float64]]


def union(pairs: Iterable[tuple[float, float]] | Intervals) -> Intervals:
    """The moments that lie in any of the ``pairs`` of start and end, as disjoint intervals; empty ones are dropped."""
    rows = np.array(pairs if isinstance(pairs, np.ndarray) else list(pairs), dtype=np.float64).reshape(-1, 2)
    rows = rows[rows[:, 1] > rows[:, 0]]
    if not len(rows):
        return rows
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    ends = np.maximum.accumulate(rows[:, 1])
    first = np.concatenate([[True], rows[1:, 0] > ends[:-1]])
    last = np.concatenate([first[1:], [True]])
    return np.stack([rows[first, 0], ends[last]], axis=1)


def total(a: Intervals) -> float:
    """Seconds in it."""
    return float((a[:, 1] - a[:, 0]).sum())


def both(a: Intervals, b: Intervals) -> Intervals:
    """The moments in ``a`` and in ``b``, two unions."""
    first = np.searchsorted(b[:, 1], a[:, 0], side="right")  # of b that ends after the start
    last = np.searchsorted(b[:, 0], a[:, 1], side="left")  # of b that starts at the end or later
    counts = np.maximum(last - first, 0)
    mine = np.repeat(np.arange(len(a)), counts)
    others = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    return np.stack([np.maximum(a[mine, 0], b[others, 0]), np.minimum(a[mine, 1], b[others, 1])], axis=1)


def without(a: Intervals, b: Intervals) -> Intervals:
    """The moments in ``a`` and not in ``b``, two unions."""
    edges = np.concatenate([[-np.inf], b.reshape(-1), [np.inf]]).reshape(-1, 2)
    return both(a, edges)
