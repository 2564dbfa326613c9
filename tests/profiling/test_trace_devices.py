# SPDX-License-Identifier: BSD-3-Clause
"""Launches on a device are placed by its events; a stand-in for torch.cuda has a clock of its own, with a drift."""

import contextlib
import itertools
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from pyparareal import _trace
from pyparareal.profiling import Recorder, arrows, device_clocks, recorder
from pyparareal.runtime import device_streams
from pyparareal.traced_ops import placed


class Clock:
    """Of the host: every look takes 100 ns, and what is waited for as long as it lasts."""

    def __init__(self):
        self.now = 1_000_000_000

    def __call__(self):
        self.now += 100
        return self.now


class Device:
    """torch.cuda, as far as it is used: work on a stream takes time of a clock that runs ``rate`` times as fast."""

    def __init__(self, clock, rate=1.0, offset=5e8):
        self.clock, self.rate, self.offset = clock, rate, offset
        self.until, handles = {}, itertools.count(100)
        self.capturing, self.waits = False, 0
        device = self

        class Stream:
            device = "cuda:0"

            def __init__(self, on):
                self.cuda_stream = on if isinstance(on, int) else next(handles)

            def record_event(self):
                event = Event(enable_timing=True)
                event.record(self)
                return event

            def wait_event(self, event):
                device.until[self.cuda_stream] = max(device.until.get(self.cuda_stream, 0.0), event.at)

            def wait_stream(self, other):
                self.wait_event(other.record_event())

        class Event:
            def __init__(self, enable_timing=False):
                assert enable_timing

            def record(self, stream):
                now = device.time()
                self.at = device.until[stream.cuda_stream] = max(now, device.until.get(stream.cuda_stream, now))

            def synchronize(self):
                device.waits += 1
                host = (self.at - device.offset) / device.rate
                device.clock.now = int(max(device.clock.now, np.ceil(host)))

            def elapsed_time(self, end):
                return float(np.float32((end.at - self.at) * 1e-6))

        self.Stream, self.Event = Stream, Event
        self.streams = {handle: Stream(handle) for handle in (0, 7)}
        self.current = self.streams[0]

    def time(self):
        return self.clock.now * self.rate + self.offset

    def work(self, ns):
        """Of the host's ns, on the current stream; the host goes on at once."""
        handle = self.current.cuda_stream
        self.until[handle] = max(self.time(), self.until.get(handle, 0.0)) + ns * self.rate

    @contextlib.contextmanager
    def stream(self, on):
        before, self.current = self.current, on
        yield
        self.current = before

    def is_initialized(self):
        return True

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def memory_allocated(self, number):
        return 4096

    def current_stream(self, device):
        return self.current

    def default_stream(self, device):
        return self.streams[0]

    def ExternalStream(self, handle, device):
        return self.streams[handle]

    def is_current_stream_capturing(self):
        return self.capturing

    def synchronize(self, device):
        self.waits += 1
        last = max(self.until.values(), default=0.0)
        self.clock.now = int(max(self.clock.now, np.ceil((last - self.offset) / self.rate)))


@pytest.fixture
def cuda(monkeypatch, request):
    clock = Clock()
    device = Device(clock, rate=getattr(request, "param", 1.0))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=device, Tensor=type(None)))
    monkeypatch.setattr(device_clocks, "_clock", clock)
    monkeypatch.setattr(recorder, "_clock", clock)
    return device


def launch(device, name, ns, on=None):
    with _trace.mark(name, "launch", {"device": "cuda:0", "library": "torch", "on": on}):
        device.work(ns)


