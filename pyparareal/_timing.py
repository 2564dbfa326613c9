# SPDX-License-Identifier: BSD-3-Clause
"""Seconds per call as samples: cold caches, alternatives measured in turn, one synchronisation.

There is one way to take a time in this project, :func:`interleave`; :func:`measure` is the case of
one alternative. Several alternatives run as A B C, B C A, ... in one run, so that a ratio is taken
between neighbours in time and a slow drift of the machine cancels (:func:`ratio`).

* Cold (default): one call a sample, before it every cache level is overwritten.
* Warm: a sample is as many calls as fill ``MIN_SAMPLE`` seconds; meant for the host cost of tiny calls.
* ``device="cuda"``: event pairs on the current stream of torch or CuPy, read after one synchronisation.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Call = Callable[..., Any]

MIN_SAMPLE = 1e-3  # seconds: 20000 ticks of a 50 ns clock, so the clock is off by at most 0.01 %
MIN_ROUNDS, MAX_ROUNDS = 7, 1000  # seven medians still have a spread; a thousand no longer change it
MAX_CALLS = 1 << 20
RESAMPLES = 1000  # bootstrap draws: the ends of a 95 % interval are then ranks 25 and 975


@dataclass(frozen=True)
class Interval:
    """A value with the two ends of its bootstrap confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Samples:
    """Seconds per call, one entry per sample, in the order they were taken; ``calls`` calls a sample."""

    seconds: list[float]
    calls: int = 1

    @property
    def median(self) -> float:
        """Middle sample, seconds per call."""
        return statistics.median(self.seconds)

    @property
    def min(self) -> float:
        """Fastest sample, seconds per call."""
        return min(self.seconds)

    def quantile(self, q: float) -> float:
        """Sample at rank ``q`` in [0, 1], linearly interpolated, seconds per call."""
        return float(np.quantile(self.seconds, q))

    def interval(self, level: float = 0.95) -> Interval:
        """Median with its bootstrap confidence interval at ``level``."""
        return _bootstrap(self.seconds, level)


def measure(fn: Call, **options: Any) -> Samples:
    """Seconds per call of ``fn``: :func:`interleave` with one alternative and the same options."""
    return interleave({"fn": fn}, **options)["fn"]


def interleave(
    alternatives: Mapping[str, Call],
    *,
    device: str = "cpu",
    repeats: int | None = None,
    min_time: float = 0.3,
    warmup: int = 2,
    cold_cache: bool = True,
    setup: Callable[[], Any] | None = None,
    batched: bool = False,
    max_calls: int = MAX_CALLS,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Samples]:
    """Samples of every alternative, taken in turn; sample ``i`` of each belongs to the same round.

    Parameters
    ----------
    alternatives : mapping of name to callable
        Called without arguments; with ``batched`` called as ``fn(calls)`` and expected to make that
        many calls in its own loop, so that no wrapper is part of the sample.
    device : "cpu" or "cuda"
        ``perf_counter_ns``, or event pairs on the current stream. Host cost of CUDA calls is a
        "cpu" measurement with a synchronising ``setup``.
    repeats : int, optional
        Rounds. Default: as many as sum to ``min_time`` seconds per alternative (7 to 1000), from a
        pilot round.
    warmup : int
        Untimed calls of each alternative beforehand.
    cold_cache : bool
        True: overwrite the caches before each sample of one call. False: warm, calibrated calls.
    setup : callable, optional
        Runs untimed before each sample, before the caches are overwritten.
    max_calls : int
        Upper limit of calls in a warm sample (asynchronous queues must not fill up).
    clock : callable
        Nanoseconds, for ``device="cpu"``.

    Raises
    ------
    ValueError
        No alternative, unknown device, ``repeats`` or ``max_calls`` below 1, negative ``warmup``.
    RuntimeError
        ``device="cuda"`` without torch or CuPy that sees a GPU.
    """
    _validate(alternatives, device, repeats, warmup, max_calls)
    watch: _Stopwatch = _HostWatch(clock, cold_cache) if device == "cpu" else _EventWatch(_cuda_backend(), cold_cache)
    loops = {name: fn if batched else _looped(fn) for name, fn in alternatives.items()}
    with _no_garbage_collection():
        for fn in loops.values():
            for _ in range(warmup):
                fn(1)
        calls = {name: 1 if cold_cache else _calibrate(fn, watch, setup, max_calls) for name, fn in loops.items()}
        if repeats is None:
            _round(loops, calls, watch, setup, 0)
            pilot = watch.collect()
            repeats = _rounds_for(min_time, [times[0] for times in pilot.values()])
        for turn in range(repeats):
            _round(loops, calls, watch, setup, turn)
        taken = watch.collect()
    return {name: Samples([t / calls[name] for t in taken[name]], calls[name]) for name in alternatives}


