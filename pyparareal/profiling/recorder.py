# SPDX-License-Identifier: BSD-3-Clause
"""What listens: every span becomes one tuple in a list of its thread, and an :class:`.Event` afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from .. import _trace, traced_ops
from .events import Event, Record, Sample, Solve

LEVELS = {"parareal.fine": 0, "parareal.fill": 0, "parareal.guess": 1, "parareal.coarse": 1}
"""Of regions whose name does not end in one. ``newton.*`` and ``serial`` have the finest only, but ``newton.guess``."""


class Recorder:
    """Records while it is entered: ``with Recorder() as recorder: ...``, then ``recorder.record()``.

    Times are seconds since it was entered.
    """

    def __init__(self) -> None:
        self.start = self.end = 0
        self.rank = 0
        self._threads: list[_Thread] = []
        self._here = _Here()
        self._notes: list[tuple[str, Mapping[str, Any]]] = []
        self._open = False

    def __enter__(self) -> Recorder:
        self.start, self._open = time.perf_counter_ns(), True
        traced_ops.want()
        _trace.listen(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _trace.leave(self)
        traced_ops.no_more()
        self.end, self._open = time.perf_counter_ns(), False

    # What is heard

    def span(self, kind: str, name: str, facts: Mapping[str, Any] | None) -> _Span:
        return _Span(self._here.thread or self._new_thread(), kind, name, facts)

    def sample(self, counter: str, value: float) -> None:
        (self._here.thread or self._new_thread()).samples.append((counter, time.perf_counter_ns(), value))

    def note(self, what: str, facts: Mapping[str, Any]) -> None:
        self._notes.append((what, facts))

    def _new_thread(self) -> _Thread:
        thread = self._here.thread = _Thread(threading.current_thread())
        self._threads.append(thread)
        return thread

    # What is made of it

    def record(self) -> Record:
        """All that ended so far."""
        events, samples = [], []
        names: set[str] = set()
        for thread in list(self._threads):
            name = thread.name
            while name in names:
                name += "'"
            names.add(name)
            events += [self._event(name, one) for one in list(thread.spans)]
            samples += [Sample(c, (at - self.start) * 1e-9, v, self.rank) for c, at, v in list(thread.samples)]
        events.sort(key=lambda event: (event.start, -event.end))
        samples.sort(key=lambda sample: sample.time)
        solves = [
            Solve(**{**facts, "start": (facts["start"] - self.start) * 1e-9, "end": (facts["end"] - self.start) * 1e-9})
            for what, facts in self._notes
            if what == "solve"
        ]
        seconds = ((time.perf_counter_ns() if self._open else self.end) - self.start) * 1e-9
        return Record(events, samples, solves=solves, about={"seconds": seconds})

    def _event(self, stream: str, span: tuple[Any, ...]) -> Event:
        kind, name, start, end, region, facts = span
        return Event(
            kind,
            name,
            (start - self.start) * 1e-9,
            (end - self.start) * 1e-9,
            rank=self.rank,
            stream=stream,
            level=level_of(region),
            region=region,
            facts={} if facts is None else {key: _as_json(value) for key, value in facts.items()},
            flow=None if facts is None else facts.get("flow"),
        )


class _Thread:
    """What one thread did."""

    def __init__(self, thread: threading.Thread) -> None:
        self.name = "main" if thread is threading.main_thread() else thread.name
        self.spans: list[tuple[Any, ...]] = []
        self.samples: list[tuple[str, int, float]] = []
        self.region = ""


class _Here(threading.local):
    thread: _Thread | None = None


class _Span:
    """One span; a tuple when it ends."""

    __slots__ = ("facts", "kind", "name", "outside", "start", "thread")

    def __init__(self, thread: _Thread, kind: str, name: str, facts: Mapping[str, Any] | None) -> None:
        self.thread, self.kind, self.name, self.facts = thread, kind, name, facts

    def __enter__(self) -> None:
        thread = self.thread
        self.outside = thread.region
        if self.kind == "region":
            thread.region = self.name
        self.start = time.perf_counter_ns()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        end, thread = time.perf_counter_ns(), self.thread
        thread.spans.append((self.kind, self.name, self.start, end, self.outside, self.facts))
        thread.region = self.outside


def level_of(region: str) -> int | None:
    """0 is the finest; None where the name of the region says nothing."""
    last = region.rpartition(".")[2]
    if last.isdecimal():
        return int(last)
    if region.startswith("newton.") or region == "serial":
        return int(region == "newton.guess")
    return LEVELS.get(region)


def _as_json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_as_json(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _as_json(one) for key, one in value.items()}
    if hasattr(value, "__index__"):
        return int(value)
    return str(value).rpartition(".")[2]
