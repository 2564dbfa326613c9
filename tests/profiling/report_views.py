# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of the report ask of its page, and do to it."""

import json


def spot(page, event):
    """Where the middle of an event is, in the window."""
    return page.js(
        f"""(() => {{ const {{painter, lanes, canvas}} = timeline, box = canvas.getBoundingClientRect();
        const middle = (lanes.data.start[{event}] + lanes.data.end[{event}]) / 2;
        return [box.left + painter.x(middle), box.top + lanes.top({event}) - painter.scroll + lanes.row / 2 - 1];
        }})()"""
    )


def view(page):
    return page.js("[timeline.view.from, timeline.view.to]")


def numbered(page, kind, name="", rank=0, nth=0):
    """The number of an event in the page."""
    return page.js(
        f"""(() => {{ const d = timeline.lanes.data; let n = {nth};
        for (let i = 0; i < d.events; i++) {{ const t = d.types[d.type[i]];
          const fits = t.kind === "{kind}" && t.name.includes("{name}") && d.tracks[d.track[i]].rank === {rank};
          if (fits && n-- === 0) return i;
        }} return -1; }})()"""
    )


def tip(page):
    return page.js("document.getElementById('tip').hidden ? null : document.getElementById('tip').innerText")


def click(page, selector):
    page.js(f"document.querySelector({json.dumps(selector)}).click()")
    page.settle()
