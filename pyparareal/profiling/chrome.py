# SPDX-License-Identifier: BSD-3-Clause
"""A record as a file of Chrome's trace event format, which ``chrome://tracing`` and ``ui.perfetto.dev`` open.

A process of the file (``pid``) is the host of a rank or one of its devices, a thread (``tid``) a host thread or a
stream. Times are in microseconds since the first event, to the nanosecond. What the viewers pass over, the key
``"pyparareal"``, holds the record itself (:mod:`.columns`), so that :func:`read` gives back all of it.

The format: "Trace Event Format", Google, docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..nn.atomic_files import write_files
from .columns import packed, plain, unpacked
from .events import KINDS, Event, Record
from .flows import arrows

Json = dict[str, Any]
Span = tuple[int, int]
"""Start and end in nanoseconds."""
Thread = tuple[str, str, int]
"""Of the "stream" of that name or of the "solve"s, which of the lanes that it takes to be nested."""


def write(record: Record, path: str | Path) -> Path:
    """``record`` in the file ``path``, ``.json`` or ``.json.gz``, whole or not at all; its path.

    Raises
    ------
    ValueError
        For another suffix.
    TypeError
        If a fact is no JSON value.
    """
    path = _checked(path)
    whole = packed(record)  # refuses what is no JSON value
    data = {
        "traceEvents": trace_events(record),
        "displayTimeUnit": "ms",
        "otherData": {key: value for key, value in record.about.items() if isinstance(value, str)},
        "pyparareal": whole,
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).encode()
    # No time of writing inside: equal records give equal files.
    write_files(path.parent, {path.name: gzip.compress(text, 6, mtime=0) if path.suffix == ".gz" else text})
    return path


def read(path: str | Path) -> Record:
    """The record in a file of :func:`write`.

    Raises
    ------
    ValueError
        For any other file, naming it and the field that is wrong.
    """
    path = _checked(path)
    data = path.read_bytes()
    try:
        found = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict) or "pyparareal" not in found:
        raise ValueError(f"{path}: pyparareal: missing, expected a timeline that pyparareal.profiling saved")
    return unpacked(found["pyparareal"], str(path))


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if not path.name.endswith((".json", ".json.gz")):
        raise ValueError(f"path: got {path.name!r}, expected a name that ends in .json or .json.gz")
    return path


def trace_events(record: Record) -> list[Json]:
    """What the viewers show: names, slices, arrows, counters; those of a thread in the order in which they start."""
    times = [t for e in record.events for t in (e.start, e.end)] + [t for s in record.solves for t in (s.start, s.end)]
    finite = [t for t in [*times, *(one.time for one in record.samples)] if math.isfinite(t)]
    places = _Places(record, min(finite, default=0.0))
    slices = places.slices(record)
    return [*places.names(record), *slices, *places.flows(record), *places.counters(record)]


class _Places:
    """Where everything is: its process, its thread and its time."""

    def __init__(self, record: Record, zero: float) -> None:
        self.zero = zero
        shown = {(e.rank, e.device) for e in record.events} | {(one.rank, "cpu") for one in record.samples}
        if record.solves or not shown:
            shown.add((min((rank for rank, _ in shown), default=0), "cpu"))
        ordered = sorted(shown, key=lambda one: (one[0], one[1] != "cpu", one[1]))
        self.pids = {one: i + 1 for i, one in enumerate(ordered)}
        self.threads: dict[int, list[Thread]] = {pid: [] for pid in self.pids.values()}
        self.at: list[tuple[int, int, Span]] = []  # of each event its process, thread and time

    def ns(self, time: float) -> int:
        return round((time - self.zero) * 1e9) if math.isfinite(time) else 0

    def span(self, start: float, end: float) -> Span:
        first = self.ns(start)
        return first, max(first, self.ns(end))

    def slices(self, record: Record) -> list[Json]:
        """Those of events and solves. What does not nest in its thread gets one beside it."""
        by_stream: dict[tuple[int, str], list[int]] = {}
        spans = [self.span(e.start, e.end) for e in record.events]
        for i, event in enumerate(record.events):
            by_stream.setdefault((self.pids[event.rank, event.device], event.stream), []).append(i)
        tids = [0] * len(spans)
        found: list[Json] = []
        for (pid, stream), members in sorted(by_stream.items(), key=lambda one: (one[0][0], one[0][1] != "main")):
            order = sorted(members, key=lambda i: (spans[i][0], -spans[i][1], _rank_of_kind(record.events[i]), i))
            for i, lane in zip(order, lanes([spans[i] for i in order]), strict=True):
                tids[i] = self._thread(pid, ("stream", stream, lane))
            in_threads = sorted(order, key=lambda i: tids[i])
            found += [_slice(pid, tids[i], spans[i], record.events[i]) for i in in_threads]
        self.at = [(self.pids[e.rank, e.device], tids[i], spans[i]) for i, e in enumerate(record.events)]
        return found + self._solves(record)

    def _thread(self, pid: int, thread: Thread) -> int:
        """Its number. Two that are called the same, such as a stream "main (2)" and what is beside "main", are two."""
        known = self.threads[pid]
        if thread not in known:
            known.append(thread)
        return known.index(thread) + 1

    def _solves(self, record: Record) -> list[Json]:
        pid = min(self.pids.values())
        order = sorted(record.solves, key=lambda one: (one.start, -one.end))
        spans = [self.span(one.start, one.end) for one in order]
        found = []
        for one, span, lane in zip(order, spans, lanes(spans), strict=True):
            args = {"method": one.method, "iterations": one.iterations, "status": one.status, **one.facts}
            found.append(
                _complete(
                    pid, self._thread(pid, ("solve", "solves", lane)), span, f"solve: {one.method}", "solve", args
                )
            )
        return sorted(found, key=lambda one: one["tid"])

    def flows(self, record: Record) -> list[Json]:
        """Of each arrow both ends, inside the slices that they bind to."""
        found: list[Json] = []
        for number, (i, j) in enumerate(arrows(record.events), 1):
            source, target = self.at[i], self.at[j]
            # A slice that has ended at this very time would not be found: the last nanosecond before.
            last = max(target[2][0], target[2][1] - 1)
            first = max(source[2][0], min(source[2][1] - 1, last))
            common = {"cat": record.events[j].kind, "name": record.events[j].kind, "id": number}
            begin = {"ph": "s", **common, "pid": source[0], "tid": source[1], "ts": _us(first)}
            end = {"ph": "f", "bp": "e", **common, "pid": target[0], "tid": target[1], "ts": _us(max(first, last))}
            found += [begin, end]
        return found

    def counters(self, record: Record) -> list[Json]:
        """A value that is no number is shown as a mark of its own."""
        found: list[Json] = []
        for one in sorted(record.samples, key=lambda one: one.time):
            device = one.counter.rpartition(" ")[2]
            pid = self.pids.get((one.rank, device), self.pids[one.rank, "cpu"])
            common = {"pid": pid, "tid": 0, "ts": _us(self.ns(one.time))}
            if math.isfinite(one.value):
                found.append({"ph": "C", "name": one.counter, **common, "args": {"value": one.value}})
            else:
                name = f"{one.counter}: {one.value}"
                found.append({"ph": "i", "s": "p", "cat": "counter", "name": name, **common})
        return found

    def names(self, record: Record) -> list[Json]:
        several = len({rank for rank, _ in self.pids}) > 1
        errors = _clock_errors(record) if several or len(self.pids) > 1 else {}
        found: list[Json] = []
        for (rank, device), pid in self.pids.items():
            name = f"rank {rank}, {device}" if several else device
            found.append(_named("process_name", pid, 0, {"name": name}))
            found.append(_named("process_sort_index", pid, 0, {"sort_index": pid}))
            known = errors.get((rank, device))
            if known is not None:
                found.append(_named("process_labels", pid, 0, {"labels": f"clock right to {known * 1e6:.3g} us"}))
            for tid, (_, stream, lane) in enumerate(self.threads[pid], 1):
                thread = stream if lane == 0 else f"{stream} ({lane + 1})"
                found.append(_named("thread_name", pid, tid, {"name": thread}))
                found.append(_named("thread_sort_index", pid, tid, {"sort_index": tid}))
        return found


def lanes(spans: Sequence[Span]) -> list[int]:
    """For each of ``spans``, sorted by start and then by how late they end, the first lane in which it nests."""
    ends: list[list[int]] = []  # of each lane, of those that are open: the innermost last
    found = []
    for start, end in spans:
        lane = 0
        for open_ends in ends:
            while open_ends and open_ends[-1] <= start:
                open_ends.pop()
            if not open_ends or end <= open_ends[-1]:
                break
            lane += 1
        else:
            ends.append([])
        ends[lane].append(end)
        found.append(lane)
    return found


def _clock_errors(record: Record) -> dict[tuple[int, str], float]:
    """Of each process, in seconds: of a device that of its rank and its own."""
    found = {(clock.rank, "cpu"): clock.error for clock in record.clocks}
    for rank, _ in list(found):
        for device, told in record.about.get(device_clocks(rank), {}).items():
            found[rank, device] = found[rank, "cpu"] + told["error"]
    return found


def device_clocks(rank: int) -> str:
    """Where ``about`` says how the clocks of a rank's devices were laid on that of its host."""
    return "device clocks" if rank == 0 else f"device clocks of rank {rank}"


def _rank_of_kind(event: Event) -> int:
    """Of two that start and end together, a region lies around a verb, and a verb around a launch."""
    return KINDS.index(event.kind) if event.kind in KINDS else len(KINDS)


def _us(ns: int) -> float:
    return ns / 1000


def _named(what: str, pid: int, tid: int, args: Json) -> Json:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "ts": 0, "args": args}


def _slice(pid: int, tid: int, span: Span, event: Event) -> Json:
    args = dict(event.facts)
    if event.region:
        args["region"] = event.region
    if event.level is not None:
        args["level"] = event.level
    return _complete(pid, tid, span, event.name, event.kind, args)


def _complete(pid: int, tid: int, span: Span, name: str, kind: str, args: Json) -> Json:
    found = {"ph": "X", "pid": pid, "tid": tid, "ts": _us(span[0]), "dur": _us(span[1] - span[0])}
    return {**found, "name": name, "cat": kind, "args": _readable(plain(args, name))}


def _readable(value: Any) -> Any:
    """NaN and infinity as words, for whoever looks at it."""
    if isinstance(value, dict):
        return value["$float"] if set(value) == {"$float"} else {key: _readable(one) for key, one in value.items()}
    return [_readable(one) for one in value] if isinstance(value, list) else value
