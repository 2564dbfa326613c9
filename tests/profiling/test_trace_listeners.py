# SPDX-License-Identifier: BSD-3-Clause
"""Listeners: several, in threads, generators and forked children; and nothing that is left when none listens."""

import gc
import multiprocessing
import sys
import threading

import numpy as np
import pytest

from pyparareal import LocalRuntime, _core, _trace, ops, traced_ops
from pyparareal.profiling import Recorder, Timeline
from pyparareal.profiling.recorder import level_of

PLAIN = {op: getattr(_core, op) for op in traced_ops.FORMS}
U = np.ones((4, 2, 3))


def untouched():
    return _trace.listener is None and all(getattr(_core, op) is call for op, call in PLAIN.items())


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert untouched()


def names(recorder, kind=None):
    return [event.name for event in recorder.record().events if kind in (None, event.kind)]


def test_off_makes_no_object():
    """One shared context: what a million ranges would leave behind, ten thousand do too."""

    def ranges(count):
        for _ in range(count):
            with _trace.mark("a region"):
                ops.slice_norms(U, out=norms)
            _trace.sample("residual", 1.0)
            _trace.note("solve", {})

    norms = np.empty(4)
    ranges(10)
    assert _trace.mark("a") is _trace.mark("b") is _trace.carry() is _trace.NOTHING
    gc.collect()
    before = sys.getallocatedblocks()
    ranges(10_000)
    assert sys.getallocatedblocks() - before < 100  # caches of the interpreter breathe by some


def test_off_lets_errors_through():
    with pytest.raises(ZeroDivisionError), _trace.mark("a region"):
        _ = 1 / 0


class Hears:
    """A listener of anything."""

    def span(self, kind, name, facts):
        return _trace.NOTHING

    def carry(self):
        return _trace.NOTHING

    def sample(self, counter, value):
        pass

    def note(self, what, facts):
        pass


def region():
    with LocalRuntime().mark("mgrit.relax.0"):
        pass


@pytest.mark.parametrize(
    "call",
    [lambda: _trace.mark("a"), lambda: _trace.sample("a", 1.0), _trace.carry, lambda: _trace.note("a", {}), region],
    ids=["mark", "sample", "carry", "note", "region"],
)
def test_another_thread_may_take_the_listener_away_between_any_two_instructions(call):
    """After the first, second, ... instruction of all the code that the call runs, until it ends before."""

    def stepped(take_away_after):
        left = take_away_after

        def step(frame, event, argument):
            nonlocal left
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            if event == "opcode":
                left -= 1
                if left == 0:
                    _trace.listener = None
            return step

        before = sys.gettrace()
        _trace.listener = Hears()
        sys.settrace(step)
        try:
            call()
        finally:
            sys.settrace(before)
            _trace.listener = None
        return left <= 0

    taken = 1
    while stepped(taken):
        taken += 1
    assert taken > 5


def test_recorders_in_one_another_and_overlapping():
    one, two = Recorder(), Recorder()
    with one:
        ops.slice_norms(U)
        two.__enter__()
        with _trace.mark("both"):
            ops.slice_norms(U)
    assert not untouched()  # two still listens
    ops.slice_norms(U, norm="max_abs")
    two.__exit__(None, None, None)
    assert names(one) == ["slice_norms", "both", "slice_norms"]
    assert names(two) == ["both", "slice_norms", "slice_norms"]


def test_a_recorder_that_listens_twice_hears_once_each():
    recorder = Recorder()
    with recorder, pytest.raises(RuntimeError, match="entered before"):
        recorder.__enter__()
    with pytest.raises(ValueError, match="expected one that listens"):
        _trace.leave(recorder)


def test_an_op_that_somebody_replaced_meanwhile_stays_replaced():
    try:
        with Recorder():
            _core.c_relax = len
        assert _core.c_relax is len
    finally:
        _core.c_relax = PLAIN["c_relax"]


def test_an_op_in_hand_works_on_when_the_recorder_has_gone():
    with Recorder() as recorder:
        held = _core.slice_norms
    out = np.empty(4)
    held(out, U, None, 0, None, 0)
    assert out.tolist() == [6.0] * 4
    assert names(recorder) == []


def test_errors_end_their_spans_and_are_named():
    with Recorder() as recorder:
        with pytest.raises(ValueError, match="step"):
            ops.extract(U, step=0, out=U)
        with pytest.raises(KeyError), _trace.mark("outer"), _trace.mark("inner", "verb"):
            raise KeyError
    events = recorder.record().events
    assert [(e.name, e.facts["error"], e.region) for e in events] == [
        ("extract", "ValueError", ""), ("outer", "KeyError", ""), ("inner", "KeyError", "outer"),
    ]  # fmt: skip


def test_threads_record_at_once_and_lose_nothing():
    def work(n, context):
        with context, _trace.mark(f"thread.{n}"):
            for _ in range(500):
                with _trace.mark("a", "launch"):
                    pass
        done.wait(10)

    done = threading.Barrier(5)
    with Recorder() as recorder, _trace.mark("where they started"):
        threads = [threading.Thread(target=work, args=(n, _trace.carry()), name="same") for n in range(4)]
        for thread in threads:
            thread.start()
        done.wait(10)
        for thread in threads:
            thread.join()
    events = recorder.record().events
    streams = {event.stream for event in events if event.name == "a"}
    assert len(streams) == 4
    for stream in streams:
        mine = [event for event in events if event.stream == stream]
        assert len(mine) == 501
        (region,) = {event.region for event in mine if event.name == "a"}
        assert region in {f"thread.{n}" for n in range(4)}
        assert {event.level for event in mine if event.name == "a"} == {int(region[-1])}
    assert {e.region for e in events if e.name.startswith("thread.")} == {"where they started"}


