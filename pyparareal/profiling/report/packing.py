# SPDX-License-Identifier: BSD-3-Clause
"""Events as columns of varints, deflated, in base64: 10^5 of them are about a megabyte of letters."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from ..analysis.work import traced
from ..events import KINDS, Event, Record

TICK = 1e-9  # seconds; what is finer than a nanosecond is no clock's
LARGEST = 2**53 - 1  # integers that a browser's numbers hold


@dataclass(frozen=True)
class Packed:
    """``text`` for ``unpack.js``; the ``events`` in its order; seconds count from ``begin``; events ``left_out``."""

    text: str
    events: list[Event]
    begin: float
    seconds: float
    left_out: int


def pack(record: Record, words: Mapping[tuple[int, str, str | None], str] | None = None) -> Packed:
    """All events of ``record`` but those whose times are not finite; ``words`` is added to the names of tracks.

    Strings and facts occur once each in a header of JSON. Then five columns: kind, name, level and region by number;
    start, nanoseconds after the one before on the track; nanoseconds; facts by number; flow by number, 0 none.
    A rounded start or end is that of all events there, so what was nested stays nested.
    """
    events = [event for event in record.events if math.isfinite(event.start) and math.isfinite(event.end)]
    begin, end = traced(replace(record, events=events))
    events.sort(key=lambda event: (_track(event), event.start, -event.end, _kind(event)))
    starts = _ticks((event.start for event in events), begin)
    ends = np.maximum(_ticks((event.end for event in events), begin), starts)
    types: dict[tuple[Any, ...], int] = {}
    flows: dict[str | None, int] = {None: 0, "": 0}
    facts = _Facts()
    columns: list[Any] = [
        [types.setdefault((e.kind, e.name, e.level, e.region), len(types)) for e in events],
        _differences(starts, events),
        ends - starts,
        [facts.number(e.facts) for e in events],
        [flows.setdefault(e.flow, len(flows) - 1) for e in events],
    ]
    seconds = max(float(ends.max()) * TICK if events else 0.0, end - begin)
    header = {
        "events": len(events),
        "seconds_traced": seconds,
        "types": [dict(zip(("kind", "name", "level", "region"), entry, strict=True)) for entry in types],
        "facts": facts.seen,
        "tracks": _tracks(events, words or {}),
        "marks": marks(record, begin),
    }
    text = json.dumps(plain(header), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    body = len(text).to_bytes(4, "little") + text + b"".join(varints(column) for column in columns)
    packed = base64.b64encode(zlib.compress(body, 9)).decode()
    return Packed(packed, events, begin, seconds, len(record.events) - len(events))


def varints(values: Sequence[int] | np.ndarray[Any, Any]) -> bytes:
    """Seven bits a byte, the lowest first, the eighth says that there are more (LEB128); integers of at least 0."""
    rest = np.asarray(values, dtype=np.uint64).reshape(-1, 1)
    groups = (rest >> (7 * np.arange(10, dtype=np.uint64))) & np.uint64(127)
    used = np.maximum(1, 10 - np.argmax(groups[:, ::-1] != 0, axis=1))
    used[~groups.any(axis=1)] = 1
    place = np.arange(10)
    groups |= np.where(place < used[:, None] - 1, np.uint64(128), np.uint64(0))
    return groups[place < used[:, None]].astype(np.uint8).tobytes()


def marks(record: Record, begin: float) -> list[dict[str, Any]]:
    """Where iterations ended: when the residual of each was known, by its value, as one that is no number is not told.

    Iterations count from 1; the residual of the guess, if a solve has one more residual than iterations, is number 0.
    """
    found = []
    rank = min((sample.rank for sample in record.samples), default=0)
    known = sorted((s.time, s.value) for s in record.samples if s.counter == "residual" and s.rank == rank)
    for solve in record.solves:
        numbered = enumerate(solve.residuals, 0 if len(solve.residuals) > solve.iterations else 1)
        for time, value in known:
            if solve.start <= time <= solve.end:
                number = next((k for k, residual in numbered if residual == value), None)
                found += [] if number is None else [{"time": time - begin, "words": f"iteration {number}"}]
    return found


def plain(value: Any) -> Any:
    """JSON values that a browser reads: what is not finite in words, other objects as they print."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


class _Facts:
    """Numbers for mappings, in the order in which they first occur."""

    def __init__(self) -> None:
        self.seen: list[Mapping[str, Any]] = []
        self._numbers: dict[str, int] = {}

    def number(self, facts: Mapping[str, Any]) -> int:
        key = repr(facts)
        if key not in self._numbers:
            self._numbers[key] = len(self.seen)
            self.seen.append(facts)
        return self._numbers[key]


def _track(event: Event) -> tuple[int, bool, str, str]:
    """The host above its devices."""
    return event.rank, not event.device.startswith("cpu"), event.device, event.stream


def _kind(event: Event) -> int:
    return KINDS.index(event.kind) if event.kind in KINDS else len(KINDS)


def _tracks(events: Iterable[Event], words: Mapping[tuple[int, str, str | None], str]) -> list[dict[str, Any]]:
    found = []
    for (rank, _, device, stream), there in groupby(events, _track):
        kinds = [event.kind for event in there]
        works = "launch" in kinds or "copy" in kinds
        more = (words.get((rank, device, stream)) or words.get((rank, device, None), "")) if works else ""
        track = {"rank": rank, "device": device, "stream": stream, "words": f"rank {rank} · {device} · {stream}"}
        found.append({**track, "more": more, "count": len(kinds)})
    return found


def _ticks(times: Iterable[float], begin: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    after = (np.fromiter(times, dtype=np.float64) - begin) / TICK
    return np.rint(np.clip(after, 0, LARGEST)).astype(np.int64)


def _differences(starts: np.ndarray[Any, Any], events: Sequence[Event]) -> np.ndarray[Any, Any]:
    """To the start before on the same track; the first of a track as it is."""
    found, at = np.array(starts), 0
    for _, there in groupby(events, _track):
        count = sum(1 for _ in there)
        found[at + 1 : at + count] -= starts[at : at + count - 1]
        at += count
    return found
