# SPDX-License-Identifier: BSD-3-Clause
"""Busy time is a union, own seconds add up, unknown is not zero, the critical path goes through what was waited for."""

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given
from planted import launch, message, record, region, solve

from pyparareal.profiling import Timeline, analyse
from pyparareal.profiling.analysis import intervals
from pyparareal.profiling.events import Event, RankClock, Sample
from pyparareal.profiling.report import packing

MOMENTS = range(32)
pairs = st.lists(st.tuples(st.sampled_from(MOMENTS), st.sampled_from(MOMENTS)), max_size=8)
lanes = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), min_size=1, max_size=8)


def moments(rows):
    """Whole numbers n with [n, n + 1] inside."""
    rows = list(rows)
    return {n for n in MOMENTS for a, b in rows if a <= n and n + 1 <= b}


@pytest.mark.parametrize("wrong", [3, None, Timeline()])
def test_only_records_are_analysed(wrong):
    with pytest.raises(TypeError, match=rf"record: got {type(wrong).__name__}, expected a Record"):
        analyse(wrong)


@given(pairs, pairs)
def test_sets_of_moments(a, b):
    left, right = intervals.union(a), intervals.union(b)
    assert moments(left) == moments(a)
    assert intervals.total(left) == len(moments(a))
    assert moments(intervals.both(left, right)) == moments(a) & moments(b)
    assert moments(intervals.without(left, right)) == moments(a) - moments(b)
    assert (left[1:, 0] > left[:-1, 1]).all(), "disjoint and in order"


@given(lanes)
def test_busy_time_never_exceeds_wall_time(spans):
    """However launches of as many threads overlap; a sum of them does."""
    seen = analyse(record(*(launch(a, a + n, stream=f"thread {i}") for i, (a, n) in enumerate(spans))))
    wall = seen.summary["seconds"]
    every = moments((a, a + n) for a, n in spans)
    assert seen.summary["busy_seconds"] == len(every) <= wall
    whole, *streams = seen.devices
    assert whole["busy_seconds"] == len(every)
    assert whole["busy_seconds"] + whole["idle_seconds"] == wall
    assert [row["busy_seconds"] for row in streams] == ([n for _, n in spans] if len(spans) > 1 else [])
    (host,) = seen.host_overhead
    parts = ("launch_seconds", "copy_seconds", "wait_seconds", "overhead_seconds")
    assert sum(host[part] for part in parts) == pytest.approx(host["seconds"])


def test_what_a_launch_encloses_is_not_its_own():
    outer = launch(0, 10, "Step", facts={"bytes": 5, "flops": 5})
    seen = analyse(record(outer, launch(1, 4, facts={"bytes": 8.0}), launch(5, 7), launch(5, 6, stream="other")))
    rows = {row["op"]: row for row in seen.by_op}
    assert rows["Step"]["seconds"] == 5  # 10 less the 3 and 2 in its thread
    assert rows["Step"]["encloses"]
    assert rows["Step"]["bytes"] is None, "what ops inside it move is theirs"
    assert rows["relax_rk"]["seconds"] == 6
    assert rows["relax_rk"]["bytes"] is None, "of two calls nobody knows"
    assert seen.summary["busy_seconds"] == 5, "Python around ops is not at work"
    assert sum(row["share"] for row in seen.by_op) == 1


def test_rates_are_of_what_is_known():
    facts = {"op": "relax_diagonal", "shape": [2, 4], "dtype": "float64", "m": 3, "norm": 0, "given": [], "bytes": 160}
    (row,) = analyse(record(launch(0, 2, "relax_diagonal", facts=facts))).by_op
    assert (row["bytes"], row["flops"]) == (160, 24)
    assert (row["bytes_per_second"], row["flops_per_second"]) == (80, 12)


def test_work_is_inside_solves_and_training_steps():
    seen = analyse(
        record(launch(0, 1), launch(4, 5), region(8, 9, "train.forward"), solves=[solve(3, 7)], seconds=12.0)
    )
    assert seen.summary["seconds"] == 12
    assert seen.summary["work_seconds"] == 5
    (device,) = seen.devices
    assert device["busy_seconds"] == 2
    assert device["idle_in_work_seconds"] == 4
    assert device["longest_gap"] == (5, 7)


def test_torch_at_work_without_telling_is_at_work():
    """A backward pass is one launch, unless ours are in it."""
    seen = analyse(record(region(0, 4, "train.backward"), region(5, 9, "train.backward"), launch(6, 7)))
    rows = {row["op"]: row["seconds"] for row in seen.by_op}
    assert rows == {"backward": 4, "relax_rk": 1}


def test_levels_and_regions():
    seen = analyse(
        record(
            region(0, 4, "mgrit.relax.0", level=0),
            launch(1, 3, level=0),
            region(5, 6, "mgrit.relax.0", level=0),
            launch(7, 8),
        )
    )
    assert [(row["level"], row["seconds"]) for row in seen.by_level] == [(0, 2), (None, 1)]
    (row,) = seen.by_region
    assert (row["calls"], row["seconds"], row["launch_seconds"], row["overhead_seconds"]) == (2, 5, 2, 3)