def test_a_recorder_that_ends_inside_a_span_of_another_thread():
    inside, over = threading.Event(), threading.Event()

    def work():
        with _trace.mark("too long"):
            inside.set()
            over.wait(10)
        with _trace.mark("after"):
            pass

    with Recorder() as recorder:
        thread = threading.Thread(target=work)
        thread.start()
        inside.wait(10)
    over.set()
    thread.join()
    assert names(recorder) == []


def test_a_generator_left_inside_a_region_confuses_nobody():
    def generator():
        with _trace.mark("generator"):
            yield
            with _trace.mark("in it", "launch"):
                yield

    with Recorder() as recorder:
        one = generator()
        next(one)
        with _trace.mark("caller"):
            next(one)
            one.close()
            with _trace.mark("in the caller", "launch"):
                pass
        with _trace.mark("alone", "launch"):
            pass
    regions = {event.name: event.region for event in recorder.record().events}
    assert regions["in the caller"] == "caller"
    assert regions["alone"] == ""


def _child(end):
    before = untouched()
    with Recorder() as mine:
        ops.slice_norms(U)
    end.send((before, names(mine)))


def test_a_forked_child_hears_nothing_and_may_listen_itself():
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    with Recorder() as recorder:
        ops.slice_norms(U)
        child = context.Process(target=_child, args=(there,))
        child.start()
        told = here.poll(10) and here.recv()
        child.join(10)
        ops.slice_norms(U)
    assert told == (True, ["slice_norms"])
    assert child.exitcode == 0
    assert names(recorder) == ["slice_norms"] * 2


def test_facts_are_json_values():
    with Recorder() as recorder:
        facts = {"shape": (1, np.int64(2)), "dtype": np.dtype("float32"), "deep": {"a": np.float32(0.5)}, "flow": "x"}
        with _trace.mark("a", "message", facts):
            pass
    (event,) = recorder.record().events
    assert event.facts == {"shape": [1, 2], "dtype": "float32", "deep": {"a": 0.5}}
    assert event.flow == "x"


def test_memory_is_looked_at_and_not_too_often():
    with Recorder() as recorder:
        for _ in range(2000):
            with _trace.mark("a", "launch"):
                pass
    record = recorder.record()
    resident = [sample for sample in record.samples if sample.counter == "resident bytes"]
    assert len(resident) >= 2  # when it begins and when it ends
    assert all(sample.value > 1e6 for sample in resident)
    # One when it begins, one when it ends, and one in every four milliseconds between.
    assert len(resident) <= 3 + record.about["seconds"] * 250


@pytest.mark.parametrize(
    ("region", "level"),
    [
        ("mgrit.relax.0", 0), ("mgrit.restrict.12", 12), ("parareal.fine", 0), ("parareal.coarse", 1), ("serial", 0),
        ("newton.scan", 0), ("newton.guess", 1), ("backward mgrit.relax.3", 3), ("backward parareal.coarse", 1),
        ("", None), ("solve", None), ("train.forward", None), ("backward", None),
    ],
)  # fmt: skip
def test_levels(region, level):
    assert level_of(region) == level


def test_regions_of_a_backward_pass_say_so():
    with (
        Recorder() as recorder,
        _trace.mark("backward"),
        _trace.mark("mgrit.relax.1"),
        _trace.mark("Map", "launch"),
    ):
        _trace.sample("residual", 0.5)
    record = recorder.record()
    assert [(e.name, e.region, e.level) for e in record.events] == [
        ("backward", "", None), ("backward mgrit.relax.1", "backward", None), ("Map", "backward mgrit.relax.1", 1),
    ]  # fmt: skip
    assert [s.value for s in record.samples if s.counter == "backward residual"] == [0.5]


def test_no_more_than_so_many_events_are_kept():
    """Of four of a hundred; what began and had not ended is not among them, nor what another thread does later."""

    def work():
        for _ in range(50):
            with _trace.mark("inner"):
                _trace.sample("residual", 1.0)

    with Recorder(most=4) as recorder:
        with _trace.mark("outer"):
            work()
        other = threading.Thread(target=work)
        other.start()
        other.join()
        _trace.note("solve", {"start": recorder.start, "end": recorder.start + 10**15})
    made = recorder.record()
    assert [event.name for event in made.events] == ["inner"] * 4
    assert made.about["left out"]["events"] == 46 + 50
    assert made.about["seconds"] + made.about["left out"]["seconds"] == pytest.approx(
        (recorder.end - recorder.start) / 1e9
    )
    assert max(event.end for event in made.events) <= made.about["seconds"]
    assert len([sample for sample in made.samples if sample.counter == "residual"]) == 4
    assert made.solves == [], "it ended later"
    with Recorder() as recorder:
        work()
    assert "left out" not in recorder.record().about


@pytest.mark.parametrize("most", [0, True, 2.0])
def test_a_limit_is_a_number_of_events(most):
    with pytest.raises(ValueError, match=r"most: got .*, expected an integer of at least 1"):
        Timeline(most=most)
