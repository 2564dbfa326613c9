# SPDX-License-Identifier: BSD-3-Clause
"""The report without a browser: what is packed is what is unpacked, markup is nobody's but ours, nothing is fetched."""

import base64
import dataclasses
import hashlib
import importlib
import itertools
import json
import math
import re
import zlib
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_records import HOSTILE, degenerate, many, told, two_ranks

from pyparareal.pages import style
from pyparareal.profiling import report
from pyparareal.profiling.analysis import analyse, results
from pyparareal.profiling.events import KINDS, Event, Record, Sample, Solve
from pyparareal.profiling.report import charts, packing, tables, words

page_module = importlib.import_module("pyparareal.profiling.report.page")  # the package has its function by that name
VOID = {"meta", "input", "img", "br", "line", "circle", "rect", "polyline", "polygon"}


def unpacked(text):
    """What ``unpack.js`` reads: the header, and per event its start, end, type, facts and flow."""
    body = zlib.decompress(base64.b64decode(text))
    length = int.from_bytes(body[:4], "little")
    header, rest = json.loads(body[4 : 4 + length]), iter(body[4 + length :])
    numbers = []
    for byte in rest:
        value, shift = byte & 127, 7
        while byte > 127:
            byte = next(rest)
            value, shift = value | (byte & 127) << shift, shift + 7
        numbers.append(value)
    count = header["events"]
    columns = [numbers[k * count : (k + 1) * count] for k in range(5)]
    assert len(numbers) == 5 * count
    return header, columns


def read_back(text, begin):
    """The events, with times to a nanosecond."""
    header, (types, starts, seconds, facts, flows) = unpacked(text)
    found, k = [], 0
    for track in header["tracks"]:
        now = 0
        for _ in range(track["count"]):
            now += starts[k]
            place = {name: track[name] for name in ("rank", "device", "stream")}
            found.append((header["types"][types[k]] | place, begin + now * 1e-9, begin + (now + seconds[k]) * 1e-9,
                          header["facts"][facts[k]], flows[k]))  # fmt: skip
            k += 1
    return found


@given(st.lists(st.integers(0, packing.LARGEST), max_size=50))
def test_varints_are_leb128(values):
    def reference(value):
        out = []
        while True:
            out.append(value & 127 | (128 if value > 127 else 0))
            value >>= 7
            if not value:
                return out

    assert packing.varints(values) == bytes(itertools.chain.from_iterable(map(reference, values)))


times = st.tuples(st.floats(-1e3, 1e3), st.floats(0, 10))
events = st.builds(
    lambda kind, name, span, rank, stream, level, fact, flow: Event(
        kind, name, span[0], span[0] + span[1], rank, "cpu", stream, level, "r", {"n": fact}, flow
    ),
    st.sampled_from(KINDS), st.text(max_size=4), times, st.integers(0, 2), st.sampled_from(["main", "s"]),
    st.none() | st.integers(0, 3), st.integers(0, 5), st.none() | st.sampled_from(["f", "g"]),
)  # fmt: skip


@given(st.lists(events, max_size=20))
def test_what_is_packed_is_what_is_unpacked(given_events):
    """Every event comes back on its track in the order of its start, its times to half a nanosecond."""
    packed = packing.pack(Record(given_events))
    back = read_back(packed.text, packed.begin)
    assert len(back) == len(given_events) == len(packed.events)
    flow_numbers = {}
    for event, (told_, start, end, facts, flow) in zip(packed.events, back, strict=True):
        # "replace" of half a surrogate pair: what cannot be written in UTF-8 comes back as a question mark
        for name in ("kind", "name", "level", "region", "rank", "device", "stream"):
            mine = getattr(event, name)
            assert told_[name] == (mine.encode("utf-8", "replace").decode() if isinstance(mine, str) else mine)
        # half a nanosecond of rounding, and 2**-52 of a few thousand seconds where `begin` is added again
        assert abs(start - event.start) < 0.6e-9 + 4e-12
        assert abs(end - event.end) < 0.6e-9 + 4e-12
        assert facts == event.facts
        assert flow_numbers.setdefault(event.flow, flow) == flow
    assert flow_numbers.get(None, 0) == 0
    assert len(set(flow_numbers.values())) == len(flow_numbers)


def test_strings_and_facts_are_stored_once():
    record = many(2000)
    header, columns = unpacked(packing.pack(record).text)
    assert len(header["types"]) == 7 * 3 + 1
    assert len(header["facts"]) == 50 + 1
    assert len(columns[0]) == 2000


