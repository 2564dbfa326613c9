# SPDX-License-Identifier: BSD-3-Clause
"""What listens: every span becomes one object in a list of its thread, and an :class:`.Event` afterwards.

Nothing is computed, looked up or written while the program runs that can wait until it has ended, no thread waits for
another, and no device is waited for before the end.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, cast

from .. import _trace, traced_ops
from .device_clocks import Clocks, Marks
from .events import Event, Record, Sample, Solve
from .memory import Meter

_clock = time.perf_counter_ns

LEVELS = {"parareal.fine": 0, "parareal.fill": 0, "parareal.guess": 1, "parareal.coarse": 1, "newton.guess": 1}
"""Of regions whose name does not end in one. All others of ``newton``, and ``serial``, are on the finest."""


BACKWARD = "backward"
"""A region of this name has others in it that say so too: "backward mgrit.relax.0"."""


WHERE = ("device", "library", "on")
"""Of the facts, what says on which stream; :attr:`.Event.device` and ``stream`` do then."""


class Recorder:
    """Records while it is entered, once: ``with Recorder() as recorder: ...``, then ``recorder.record()``.

    Several may listen at once, in one another or side by side. In a forked child none does.

    Parameters
    ----------
    most : int, optional
        Once a thread has so many events no more are kept, of any; ``about["left out"]`` of the record then says how
        many came after, and in how many seconds, and "seconds" are those until then. Default: no limit but memory.

    Attributes
    ----------
    start, end : int
        Nanoseconds of ``time.perf_counter_ns``; times of the record are seconds since ``start``.
    rank : int
        That all events get.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = sys.maxsize if most is None else most
        self._full: int | None = None
        self._left_out = 0
        self.start = self.end = 0
        self.rank = 0
        self._threads: list[_Thread] = []
        self._here = _Here()
        self._notes: list[tuple[str, Mapping[str, Any]]] = []
        self._state = "new"
        self._process = os.getpid()
        self._clocks = Clocks()
        self._meter = Meter()

    def __enter__(self) -> Recorder:
        if self._state != "new":
            raise RuntimeError("this recorder was entered before; make another")
        self._state, self._process = "open", os.getpid()
        self._clocks.anchor_begin()
        self.start = _clock()
        self._meter.measure(self.start)
        traced_ops.want()
        _trace.listen(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end, self._state = _clock(), "closed"
        if self._process != os.getpid():
            return  # a child of a fork: it has no listeners
        _trace.leave(self)
        traced_ops.no_more()
        self._meter.measure(_clock())
        self._meter.close()
        self._clocks.anchor_end()

    # What is heard

    def span(self, kind: str, name: str, facts: Mapping[str, Any] | None) -> AbstractContextManager[None]:
        thread = self._here.thread or self._new_thread()
        if len(thread.ended) >= self._most:
            return self._no_more()
        if facts is not None and "device" in facts:
            found = self._clocks.marks(facts)
            if found is None:
                return _trace.NOTHING
            known = {key: value for key, value in facts.items() if key not in WHERE}
            return cast("AbstractContextManager[None]", _OnDevice(thread, kind, name, known, found))
        return cast("AbstractContextManager[None]", _Span(thread, kind, name, facts))

    def _no_more(self) -> AbstractContextManager[None]:
        if self._full is None:
            self._full, self._most = _clock(), 0  # for all threads
        self._left_out += 1
        return _trace.NOTHING

    def sample(self, counter: str, value: float) -> None:
        thread = self._here.thread or self._new_thread()
        if thread.region.startswith(BACKWARD):
            counter = f"{BACKWARD} {counter}"
        thread.samples.append((counter, _clock(), value))

    def note(self, what: str, facts: Mapping[str, Any]) -> None:
        self._notes.append((what, facts))

    def carry(self) -> AbstractContextManager[None]:
        return _Carried(self, (self._here.thread or self._new_thread()).region)

    def _new_thread(self) -> _Thread:
        thread = self._here.thread = _Thread(threading.current_thread(), self._meter)
        self._threads.append(thread)
        return thread

    # What is made of it

    def record(self) -> Record:
        """All that has ended; of a closed recorder, what had when it was closed."""
        last = self.end if self._state == "closed" else _clock()
        until = last if self._full is None else self._full
        levels: dict[str, int | None] = {}
        events, samples = list[Event](), [Sample(c, self._at(at), v) for c, at, v in self._meter.taken]
        for name, thread in _named(list(self._threads)).items():
            events += [self._event(name, one, levels) for one in list(thread.ended) if one.end <= until]
            samples += [Sample(c, self._at(at), v) for c, at, v in list(thread.samples)]
        for sample in samples:
            sample.rank = self.rank
        events.sort(key=lambda event: (event.start, -event.end))
        if self._full is not None:
            samples = [sample for sample in samples if sample.time <= self._at(until)]
        samples.sort(key=lambda sample: sample.time)
        solves = [
            Solve(**{**facts, "start": self._at(facts["start"]), "end": self._at(facts["end"])})
            for what, facts in self._notes
            if what == "solve" and (self._full is None or facts["end"] <= until)
        ]
        about: dict[str, Any] = {"seconds": self._at(until)}
        if self._full is not None:
            about["left out"] = {"events": self._left_out, "seconds": (last - until) * 1e-9}
        if told := self._clocks.told():
            about["device clocks"] = told
        return Record(events, samples, solves=solves, about=about)

    def _at(self, nanoseconds: float) -> float:
        return (nanoseconds - self.start) * 1e-9

    def _event(self, thread: str, span: _Span, levels: dict[str, int | None]) -> Event:
        facts = {} if span.facts is None else as_json(span.facts)
        start, end, device, stream = float(span.start), float(span.end), "cpu", thread
        if isinstance(span, _OnDevice):
            facts |= {"host_seconds": (end - start) * 1e-9, "thread": thread}
            start, end, device, stream = self._clocks.place(span.marks, span.start, span.end, long=span.kind == "wait")
        region = span.region
        if region not in levels:
            levels[region] = level_of(region)
        flow = facts.pop("flow", None)
        at, until, level = (start - self.start) * 1e-9, (end - self.start) * 1e-9, levels[region]
        return Event(span.kind, span.name, at, until, self.rank, device, stream, level, region, facts, flow)


class _Thread:
    """What one thread did, and the regions it is in."""

    def __init__(self, thread: threading.Thread, meter: Meter) -> None:
        self.name = "main" if thread is threading.main_thread() else thread.name
        self.ended: list[_Span] = []
        self.samples: list[tuple[str, int, float]] = []
        self.region = ""
        self.regions: list[_Span | _Carried] = []
        self.meter = meter

    def enter(self, one: _Span | _Carried) -> None:
        if self.region.startswith(BACKWARD) and not one.name.startswith(BACKWARD):
            one.name = f"{BACKWARD} {one.name}"
        self.regions.append(one)
        self.region = one.name

    def leave(self, one: _Span | _Carried) -> None:
        """It need not be the innermost: a generator may be left in the middle of one."""
        regions = self.regions
        if regions[-1] is one:
            regions.pop()
        else:
            regions.remove(one)
        self.region = regions[-1].name if regions else ""


class _Here(threading.local):
    thread: _Thread | None = None


class _Span:
    """One span, which begins when it is made."""

    __slots__ = ("end", "facts", "kind", "name", "region", "start", "thread")

    __enter__ = "".format  # nothing, see :class:`._trace._Off`

    def __init__(self, thread: _Thread, kind: str, name: str, facts: Mapping[str, Any] | None) -> None:
        self.thread, self.kind, self.name, self.facts = thread, kind, name, facts
        self.region = thread.region
        if kind == "region":
            thread.enter(self)
        self.start = _clock()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.end = end = _clock()
        thread = self.thread
        thread.ended.append(self)
        if self.kind == "region":
            thread.leave(self)
        if kind is not None:
            self.facts = {**(self.facts or {}), "error": kind.__name__}
        if end > thread.meter.due:
            thread.meter.measure(end)


class _OnDevice(_Span):
    """One on a stream of a device, between two of its events."""

    __slots__ = ("marks",)

    def __init__(self, thread: _Thread, kind: str, name: str, facts: Mapping[str, Any], marks: Marks) -> None:
        super().__init__(thread, kind, name, facts)
        self.marks = marks

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.marks.finish()
        super().__exit__(kind, error, trace)


class _Carried:
    """In another thread: its spans are in the region ``name`` that this thread is in, rather than in none."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder, self.name = recorder, name

    def __enter__(self) -> None:
        self.thread = self.recorder._here.thread or self.recorder._new_thread()
        self.thread.enter(self)

    def __exit__(self, *error: Any) -> None:
        self.thread.leave(self)


def _named(threads: list[_Thread]) -> dict[str, _Thread]:
    """Their names made different where they are the same."""
    named: dict[str, _Thread] = {}
    for thread in threads:
        name, number = thread.name, 1
        while name in named:
            number += 1
            name = f"{thread.name} ({number})"
        named[name] = thread
    return named


def level_of(region: str) -> int | None:
    """0 is the finest; None where the name of the region says nothing."""
    region = region.removeprefix(BACKWARD).lstrip()
    last = region.rpartition(".")[2]
    if last.isdecimal():
        return int(last)
    finest = 0 if region.startswith("newton.") or region == "serial" else None
    return LEVELS.get(region, finest)


_PLAIN = frozenset((int, float, str, bool, type(None)))


def as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same with lists for tuples, names for dtypes and Python's numbers for others."""
    return {name: value if type(value) in _PLAIN else _as_json(value) for name, value in facts.items()}


def _as_json(value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, list | tuple):
        return [one if type(one) in _PLAIN else _as_json(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): _as_json(one) for name, one in value.items()}
    if hasattr(value, "__index__"):
        return int(value)
    if hasattr(value, "__float__"):
        return float(value)
    return _name_of(value)


@functools.lru_cache(maxsize=64)
def _name_of(dtype: Any) -> str:
    return str(dtype).rpartition(".")[2]  # torch.float64
