# SPDX-License-Identifier: BSD-3-Clause
"""Theorem: the true offset of every clock lies within the stated error, and no arrow runs backwards after alignment.

Clocks are planted: what happened at true time ``t`` has the time ``t - offset`` in the record of a rank.
"""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyparareal.profiling import Event, RankClock, Record, Sample, Solve, Timeline, arrows, chrome, merge
from pyparareal.profiling.clocks import MARGIN, MESSAGES, ONE_WAY, ONE_WAY_EARLY, SHARED, UNKNOWN

ROUNDING = 1e-9  # s: sums of some ten numbers below 1e4, each rounded to 1e-12

SECONDS = st.floats(0, 100)
OFFSETS = st.floats(-1000, 1000)


def message(source, to, start, latency, number, waited=0.0):
    """Sent at true time ``start``, received ``latency`` later by one who had waited so long."""
    flow, arrival = f"{source}>{to}/{number}", start + latency
    sent = Event("message", "state", start, start + latency / 2, source, facts={"to": to, "bytes": 8}, flow=flow)
    return sent, Event("message", "state", arrival - waited, arrival, to, facts={"source": source}, flow=flow)


def meeting(ranks, starts, latency, number):
    """Of all with all: over when the last has come."""
    end = max(starts) + latency
    return [Event("message", "texts", start, end, rank, facts={}, flow=f"all/{number}")
            for rank, start in zip(ranks, starts, strict=True)]  # fmt: skip


def planted(offsets, machines, happened, drift=None):
    """The record of each rank, on its own clock. ``machines`` names the one that it is on, and with it the clock."""
    records = []
    for rank, offset in enumerate(offsets):
        rate = 1.0 if drift is None else drift[rank]
        mine = [e for e in happened if e.rank == rank]
        events = [
            dataclasses.replace(e, start=(e.start - offset) * rate, end=(e.end - offset) * rate, facts=dict(e.facts))
            for e in mine
        ]
        zero = 5e4 * (1 + ord(machines[rank]) % 7) + offset  # what the machine's clock reads when the record begins
        about = {"clock": {"boot": machines[rank], "zero": zero, "resolution": 1e-9}, "seconds": 100.0}
        records.append(Record(events, [Sample("residual", -offset, 1.0, rank)], [RankClock(rank)], [], about))
    return records


@st.composite
def histories(draw):
    ranks = draw(st.integers(2, 5))
    offsets = [0.0, *draw(st.lists(OFFSETS, min_size=ranks - 1, max_size=ranks - 1))]
    machines = draw(st.lists(st.sampled_from("ABCDE"), min_size=ranks, max_size=ranks))
    happened, pairs = [], set()
    for number in range(draw(st.integers(0, 8))):
        source, to = draw(st.permutations(range(ranks)))[:2]
        happened += message(source, to, draw(SECONDS), draw(SECONDS), number, draw(SECONDS))
        pairs.add((source, to))
    if draw(st.booleans()):
        there = sorted(draw(st.permutations(range(ranks)))[: draw(st.integers(2, ranks))])
        happened += meeting(there, [draw(SECONDS) for _ in there], draw(SECONDS), 0)
        pairs |= {(a, b) for a in there for b in there}
    return offsets, machines, happened, pairs


def reached(pairs, machines, start):
    """Ranks that ``start`` reaches by messages and by sharing a machine."""
    seen, new = set(), {start}
    while new:
        seen |= new
        same = {b for a in new for b in range(len(machines)) if machines[a] == machines[b]}
        new = (same | {b for a, b in pairs if a in new}) - seen
    return seen