def test_a_hundred_thousand_events_would_be_less_than_five_megabytes():
    """A tenth of them in a tenth of the bytes: with names and facts that repeat, and with facts that never do."""
    record = many(10_000)
    assert len(packing.pack(record).text) < 1e5
    rng = np.random.default_rng(1)
    for event in record.events:
        event.start, event.end = event.start + 1e-7 * rng.random(), event.end + 3e-7 * rng.random()
        event.facts = {"slices": int(rng.integers(1 << 30)), "steps": int(rng.integers(1 << 30)), "dtype": "float64"}
    assert len(report.page(record, analyse(record))) < 5e5


def test_marks_are_numbered_as_residuals_are():
    """By value: a residual that is no number has no sample; with one of the guess the first is iteration 0.

    Samples outside solves and of other counters are no marks.
    """
    values = {0.1: 1.0, 0.2: 0.5, 0.3: 0.25, 9.0: 0.125}
    samples = [Sample("residual", t, value) for t, value in values.items()] + [Sample("other", 0.15, 1.0)]

    def marked(iterations, residuals, begin=0.0):
        record = Record(samples=samples, solves=[Solve("mgrit", 0, 1, iterations, "", residuals)])
        return [(round(m["time"], 12), m["words"]) for m in packing.marks(record, begin)]

    assert marked(2, [1.0, 0.5, 0.25]) == [(0.1, "iteration 0"), (0.2, "iteration 1"), (0.3, "iteration 2")]
    assert marked(4, [math.nan, 1.0, 0.5, 0.25], 0.05) == [
        (0.05, "iteration 2"), (0.15, "iteration 3"), (0.25, "iteration 4"),
    ]  # fmt: skip
    assert marked(1, [7.0]) == []


def test_ticks_of_powers():
    found = [charts.power(value) for value in (1.0, 0.01, 500.0, 1e-7, 2e-7, 1e300, 1e-290)]
    assert found == ["1", "0.01", "500", "10⁻⁷", "2·10⁻⁷", "10³⁰⁰", "10⁻²⁹⁰"]


def test_a_tolerance_is_drawn_where_residuals_are_compared_with_it():
    def line(tol, **options):
        record = Record(solves=[Solve("mgrit", 0, 1, 2, "", [2.0, 1e-3], {"tol": tol, "options": options})])
        found = re.search(r"tolerance ([^<]*)<", charts.residuals(record.solves))
        return found and float(found[1])

    assert line(1e-4) == 1e-4
    assert line(1e-4, relative="first") == 2e-4
    assert line(1e-4, relative="state") is None
    assert line(None) is None
    assert line(math.nan) is None


