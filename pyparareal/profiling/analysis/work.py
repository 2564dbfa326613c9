# SPDX-License-Identifier: BSD-3-Clause
"""The launches of a record with what each took itself, and when there was work to do."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from dataclasses import dataclass, field

from ..events import Event, Record
from ..op_costs import cost
from . import intervals
from .intervals import Intervals

FRAMEWORK = {"train.backward": "backward", "train.update": "update"}
"""Regions in which torch is at work without telling of it, and what that is called."""

WORKING = ("train.forward", "train.backward", "train.update", "runs.window", "runs.serial", "runs.fall_back")
"""Regions of training; solves are work too."""


@dataclass(slots=True)
class Launch:
    """A launch; ``seconds`` without those of launches inside it on the same stream; a leaf has none.

    One that is no leaf is a step that calls ops: its own seconds are Python and NumPy around them.

    ``bytes`` and ``flops`` are compulsory traffic and operations of its own, None where nobody knows.
    """

    event: Event
    seconds: float
    outer: Launch | None = None  # around it
    inner: int = 0  # directly inside
    bytes: float | None = None
    flops: float | None = None

    @property
    def leaf(self) -> bool:
        return not self.inner

    @property
    def op(self) -> str:
        """Its name as an op, or of a module of a network what it is there: "fine", not "fine[2]"."""
        return self.event.name.partition("[")[0]


@dataclass
class Work:
    """What the tables are made from; unions of intervals are made once."""

    record: Record
    wall: Intervals
    launches: list[Launch]
    busy_events: list[Event]  # leaf launches and copies
    ranks: list[int]
    inside: Intervals  # solves and training steps, all ranks
    _launched: dict[int | None, Intervals] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Wall time."""
        return intervals.total(self.wall)

    def launched(self, rank: int | None = None) -> Intervals:
        """When a launch was at work on ``rank``, or on any. What ops leave of a step around them is the host's."""
        if rank not in self._launched:
            self._launched[rank] = intervals.union(
                (launch.event.start, launch.event.end)
                for launch in self.launches
                if launch.leaf and (rank is None or launch.event.rank == rank)
            )
        return self._launched[rank]

    def inside_of(self, rank: int) -> Intervals:
        """Work of one rank: today that of all."""
        return self.inside


def work_of(record: Record) -> Work:
    """Of a record, whose events may come in any order."""
    events = record.events
    wall = intervals.union([traced(record)])
    spans = [(solve.start, solve.end) for solve in record.solves]
    spans += [(event.start, event.end) for event in events if event.kind == "region" and event.name in WORKING]
    inside = intervals.both(intervals.union(spans), wall) if spans else wall
    ranks = sorted({event.rank for event in events}) or [0]
    launches = _launches(events + _of_framework(events))
    busy = [launch.event for launch in launches if launch.leaf] + [e for e in events if e.kind == "copy"]
    return Work(record, wall, launches, busy, ranks, inside)


def traced(record: Record) -> tuple[float, float]:
    """From when to when, also where nothing happened: times count from the start of the timeline of each rank."""
    start = min((event.start for event in record.events), default=0.0)
    end = max([start, *(event.end for event in record.events)])
    said = record.about.get("seconds")
    if not isinstance(said, int | float) or not math.isfinite(said):
        return start, end
    begin = min([start, *(clock.offset for clock in record.clocks if math.isfinite(clock.offset))])
    if begin + said < start:  # on some other clock
        begin = start
    return begin, max(end, begin + said)


def _of_framework(events: list[Event]) -> list[Event]:
    """Launches for those regions in which there is none of ours."""
    launches = [event for event in events if event.kind == "launch"]
    found = []
    for rank in {event.rank for event in events}:
        mine = intervals.union((event.start, event.end) for event in launches if event.rank == rank)
        for event in events:
            if event.kind == "region" and event.name in FRAMEWORK and event.rank == rank:
                span = intervals.union([(event.start, event.end)])
                if not len(intervals.both(span, mine)):
                    name = FRAMEWORK[event.name]
                    found.append(dataclasses.replace(event, kind="launch", name=name, region=event.name, facts={}))
    return found


def _launches(events: list[Event]) -> list[Launch]:
    """In the order of their start; of each the seconds of those directly inside it are taken away."""
    lanes: dict[tuple[int, str, str], list[Event]] = defaultdict(list)
    for event in events:
        if event.kind == "launch":
            lanes[event.rank, event.device, event.stream].append(event)
    found = []
    for lane in lanes.values():
        open_: list[Launch] = []
        for event in sorted(lane, key=lambda event: (event.start, -event.end)):
            while open_ and (open_[-1].event.end < event.end or open_[-1].event.end <= event.start):
                open_.pop()  # what ends before this one does not enclose it
            launch = Launch(event, event.seconds)
            launch.bytes, launch.flops = cost(launch.op, event.facts)
            if open_:
                outer = open_[-1]
                launch.outer, outer.inner = outer, outer.inner + 1
                outer.bytes = outer.flops = None
                outer.seconds = max(0.0, outer.seconds - event.seconds)
            open_.append(launch)
            found.append(launch)
    return sorted(found, key=lambda launch: launch.event.start)