@given(histories())
@settings(max_examples=200, deadline=None)
def test_the_true_offset_lies_within_the_stated_error_and_no_arrow_runs_backwards(history):
    offsets, machines, happened, pairs = history
    merged = merge(planted(offsets, machines, happened))
    backwards = {(b, a) for a, b in pairs}
    for clock, true in zip(merged.clocks, offsets, strict=True):
        assert abs(clock.offset - true) <= clock.error + ROUNDING
        both_ways = clock.rank in reached(pairs, machines, 0) & reached(backwards, machines, 0)
        assert math.isfinite(clock.error) == both_ways  # as well known as it can be, and no better
        assert "contradict" not in clock.how
    events = merged.events
    assert len(events) == len(happened)
    flows = {}
    for event in events:
        flows.setdefault(event.flow, []).append(event)
    for these in flows.values():
        sent = [e for e in these if "to" in e.facts] or these
        received = [e for e in these if "source" in e.facts] or these
        assert all(a.start <= b.end + ROUNDING for a in sent for b in received)
    # Every message has its arrow, also the one whose time of flight is a bound: rounding turns none around.
    messages = sum("source" in event.facts for event in events)
    met = [event for event in events if not event.facts]
    assert len(arrows(events)) == messages + len(met) - len({event.flow for event in met})