@pytest.mark.parametrize("cuda", [1.0, 1 + 4e-5, 1 - 4e-5], indirect=True)
def test_launches_are_where_the_device_took_them(cuda):
    with Recorder() as found:
        waits = cuda.waits
        begun = cuda.clock.now
        for n in range(5):
            launch(cuda, f"kernel {n}", 1_000_000)  # of 1 ms, all in the queue at once
        cuda.current = cuda.streams[7]
        launch(cuda, "beside", 2_000_000)
        assert cuda.waits == waits  # nothing is waited for in between
    record = found.record()
    error = record.about["device clocks"]["cuda:0"]["error"]
    assert error < 2e-6
    zero = (begun - found.start) * 1e-9
    launches = {event.name: event for event in record.events}
    for n in range(5):
        event = launches[f"kernel {n}"]
        assert (event.device, event.stream) == ("cuda:0", "default")
        # The host's looks at its clock between are some hundred ns each; durations are read from the device's clock.
        assert event.start == pytest.approx(zero + n * 1e-3, abs=error + 3e-6)
        # A look at the clock, of 100 ns, lies between the first event and the work; the rates differ by 4e-5.
        assert event.seconds == pytest.approx(1e-3, abs=1.5e-7)
        assert event.facts["host_seconds"] < 1e-5
        assert not {"on", "library", "device"} & event.facts.keys()
    assert launches["beside"].stream == "stream 1"
    assert launches["beside"].start < launches["kernel 1"].start
    assert {s.value for s in record.samples if s.counter == "allocated bytes cuda:0"} == {4096.0}


def test_a_stream_that_is_given_is_the_one(cuda):
    with Recorder() as found:
        launch(cuda, "by handle", 10, on=7)
        launch(cuda, "by protocol", 10, on=SimpleNamespace(__cuda_stream__=lambda: (0, 7)))
        launch(cuda, "by null", 10, on=0)
        launch(cuda, "refused by the op itself", 10, on="a stream")
    streams = [event.stream for event in found.record().events]
    assert sorted(streams) == ["default", "default", "stream 1", "stream 1"]


def test_what_is_captured_into_a_graph_is_no_launch(cuda):
    cuda.capturing = True
    with Recorder() as found:
        launch(cuda, "captured", 10)
    assert found.record().events == []


def test_without_a_first_anchor_the_drift_is_allowed_for(cuda, monkeypatch):
    monkeypatch.setattr(cuda, "is_initialized", lambda: False)
    with Recorder() as found:
        launch(cuda, "kernel", 1_000_000_000)
    told = found.record().about["device clocks"]["cuda:0"]
    assert "one anchor" in told["how"]
    assert 1e-4 < told["error"] < 2e-4  # of a second at 1e-4


def test_a_record_of_an_open_recorder_has_the_times_of_the_host(cuda):
    with Recorder() as found:
        launch(cuda, "kernel", 1_000_000)
        (event,) = found.record().events
    assert event.device == "cuda:0"
    assert event.seconds < 1e-5


def test_where_arrays_are():
    facts = {"op": "x"}
    assert placed(facts, np.ones(1)) is facts
    on_gpu = SimpleNamespace(is_cuda=True, device="cuda:1")
    assert placed(facts, on_gpu, 5) == {"op": "x", "device": "cuda:1", "library": "torch", "on": 5}
    fake = type("ndarray", (), {"__module__": "cupy._core", "device": SimpleNamespace(id=2)})()
    assert placed(facts, fake)["device"] == "cuda:2"


def test_blocks_on_streams_wait_for_the_caller_and_the_caller_for_them(cuda):
    """Two blocks of 1 and 2 ms behind 3 ms of the caller's own: both streams wait that long, and the caller 2 ms."""
    streams = device_streams.DeviceStreams(["cuda:0", "cuda:0"], "cuda:0")
    blocks = [SimpleNamespace(run=lambda ns=ns: launch(cuda, f"{ns} ns", ns)) for ns in (1_000_000, 2_000_000)]
    with Recorder() as found:
        launch(cuda, "before", 3_000_000)
        streams.run(list(enumerate(blocks)), "cuda:0", [None, None])
    events = found.record().events
    (record,) = [event for event in events if event.name == "record"]
    waits = [event for event in events if event.name == "event"]
    forked, joined = [e for e in waits if e.flow], [e for e in waits if not e.flow]
    assert [e.flow for e in forked] == [record.flow] * 2
    assert len({e.stream for e in forked}) == 2
    assert record.stream == "default"
    near = {"abs": 2e-5}  # looks at the host's clock, 100 ns each
    assert [e.seconds for e in forked] == pytest.approx([3e-3] * 2, **near)
    assert {e.stream for e in joined} == {"default"}
    assert sum(e.seconds for e in joined) == pytest.approx(2e-3, **near)
    assert len(arrows(events)) == 2  # from the record, though the waits began before it, to the end of each
    assert all(events[i] is record and events[j] in forked for i, j in arrows(events))
    assert [e.end for e in forked] == pytest.approx([record.start] * 2, **near)
