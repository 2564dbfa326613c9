# SPDX-License-Identifier: BSD-3-Clause
"""The chain of things that waited for one another, followed back from the end of the work through messages."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence

from ..events import Event, Record
from ..flows import by_flow, waits
from . import intervals
from .results import CriticalPath, PathStep
from .work import Work

MOST_STEPS = 2000  # that the page draws
COARSE = ("parareal.coarse", "parareal.guess", "mgrit.coarsest", "newton.guess", "network.coarse")
"""Regions of a serial chain over the slices; those with a level at the end too."""

Jump = tuple[float, int, float]  # when a wait ended; the rank that was waited for, and since when it could send


def is_coarse(region: str) -> bool:
    """Whether it is the chain that must happen one slice after the other."""
    return region.startswith(COARSE)


def critical_path(record: Record, work: Work) -> CriticalPath | None:
    """None without events."""
    if not record.events or not len(work.inside):
        return None
    start, end = float(work.inside[0, 0]), float(work.inside[-1, 1])
    inside = [event for event in record.events if event.end <= end]
    last = max(inside or record.events, key=lambda event: (event.end, -event.rank))
    pieces, crossed = _walk(_jumps(record.events), last.rank, start, end)
    lanes = {rank: _lane(work, rank) for rank in work.ranks}
    steps: list[PathStep] = []
    for rank, first, final, message in pieces:
        for a, b in intervals.both(intervals.union([(first, final)]), work.inside).tolist():
            if message is not None:
                steps.append(_step(rank, a, b, "message", message))
            else:
                steps += _filled(lanes[rank], rank, a, b)
    by_name: dict[str, float] = defaultdict(float)
    by_rank: dict[str, float] = defaultdict(float)
    for step in steps:
        by_name[step["region"] or step["kind"]] += step["end"] - step["start"]
        by_rank[str(step["rank"])] += step["end"] - step["start"]
    coarse = sum(seconds for name, seconds in by_name.items() if is_coarse(name))
    seconds = intervals.total(work.inside)  # what lies between two solves is no part of either
    return CriticalPath(
        seconds=seconds,
        coarse_seconds=coarse,
        coarse_share=coarse / seconds if seconds > 0 else 0.0,
        by_name=dict(sorted(by_name.items(), key=lambda item: -item[1])),
        by_rank=dict(by_rank),
        messages=crossed,
        steps=_longest(_merged(steps)),
    )


def _jumps(events: Sequence[Event]) -> dict[int, list[Jump]]:
    """By rank, in the order of their end: waits for another rank that began before that rank sent."""
    found: dict[int, list[Jump]] = defaultdict(list)
    for members in by_flow(events).values():
        for i, j in waits(events, members):
            sender, receiver = events[i], events[j]
            if sender.rank != receiver.rank and receiver.start < sender.start <= receiver.end:
                found[receiver.rank].append((receiver.end, sender.rank, sender.start))
    for jumps in found.values():
        jumps.sort()
    return found


def _walk(
    jumps: dict[int, list[Jump]], rank: int, start: float, end: float
) -> tuple[list[tuple[int, float, float, Event | None]], int]:
    """Stretches ``(rank, from, to, message)`` from ``start`` to ``end``, each on the rank the next one waited for."""
    pieces: list[tuple[int, float, float, Event | None]] = []
    crossed, now = 0, end
    while now > start:
        here = jumps.get(rank, [])
        n = bisect.bisect_right(here, (now, 1 << 62, 0.0)) - 1
        # The last wait that ended by now; of a collective message the rank that came last.
        if n < 0 or here[n][2] >= now or here[n][0] <= start:
            break
        ended, other, sent = here[n]
        same = [jump for jump in here[max(0, n - 64) : n + 1] if jump[0] == ended]
        ended, other, sent = max(same, key=lambda jump: jump[2])
        pieces.append((rank, ended, now, None))
        pieces.append((rank, sent, ended, Event("message", "message", sent, ended, rank=rank)))
        crossed, rank, now = crossed + 1, other, sent
    pieces.append((rank, start, max(start, now), None))
    return [(r, max(start, a), b, message) for r, a, b, message in reversed(pieces) if b > max(start, a)], crossed


def _lane(work: Work, rank: int) -> list[Event]:
    """What happened on ``rank``, in the order of its start."""
    kinds = ("wait", "message")
    found = [event for event in work.busy_events if event.rank == rank]
    found += [event for event in work.record.events if event.rank == rank and event.kind in kinds]
    return sorted(found, key=lambda event: event.start)


def _filled(lane: Sequence[Event], rank: int, a: float, b: float) -> list[PathStep]:
    """What the rank did from ``a`` to ``b``, without gaps and overlaps; a gap belongs to what comes after it."""
    steps: list[PathStep] = []
    now = a
    first = max(0, bisect.bisect_left(lane, a, key=lambda event: event.start) - 1)
    for event in lane[first:]:
        if event.start >= b:
            break
        if event.end <= now:
            continue
        if event.start > now:
            steps.append(_step(rank, now, event.start, "host", event))
        steps.append(_step(rank, max(now, event.start), min(b, event.end), event.kind, event))
        now = min(b, event.end)
    if now < b:
        steps.append(PathStep(rank=rank, start=now, end=b, kind="host", name="host", region="", level=None))
    return steps


def _step(rank: int, a: float, b: float, kind: str, event: Event) -> PathStep:
    name = "host" if kind == "host" else event.name
    return PathStep(
        rank=rank, start=a, end=b, kind=kind, name=name, region=event.region, level=event.level
    )  # fmt: skip


def _merged(steps: Sequence[PathStep]) -> list[PathStep]:
    """Neighbours of one region and kind as one."""
    found: list[PathStep] = []
    for step in steps:
        if found and all(found[-1][key] == step[key] for key in ("rank", "kind", "name", "region")):
            found[-1] = PathStep(**{**found[-1], "end": step["end"]})
        else:
            found.append(step)
    return found


def _longest(steps: list[PathStep]) -> list[PathStep]:
    if len(steps) <= MOST_STEPS:
        return steps
    kept = sorted(steps, key=lambda step: step["start"] - step["end"])[:MOST_STEPS]
    return sorted(kept, key=lambda step: step["start"])
