# SPDX-License-Identifier: BSD-3-Clause
"""The timing function against a clock that only the timed calls advance, so every figure is exact."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest

from pyparareal import _bandwidth, _timing
from pyparareal._timing import Interval, Samples, interleave, measure, ratio


class Clock:
    """Nanoseconds that pass only when ``spend`` is called."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now

    def spend(self, nanoseconds):
        self.now += nanoseconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(autouse=True)
def small_cache(monkeypatch):
    monkeypatch.setattr(_timing, "cache_bytes", lambda: 1 << 12)


def test_a_sample_is_the_time_of_one_call_and_nothing_else(clock):
    def setup():
        clock.spend(10**9)

    taken = measure(lambda: clock.spend(2_000), repeats=5, setup=setup, clock=clock)
    assert taken.seconds == pytest.approx([2e-6] * 5, rel=1e-12)
    assert taken.calls == 1


def test_warm_samples_hold_enough_calls_to_fill_min_sample(clock):
    taken = measure(lambda: clock.spend(300), repeats=3, cold_cache=False, clock=clock)
    assert taken.calls * 300e-9 >= _timing.MIN_SAMPLE > taken.calls / 2 * 300e-9
    assert taken.seconds == pytest.approx([300e-9] * 3, rel=1e-12)


def test_max_calls_limits_a_warm_sample(clock):
    taken = measure(lambda: clock.spend(1), repeats=2, cold_cache=False, max_calls=100, clock=clock)
    assert taken.calls == 100


def test_batched_alternatives_get_the_number_of_calls(clock):
    asked = []

    def loop(calls):
        asked.append(calls)
        clock.spend(7 * calls)

    taken = measure(loop, repeats=4, cold_cache=False, max_calls=64, batched=True, clock=clock)
    assert asked[-4:] == [64] * 4
    assert taken.seconds == pytest.approx([7e-9] * 4, rel=1e-12)


def test_rounds_fill_min_time_within_limits(clock):
    def rounds(nanoseconds):
        return len(measure(lambda: clock.spend(nanoseconds), min_time=1e-3, clock=clock).seconds)

    assert rounds(10_000) == 100
    assert rounds(10**9) == _timing.MIN_ROUNDS
    assert rounds(1) == _timing.MAX_ROUNDS


def test_alternatives_take_turns_and_each_goes_first(clock):
    order = []
    fns = {name: lambda name=name: order.append(name) for name in "abc"}
    interleave(fns, repeats=3, warmup=0, clock=clock)
    assert "".join(order) == "abcbcacab"


def test_a_drift_of_the_machine_cancels_in_the_ratio(clock):
    """Both alternatives slow down tenfold over the run; b is always 3 times a. Unpaired medians would blur that."""
    drift = iter(np.repeat(np.linspace(1.0, 10.0, 10), 2))

    taken = interleave(
        {"a": lambda: clock.spend(round(1e6 * next(drift))), "b": lambda: clock.spend(round(3e6 * next(drift)))},
        repeats=10,
        warmup=0,
        clock=clock,
    )
    got = ratio(taken["b"], taken["a"])
    # Nanoseconds are rounded to integers: 1e-6 of a sample.
    assert (got.low, got.value, got.high) == pytest.approx((3, 3, 3), rel=1e-5)


def test_warm_up_is_not_timed(clock):
    costs = iter([10**9, 10**9, 5, 5, 5])
    assert measure(lambda: clock.spend(next(costs)), repeats=3, warmup=2, clock=clock).seconds == [5e-9] * 3


def test_caches_are_overwritten_before_each_cold_sample_only(clock, monkeypatch):
    flushed = []
    monkeypatch.setattr(_timing._HostWatch, "flush", lambda watch: flushed.append(bool(watch.parts)))
    measure(lambda: clock.spend(10**7), repeats=3, clock=clock)
    assert flushed == [True] * 3
    flushed.clear()
    measure(lambda: clock.spend(10**7), repeats=3, cold_cache=False, clock=clock)
    assert not any(flushed)


def test_flush_writes_twice_the_largest_cache():
    watch = _timing._HostWatch(Clock(), cold=True)
    assert sum(part.nbytes for part in watch.parts) == 2 * _timing.cache_bytes()
    watch.flush()
    assert all((part == 1.0).all() for part in watch.parts)


def test_garbage_collection_is_off_while_timing_and_restored_after_an_error(clock):
    seen = []

    def fail():
        seen.append(gc.isenabled())
        raise ZeroDivisionError

    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        measure(fail, clock=clock)
    assert seen == [False]
    assert gc.isenabled()


