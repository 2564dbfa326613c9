# SPDX-License-Identifier: BSD-3-Clause
"""What a timeline is made of: events, counters, and what is known of the ranks and the solves they belong to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

KINDS = ("region", "verb", "launch", "copy", "wait", "message")
"""A named phase of a method; a verb of a runtime; an op or a step at work; bytes on the way from one memory to another;
waiting for an event, a thread or a message; and a state or numbers sent to or received from another rank.

A launch may be part of another one, which lies around it on the same rank, device and stream: a propagator that calls
an op, or a part of a network with a solver in it. Whoever adds up launches takes the innermost of each, or the
outermost. Likewise a ``map`` or ``chain`` lies around what it launches, and a wait around the message that ends it.
Names of regions are ``family.phase`` or ``family.phase.level``: "parareal.fine", "mgrit.relax.0", "network.coarse",
"train.forward", "recurrence.chunks", "runs.window"; of a backward pass of a solve with "backward " before it.
"""


@dataclass(slots=True)
class Event:
    """Something that lasted from ``start`` to ``end``, in seconds of the timeline's clock.

    Attributes
    ----------
    kind : str
        One of ``KINDS``.
    name : str
        Of the region, verb, op or propagator; of a message what it carries.
    rank : int
        0 in one process.
    device : str
        Where it ran: "cpu", "cuda:0". Regions and verbs are what the host does: "cpu".
    stream : str
        Of a launch on a GPU its stream, otherwise the host thread.
    level : int, optional
        Of the hierarchy, 0 the finest: that of the innermost region whose name ends in one.
    region : str
        The innermost region around it, "" outside all.
    facts : dict
        What is known besides, as JSON values: "bytes" moved, "flops", "slices", "steps", "dtype", "shape", "to",
        "source".
    flow : str, optional
        The same for two events of which the later one waits for the earlier: a message's sending and its receiving,
        an event's record and the wait for it.
    """

    kind: str
    name: str
    start: float
    end: float
    rank: int = 0
    device: str = "cpu"
    stream: str = "main"
    level: int | None = None
    region: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    flow: str | None = None

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(slots=True)
class Sample:
    """A counter's value from ``time`` on: "residual", "resident bytes", "allocated bytes cuda:0"."""

    counter: str
    time: float
    value: float
    rank: int = 0


@dataclass
class RankClock:
    """How a rank's clock was laid on that of rank 0: its times plus ``offset``, to ``error`` seconds either way."""

    rank: int
    offset: float = 0.0
    error: float = 0.0
    how: str = "the clock of the timeline"


@dataclass
class Solve:
    """One call of :func:`pyparareal.solve` that the timeline saw.

    ``prediction`` is seconds by region and "total" of a :class:`pyparareal.prediction.Prediction` for the processors
    named, as JSON values; absent where none was made.
    """

    method: str
    start: float
    end: float
    iterations: int
    status: str
    residuals: list[float]
    facts: dict[str, Any] = field(default_factory=dict)
    prediction: dict[str, Any] | None = None


@dataclass
class Record:
    """Everything a timeline holds: what the report, the analysis and the Chrome JSON are made from.

    ``about`` has JSON values: "title", "command", "machine", "date", "versions", "seconds" (wall time traced), and what
    the analysis adds.
    """

    events: list[Event] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    clocks: list[RankClock] = field(default_factory=lambda: [RankClock(0)])
    solves: list[Solve] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
