# SPDX-License-Identifier: BSD-3-Clause
"""When work ran on a CUDA device: pairs of its events on the stream, read after one synchronisation at the end.

A device's clock is laid on that of the host by anchors, events that the host waits for: one was recorded between the
two looks at the host's clock around it, and the narrowest of some is used. One anchor is at the beginning, for the
current device of a program that uses CUDA by then, and one at the end for each device; between two the host's clock is
interpolated, for the two do not run equally fast.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

_clock = time.perf_counter_ns

TRIES = 8  # of an anchor, the narrowest of which counts
RESOLUTION = 500.0  # ns: of the time between two events, by the CUDA runtime's manual
FASTEST = 1e-3  # more than that two clocks of one machine do not drift apart


class Marks:
    """Two events around some work on a stream of ``device``; made when it begins."""

    __slots__ = ("begin", "device", "end", "events", "stream")

    def __init__(self, events: Any, device: str, stream: Any) -> None:
        self.events, self.device, self.stream = events, device, stream
        self.begin = events.record(stream)
        self.end: Any = None

    def finish(self) -> None:
        self.end = self.events.record(self.stream)


class Anchor(NamedTuple):
    """An event that happened ``half`` ns or less from ``at``, of the host's clock."""

    event: Any
    at: float
    half: float


class Clocks:
    """Those of all devices that had work."""

    def __init__(self) -> None:
        self._events: dict[str, Any] = {}  # by library
        self._of: dict[str, Any] = {}  # by device
        self._begin: dict[str, Anchor] = {}
        self._end: dict[str, Anchor] = {}
        self._streams: dict[str, dict[Any, str]] = {}
        self._span = 0.0  # ns, the longest time between an anchor and an event

    def marks(self, facts: Mapping[str, Any]) -> Marks | None:
        """For work on ``facts["device"]`` that begins on the stream ``facts["on"]``; None while a graph is captured.

        ``on`` is what an op takes as ``stream``, None for the current one.
        """
        device = str(facts["device"])
        events = self._of.get(device) or self._new(device, facts)
        stream = events.stream(device, facts.get("on"))
        return None if events.capturing(stream) else Marks(events, device, stream)

    def anchor_begin(self) -> None:
        """Of the device that torch works on by now, if any."""
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        if cuda is not None and cuda.is_initialized():
            device = f"cuda:{cuda.current_device()}"
            self._begin[device] = _anchor(self._new(device, {}), device)

    def anchor_end(self) -> None:
        """Wait for all devices that had work."""
        for device, events in self._of.items():
            events.synchronize(device)
            self._end[device] = _anchor(events, device)

    def place(self, marks: Marks, start: int, end: int, *, long: bool = False) -> tuple[float, float, str, str]:
        """When it began and ended in ns of the host's clock, its device, and the name of its stream.

        Of a recorder that is still open: when the host began and ended to launch it. How long it took is read from its
        own two events, which is more exact; for a ``long`` one when it ended, so that no arrow runs backwards.
        """
        device = marks.device
        names = self._streams.setdefault(device, {})
        key = marks.events.key(marks.stream)
        name = names.setdefault(key, "default" if not key else f"stream {len(names) + (0 not in names)}")
        if device not in self._end or marks.end is None:
            return start, end, device, name
        begun = self._host_time(marks.events, device, marks.begin)
        if long:
            return begun, max(self._host_time(marks.events, device, marks.end), begun), device, name
        return begun, begun + max(marks.events.elapsed(marks.begin, marks.end), 0.0), device, name

    def _host_time(self, events: Any, device: str, event: Any) -> float:
        last = self._end[device]
        before = events.elapsed(event, last.event)
        self._span = max(self._span, before)
        first = self._begin.get(device)
        if first is None:
            return last.at - before
        whole = events.elapsed(first.event, last.event)
        rate = (last.at - first.at) / whole if whole > 0 else 1.0
        return last.at - before * min(max(rate, 1 - FASTEST), 1 + FASTEST)

    def told(self) -> dict[str, Any]:
        """For each device how its clock was laid on the host's, and to how many seconds it is right."""
        found = {}
        for device, last in self._end.items():
            first = self._begin.get(device)
            half = max(last.half, first.half if first is not None else 0.0)
            # Times between events are float32 milliseconds; without a first anchor nothing is known of the drift.
            error = half + RESOLUTION + self._span * (2.0**-24 if first is not None else 1e-4)
            how = "two anchors" if first is not None else "one anchor, at the end; a drift of 1e-4 is allowed for"
            found[device] = {"error": error * 1e-9, "how": how}
        return found

    def _new(self, device: str, facts: Mapping[str, Any]) -> Any:
        library = "cupy" if facts.get("library") == "cupy" else "torch"
        if library not in self._events:
            self._events[library] = _OfCupy() if library == "cupy" else _OfTorch()
        return self._of.setdefault(device, self._events[library])


def _anchor(events: Any, device: str) -> Anchor:
    stream = events.stream(device, None)
    found = []
    for _ in range(TRIES):
        before = _clock()
        event = events.record(stream)
        events.wait(event)
        after = _clock()
        found.append(Anchor(event, (before + after) / 2, (after - before) / 2))
    return min(found, key=lambda anchor: anchor.half)


def _handle(given: Any) -> int:
    """Of what an op takes as a stream; 0 for what it will refuse."""
    if isinstance(given, int):
        return max(int(given), 0)
    protocol = getattr(given, "__cuda_stream__", None)
    return int((protocol() if callable(protocol) else protocol)[1]) if protocol is not None else 0


class _OfTorch:
    """The few calls that torch's events take; times in ns."""

    def __init__(self) -> None:
        self.cuda: Any = sys.modules["torch"].cuda

    def stream(self, device: str, given: Any) -> Any:
        if given is None:
            return self.cuda.current_stream(device)
        if isinstance(given, self.cuda.Stream):
            return given
        handle = _handle(given)
        return self.cuda.ExternalStream(handle, device=device) if handle else self.cuda.default_stream(device)

    def capturing(self, stream: Any) -> bool:
        return bool(self.cuda.is_current_stream_capturing())  # work is captured on the current one

    def record(self, stream: Any) -> Any:
        event = self.cuda.Event(enable_timing=True)
        event.record(stream)
        return event

    def wait(self, event: Any) -> None:
        event.synchronize()

    def synchronize(self, device: str) -> None:
        self.cuda.synchronize(device)

    def elapsed(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end)) * 1e6

    def key(self, stream: Any) -> int:
        return int(stream.cuda_stream)


class _OfCupy:
    """The same of CuPy's."""

    def __init__(self) -> None:
        self.cupy: Any = sys.modules["cupy"]

    def stream(self, device: str, given: Any) -> Any:
        if given is None:
            return self.cupy.cuda.get_current_stream()
        if hasattr(given, "ptr"):
            return given
        handle = _handle(given)
        return self.cupy.cuda.ExternalStream(handle) if handle else self.cupy.cuda.Stream.null

    def capturing(self, stream: Any) -> bool:
        return bool(getattr(stream, "is_capturing", bool)())

    def record(self, stream: Any) -> Any:
        event = self.cupy.cuda.Event()
        event.record(stream)
        return event

    def wait(self, event: Any) -> None:
        event.synchronize()

    def synchronize(self, device: str) -> None:
        self.cupy.cuda.Device(int(device.rpartition(":")[2])).synchronize()

    def elapsed(self, begin: Any, end: Any) -> float:
        return float(self.cupy.cuda.get_elapsed_time(begin, end)) * 1e6

    def key(self, stream: Any) -> int:
        return int(stream.ptr)
