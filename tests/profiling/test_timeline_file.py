# SPDX-License-Identifier: BSD-3-Clause
"""A file gives back its record, bit for bit; what viewers see of it has the trace event format, whatever it holds."""

import dataclasses
import gzip
import json
import math
import struct

import numpy as np
import pytest
import trace_schema
from hypothesis import given, settings
from hypothesis import strategies as st

from pyparareal.profiling import Event, RankClock, Record, Sample, Solve, Timeline, arrows, chrome
from pyparareal.profiling.columns import packed, unpacked
from pyparareal.profiling.events import KINDS

TEXTS = st.text(max_size=6)
KEYS = TEXTS | st.sampled_from(["$float", "$dict"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
FACTS = st.dictionaries(st.sampled_from(["bytes", "to", "source", "shape", "level", "$float"]), JSON, max_size=3)
# Few different times, so that events touch, coincide and overlap.
TIMES = st.sampled_from([0.0, 1e-9, 0.25, 0.5, 1.0, -3.0]) | st.floats(0, 1e6)
# "main (2)" may be a second thread called "main", or what does not nest in the first; "solves" a thread of that name.
STREAMS = st.sampled_from(["main", "main (2)", "solves"])
DEVICES = st.sampled_from(["cpu", "cuda:0"])


@st.composite
def events(draw):
    start, other = draw(TIMES), draw(TIMES)
    return Event(
        draw(st.sampled_from(KINDS)), draw(TEXTS), min(start, other), max(start, other), draw(st.integers(0, 2)),
        draw(DEVICES), draw(STREAMS), draw(st.none() | st.integers(0, 3)), draw(TEXTS), draw(FACTS),
        draw(st.none() | st.sampled_from("abc")),
    )  # fmt: skip


SAMPLES = st.builds(Sample, TEXTS | st.just("allocated bytes cuda:0"), TIMES, st.floats(), st.integers(0, 2))
CLOCKS = st.builds(RankClock, st.integers(0, 3), st.floats(), st.floats(), TEXTS)
SOLVES = st.builds(
    Solve, TEXTS, TIMES, TIMES, st.integers(0, 9), TEXTS, st.lists(st.floats(), max_size=3), FACTS, st.none() | FACTS
)
RECORDS = st.builds(
    Record,
    st.lists(events(), max_size=8),
    st.lists(SAMPLES, max_size=3),
    st.lists(CLOCKS, max_size=3),
    st.lists(SOLVES, max_size=2),
    st.dictionaries(TEXTS, JSON, max_size=3),
)


def bits(value):
    """Something equal where, and only where, all types and bits are: NaN is itself, 0.0 is neither -0.0 nor 0."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    if isinstance(value, dict):
        return [(key, bits(one)) for key, one in value.items()]
    if isinstance(value, list):
        return [bits(one) for one in value]
    if dataclasses.is_dataclass(value):
        return type(value), [bits(getattr(value, one.name)) for one in dataclasses.fields(value)]
    return type(value), value


@given(RECORDS)
@settings(max_examples=150, deadline=None)
def test_a_record_survives_as_json(record):
    text = json.dumps(packed(record), allow_nan=False)
    assert bits(unpacked(json.loads(text), "here")) == bits(record)


@given(RECORDS)
@settings(max_examples=150, deadline=None)
def test_whatever_a_record_holds_viewers_get_the_format(record):
    shown = chrome.trace_events(record)
    text = json.dumps(shown, allow_nan=False)
    assert trace_schema.all_problems(json.loads(text)) == []
    assert sum(one["ph"] == "X" for one in shown) == len(record.events) + len(record.solves)
    assert sum(one["ph"] == "s" for one in shown) == len(arrows(record.events))
    assert sum(one["ph"] in "Ci" for one in shown) == len(record.samples)


def small():
    facts = {"bytes": 64, "worst": math.nan, "to": 1}
    events = [
        Event("region", "mgrit.relax.0", 10.0, 10.5),
        Event("launch", "relax_stencil", 10.1, 10.2, level=0, region="mgrit.relax.0", facts={"op": "relax_stencil"}),
        Event("message", "state", 10.2, 10.3, facts=facts, flow="0>1/1"),
        Event("message", "state", 10.25, 10.4, rank=1, facts={"source": 0}, flow="0>1/1"),
        Event("message", "lost", 10.3, 10.4, facts={"to": 2}, flow="0>2/1"),
        Event("launch", "relax_stencil", 10.2, 10.6, device="cuda:0", stream="7"),
    ]
    samples = [
        Sample("residual", 10.3, 0.5),
        Sample("residual", 10.4, math.nan),
        Sample("allocated bytes cuda:0", 10.3, 8),
    ]
    solves = [Solve("mgrit", 10.0, 10.6, 2, "CONVERGED", [math.nan, 0.5])]
    clocks = [RankClock(0), RankClock(1, -3.5, 2e-6, "messages in both directions")]
    return Record(events, samples, clocks, solves, {"title": "small", "seconds": 1.0})


def shown(record, **asked):
    return [e for e in chrome.trace_events(record) if all(e.get(key) == value for key, value in asked.items())]


def test_who_is_who():
    record = small()
    pids = {e["args"]["name"]: e["pid"] for e in shown(record, name="process_name")}
    assert sorted(pids, key=pids.get) == ["rank 0, cpu", "rank 0, cuda:0", "rank 1, cpu"]
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in shown(record, name="thread_name")}
    (kernel,) = shown(record, ph="X", pid=pids["rank 0, cuda:0"])
    assert threads[kernel["pid"], kernel["tid"]] == "7"
    (label,) = (e for e in shown(record, name="process_labels") if e["pid"] == pids["rank 1, cpu"])
    assert label["args"]["labels"] == "clock right to 2 us"
    launch = next(e for e in shown(record, ph="X", name="relax_stencil") if e["pid"] == pids["rank 0, cpu"])
    assert launch["args"] == {"op": "relax_stencil", "region": "mgrit.relax.0", "level": 0}
    assert (launch["ts"], launch["dur"]) == (100000.0, 100000.0)  # microseconds since the first


def test_a_device_is_as_right_as_its_rank_and_its_own_clock():
    record = small()
    record.about["device clocks"] = {"cuda:0": {"error": 3e-6, "how": "two anchors"}}
    labels = {e["pid"]: e["args"]["labels"] for e in shown(record, name="process_labels")}
    assert [labels[pid] for pid in (1, 2, 3)] == [f"clock right to {us} us" for us in (0, 3, 2)]


def test_no_arrow_runs_backwards():
    record = small()
    record.events[3].start, record.events[3].end = 9.0, 10.1  # received before it was sent, at 10.2
    assert arrows(record.events) == []
    record.events[3].end = 10.25
    assert arrows(record.events) == [(2, 3)]


def test_the_arrows_of_a_meeting_start_at_who_came_last():
    events = [Event("message", "numbers", start, 9.0, rank, flow="all 1") for rank, start in enumerate((1.0, 3.0, 2.0))]
    assert sorted(arrows(events)) == [(1, 0), (1, 2)]


def test_an_event_of_no_length_has_its_arrow_too():
    events = [Event("wait", "event", at, at, stream=f"stream {at}", flow="e") for at in (1.0, 1.5)]
    record = Record([Event("region", "solve", 0.0, 2.0), *events])
    (last,) = shown(record, ph="f")
    assert last["ts"] == 1.5e6
    assert trace_schema.all_problems(chrome.trace_events(record)) == []


def test_no_arrow_ends_at_what_ended_with_an_error():
    record = small()
    record.events[3].facts["error"] = "RankError"
    assert shown(record, ph="f") == []


def test_counters_are_where_they_belong_and_nan_is_seen():
    record = small()
    device = next(e["pid"] for e in shown(record, name="process_name") if e["args"]["name"] == "rank 0, cuda:0")
    assert [(e["name"], e["args"]["value"]) for e in shown(record, ph="C", pid=device)] == [
        ("allocated bytes cuda:0", 8)
    ]
    assert [e["name"] for e in shown(record, ph="i")] == ["residual: nan"]
    (message,) = shown(record, ph="X", name="state", pid=1)
    assert message["args"]["worst"] == "nan"


def test_an_arrow_binds_to_its_sending_and_its_receiving_and_one_that_nobody_received_is_none():
    record = small()
    (first,), (last,) = shown(record, ph="s"), shown(record, ph="f")
    assert (first["pid"], last["pid"], first["id"] == last["id"]) == (1, 3, True)
    innermost = [e["name"] for e in shown(record, ph="X", pid=1, tid=first["tid"])
                 if e["ts"] <= first["ts"] < e["ts"] + e["dur"]]  # fmt: skip
    assert innermost[-1] == "state"


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_the_file_gives_back_the_record(tmp_path, name):
    path = Timeline.of(small()).save(tmp_path / name)
    assert path == tmp_path / name
    assert [one.name for one in tmp_path.iterdir()] == [name]
    assert bits(Timeline.load(path).record) == bits(small())
    first = path.read_bytes()
    Timeline.of(small()).save(path)
    assert path.read_bytes() == first
    if name.endswith(".gz"):
        assert first[4:8] == bytes(4)  # nothing of when it was written (RFC 1952, MTIME)
    text = gzip.decompress(first) if name.endswith(".gz") else first
    assert b"NaN" not in text
    assert trace_schema.all_problems(json.loads(text)["traceEvents"]) == []


def test_what_cannot_be_saved_leaves_the_file_that_was_there(tmp_path):
    path = Timeline.of(small()).save(tmp_path / "t.json")
    before = path.read_bytes()
    record = small()
    record.events[1].facts["array"] = np.zeros(2)
    with pytest.raises(TypeError, match=r"events\[1\].facts.array: got ndarray"):
        Timeline.of(record).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_numpy_scalars_become_numbers_and_tuples_lists(tmp_path):
    record = Record([Event("launch", "x", 0.0, 1.0, facts={"shape": (2, np.int64(3)), "h": np.float32(0.5)})])
    path = Timeline.of(record).save(tmp_path / "t.json")
    assert Timeline.load(path).record.events[0].facts == {"shape": [2, 3], "h": 0.5}


def damaged(change):
    data = json.loads(json.dumps({"traceEvents": [], "pyparareal": packed(small())}))
    change(data["pyparareal"])
    return json.dumps(data).encode()


def drop(*path):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


def put(value, *path):
    def change(data):
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


WRONG = {
    "empty": (b"", "not JSON"),
    "no text": (b"\xff\xfe\x00", "not JSON"),
    "of another program": (b'{"traceEvents": []}', "pyparareal: missing"),
    "a list": (b"[]", "pyparareal: missing"),
    "newer": (damaged(put(2, "format")), r"pyparareal.format: got 2, expected 1"),
    "cut": (damaged(drop("events", "start")), r"pyparareal.events.start: got None, expected a list"),
    "a short column": (damaged(drop("events", "end", 2)), r"pyparareal.events.end: got 5, expected 6 entries"),
    "a text for a time": (damaged(put("x", "events", "start", 3)), r"pyparareal.events.start\[3\]: got 'x'"),
    "an unknown text": (damaged(put(99, "events", "name", 0)), r"pyparareal.events.name\[0\]: got 99, expected"),
    "a negative one": (damaged(put(-1, "samples", "counter", 0)), r"pyparareal.samples.counter\[0\]: got -1"),
    "half a level": (damaged(put(0.5, "events", "level", 1)), r"pyparareal.events.level\[1\]: got 0.5"),
    "true for a rank": (damaged(put(True, "events", "rank", 1)), r"pyparareal.events.rank\[1\]: got True"),
    "no facts": (damaged(put("x", "facts", 0)), r"pyparareal.facts\[0\]: got 'x', expected an object"),
    "another clock": (damaged(drop("clocks", 1, "how")), r"pyparareal.clocks\[1\]: got .*, expected the fields"),
    "no residuals": (damaged(put(3, "solves", 0, "residuals")), r"pyparareal.solves\[0\].residuals: got 3"),
    "about a list": (damaged(put([], "about")), r"pyparareal.about: got \[\], expected an object"),
    "a wrong NaN": (damaged(put({"$float": "x"}, "events", "end", 0)), r"pyparareal.events.end\[0\]: got"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_named_with_the_field(tmp_path, data, said):
    path = tmp_path / "wrong.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"wrong.json: {said}"):
        Timeline.load(path)


@pytest.mark.parametrize("data", [b"plain", gzip.compress(b"{}")[:-3]], ids=["no gzip", "cut"])
def test_a_damaged_gzip_file_is_named(tmp_path, data):
    path = tmp_path / "wrong.json.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"wrong.json.gz: not a whole gzip file"):
        Timeline.load(path)


def test_another_suffix_is_refused(tmp_path):
    for call in (Timeline.of(small()).save, Timeline.load):
        with pytest.raises(ValueError, match=r"path: got 't.txt', expected a name that ends in .json or .json.gz"):
            call(tmp_path / "t.txt")


def test_the_checker_finds_what_is_wrong():
    """It must be able to fail: each of these is a fault that a viewer would stumble over."""
    good = json.loads(json.dumps(chrome.trace_events(small())))
    assert trace_schema.all_problems(good) == []
    first = next(i for i, e in enumerate(good) if e["ph"] == "X")
    flow = next(i for i, e in enumerate(good) if e["ph"] == "f")

    def changed(i, **fields):
        return [e | fields if j == i else e for j, e in enumerate(good)]

    around = {"ph": "X", "pid": 1, "tid": 1, "ts": 50000.0, "dur": 100000.0, "name": "x", "cat": "verb", "args": {}}
    for bad in (
        changed(first, dur=-1.0), changed(first, ts="0"), changed(first, cat="other"), changed(first, tid=77),
        changed(first, extra=1), changed(flow, id=99), changed(flow, ts=0.0), changed(flow, bp="x"),
        [e for e in good if e["ph"] != "s"], [*good, around],
    ):  # fmt: skip
        assert trace_schema.all_problems(bad)


def test_what_is_beside_a_thread_is_not_another_thread_that_is_called_so():
    crossing = [Event("region", "a", 0.0, 2.0), Event("region", "b", 1.0, 3.0)]
    other = Event("region", "c", 0.5, 1.5, stream="main (2)")
    record = Record([crossing[0], other, crossing[1]])
    assert len({(one["pid"], one["tid"]) for one in shown(record, ph="X")}) == 3
    assert trace_schema.all_problems(chrome.trace_events(record)) == []