def ratio(numerator: Samples, denominator: Samples, *, level: float = 0.95) -> Interval:
    """``median_i(numerator_i / denominator_i)`` over the rounds of one :func:`interleave`, with its interval."""
    if len(numerator.seconds) != len(denominator.seconds):
        counts = f"{len(numerator.seconds)} and {len(denominator.seconds)}"
        raise ValueError(f"ratio: expected samples of one interleave, got {counts} of them")
    return _bootstrap([a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)], level)


def rotate(fn: Call, inputs: Sequence[tuple[Any, ...]]) -> Call:
    """``fn(*inputs[i % n])`` at the i-th call: cold inputs without overwriting caches, if the sets exceed them."""
    turns = cycle(inputs)
    return lambda: fn(*next(turns))


def cores() -> int:
    """Number of CPUs this process may run on."""
    return len(os.sched_getaffinity(0))


def cache_bytes() -> int:
    """Size of the largest CPU cache in bytes (32 MiB where the system does not tell)."""
    found = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        found.append(int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[-1]])
    return max(found, default=32 << 20)


class _Stopwatch(Protocol):
    """Times named intervals; ``flush`` overwrites the caches if cold; ``collect`` hands over what was taken so far."""

    def flush(self) -> None: ...
    def start(self, name: str) -> None: ...
    def stop(self) -> None: ...
    def collect(self) -> dict[str, list[float]]: ...


