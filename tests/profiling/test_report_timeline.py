# SPDX-License-Identifier: BSD-3-Clause
"""The timeline of the report in a browser: what is drawn is asked of the page, and of its pixels."""

import json
import re

import pytest
from report_records import degenerate, many, two_ranks
from report_views import click, numbered, spot, tip, view

from pyparareal.profiling.analysis import analyse
from pyparareal.profiling.events import Record

pytestmark = pytest.mark.no_sanitize

SHIFT = 8


def test_events_arrive_as_they_were(page):
    """Names, times and facts of every event, as the page holds them, are those of the record."""
    mine = sorted(
        (e.rank, round(e.start * 1e9), round(e.end * 1e9), e.kind, e.name, e.level, json.dumps(e.facts))
        for e in two_ranks().events
    )
    theirs = page.js(
        """(() => { const d = timeline.lanes.data;
        return Array.from(d.start, (start, i) => {
            const t = d.types[d.type[i]], facts = JSON.stringify(d.facts[d.fact[i]]), rank = d.tracks[d.track[i]].rank;
            return [rank, Math.round(start * 1e9), Math.round(d.end[i] * 1e9), t.kind, t.name, t.level, facts];
        }); })()"""
    )
    squeezed = [(*row[:6], json.dumps(json.loads(row[6]))) for row in theirs]
    assert sorted(squeezed, key=str) == sorted(mine, key=str)


def test_rows_are_nested(page):
    """Regions above verbs above launches, and nothing overlaps in a row."""
    depth = {
        kind: page.js(f"timeline.lanes.place[{numbered(page, kind, nth=1)}]") for kind in ("region", "verb", "launch")
    }
    assert depth == {"region": 0, "verb": 1, "launch": 2}
    overlap = page.js(
        """timeline.lanes.data.tracks.some((track) => track.rows.some((row) => row.some((event, k) =>
        k > 0 && timeline.lanes.data.start[event] < timeline.lanes.data.end[row[k - 1]] - 1e-12)))"""
    )
    assert overlap is False


def test_what_is_under_the_pointer_is_what_is_said(page):
    event = numbered(page, "launch", rank=1, nth=5)
    page.mouse("mouseMoved", *spot(page, event))
    said = tip(page)
    data = page.js(
        f"(() => {{ const d = timeline.lanes.data; return [d.seconds[{event}], d.facts[d.fact[{event}]].cycle]; }})()"
    )
    assert said.startswith("relax_diagonal")
    assert f"lasted\n{1e6 * data[0]:.4g} µs" in said
    assert f"cycle\n{data[1]}" in said
    assert "rank 1 · cpu · main" in said
    assert page.js("timeline.painter.chosen") == event
    x, y = spot(page, event)
    page.mouse("mouseMoved", x, y + 600)
    assert tip(page) is None


def test_the_wheel_zooms_about_the_pointer(page):
    """exp(0.002 * pixels) per turn: 400 up shows exp(-0.8) of what was in view, the time under the pointer stays."""
    x, y = spot(page, numbered(page, "launch", nth=7))
    before = view(page)
    left = page.js("timeline.canvas.getBoundingClientRect().left")
    time = page.js(f"timeline.painter.time({x - left})")
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-400)
    page.until(f"timeline.view.to - timeline.view.from < {0.99 * (before[1] - before[0])}")
    after = view(page)
    assert (after[1] - after[0]) / (before[1] - before[0]) == pytest.approx(2.718281828**-0.8, rel=1e-6)
    # the pointer's place is rounded to whole pixels by the browser
    assert page.js(f"timeline.painter.x({time})") == pytest.approx(x - left, abs=1.0)
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=4000)
    page.until("timeline.view.to - timeline.view.from > timeline.lanes.finish")
    scrolled = page.js("scrollY")
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=200)
    page.until(f"scrollY > {scrolled}")  # all is in view: the wheel scrolls the page again


