# SPDX-License-Identifier: BSD-3-Clause
"""``bench/history.py``: every record of every commit once, in order, on a page that fetches nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import bench_tree
import pytest
from test_bench_compare import SLOWER, entry, repository  # noqa: F401

bench_tree.load()

from bench import history, history_page, machine  # noqa: E402

pytestmark = pytest.mark.no_sanitize  # nothing compiled is looked at
DEPTH = {"ratio_w16": 0.2, "ratio_low_w16": 0.1, "ratio_high_w16": 0.3}


def run(day, case="depth.dense", **fields):
    return entry(case, date=f"2026-01-{day:02}T00:00:00+00:00", **fields)


class Read(HTMLParser):
    """Elements with their attributes, and what is fetched."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag != "option" or self.open[-1] == "option":
            assert self.open.pop() == tag

    def of(self, tag, **wanted):
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in wanted.items())]


def page(*entries):
    cases = history.series([[e] for e in entries])
    return history_page.page(cases, history.last_steps(cases), "0123456789abcdef")


def test_a_record_that_many_commits_carry_counts_once_and_in_order():
    first, second = run(1), run(2)
    found = history.series([[second, run(1, "a.b")], [first], [second, first], [second]])
    assert list(found) == ["a.b", "depth.dense"]
    assert found["depth.dense"] == [first, second]


def test_last_step_is_the_two_latest():
    times = [SLOWER[0], SLOWER[1], SLOWER[0]]
    cases = history.series([[run(day, samples={"t": row})] for day, row in enumerate(times, 1)] + [[run(1, "a.b")]])
    assert {case: [row.verdict for row in rows] for case, rows in history.last_steps(cases).items()} == {
        "depth.dense": ["FAST"]
    }


def test_a_section_per_case_with_its_verdicts_and_words():
    read = Read(page(run(1, samples={"t": SLOWER[0]}), run(2, samples={"t": SLOWER[1]}), run(1, "a.b")))
    assert read.open == []
    sections = read.of("section")
    assert [s["data-verdicts"] for s in sections] == ["", "SLOW"]
    assert sections[1]["data-words"].startswith("depth.dense 1,024 layers")


def test_chart_draws_every_record_with_its_interval():
    other = {"cpu": "two", "cores": 2, "gpus": []}
    read = Read(
        page(
            run(1, metrics={"ratio_w16": 0.4}),
            run(2, metrics=DEPTH),
            run(3, metrics=DEPTH | {"ratio_w16": 0.1}, checked=False),
            run(4, metrics=DEPTH, machine=other),
        )
    )
    points = read.of("circle")
    assert [a["class"] for a in points] == ["point", "point", "point failed", "point"]
    heights = [float(a["cy"]) for a in points]
    assert heights[0] < heights[1] < heights[2], "up is more"
    base = history_page.HEIGHT - history_page.BOTTOM
    assert (base - heights[0]) == pytest.approx(2 * (base - heights[1]), abs=0.2), "from zero; 0.1 pixel is printed"
    assert len(read.of("polyline", **{"class": "curve"})) == 2, "the other machine is not joined"
    assert len(read.of("polyline", **{"class": "reach"})) == 3, "the first record has no interval"


def test_one_record_or_none_of_a_metric_is_no_chart():
    assert Read(page(run(1, metrics=DEPTH))).of("svg") == []
    assert Read(page(run(1, error="gone", checked=False), run(2, error="gone", checked=False))).of("svg") == []
    flat = page(run(1, metrics={"ratio_w16": 0.0}), run(2, metrics={"ratio_w16": 0.0}))
    assert len(Read(flat).of("circle")) == 2


def test_nothing_is_fetched_and_nothing_said_is_markup():
    nasty = "<script>alert(1)</script>\"'&"
    text = page(run(1, nasty, metrics={nasty: 1.0}, error="", notes=nasty), run(2, nasty, checked=False, error=nasty))
    assert text.count("<script>") == 1
    read = Read(text)
    assert {tag for tag, _ in read.elements} & {"link", "img", "iframe", "object", "base"} == set()
    assert [a for _, a in read.elements if {"src", "href", "onclick"} & a.keys()] == []
    assert re.findall(r"url\(|@import|https?://", text) == []


def test_program(repository, capsys, monkeypatch):  # noqa: F811
    results = repository / "bench" / "results"
    results.mkdir(parents=True)
    monkeypatch.setattr(machine, "ROOT", repository)
    monkeypatch.setattr(history.collected, "__defaults__", (repository,))
    out = repository / "page.html"
    assert history.main(["--out", str(out)]) == 2
    assert "no records there" in capsys.readouterr().err
    (results / "kernels.json").write_text('{"other": "kind"}')
    (repository / "r.json").rename(results / "r.json")
    assert history.main(["--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}: 1 cases, 1 records\n"
    assert [path.name for path in repository.glob("*page*")] == ["page.html"]
    assert history.main(["--out", str(repository / "no" / "page.html")]) == 2
    assert "No such file" in capsys.readouterr().err
