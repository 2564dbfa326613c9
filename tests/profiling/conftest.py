# SPDX-License-Identifier: BSD-3-Clause
"""The report in a browser: one start of it, and one page of two ranks, for all tests that ask for them."""

import chromium
import pytest
from report_records import told, two_ranks

from pyparareal.profiling import report
from pyparareal.profiling.analysis import analyse


@pytest.fixture(scope="session")
def browser():
    if reason := chromium.missing():
        pytest.skip(reason)
    with chromium.Browser(1000, 800) as one:
        yield one


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Pages by name, each written once."""
    folder = tmp_path_factory.mktemp("pages")

    def write(name, record, analysis):
        path = folder / f"{name}.html"
        path.write_text(report.page(record, analysis), encoding="utf-8")
        return path

    record = two_ranks()
    write("full", record, told(analyse(record)))
    return folder, write


@pytest.fixture
def page(browser, written):
    """The report of two ranks, freshly opened, the timeline in view."""
    browser.size(1000, 800)
    browser.media()
    browser.open(written[0] / "full.html")
    browser.js("document.getElementById('gantt').scrollIntoView({block: 'center'})")
    browser.settle()
    yield browser
    # the tests read pixels back, which the browser would have the page say beforehand
    assert [text for text in browser.complaints() if "willReadFrequently" not in text] == []
