# SPDX-License-Identifier: BSD-3-Clause
"""Blocks of slices on the streams of CUDA devices; the host starts all of them and waits for none.

Each entry of ``devices`` has a stream for its steps. A block of another device than that of the states has two streams
of its own for copies too, on each of the two devices: starts go in while other blocks compute, ends come back while
others still do. torch copies from one device to another orders the current streams of both, and goes from peer to peer
where ``torch.cuda.can_device_access_peer`` says so, through the host otherwise. All is ordered by events, forked from
the caller's current stream and joined with it at the end.

Not verified on several GPUs.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from .. import _trace
from .replicas import Replicas

Array = Any

WRITTEN = frozenset(("every", "norms", "jacobians"))  # what a relaxation writes besides ``out``; the rest it reads


class DeviceStreams:
    """The streams of all ``devices`` for states ``here``, the name of a device."""

    def __init__(self, devices: Sequence[str], here: str) -> None:
        self._entries = [(Elsewhere if device != here else Here)(device, here) for device in devices]

    def used_on(self, entry: int) -> Callable[[Any], None]:
        """What the replicas of an entry call with every tensor they copy."""
        return self._entries[entry].uses

    def run(self, works: Sequence[tuple[int, Any]], device: Any, replicas: Sequence[Replicas | None]) -> None:
        """All ``works`` (:class:`.placement.Work`), by entry."""
        caller = sys.modules["torch"].cuda.current_stream(device)
        fork = None if _trace.listener is None else f"fork {next(_forks)}"
        with heard("wait", "record", caller, fork):
            ready = caller.record_event()
        begun = []
        try:
            for n, work in works:
                begun.append(self._entries[n])
                self._entries[n].run(work, ready, replicas[n], fork)
        finally:  # after an error too: what was started still works on the caller's arrays
            for entry in begun:
                entry.join(caller)


class Here:
    """A stream of the device of the states, whose arrays it works on."""

    def __init__(self, device: str, here: str) -> None:
        self.stream = sys.modules["torch"].cuda.Stream(device)

    def uses(self, tensor: Any) -> None:
        """It is copied on the stream that it is used on."""

    def run(self, work: Any, ready: Any, replicas: Replicas | None, fork: str | None = None) -> None:
        with heard("wait", "event", self.stream, fork):
            self.stream.wait_event(ready)
        with sys.modules["torch"].cuda.stream(self.stream):
            if replicas is not None:
                work = work._replace(phi=replicas.of(work.phi, work.rows))
            work.run()

    def join(self, caller: Any) -> None:
        with heard("wait", "event", caller):
            caller.wait_stream(self.stream)


class Elsewhere:
    """A stream of another device for steps, and two on each device for copies."""

    def __init__(self, device: str, here: str) -> None:
        cuda = sys.modules["torch"].cuda
        self.device, self.stream = device, cuda.Stream(device)
        self.inward, self.outward = cuda.Stream(device), cuda.Stream(device)
        self.fetch, self.land = cuda.Stream(here), cuda.Stream(here)

    def uses(self, tensor: Any) -> None:
        """Its memory is not given away before the steps are done with it."""
        tensor.record_stream(self.stream)

    def run(self, work: Any, ready: Any, replicas: Replicas | None, fork: str | None = None) -> None:
        cuda = sys.modules["torch"].cuda
        for stream in (self.fetch, self.inward, self.land, self.outward):
            with heard("wait", "event", stream, fork):
                stream.wait_event(ready)
        self.inward.wait_stream(self.stream)  # replicas that are copied anew may still be in use
        with _both(self.fetch, self.inward):
            assert replicas is not None
            phi = replicas.of(work.phi, work.rows)
            start = self._sent(work.u)
            more = {name: self._moved(name, value) for name, value in work.fused.items()}
            out = None if work.out is None else self._room(work.out)
        self.stream.wait_stream(self.inward)
        with cuda.stream(self.stream):
            work._replace(phi=phi, u=start, out=out, fused=more).run()
        self.outward.wait_stream(self.stream)
        with _both(self.land, self.outward):
            self._back(out, work.out)
            for name in WRITTEN & more.keys():
                self._back(more[name], work.fused[name])

    def join(self, caller: Any) -> None:
        with heard("wait", "event", caller):
            for stream in (self.stream, self.fetch, self.inward, self.land, self.outward):
                caller.wait_stream(stream)

    def _moved(self, name: str, value: Any) -> Any:
        if isinstance(value, str):
            return value
        return self._room(value) if name in WRITTEN else self._sent(value)

    def _sent(self, source: Array) -> Array:
        there = self._room(source)
        with heard("copy", f"to {self.device}", self.inward, copied=source):
            there.copy_(source, non_blocking=True)
        return there

    def _room(self, like: Array) -> Array:
        torch: Any = sys.modules["torch"]
        there = torch.empty(like.shape, dtype=like.dtype, device=self.device)
        there.record_stream(self.stream)
        return there

    def _back(self, source: Array | None, target: Array | None) -> None:
        if source is not None and target is not None:
            source.record_stream(self.outward)
            with heard("copy", f"from {self.device}", self.outward, copied=source):
                target.copy_(source, non_blocking=True)


_forks = itertools.count(1)


def heard(
    kind: str, name: str, stream: Any, flow: str | None = None, copied: Array | None = None
) -> AbstractContextManager[None]:
    """What ``stream`` does next, for a timeline: it waits until an event, or copies."""
    if _trace.listener is None:
        return _trace.NOTHING
    facts = {"device": str(stream.device), "library": "torch", "on": stream}
    if flow is not None:
        facts["flow"] = flow
    if copied is not None:
        facts["bytes"] = copied.nbytes
    return _trace.mark(name, kind, facts)


@contextmanager
def _both(one: Any, other: Any) -> Iterator[None]:
    """Two streams of two devices as the current ones of these."""
    cuda = sys.modules["torch"].cuda
    with cuda.stream(one), cuda.stream(other):
        yield
