# SPDX-License-Identifier: BSD-3-Clause
"""How far the clocks of the ranks are apart, from what their records say, and how well that is known.

Ranks of one machine read one clock: ``time.perf_counter`` counts since the machine was started, which its boot
identifier names. Between machines only messages tell. With ``o_A`` what is to be added to the times of rank ``A``, one
from ``A`` to ``B`` that began at ``s`` there and was received at ``r`` here says ``s + o_A <= r + o_B``, hence
``o_A - o_B <= r - s``. All of these are a system of difference constraints; the shortest paths in its graph are the
tightest bounds that follow from it, also for ranks that never talked to each other (Cormen et al., Introduction to
Algorithms, section 24.4). A rank is laid in the middle of its bounds, and half of their distance is the error.

The upper bounds of all ranks together obey the constraints, and so do the lower ones; so do therefore the middles,
which is why no arrow runs backwards afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .events import RankClock, Record
from .flows import by_flow, waits

Matrix = np.ndarray[Any, Any]
SHARED = "the clock of the same machine"
MESSAGES = "messages in both directions"
ONE_WAY = "messages in one direction only: as late as they allow"
ONE_WAY_EARLY = "messages in one direction only: as early as they allow"
BETWEEN = "messages in one direction only: between what others allow"
UNKNOWN = "no message tells: both timelines begin together"
MARGIN = 1e-8
"""Seconds off a bound: at it the rounding of times would turn the arrow of its own message around."""


def align(records: Sequence[Record], ranks: Sequence[int]) -> list[RankClock]:
    """For each of ``records``, of the ``ranks`` named, how its clock lies on that of the first.

    ``about["clock"]`` of a record says on which machine, ``"boot"``, at what reading, ``"zero"``, of its clock its time
    0 was, and its ``"resolution"``; without it only messages tell.

    Returns
    -------
    list of RankClock
        The true offset is within ``error`` of ``offset``, if no clock runs faster than another. Where they do, messages
        contradict each other; by how much is added to the errors, and said. Where messages went in one direction only
        the error is infinite.
    """
    bounds = _shared(records)
    same = np.isfinite(bounds)
    _tighten_by_messages(bounds, records)
    drift = max(0.0, -float(np.min(np.diag(shortest(bounds)))))
    if drift:
        bounds = bounds + np.where(np.eye(len(records)), 0.0, drift)
    closed = shortest(bounds)
    offsets, why = _placed(closed, bounds)
    clocks = []
    for i, rank in enumerate(ranks):
        if i == 0:
            clocks.append(RankClock(rank))
            continue
        error, how = (math.inf, why[i]) if i in why else (_half(closed, i, offsets[i]), MESSAGES)
        if same[0, i]:
            error, how = max(_resolution(records[0]), _resolution(records[i])), SHARED
        # What rounding adds up to is no contradiction.
        if drift > 1e-9:
            how += f"; the clocks contradict each other by {drift:.3g} s"
        clocks.append(RankClock(rank, offsets[i], error + drift, how))
    return clocks


def shortest(lengths: Matrix) -> Matrix:
    """``d[i, j]``: the shortest way from ``i`` to ``j`` (Floyd, Warshall); a diagonal below 0: there is none."""
    d = lengths.copy()
    for k in range(len(d)):
        np.minimum(d, d[:, k : k + 1] + d[k : k + 1, :], out=d)
    return d


def _shared(records: Sequence[Record]) -> Matrix:
    """``bounds[i, j]`` is the most that ``o_j - o_i`` can be: known exactly on one machine, infinity elsewhere."""
    bounds = np.full((len(records), len(records)), math.inf)
    np.fill_diagonal(bounds, 0.0)
    read = [record.about.get("clock") or {} for record in records]
    for i, one in enumerate(read):
        for j, other in enumerate(read):
            if i != j and one.get("boot") and one["boot"] == other.get("boot"):
                bounds[i, j] = other["zero"] - one["zero"]
    return bounds


def _resolution(record: Record) -> float:
    return float(record.about["clock"].get("resolution", 0.0))


def _tighten_by_messages(bounds: Matrix, records: Sequence[Record]) -> None:
    events = [event for record in records for event in record.events]
    of = [i for i, record in enumerate(records) for _ in record.events]
    for members in by_flow(events).values():
        for i, j in waits(events, members):
            if of[i] != of[j] and events[i].kind == "message":
                least = events[j].end - events[i].start  # o_i - o_j is no more
                bounds[of[j], of[i]] = min(bounds[of[j], of[i]], least)


def _placed(closed: Matrix, bounds: Matrix) -> tuple[list[float], dict[int, str]]:
    """Offsets that obey all bounds: middles where there are two, then one rank after the other at what is left.

    Also why, for each of the latter.
    """
    both = np.isfinite(closed[0]) & np.isfinite(closed[:, 0])
    offsets = {int(i): float(closed[0, i] - closed[i, 0]) / 2 for i in np.flatnonzero(both)}
    offsets[0], why = 0.0, dict[int, str]()
    rest = [i for i in range(len(closed)) if i not in offsets]
    while rest:
        fixed = bounds.copy()
        for i, a in offsets.items():
            for j, b in offsets.items():
                fixed[i, j] = b - a
        closed = shortest(fixed)
        # Those that some message ties to a rank already placed come before those that none does.
        i = next((i for i in rest if math.isfinite(closed[0, i]) or math.isfinite(closed[i, 0])), rest[0])
        offsets[i], why[i] = _at_bound(float(closed[0, i]), -float(closed[i, 0]))
        rest.remove(i)
    return [offsets[i] for i in range(len(closed))], why


def _at_bound(upper: float, lower: float) -> tuple[float, str]:
    if math.isfinite(upper) and math.isfinite(lower):
        return (upper + lower) / 2, BETWEEN
    if math.isfinite(upper):
        return upper - MARGIN, ONE_WAY
    return (lower + MARGIN, ONE_WAY_EARLY) if math.isfinite(lower) else (0.0, UNKNOWN)


def _half(closed: Matrix, i: int, offset: float) -> float:
    """How far the bounds are from the offset between them."""
    return max(float(closed[0, i]) - offset, offset + float(closed[i, 0]), 0.0)