def test_high_water_mark():
    samples = [Sample("resident bytes", t, v) for t, v in ((0, 5.0), (1, 9.0), (2, 7.0))] + [Sample("residual", 0, 1.0)]
    (row,) = analyse(record(samples=samples)).memory
    assert (row["peak"], row["at"], row["first"], row["last"]) == (9, 1, 5, 7)


def test_nothing_is_an_analysis_too():
    seen = analyse(record())
    assert seen.summary["seconds"] == 0
    assert seen.critical_path is None
    json.dumps(seen.as_dict())


# The critical path


def test_the_path_goes_through_the_message_that_was_waited_for():
    """Rank 1 waits from 2 for what rank 0 sends at 6, after its own work: the path is rank 0 up to 6, then rank 1."""
    seen = analyse(
        record(
            launch(0, 6, rank=0, region="parareal.coarse"),
            message(6, 6.5, "a", 0, to=1),
            launch(0, 2, rank=1),
            message(2, 7, "a", 1, source=0),
            launch(7, 10, rank=1, region="parareal.fine"),
        )
    ).critical_path
    assert seen["messages"] == 1
    assert seen["seconds"] == 10
    assert seen["by_rank"] == {"0": 6, "1": 4}
    assert seen["by_name"] == {"parareal.coarse": 6, "parareal.fine": 3, "message": 1}
    assert seen["coarse_share"] == pytest.approx(0.6)


def test_the_path_leaves_out_what_lies_between_solves():
    """Two solves of 2 s with 96 s between them: half of the path is the coarse chain."""
    work = [launch(a, a + 1.0, region="parareal.coarse") for a in (0.0, 98.0)]
    work += [launch(a + 1.0, a + 2.0, region="parareal.fine") for a in (0.0, 98.0)]
    path = analyse(record(*work, solves=[solve(0.0, 2.0), solve(98.0, 100.0)])).critical_path
    assert path["seconds"] == 4
    assert path["by_name"] == {"parareal.coarse": 2, "parareal.fine": 2}
    assert path["coarse_share"] == 0.5


def test_the_wall_time_begins_with_the_timeline_not_with_its_first_event():
    made = record(launch(3.0, 4.0), launch(5.0, 6.0), seconds=10.0)
    (row,) = analyse(made).devices
    assert (row["busy_seconds"], row["idle_seconds"]) == (2, 8)
    assert row["longest_gap"] == (6, 10)
    assert packing.pack(made).begin == 0
    assert packing.pack(made).seconds == 10
    late = record(launch(103.0, 104.0), seconds=10.0)
    assert packing.pack(late).begin == 103, "times of some other clock"
    later = record(launch(-1.0, 1.0, rank=1), seconds=5.0)
    later.clocks = [RankClock(0), RankClock(1, offset=-2.0)]
    assert packing.pack(later).begin == -2, "the start of the rank that was entered first"


def test_a_message_that_was_there_already_is_not_on_the_path():
    seen = analyse(
        record(
            message(1, 1.5, "a", 0, to=1), launch(0, 1, rank=0),
            launch(0, 4, rank=1), message(4, 4.1, "a", 1, source=0), launch(4.1, 9, rank=1),
        )
    ).critical_path  # fmt: skip
    assert seen["messages"] == 0
    assert seen["by_rank"] == {"1": 9}


def test_of_all_that_meet_the_last_is_waited_for():
    meet = [Event("message", "norms", start, 8, rank=rank, flow="all") for rank, start in enumerate((2, 7, 5))]
    ends = [launch(8, 9 + (rank == 0), rank=rank) for rank in range(3)]
    before = [launch(0, start, rank=rank) for rank, start in enumerate((2, 7, 5))]
    seen = analyse(record(*before, *meet, *ends)).critical_path
    assert seen["by_rank"] == {"1": 7, "0": 3}  # the message and what follows on rank 0


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20), st.integers(1, 5)), min_size=1, max_size=12),
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 20), st.integers(0, 5), st.integers(0, 5)),
        max_size=8,
    ),
)
def test_the_path_has_neither_gaps_nor_overlaps(launches, sent):
    events = [launch(a, a + n, rank=rank) for rank, a, n in launches]
    for n, (source, to, start, wait, last) in enumerate(sent):
        if source != to:
            begin = max(0, start - wait)
            events.append(message(start, start + 0.5, f"m{n}", source, to=to))
            events.append(message(begin, start + 0.5 + last, f"m{n}", to, source=source))
    path = analyse(record(*events)).critical_path
    assert sum(step["end"] - step["start"] for step in path["steps"]) == pytest.approx(path["seconds"])
    for before, after in zip(path["steps"], path["steps"][1:], strict=False):
        assert before["end"] == pytest.approx(after["start"])
