# SPDX-License-Identifier: BSD-3-Clause
"""The profiling report of 10^5 events: how large it is, and how soon a browser has drawn it."""

from __future__ import annotations

import importlib.util
import json
import statistics
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bench.cases import Result, case

EVENTS = 100_000
REPEATS = 5
DRIVER = Path(__file__).resolve().parents[2] / "tests" / "profiling" / "chromium.py"


@case("profiling.report", suite="quick")
def report() -> Result:
    """``open_seconds``: from the start of navigation until the first full drawing, a fresh page of one browser, median;
    ``bytes`` of the file; ``frame_seconds`` of drawing all events once more. ``checked``: the page has all events.
    """
    from pyparareal.profiling import analyse
    from pyparareal.profiling.report import page

    chromium = _driver()
    if reason := chromium.missing():
        raise RuntimeError(reason)
    record = _record()
    html = page(record, analyse(record)).encode()
    with tempfile.TemporaryDirectory() as folder, chromium.Browser(1200, 900) as browser:
        path = Path(folder) / "report.html"
        path.write_bytes(html)
        opened, frames, shown = [], [], []
        for _ in range(REPEATS):
            browser.open(path)
            opened.append(browser.js("performance.getEntriesByName('drawn')[0].startTime") / 1e3)
            shown.append(browser.js("timeline.lanes.shown"))
            frames.append(
                browser.js("(() => { const t = performance.now(); timeline.draw(); return performance.now() - t; })()")
            )
        checked = browser.complaints() == [] and shown == [EVENTS] * REPEATS
    metrics = {
        "open_seconds": statistics.median(opened),
        "bytes": len(html),
        "frame_seconds": statistics.median(frames) / 1e3,
    }
    notes = f"{EVENTS} events of 4 ranks on 3 levels, all their times different; software rendering"
    return Result(metrics, checked, {"open_seconds": opened}, notes)


def _driver() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chromium", DRIVER)
    if spec is None or spec.loader is None or not DRIVER.exists():
        raise RuntimeError(f"{DRIVER}: not here, the case needs the source tree")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _record() -> Any:
    """What a long solve on four ranks looks like: phases, verbs, launches, messages with arrows, and their facts."""
    from pyparareal.profiling.events import Event, RankClock, Record, Sample, Solve

    rng, record = np.random.default_rng(1), Record(clocks=[RankClock(rank) for rank in range(4)])
    events = record.events
    for rank in range(4):
        now, cycle, stop = 0.0, 0, len(events) + EVENTS // 4
        while len(events) < stop:
            level = cycle % 3
            begin, region = now, f"mgrit.relax.{level}"
            for _ in range(20):
                seconds = float(rng.uniform(2e-5, 9e-5))
                facts = {
                    "op": "relax_tridiagonal",
                    "dtype": "float64",
                    "shape": [32, 1, 64],
                    "steps": int(rng.integers(16)),
                }
                place = {"rank": rank, "level": level, "region": region}
                events.append(Event("verb", "map", now, now + seconds + 5e-6, **place, facts={"slices": 32}))
                events.append(
                    Event("launch", "relax_tridiagonal", now + 2e-6, now + 2e-6 + seconds, **place, facts=facts)
                )
                now += seconds + float(rng.uniform(6e-6, 2e-5))
            events.append(Event("region", region, begin, now, rank, level=level, region=region))
            kind = "message" if rank % 2 == 0 else "wait"
            events.append(
                Event(kind, "state", now, now + 5e-5, rank, flow=f"{rank // 2} {cycle}", facts={"bytes": 512})
            )
            now, cycle = now + 6e-5, cycle + 1
            record.samples.append(Sample("residual", now, 0.9**cycle, rank))
        del events[stop:]
    residuals = [sample.value for sample in record.samples if sample.rank == 0]
    record.solves.append(Solve("mgrit", 0.0, now, len(residuals), "CONVERGED", residuals, {"tol": 1e-9}))
    record.about = {"title": "a long solve", "facts": json.dumps({"events": EVENTS})}
    return record