def test_statistics_of_samples():
    samples = Samples([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (samples.median, samples.min, samples.quantile(0.25), samples.quantile(1.0)) == (3.0, 1.0, 2.0, 5.0)
    interval = samples.interval()
    assert 1.0 <= interval.low < interval.value == 3.0 < interval.high <= 5.0
    assert samples.interval() == interval, "seeded: equal samples, equal interval"
    assert Samples([2.0] * 9).interval() == Interval(2.0, 2.0, 2.0)


def test_interval_covers_the_true_median():
    """A 95 % interval misses in 5 % of 200 cases: 10 +- 3.1; 25 would be five deviations off."""
    rng = np.random.default_rng(7)
    intervals = [Samples(list(rng.lognormal(0.0, 0.3, 60))).interval() for _ in range(200)]
    assert sum(not i.low <= 1.0 <= i.high for i in intervals) < 25
    assert max(i.high - i.low for i in intervals) < 0.5


def test_ratio_refuses_samples_of_different_runs():
    with pytest.raises(ValueError, match="got 1 and 2"):
        ratio(Samples([1.0]), Samples([1.0, 2.0]))


@pytest.mark.parametrize(
    ("fns", "options", "message"),
    [
        ({}, {}, "alternatives: got none"),
        ({"a": print}, {"device": "tpu"}, "device: got 'tpu', expected 'cpu' or 'cuda'"),
        ({"a": print}, {"repeats": 0}, "repeats: got 0"),
        ({"a": print}, {"warmup": -1}, "warmup: got -1"),
        ({"a": print}, {"max_calls": 0}, "max_calls: got 0"),
    ],
)
def test_wrong_options_are_refused_by_name(fns, options, message):
    with pytest.raises(ValueError, match=message):
        interleave(fns, **options)


def test_rotate_cycles_through_input_sets():
    got = []
    call = _timing.rotate(lambda x, y: got.append((x, y)), [(1, 2), (3, 4)])
    for _ in range(3):
        call()
    assert got == [(1, 2), (3, 4), (1, 2)]


@pytest.mark.parametrize("threads", [1, 3])
def test_copies_copy_every_byte(threads, monkeypatch):
    made = []
    zeros_like = np.zeros_like
    monkeypatch.setattr(np, "zeros_like", lambda x: made.append((x, zeros_like(x))) or made[-1][1])
    for copy in _bandwidth.copies(1_000_003, threads=threads).values():
        source, target = made[0]
        target.fill(0)
        copy()
        np.testing.assert_array_equal(target, source)


def test_copy_bandwidth_counts_reads_and_writes(monkeypatch):
    def fake(ways, **options):
        return {name: Samples([seconds]) for name, seconds in zip(ways, (0.5, 0.25, 1.0), strict=False)}

    monkeypatch.setattr(_timing, "interleave", fake)
    assert _bandwidth.copy_bandwidth(1000, 1) == 2 * 1000 / 0.25


class FakeCuda:
    """An asynchronous device: calls are queued, and times exist only after ``synchronize``."""

    def __init__(self):
        self.log, self.now, self.synced = [], 0.0, False

    def l2_bytes(self):
        return 100

    def bytes(self, count):
        return bytearray(count)

    def fill(self, buffer):
        self.log.append(("flush", len(buffer)))
        self.now += 1000.0

    def record(self):
        self.synced = False
        return self.now

    def synchronize(self):
        self.log.append("sync")
        self.synced = True

    def elapsed(self, begin, end):
        assert self.synced, "events are read after the synchronisation"
        return end - begin

    def kernel(self):
        self.log.append("kernel")
        self.now += 0.125


def test_events_one_synchronisation_and_a_flushed_l2(monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setattr(_timing, "_cuda_backend", lambda: cuda)
    taken = measure(cuda.kernel, device="cuda", repeats=3, warmup=0)
    assert taken.seconds == [0.125] * 3
    assert cuda.log == [("flush", 400), "kernel"] * 3 + ["sync"]


def test_without_a_gpu_the_reason_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(RuntimeError, match=r"needs torch or CuPy and a GPU; .*torch.*cupy"):
        measure(print, device="cuda")


@pytest.mark.gpu
def test_events_see_device_time_not_host_time():
    """A copy of 1 GiB takes far longer on any device than its launch on the host; 100 TB/s bounds it from below."""
    try:
        _timing._cuda_backend()
    except RuntimeError as error:
        pytest.skip(str(error))
    bandwidth = _bandwidth.copy_bandwidth(1 << 30, device="cuda", min_time=0.01)
    assert 1e9 < bandwidth < 1e14
