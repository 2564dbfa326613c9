# SPDX-License-Identifier: BSD-3-Clause
"""What an analysis says: JSON values alone, every field named. ``None`` is "not known", never 0.

Seconds are of the timeline's clock. Shares are between 0 and 1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypedDict

SEVERITIES = ("serious", "warning", "note", "good")
"""A large part of the time could go; some; worth knowing; nothing to mend."""


class Summary(TypedDict):
    """The whole record at a glance."""

    title: str
    seconds: float  # wall time traced
    busy_seconds: float  # in which at least one launch ran, anywhere: a union, at most ``seconds``
    busy_share: float  # of the wall time
    work_seconds: float  # wall time inside solves and training steps, all of it where there are none
    launches: int
    events: int
    solves: int
    ranks: int
    devices: list[str]
    bytes: float | None  # that the launches had to move, of those that are known
    flops: float | None
    failed: str | None  # how the program that was watched ended, if not well
    left_out: dict[str, Any] | None  # "events" that were too many to keep, and the "seconds" they came in


class OpRow(TypedDict):
    """One op or propagator on one kind of device in one dtype. Time inside launches that it encloses is theirs."""

    op: str
    device: str  # "cpu", "cuda"
    dtype: str | None
    encloses: bool  # a step around ops: what is its own is Python and NumPy
    calls: int
    seconds: float  # of its own
    share: float  # of the own seconds of all launches
    mean_seconds: float
    first_seconds: float  # the first call
    largest_seconds: float  # the slowest call
    bytes: float | None  # compulsory traffic of all calls; None unless that of every call is known
    flops: float | None
    bytes_per_second: float | None
    flops_per_second: float | None


class LevelRow(TypedDict):
    """Launches of one level of the hierarchy; ``level`` None: those outside every region that has one."""

    level: int | None
    calls: int
    seconds: float
    share: float
    bytes: float | None
    flops: float | None
    ops: dict[str, float]  # own seconds by op


class RegionRow(TypedDict):
    """A named phase. Times of all ranks are added."""

    region: str
    level: int | None
    calls: int
    seconds: float  # what is inside counts here too
    launch_seconds: float  # of these, with a launch at work on the same rank
    overhead_seconds: float  # the rest: the host, waiting, messages
    share: float  # seconds over wall time


class DeviceRow(TypedDict):
    """What one stream (a host thread) did, or with ``stream`` None all of one device together."""

    rank: int
    device: str
    stream: str | None
    launches: int
    busy_seconds: float  # union of launches and copies
    idle_seconds: float  # the rest of the wall time
    idle_in_work_seconds: float  # of that, inside solves and training steps
    busy_share: float
    longest_gap: tuple[float, float] | None  # start and end of the longest idle stretch inside the work


class HostRow(TypedDict):
    """Of one rank: wall time inside solves and training steps, and what of it no launch accounts for."""

    rank: int
    seconds: float
    launch_seconds: float
    copy_seconds: float  # outside launches
    wait_seconds: float  # waits and messages, outside launches and copies
    overhead_seconds: float  # the rest: Python between the launches
    overhead_share: float
    launches: int
    seconds_per_launch: float  # overhead over launches


class PathStep(TypedDict):
    """A stretch of the critical path."""

    rank: int
    start: float
    end: float
    kind: str  # of the event, "host" where none ran
    name: str
    region: str
    level: int | None


class CriticalPath(TypedDict):
    """The longest chain of things that waited for one another, back from the end of the work."""

    seconds: float
    coarse_seconds: float  # in the serial chain of the coarsest level or of parareal
    coarse_share: float
    by_name: dict[str, float]  # seconds by region, or by kind outside regions
    by_rank: dict[str, float]
    messages: int  # crossed
    steps: list[PathStep]  # in order; at most 2000, the longest kept


class Roof(TypedDict):
    """What a device can do at most, as measured in this run."""

    device: str
    dtype: str
    threads: int | None
    flops_per_second: float
    bytes_per_second: float
    how: str


class Point(TypedDict):
    """An op on the roofline."""

    op: str
    device: str
    dtype: str
    calls: int
    seconds: float
    intensity: float  # FLOP per byte
    flops_per_second: float
    bytes_per_second: float
    bound: str  # "bytes" or "flops": which part of the roof is above it
    fraction: float  # of that roof; above 1 for what lives in caches
    in_caches: bool  # moves bytes faster than the copy
    threads: int | None  # of the roof that it is compared with


class Roofline(TypedDict):
    """Roofs and points; both empty where nothing was measured."""

    roofs: list[Roof]
    points: list[Point]
    unknown: list[str]  # ops whose FLOPs or bytes nobody knows


class LevelCost(TypedDict):
    """Cost of a step on a level, from the launches of this record: ``call + steps * (per_step + n * per_slice)``."""

    level: int
    call: float
    per_step: float
    per_slice: float
    fused: bool
    launches: int  # it was found from


class RegionPrediction(TypedDict):
    """A region on one processor: what the model says and what it took; None where there is none."""

    region: str
    predicted: float | None
    measured: float | None


class Priced(TypedDict):
    """*Predicted* seconds of a schedule."""

    change: str  # "as it is", "m = 32 instead of 16", "three levels instead of two"
    processors: int
    m: list[int]
    levels: int
    seconds: float
    serial_seconds: float  # the serial chain on one processor
    speedup: float  # serial seconds over seconds
    coarse_share: float  # of the coarse chain


class Predicted(TypedDict):
    """The prices of one solve. ``reason``: why there are none. K is kept: other m and levels may need another."""

    solve: int  # number in ``Analysis.solves``, -1 for a network
    what: str  # "parareal", "mgrit", "network"
    unit: str  # "seconds", or "FLOPs" and "layers" of a network's critical path
    measured_seconds: float
    model_seconds: float | None  # the same schedule on as many processors as there are ranks, communication free
    ratio: float | None  # measured over model
    costs: list[LevelCost]
    regions: list[RegionPrediction]
    processors: list[Priced]  # the schedule as it is on 1, 2, 4, ...
    what_if: list[Priced]
    serial_seconds: float | None
    serial_measured: float | None  # of one step after the other, where that was run too
    serial_wins: bool | None  # on every number of processors priced
    reason: str | None


class SolveRow(TypedDict):
    """One call of ``solve``."""

    method: str
    start: float
    end: float
    seconds: float
    iterations: int
    status: str
    residuals: list[float]
    factor: float | None  # by which the residual shrank per iteration, the geometric mean
    slices: int | None
    m: int | list[int] | None
    levels: int | None
    rank: int


class MemoryRow(TypedDict):
    """High-water mark of a counter of bytes."""

    counter: str
    rank: int
    peak: float
    at: float  # when it was reached
    first: float
    last: float


class Finding(TypedDict):
    """What a rule found. ``seconds``: what it costs, by which findings are sorted; None if that has no seconds."""

    rule: str
    severity: str  # one of SEVERITIES
    title: str
    words: str  # plain, with numbers
    evidence: dict[str, Any]
    suggestion: str  # what to do, "" if nothing
    seconds: float | None


@dataclass
class Analysis:
    """Everything said of a record by :func:`pyparareal.profiling.analyse`."""

    summary: Summary
    by_op: list[OpRow] = field(default_factory=list)  # slowest first
    by_level: list[LevelRow] = field(default_factory=list)
    by_region: list[RegionRow] = field(default_factory=list)  # in the order of their first start
    devices: list[DeviceRow] = field(default_factory=list)
    host_overhead: list[HostRow] = field(default_factory=list)
    critical_path: CriticalPath | None = None
    roofline: Roofline = field(default_factory=lambda: Roofline(roofs=[], points=[], unknown=[]))
    predicted: list[Predicted] = field(default_factory=list)
    solves: list[SolveRow] = field(default_factory=list)
    memory: list[MemoryRow] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)
