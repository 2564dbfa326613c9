# SPDX-License-Identifier: BSD-3-Clause
"""The rest of the report in a browser: themes, phones, print, tables, hostile names, and whatever may be missing."""

import pytest
from report_records import HOSTILE, degenerate, two_ranks
from report_views import click, numbered, spot, tip, view

from pyparareal.profiling.analysis import analyse
from pyparareal.profiling.events import Record

pytestmark = pytest.mark.no_sanitize


def test_labels_can_be_read_on_every_colour_and_theme(page):
    for theme in ("light", "dark"):
        page.js(f"document.documentElement.dataset.theme = '{theme}'")
        for by in ("kind", "level", "name"):
            page.js(f"(() => {{ timeline.colours.by = '{by}'; timeline.colours.read(); }})()")
            assert page.js("timeline.colours.fills.every(({fill, ink}) => ink === '#ffffff' || ink === '#000000')")
            inks = page.js("timeline.colours.fills.map(({fill, ink}) => [fill, ink])")
            assert all(contrast(fill, ink) >= 4.5 for fill, ink in inks)


def contrast(a, b):
    def light(colour):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(a), light(b)))
    return (high + 0.05) / (low + 0.05)


def test_dark_as_the_system_says_and_as_the_button_does(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    corner = (
        "Array.from(timeline.canvas.getContext('2d').getImageData(timeline.painter.width / 2, 24, 1, 1).data).join()"
    )
    page.js("timeline.fit()")
    page.media(prefers_color_scheme="dark")
    assert page.js(ground) == "rgb(22, 24, 27)"
    assert page.js(corner).startswith("22,24,27")
    click(page, "#theme")
    assert page.js(ground) == "rgb(255, 255, 255)"
    assert page.js(corner).startswith("255,255,255")
    page.media()
    click(page, "#theme")
    assert page.js(ground) == "rgb(22, 24, 27)"
    assert page.js("document.getElementById('theme').getAttribute('aria-label')") == "Use light colours"


def test_on_a_phone_nothing_is_wider_than_the_screen(page):
    page.size(360, 740, mobile=True)
    assert page.js("document.documentElement.scrollWidth") == 360
    wide = page.js(
        """Array.from(document.querySelectorAll("body *")).filter((e) => !e.closest(".scroll, svg") &&
        e.getBoundingClientRect().right > 361).map((e) => e.tagName + "." + e.className + "#" + e.id)"""
    )
    assert wide == []
    page.js("timeline.canvas.scrollIntoView({block: 'center'})")
    page.settle()
    x, y = spot(page, numbered(page, "region", nth=5))
    assert x > 270, "near the right edge, where there is no room beside it"
    page.mouse("mouseMoved", x, y)
    box = page.js("(({left, right}) => [left, right])(document.getElementById('tip').getBoundingClientRect())")
    assert 0 <= box[0] < box[1] <= 360


def test_tables_are_sorted_by_value(page):
    """What is not known comes last either way."""
    table = "document.querySelector('[aria-label=\"Time by phase\"] table')"
    column = f"Array.from({table}.tBodies[0].rows, (row) => Number(row.cells[1].dataset.value))"
    for way, reverse in (("descending", True), ("ascending", False)):
        page.js(f"{table}.querySelectorAll('th button')[1].click()")
        values = page.js(column)
        assert values == sorted(values, reverse=reverse)
        assert len(set(values)) > 1
        assert page.js(f"{table}.querySelectorAll('th')[1].getAttribute('aria-sort')") == way


def test_points_of_charts_say_what_they_are(page):
    page.js("document.querySelector('[data-tip^=\"relax_diagonal\"]').focus()")
    said = tip(page)
    assert "40 %" in said.replace("\u00a0", " ")
    assert "1 GFLOP/s" in said.replace("\u00a0", " ")
    page.js("document.activeElement.blur()")
    assert tip(page) is None


def test_the_table_of_long_events_leads_to_the_timeline(page):
    page.js("document.querySelector('button[data-event]').closest('details').open = true")
    button = "document.querySelector('button[data-event]')"
    event = page.js(f"Number({button}.dataset.event)")
    page.js(f"{button}.click()")
    page.settle()
    assert page.js("timeline.painter.chosen") == event
    assert page.js(f"{button}.closest('td').innerText").startswith(tip(page).splitlines()[0])


def test_everything_can_be_reached_and_has_a_name(page):
    """All that takes the keyboard's focus says to a screen reader what it is."""
    nameless = page.js(
        """Array.from(document.querySelectorAll("button, input, select, canvas, [tabindex]")).filter((e) =>
        !e.hidden && !e.closest("[aria-hidden=true]") && !(e.getAttribute("aria-label") || e.textContent.trim() ||
        e.labels?.length)).map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    assert page.js("timeline.canvas.tabIndex") == 0


def test_printed_it_is_light_and_has_no_controls(page):
    page.media(prefers_color_scheme="dark")
    page.js("window.dispatchEvent(new Event('beforeprint'))")
    page.media("print", prefers_color_scheme="dark")
    assert page.js("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.js("getComputedStyle(document.querySelector('.tools')).display") == "none"
    page.js("window.dispatchEvent(new Event('afterprint'))")
    page.media(prefers_color_scheme="dark")
    assert page.js("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
    assert len(page.call("Page.printToPDF")["data"]) > 10_000


def test_hostile_names_are_letters(browser, written):
    record = two_ranks()
    for event in record.events:
        event.name = event.region = HOSTILE
        event.facts = {HOSTILE: HOSTILE}
    record.about["title"] = HOSTILE
    browser.open(written[1]("hostile", record, analyse(record)))
    browser.js("timeline.reveal(0)")
    assert HOSTILE in tip(browser)
    assert browser.js("document.querySelectorAll('img').length") == 0
    assert browser.js("window.hacked") is None
    # and even were there an element with a handler, the policy would not let it run
    browser.js("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked=1\">')")
    browser.settle()
    assert browser.js("window.hacked") is None


@pytest.mark.parametrize("name", degenerate())
def test_it_is_drawn_whatever_is_missing(browser, written, name):
    record = degenerate()[name]
    browser.size(1000, 800)
    browser.open(written[1](name.replace(" ", "_"), record, analyse(Record([]))))
    assert browser.complaints() == []
    if name == "nothing":
        return
    shown = [e for e in record.events if abs(e.start) < 1e300 and abs(e.end) < 1e300]
    assert browser.js("timeline.lanes.shown") == len(shown)
    browser.js(
        "(() => { for (const z of [1e3, 1e9, 1e-12]) { timeline.zoom(z); timeline.draw(); } timeline.reveal(0); })()"
    )
    a, b = view(browser)
    assert b > a
    assert browser.complaints() == []


def test_a_browser_without_decompression_says_so(browser, written):
    added = browser.call("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream;")
    try:
        browser.open(written[0] / "full.html", drawn="!document.getElementById('problem').hidden")
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])
    assert "too old" in browser.js("document.getElementById('problem').innerText")