class Outline(HTMLParser):
    """Elements and attributes of a page; every element is closed, in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text.append(data)


def checked(html):
    """Well-formed, one file, no handler, nothing fetched; the outline."""
    outline = Outline(html)
    assert outline.open == []
    names = {tag for tag, _ in outline.elements}
    assert not names & {"img", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in outline.elements:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "href", "style")}, tag
    identifiers = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert not re.search(r"https?://|@import|url\(", html)
    return outline


def full():
    record = two_ranks()
    return record, told(analyse(record))


def test_the_page_is_one_file_that_fetches_nothing():
    outline = checked(report.page(*full()))
    assert "A larger m." in " ".join(outline.text)


def test_sections_come_in_the_order_in_which_they_are_read():
    outline = checked(report.page(*full()))
    titles = [attributes["aria-label"] for tag, attributes in outline.elements if tag == "section"]
    assert titles == [
        "Findings", "At a glance", "Timeline", "Time by op and level", "Predicted beside measured", "Residuals",
        "Roofline", "Devices and streams", "Host overhead", "Memory", "Command, machine and clocks",
    ]  # fmt: skip


def test_only_our_own_script_and_style_may_run():
    """The policy names the digests of the two, and nothing else is allowed."""
    html = report.page(*full())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def hostile(value):
    """Every text in a record or an analysis replaced by markup."""
    if isinstance(value, str):
        return value if value in KINDS or value in ("serious", "good", "seconds", "bytes", "residual") else HOSTILE
    if isinstance(value, dict):
        return {key if key in FIELDS else HOSTILE: hostile(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(hostile(entry) for entry in value)
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(
            value, **{f.name: hostile(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return value


FIELDS = {"tol"}.union(*(kind.__annotations__ for kind in vars(results).values() if hasattr(kind, "__total__")))


def test_names_and_facts_cannot_inject_markup():
    record, analysis = full()
    record.about |= {"machine": {HOSTILE: HOSTILE}}
    bad, told_ = hostile(record), hostile(analysis)
    assert sum(HOSTILE in event.name for event in bad.events) == len(bad.events)
    html = report.page(bad, told_)
    outline = checked(html)
    assert "<img" not in html
    assert html.count("</script>") == 2
    assert HOSTILE in "".join(outline.text)


@pytest.mark.parametrize("name", degenerate())
def test_a_page_is_written_whatever_is_missing(name):
    record = degenerate()[name]
    html = report.page(record, analyse(record) if name not in ("no time", "not finite") else analyse(Record([])))
    checked(html).close()
    html.encode("utf-8")


def test_the_first_sentence_says_where_the_wall_time_went():
    def first(seconds):
        made = two_ranks()
        made.about["seconds"] = seconds
        return page_module.answer(analyse(made))

    work = analyse(two_ranks()).summary["work_seconds"]
    assert first(20 * work).startswith("95\u00a0% of ")
    assert "passed outside solves and training steps" in first(20 * work)
    assert "outside solves" not in first(1.5 * work)


def test_what_is_predicted_is_for_as_many_processors_as_there_are_ranks():
    for ranks, on in ((1, "one processor,"), (3, "3 processors with free communication,")):
        analysis = told(analyse(two_ranks()))
        analysis.summary["ranks"] = ranks
        assert f"Predicted for {on} measured on {ranks} rank" in tables.predicted(analysis)


def test_a_step_that_calls_ops_is_told_from_them():
    step, op = Event("launch", "Mine", 0.0, 10.0), Event("launch", "op", 1.0, 2.0, facts={"bytes": 8, "flops": 8})
    told = analyse(Record([step, op]))
    html = tables.by_op(told)
    assert "Mine, around its ops (cpu)" in html
    assert "op (cpu)" in html
    assert "not known of this op" not in html
    assert "The most went to Mine around its ops (Python) (9" in page_module.answer(told)


def test_the_bytes_of_a_piece_of_a_network_are_said_to_be_unknown():
    made = Record([Event("launch", "fine[0]", 0.0, 1.0, facts={"flops": 8.0})])
    html = tables.by_op(analyse(made))
    assert "its bytes are not" in html
    assert "known" not in tables.by_op(
        analyse(Record([Event("launch", "x", 0.0, 1.0, facts={"flops": 8, "bytes": 8})]))
    )


def test_counters_are_drawn_over_time():
    """The loss by its values; of memory the highest, however few of its samples are drawn."""
    samples = [Sample("loss", 0.1 * k, 2.0 / (k + 1)) for k in range(5)]
    samples += [Sample("resident bytes", 1e-3 * k, 1e8 + 9e7 * (k == 7777)) for k in range(10_000)]
    record = Record([Event("launch", "step", 0, 1)], samples)
    html = report.page(record, analyse(record))
    checked(html)
    assert html.count('data-tip="loss, rank 0') == 5
    assert f"resident bytes, rank 0: at most 190{words.SPACE}MB" in html
    assert len(charts.memory(record, 0.0)) < 30_000


def test_the_page_says_what_is_missing():
    text = " ".join(checked(report.page(Record(), dataclasses.replace(analyse(Record()), findings=[]))).text)
    for words_ in ("Nothing was traced", "No findings", "No events", "No launches", "No residuals", "No roofline",
                   "No memory samples", "No prediction"):  # fmt: skip
        assert words_ in text
    record = degenerate()["no time"]
    assert "2 events have no finite time" in " ".join(checked(report.page(record, analyse(Record([])))).text)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (1.2345, "1.23 s"), (9.99e-4, "999 µs"), (9.9999e-4, "1 ms"), (2e-9, "2 ns"), (2.5e-11, "0.025 ns"),
     (123456.0, "123,456 s"), (None, "-"), (math.nan, "nan"), (-2e-3, "-2 ms")],
)  # fmt: skip
def test_seconds_in_words(value, text):
    assert words.seconds(value).replace(words.SPACE, " ") == text


def test_amounts_in_words():
    assert words.amount(6.53e9, "B/s").replace(words.SPACE, " ") == "6.53 GB/s"
    assert words.amount(0, "B") == f"0{words.SPACE}B"
    assert words.share(0.0732) == f"7.32{words.SPACE}%"


def luminance(colour):
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
              for v in (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))]  # fmt: skip
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("ours", "common"), [(page_module.LIGHT, style.LIGHT), (page_module.DARK, style.DARK)])
def test_contrast(ours, common):
    """WCAG 2.1: letters 4.5 (1.4.3), what is drawn 3 against what is beside it (1.4.11)."""
    for ground in (common["paper"], common["panel"]):
        assert min(contrast(common[name], ground) for name in ("ink", "quiet")) >= 4.5
        assert contrast(ours["mark"], ground) >= 4.5
    assert min(contrast(colour, common["paper"]) for colour in ours.values()) >= 3
    # Labels inside boxes are black or white, whichever is better: 4.5 for any box, as sqrt(21) > 4.5.


def test_all_sources_are_in_the_package():
    names = {entry.name for entry in files("pyparareal.profiling.report").iterdir()}
    assert {*page_module.SCRIPTS, "report.css", "timeline.html"} <= names
