# SPDX-License-Identifier: BSD-3-Clause
"""Tables of a record: by op, level and region; busy and idle; host overhead; solves; memory."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from ..events import Event, Record
from . import intervals
from .intervals import Intervals
from .results import DeviceRow, HostRow, LevelRow, MemoryRow, OpRow, RegionRow, SolveRow, Summary
from .work import Launch, Work


def summary(record: Record, work: Work) -> Summary:
    """The whole record at a glance."""
    busy = intervals.total(intervals.both(work.launched(), work.wall))
    return Summary(
        title=str(record.about.get("title", "")),
        seconds=work.seconds,
        busy_seconds=busy,
        busy_share=_share(busy, work.seconds),
        work_seconds=intervals.total(work.inside),
        launches=len(work.launches),
        events=len(record.events),
        solves=len(record.solves),
        ranks=len(work.ranks),
        devices=sorted({launch.event.device for launch in work.launches}),
        bytes=_known(launch.bytes for launch in work.launches),
        flops=_known(launch.flops for launch in work.launches),
        failed=None if record.about.get("failed") is None else str(record.about["failed"]),
        left_out=record.about["left out"] if isinstance(record.about.get("left out"), dict) else None,
    )


def by_op(work: Work) -> list[OpRow]:
    """Slowest first."""
    groups: dict[tuple[str, str, str | None], list[Launch]] = defaultdict(list)
    for launch in work.launches:
        groups[launch.op, launch.event.device.partition(":")[0], launch.event.facts.get("dtype")].append(launch)
    every = sum(launch.seconds for launch in work.launches)
    rows = []
    for (op, device, dtype), launches in groups.items():
        seconds = sum(launch.seconds for launch in launches)
        nbytes, flops = (_all(launch.bytes for launch in launches), _all(launch.flops for launch in launches))
        rows.append(
            OpRow(
                op=op,
                device=device,
                dtype=dtype,
                encloses=not all(launch.leaf for launch in launches),
                calls=len(launches),
                seconds=seconds,
                share=_share(seconds, every),
                mean_seconds=seconds / len(launches),
                first_seconds=min(launches, key=lambda launch: launch.event.start).seconds,
                largest_seconds=max(launch.seconds for launch in launches),
                bytes=nbytes,
                flops=flops,
                bytes_per_second=_rate(nbytes, seconds),
                flops_per_second=_rate(flops, seconds),
            )
        )
    return sorted(rows, key=lambda row: -row["seconds"])


def by_level(work: Work) -> list[LevelRow]:
    """The finest first, what has no level last."""
    groups: dict[int | None, list[Launch]] = defaultdict(list)
    for launch in work.launches:
        groups[launch.event.level].append(launch)
    every = sum(launch.seconds for launch in work.launches)
    rows = []
    for level in sorted(groups, key=lambda level: math.inf if level is None else level):
        ops: dict[str, float] = defaultdict(float)
        for launch in groups[level]:
            ops[launch.op] += launch.seconds
        seconds = sum(ops.values())
        rows.append(
            LevelRow(
                level=level,
                calls=len(groups[level]),
                seconds=seconds,
                share=_share(seconds, every),
                bytes=_all(launch.bytes for launch in groups[level] if launch.leaf),
                flops=_all(launch.flops for launch in groups[level] if launch.leaf),
                ops=dict(sorted(ops.items(), key=lambda item: -item[1])),
            )
        )
    return rows


def by_region(record: Record, work: Work) -> list[RegionRow]:
    """In the order in which they first start."""
    groups: dict[str, list[Event]] = defaultdict(list)
    for event in sorted((event for event in record.events if event.kind == "region"), key=lambda event: event.start):
        groups[event.name].append(event)
    rows = []
    for name, events in groups.items():
        seconds = launched = 0.0
        for rank in {event.rank for event in events}:
            # A union: a region inside one of its own name counts once.
            there = intervals.union((event.start, event.end) for event in events if event.rank == rank)
            seconds += intervals.total(there)
            launched += intervals.total(intervals.both(there, work.launched(rank)))
        rows.append(
            RegionRow(
                region=name,
                level=events[0].level,
                calls=len(events),
                seconds=seconds,
                launch_seconds=launched,
                overhead_seconds=seconds - launched,
                share=_share(seconds, work.seconds * len(work.ranks)),
            )
        )
    return rows


def devices(work: Work) -> list[DeviceRow]:
    """Each device of each rank, then its streams where there are several."""
    rows = []
    for rank, device in sorted({(event.rank, event.device) for event in work.busy_events}):
        here = [event for event in work.busy_events if (event.rank, event.device) == (rank, device)]
        streams = sorted({event.stream for event in here})
        rows.append(_device(work, here, rank, device, None))
        if len(streams) > 1:
            for stream in streams:
                rows.append(_device(work, [event for event in here if event.stream == stream], rank, device, stream))
    return rows


def _device(work: Work, events: Sequence[Event], rank: int, device: str, stream: str | None) -> DeviceRow:
    busy = intervals.both(intervals.union((event.start, event.end) for event in events), work.wall)
    seconds = intervals.total(busy)
    idle = intervals.without(work.inside_of(rank), busy)
    gap = max(idle, key=lambda pair: pair[1] - pair[0]) if len(idle) else None
    return DeviceRow(
        rank=rank,
        device=device,
        stream=stream,
        launches=sum(event.kind == "launch" for event in events),
        busy_seconds=seconds,
        idle_seconds=max(0.0, work.seconds - seconds),
        idle_in_work_seconds=intervals.total(idle),
        busy_share=_share(seconds, work.seconds),
        longest_gap=None if gap is None else (float(gap[0]), float(gap[1])),
    )


def host_overhead(record: Record, work: Work) -> list[HostRow]:
    """One row per rank."""
    rows = []
    for rank in work.ranks:
        inside, launched = work.inside_of(rank), work.launched(rank)
        copied = _of_kind(record, rank, "copy")
        waited = _of_kind(record, rank, "wait", "message")
        left = intervals.without(inside, launched)
        copies = intervals.total(intervals.both(left, copied))
        left = intervals.without(left, copied)
        waits = intervals.total(intervals.both(left, waited))
        overhead = intervals.total(intervals.without(left, waited))
        seconds = intervals.total(inside)
        count = sum(launch.event.rank == rank for launch in work.launches)
        rows.append(
            HostRow(
                rank=rank,
                seconds=seconds,
                launch_seconds=intervals.total(intervals.both(inside, launched)),
                copy_seconds=copies,
                wait_seconds=waits,
                overhead_seconds=overhead,
                overhead_share=_share(overhead, seconds),
                launches=count,
                seconds_per_launch=overhead / count if count else 0.0,
            )
        )
    return rows


def _of_kind(record: Record, rank: int, *kinds: str) -> Intervals:
    return intervals.union(
        (event.start, event.end) for event in record.events if event.rank == rank and event.kind in kinds
    )


def solves(record: Record) -> list[SolveRow]:
    """As they were called."""
    return [
        SolveRow(
            method=solve.method,
            start=solve.start,
            end=solve.end,
            seconds=solve.end - solve.start,
            iterations=solve.iterations,
            status=solve.status,
            residuals=[float(residual) for residual in solve.residuals],
            factor=_factor(solve.residuals),
            slices=solve.facts.get("slices"),
            m=solve.facts.get("m"),
            levels=solve.facts.get("levels"),
            rank=int(solve.facts.get("rank", 0)),
        )
        for solve in record.solves
    ]


def _factor(residuals: Sequence[float]) -> float | None:
    """Of the residuals that are positive and finite, from the first to the last."""
    seen = [(k, residual) for k, residual in enumerate(residuals) if 0 < residual < math.inf]
    if len(seen) < 2:
        return None
    (first, a), (last, b) = seen[0], seen[-1]
    return math.exp((math.log(b) - math.log(a)) / (last - first))


def memory(record: Record) -> list[MemoryRow]:
    """High-water mark of every counter of bytes."""
    groups: dict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    for sample in record.samples:
        if "bytes" in sample.counter:
            groups[sample.rank, sample.counter].append((sample.time, sample.value))
    rows = []
    for (rank, counter), values in sorted(groups.items()):
        values.sort()
        at, peak = max(values, key=lambda pair: pair[1])
        rows.append(MemoryRow(counter=counter, rank=rank, peak=peak, at=at, first=values[0][1], last=values[-1][1]))
    return rows


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _rate(amount: float | None, seconds: float) -> float | None:
    return amount / seconds if amount is not None and seconds > 0 else None


def _all(values: Iterable[float | None]) -> float | None:
    """Their sum, None if one of them is not known."""
    known = list(values)
    return None if None in known else float(sum(value for value in known if value is not None))


def _known(values: Iterable[float | None]) -> float | None:
    """The sum of those that are known, None if there is none."""
    known = [value for value in values if value is not None]
    return float(sum(known)) if known else None