class _HostWatch:
    """Monotonic clock of the host."""

    def __init__(self, clock: Callable[[], int], cold: bool) -> None:
        self.clock, self.taken = clock, dict[str, list[float]]()
        self.team = Team(cores()) if cold else None
        # Twice the last level, written by every core: also empties the private levels.
        self.parts = np.array_split(np.zeros(2 * cache_bytes() // 8), self.team.size) if self.team else []

    def flush(self) -> None:
        if self.team:
            self.team.run(lambda i: np.add(self.parts[i], 1.0, out=self.parts[i]))

    def start(self, name: str) -> None:
        self.name = name
        self.begin = self.clock()

    def stop(self) -> None:
        end = self.clock()
        self.taken.setdefault(self.name, []).append((end - self.begin) * 1e-9)

    def collect(self) -> dict[str, list[float]]:
        taken, self.taken = self.taken, {}
        return taken


class _EventWatch:
    """Pairs of CUDA events on the current stream; the host runs ahead and synchronises once, in ``collect``."""

    def __init__(self, backend: Any, cold: bool) -> None:
        self.backend, self.pairs = backend, list[tuple[str, Any, Any]]()
        # Four times the L2: also long enough on the device for the host to enqueue the next sample meanwhile.
        self.buffer = backend.bytes(4 * backend.l2_bytes()) if cold else None

    def flush(self) -> None:
        if self.buffer is not None:
            self.backend.fill(self.buffer)

    def start(self, name: str) -> None:
        self.pairs.append((name, self.backend.record(), None))

    def stop(self) -> None:
        name, begin, _ = self.pairs[-1]
        self.pairs[-1] = (name, begin, self.backend.record())

    def collect(self) -> dict[str, list[float]]:
        self.backend.synchronize()
        taken: dict[str, list[float]] = {}
        for name, begin, end in self.pairs:
            taken.setdefault(name, []).append(self.backend.elapsed(begin, end))
        self.pairs = []
        return taken


class _TorchCuda:
    """The few CUDA calls a stopwatch needs, through torch."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch

    def l2_bytes(self) -> int:
        return int(self.torch.cuda.get_device_properties(self.torch.cuda.current_device()).L2_cache_size)

    def bytes(self, count: int) -> Any:
        return self.torch.empty(count, dtype=self.torch.uint8, device="cuda")

    def fill(self, buffer: Any) -> None:
        buffer.fill_(1)

    def record(self) -> Any:
        event = self.torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def synchronize(self) -> None:
        self.torch.cuda.synchronize()

    def elapsed(self, begin: Any, end: Any) -> float:
        return float(begin.elapsed_time(end)) * 1e-3

    def copies(self, nbytes: int) -> dict[str, Call]:
        source, target = self.bytes(nbytes).random_(), self.bytes(nbytes)
        return {"copy_torch": lambda: target.copy_(source)}


class _CupyCuda:
    """The few CUDA calls a stopwatch needs, through CuPy."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy

    def l2_bytes(self) -> int:
        return int(self.cupy.cuda.Device().attributes["L2CacheSize"])

    def bytes(self, count: int) -> Any:
        return self.cupy.empty(count, dtype=self.cupy.uint8)

    def fill(self, buffer: Any) -> None:
        buffer.fill(1)

    def record(self) -> Any:
        event = self.cupy.cuda.Event()
        event.record()
        return event

    def synchronize(self) -> None:
        self.cupy.cuda.get_current_stream().synchronize()

    def elapsed(self, begin: Any, end: Any) -> float:
        return float(self.cupy.cuda.get_elapsed_time(begin, end)) * 1e-3

    def copies(self, nbytes: int) -> dict[str, Call]:
        source = self.cupy.random.randint(0, 256, nbytes).astype(self.cupy.uint8)
        target = self.bytes(nbytes)
        return {"copy_cupy": lambda: self.cupy.copyto(target, source)}


def _cuda_backend() -> Any:
    """The loaded framework first, then an installed one; RuntimeError where neither sees a GPU."""
    reasons = []
    for name, adapter in sorted((("torch", _TorchCuda), ("cupy", _CupyCuda)), key=lambda x: x[0] not in sys.modules):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            reasons.append(f"{name}: {error}")
            continue
        seen = module.cuda.is_available()
        if seen:
            return adapter(module)
        reasons.append(f"{name}: sees no GPU")
    raise RuntimeError("device='cuda' needs torch or CuPy and a GPU; " + "; ".join(reasons))


class Team:
    """Runs ``task(i)`` for ``i < size`` on as many threads, this one included, and waits."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pool = ThreadPoolExecutor(size - 1) if size > 1 else None

    def run(self, task: Callable[[int], Any]) -> None:
        waiting = [self.pool.submit(task, i) for i in range(1, self.size)] if self.pool else []
        task(0)
        for future in waiting:
            future.result()


def _round(loops: Mapping[str, Call], calls: Mapping[str, int], watch: _Stopwatch, setup: Any, turn: int) -> None:
    """One sample of each alternative; the one that goes first changes from round to round."""
    names = list(loops)
    first = turn % len(names)
    for name in names[first:] + names[:first]:
        _sample(loops[name], calls[name], watch, setup, name)


def _sample(fn: Call, calls: int, watch: _Stopwatch, setup: Any, name: str) -> None:
    if setup is not None:
        setup()
    watch.flush()
    watch.start(name)
    fn(calls)
    watch.stop()


def _calibrate(fn: Call, watch: _Stopwatch, setup: Any, max_calls: int) -> int:
    """Calls that fill MIN_SAMPLE seconds, found by doubling: a power of two."""
    calls = 1
    while calls < max_calls:
        _sample(fn, calls, watch, setup, "calibration")
        if watch.collect()["calibration"][0] >= MIN_SAMPLE:
            break
        calls *= 2
    return min(calls, max_calls)


def _looped(fn: Call) -> Call:
    def loop(calls: int) -> None:
        for _ in range(calls):
            fn()

    return loop


def _rounds_for(min_time: float, pilot: Sequence[float]) -> int:
    mean = max(sum(pilot) / len(pilot), 1e-9)
    return min(max(math.ceil(min_time / mean), MIN_ROUNDS), MAX_ROUNDS)


def _bootstrap(values: Sequence[float], level: float) -> Interval:
    """Percentile bootstrap of the median; the draws are seeded, so equal samples give an equal interval."""
    data = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(0).choice(data, (RESAMPLES, len(data)))
    low, high = np.quantile(np.median(draws, axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.median(data)), float(low), float(high))


def _validate(alternatives: Mapping[str, Call], device: str, repeats: int | None, warmup: int, max_calls: int) -> None:
    if not alternatives:
        raise ValueError("alternatives: got none, expected at least one callable")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device: got {device!r}, expected 'cpu' or 'cuda'")
    if repeats is not None and repeats < 1:
        raise ValueError(f"repeats: got {repeats}, expected at least 1")
    if warmup < 0:
        raise ValueError(f"warmup: got {warmup}, expected 0 or more")
    if max_calls < 1:
        raise ValueError(f"max_calls: got {max_calls}, expected at least 1")


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