@given(st.floats(0, 1), st.floats(0, 1), OFFSETS, st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_the_error_is_half_of_the_fastest_round_trip(there, back, offset, more):
    """Two ranks, whose latencies add up to the width of the interval; slower messages change nothing."""
    happened = [*message(0, 1, 10, there, 0), *message(1, 0, 20, back, 1)]
    for i in range(more):
        happened += [*message(0, 1, 30 + i, there + i, 2 + 2 * i), *message(1, 0, 40 + i, back + i, 3 + 2 * i)]
    clock = merge(planted([0.0, offset], "AB", happened)).clocks[1]
    assert clock.error == pytest.approx((there + back) / 2, abs=ROUNDING)
    assert clock.offset - offset == pytest.approx((back - there) / 2, abs=ROUNDING)
    assert clock.how == MESSAGES


def test_ranks_of_one_machine_share_its_clock_whatever_they_say():
    happened = [*message(0, 1, 1.0, 50.0, 0), *message(1, 0, 2.0, 70.0, 1)]
    clock = merge(planted([0.0, -300.0], "AA", happened)).clocks[1]
    assert (clock.how, clock.error) == (SHARED, 1e-9)
    assert clock.offset == pytest.approx(-300, abs=ROUNDING)


def test_a_rank_that_talks_to_others_only_is_known_through_them():
    """0 and 1 are known to 1, 1 and 2 to 2, so 0 and 2 to 3: the widths add up."""
    happened = [*message(0, 1, 0, 1, 0), *message(1, 0, 5, 1, 1), *message(1, 2, 10, 2, 2), *message(2, 1, 15, 2, 3)]
    merged = merge(planted([0.0, 4.0, -9.0], "ABC", happened))
    assert [clock.error for clock in merged.clocks] == pytest.approx([0, 1, 3], abs=ROUNDING)


@pytest.mark.parametrize(("source", "how"), [(0, ONE_WAY_EARLY), (1, ONE_WAY)])
def test_one_direction_says_so(source, how):
    happened = message(source, 1 - source, 5.0, 0.25, 0)
    clock = merge(planted([0.0, 40.0], "AB", list(happened))).clocks[1]
    assert (clock.error, clock.how) == (math.inf, how)
    # At the bound: the message took no time, but for what keeps its arrow from running backwards by rounding.
    assert clock.offset - 40 == pytest.approx(-0.25 if source == 0 else 0.25, abs=MARGIN + ROUNDING)


@given(st.floats(0, 1e4), SECONDS, st.floats(0, 1), st.sampled_from([0, 1]))
@settings(max_examples=100, deadline=None)
def test_the_arrow_of_the_only_message_is_drawn_from_inside_one_slice_into_the_other(offset, start, latency, source):
    merged = merge(planted([0.0, offset], "AB", list(message(source, 1 - source, start, latency, 0, 0.5))))
    found = chrome.trace_events(merged)
    slices = {one["pid"]: one for one in found if one["ph"] == "X"}
    ends = [one for one in found if one["ph"] in "sf"]
    assert [one["ph"] for one in ends] == ["s", "f"]
    assert ends[0]["ts"] <= ends[1]["ts"]
    for end in ends:
        own = slices[end["pid"]]
        # The sending may be as short as nothing; a slice that is not is left before it ends.
        assert own["ts"] <= end["ts"] < own["ts"] + max(own["dur"], 0.001)


def test_a_rank_that_is_tied_to_others_only_is_laid_on_theirs():
    """2 sends to 0 and to 1 in no time: neither is bounded from both sides, yet all are where they were."""
    happened = [*message(2, 0, 5.0, 0.0, 0), *message(2, 1, 6.0, 0.0, 1)]
    clocks = merge(planted([0.0, 70.0, -30.0], "ABC", happened)).clocks
    assert [clock.offset for clock in clocks] == pytest.approx([0, 70, -30], abs=MARGIN + ROUNDING)
    assert [clock.how for clock in clocks[1:]] == [ONE_WAY_EARLY, ONE_WAY]
    assert all(clock.error == math.inf for clock in clocks[1:])


def test_silence_says_so():
    clock = merge(planted([0.0, 40.0], "AB", [])).clocks[1]
    assert (clock.offset, clock.error, clock.how) == (0.0, math.inf, UNKNOWN)


def test_a_clock_that_runs_faster_is_said_to_contradict():
    happened = [one for i in range(5) for one in message(0, 1, 20 * i, 0.01, 2 * i)]
    happened += [one for i in range(5) for one in message(1, 0, 20 * i + 1, 0.01, 2 * i + 1)]
    clock = merge(planted([0.0, 7.0], "AB", happened, drift=[1.0, 1.01])).clocks[1]
    assert "the clocks contradict each other by" in clock.how
    assert clock.error > 0.1  # 1 % of 80 s, of which half either way


def both(offset=5.0):
    happened = [*message(0, 1, 1.0, 0.5, 0), *message(1, 0, 2.0, 0.5, 1)]
    return planted([0.0, offset], "AB", happened)


def test_merging_takes_files_and_records_and_changes_neither(tmp_path):
    records = both()
    paths = [Timeline.of(one).save(tmp_path / f"t.rank{i}.json") for i, one in enumerate(records)]
    expected = merge(records)
    assert merge(paths[::-1]) == expected
    assert merge([paths[0], records[1]]) == expected
    assert records == both()
    assert expected.about["ranks"] == 2
    assert expected.about["seconds"] == pytest.approx(105)
    assert [e.start for e in expected.events] == sorted(e.start for e in expected.events)
    assert len(arrows(expected.events)) == 2
    assert {one.rank: one.time for one in expected.samples} == pytest.approx({0: 0.0, 1: 0.0}, abs=0.5)


def test_solves_are_those_of_the_lowest_rank():
    records = both()
    for rank, one in enumerate(records):
        one.solves.append(Solve("mgrit", 0.0, 1.0, rank, "CONVERGED", []))
    assert [one.iterations for one in merge(records[::-1]).solves] == [0]


def test_what_is_known_of_the_devices_of_all_ranks_is_kept():
    records = both()
    for rank, one in enumerate(records):
        one.about[chrome.device_clocks(rank)] = {"cuda:0": {"error": rank * 1e-6}}
    about = merge(records).about
    assert [about[chrome.device_clocks(rank)]["cuda:0"]["error"] for rank in (0, 1)] == [0, 1e-6]


def test_what_cannot_be_merged_is_named(tmp_path):
    first, second = both()
    path = Timeline.of(first).save(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"records: a record and .*a\.json are both of rank 0"):
        merge([path, first])
    with pytest.raises(ValueError, match=r"records: a record is of ranks \[0, 1\], expected one rank each"):
        merge([merge([first, second])])
    with pytest.raises(ValueError, match="records: got none"):
        merge([])
    for wrong in (first, Timeline.of(first)):
        with pytest.raises(TypeError, match=f"records: got {type(wrong).__name__}, expected a sequence"):
            merge(wrong)
    with pytest.raises(TypeError, match=r"records\[1\]: got Timeline, expected a Record or a path"):
        merge([first, Timeline.of(second)])