def test_buttons_and_keys(page):
    def width():
        a, b = view(page)
        return b - a

    page.js("document.querySelector('[data-do=fit]').click()")
    page.settle()
    assert view(page) == pytest.approx([0, page.js("timeline.lanes.finish")])
    full = width()
    page.js("document.querySelector('[data-do=in]').click()")
    assert width() == pytest.approx(full / 1.5)
    page.js("document.querySelector('[data-do=out]').click()")
    assert width() == pytest.approx(full)
    page.js("timeline.canvas.focus()")
    assert page.js("getComputedStyle(timeline.canvas).outlineStyle") == "solid"
    page.key("+")
    page.key("+")
    assert width() == pytest.approx(full / 1.5**2)
    start = view(page)[0]
    page.key("ArrowRight")
    assert view(page)[0] == pytest.approx(start + 0.15 * width())
    page.key("ArrowLeft")
    assert view(page)[0] == pytest.approx(start)
    page.key("Home")
    assert width() == pytest.approx(full)


def test_keys_go_from_event_to_event_and_say_them(page):
    page.js("timeline.canvas.focus()")
    page.key("ArrowRight", SHIFT)
    first = page.js("timeline.painter.chosen")
    assert page.js(f"timeline.lanes.place[{first}]") == 0
    page.key("ArrowRight", SHIFT)
    second = page.js("timeline.painter.chosen")
    assert page.js(f"timeline.lanes.data.start[{second}] >= timeline.lanes.data.end[{first}]")
    assert "mgrit.relax.1" in tip(page)
    assert page.js("document.getElementById('said').textContent").startswith("mgrit.relax.1, lasted ")
    page.key("ArrowDown", SHIFT)
    assert "map" in tip(page)
    page.key("Enter")
    chosen = page.js("timeline.painter.chosen")
    start, end = page.js(f"[timeline.lanes.data.start[{chosen}], timeline.lanes.data.end[{chosen}]]")
    a, b = view(page)
    assert a < start < end < b < start + 1.3 * (end - start)
    page.key("Escape")
    assert tip(page) is None


def test_drag_moves_and_with_shift_zooms_to_the_box(page):
    x, y = spot(page, numbered(page, "launch", nth=7))
    page.js("timeline.zoom(4)")
    a, b = view(page)
    width = page.js("timeline.painter.width")
    page.drag((x, y), (x - 100, y))
    assert view(page)[0] == pytest.approx(a + 100 * (b - a) / width, rel=1e-6)
    a, b = view(page)
    left = page.js("timeline.canvas.getBoundingClientRect().left")
    page.drag((left + 200, y), (left + 300, y), modifiers=SHIFT)
    scale = (b - a) / width
    # the canvas may begin between two pixels: to one pixel
    assert view(page) == pytest.approx([a + 200 * scale, a + 300 * scale], abs=1.01 * scale)


def test_fingers_pinch_and_tap(page):
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        event = numbered(page, "launch", nth=3)
        x, y = spot(page, event)
        before = view(page)

        def touch(kind, *points):
            page.call(
                "Input.dispatchTouchEvent",
                type=kind,
                touchPoints=[{"x": a, "y": b, "id": i} for i, (a, b) in enumerate(points)],
            )
            page.settle()

        touch("touchStart", (x, y))
        touch("touchEnd")
        assert tip(page).startswith("relax_diagonal")
        touch("touchStart", (400, y), (500, y))
        touch("touchMove", (350, y), (550, y))
        touch("touchEnd")
        after = view(page)
        assert (before[1] - before[0]) / (after[1] - after[0]) == pytest.approx(2, rel=0.1)
    finally:
        page.call("Emulation.setTouchEmulationEnabled", enabled=False)


def test_filters_hide_and_count(page):
    events = two_ranks().events
    count = "document.getElementById('count').textContent"
    assert page.js(count) == f"{len(events)} of {len(events)} events shown"
    click(page, "#kinds [value=launch]")
    assert page.js(count) == f"{sum(e.kind != 'launch' for e in events)} of {len(events)} events shown"
    click(page, "#levels [value='1']")
    left = [e for e in events if e.kind != "launch" and e.level != 1]
    assert page.js(count).startswith(f"{len(left)} of")
    click(page, "#ranks [value='1']")
    assert page.js(count).startswith(f"{sum(e.rank == 0 for e in left)} of")
    assert page.js("timeline.lanes.data.tracks.filter((track) => track.rows.length).length") == 1


def test_many_ranks_are_hidden_at_once(browser, written):
    record = degenerate()["64 ranks"]
    browser.size(1000, 800)
    browser.open(written[1]("ranks", record, analyse(Record([]))))
    for shown in (0, 64):
        click(browser, "#ranks button")
        assert browser.js("timeline.lanes.shown") == shown
        assert browser.js("document.querySelectorAll('#ranks input:checked').length") == shown
    click(browser, "#ranks button")
    click(browser, "#ranks [value='7']")
    assert browser.js("timeline.lanes.data.tracks.filter((track) => track.rows.length).map((track) => track.rank)") == [
        7
    ]
    assert browser.complaints() == []


def search(page, words):
    page.js(f"document.getElementById('search').value = {json.dumps(words)}")
    page.js("document.getElementById('search').dispatchEvent(new Event('input'))")


def test_search_counts_adds_up_and_goes_there(page):
    events = two_ranks().events
    search(page, "RECEIVE")
    said = page.js("document.getElementById('count').textContent")
    found = [e for e in events if "receive" in e.name]
    assert f"found in {len(found)}, {1e6 * sum(e.seconds for e in found):.4g} µs" in said
    click(page, "[data-do=next]")
    assert "receive state" in tip(page)
    assert page.js("timeline.painter.chosen === timeline.lanes.found[0]")
    # facts are searched too
    search(page, "2048")
    assert page.js("timeline.lanes.found.length") == sum(e.facts.get("bytes") == 2048 for e in events)


def test_arrows_join_what_waits_with_what_it_waits_for(page):
    assert page.js("timeline.painter.arrowsInView") == 3
    sent = numbered(page, "message")
    page.mouse("mouseMoved", *spot(page, sent))
    assert re.search(r"arrow to\nreceive state on rank 1", tip(page))


def test_the_canvas_has_what_it_should_where_it_should(page):
    """A launch has the colour of its level: here where its label is not, one pixel from its corner."""
    event = numbered(page, "launch", nth=2)
    _, y = spot(page, event)
    pixel = page.js(
        f"""(() => {{ const box = timeline.canvas.getBoundingClientRect(), pen = timeline.canvas.getContext("2d");
        const left = timeline.painter.x(timeline.lanes.data.start[{event}]);
        return Array.from(pen.getImageData(left + 2, {y} - box.top - 7, 1, 1).data).slice(0, 3); }})()"""
    )
    fill = page.js(f"timeline.colours.fills[timeline.lanes.data.type[{event}]].fill")
    assert "#" + "".join(f"{v:02x}" for v in pixel) == fill == "#0072b2"


def test_many_events_in_one_track_are_drawn_as_columns(browser, written):
    """All events are there, and however many are in view, what is drawn are at most two columns per two pixels."""
    record = many(20_000)
    browser.size(1000, 800)
    browser.open(written[1]("many", record, analyse(Record([]))))
    assert browser.js("timeline.lanes.shown") == 20_000
    drawn = browser.js(
        """(() => { const plain = CanvasRenderingContext2D.prototype.fillRect; let count = 0;
        CanvasRenderingContext2D.prototype.fillRect = function (...a) { count++; return plain.apply(this, a); };
        timeline.draw(); CanvasRenderingContext2D.prototype.fillRect = plain; return count; })()"""
    )
    colours, rows, width = 3, 2, 1000
    assert drawn < rows * colours * width / 2 + 200
    assert browser.complaints() == []
