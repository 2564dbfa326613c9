# SPDX-License-Identifier: BSD-3-Clause
"""Timelines of real solves: a valid file, every slice where it belongs, and the truth about what ran."""

import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import trace_schema

from pyparareal import MGRIT, LocalRuntime, Newton, TimeGrid, _trace, ops, serial_solve, solve
from pyparareal.implicit import ImplicitEuler
from pyparareal.profiling import Timeline, chrome
from pyparareal.propagators import Map


def heat(steps=64, points=15):
    grid = TimeGrid(0, 0.1, steps)
    off = np.full(points - 1, (points + 1.0) ** 2)
    phi = ImplicitEuler(off, np.full(points, -2 * (points + 1.0) ** 2), off, grid)
    return {"fine": phi, "u0": np.sin(np.linspace(0, 3, points))[None], "grid": grid}


def ask(method, m=8, **more):
    return lambda: solve(**heat(), m=m, method=method, tol=1e-9, **more)


CASES = {
    "parareal": ask("parareal"),
    "MGRIT, F": ask(MGRIT(nu=0)),
    "MGRIT, FCF, three levels": ask(MGRIT(levels=3), m=4),
    "Newton": ask(Newton(), m=8),
    "serial": lambda: serial_solve(**heat()),
    "two threads": ask(MGRIT(), runtime=LocalRuntime(devices=["cpu", "cpu"])),
    "calls of three slices": ask("parareal", runtime=LocalRuntime(slices_per_call=3)),
    "a plain function": lambda: solve(
        Map(lambda u: 0.9 * u, batch_invariant=True), np.ones((1, 2)), TimeGrid(0, 1, 24), m=4, tol=0.0,
        coarse=Map(lambda u: 0.6 * u, batch_invariant=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_timeline_of_every_method_is_valid(tmp_path, case):
    expected = case()
    with Timeline("a solve") as timeline:
        solution = case()
    assert solution.u.tobytes() == expected.u.tobytes()  # watching changes no bit
    assert _trace.listener is None
    record = timeline.record
    data = json.loads(timeline.save(tmp_path / "t.json").read_bytes())
    assert trace_schema.all_problems(data["traceEvents"]) == []
    names = [e["args"]["name"] for e in data["traceEvents"] if e["name"] == "thread_name"]
    assert "main (2)" not in names  # all of the host's main thread nests
    (noted,) = record.solves
    assert (noted.iterations, noted.status) == (solution.iterations, solution.status.name)
    np.testing.assert_array_equal(noted.residuals, solution.residuals)
    assert {e.kind for e in record.events} >= {"region", "verb", "launch"}
    assert all(0 <= e.start <= e.end <= record.about["seconds"] for e in record.events)
    again = Timeline.load(tmp_path / "t.json").record
    assert (again.events, again.samples, again.clocks, again.about) == (
        record.events, record.samples, record.clocks, record.about
    )  # fmt: skip


def test_levels_and_regions_of_a_hierarchy():
    with Timeline() as timeline:
        CASES["MGRIT, FCF, three levels"]()
    launches = [e for e in timeline.record.events if e.kind == "launch"]
    assert {e.level for e in launches if e.region.startswith("mgrit.relax")} == {0, 1}
    assert all(e.region for e in launches if e.name == "relax_tridiagonal")


def test_what_runs_in_another_thread_is_in_a_thread_of_its_own():
    u = np.ones((4, 1, 3))

    def work():
        with _trace.mark("their region"):
            ops.slice_norms(u)

    with Timeline() as timeline, _trace.mark("our region"):
        thread = threading.Thread(target=work, name="helper")
        thread.start()
        thread.join()
        ops.slice_norms(u)
    launches = [e for e in timeline.record.events if e.name == "slice_norms"]
    assert {(e.stream, e.region) for e in launches} == {("main", "our region"), ("helper", "their region")}
    names = {e["args"]["name"] for e in chrome.trace_events(timeline.record) if e["name"] == "thread_name"}
    assert names == {"main", "helper"}


def test_a_span_lasts_as_long_as_the_work_and_lies_on_the_clock_that_it_names():
    with Timeline() as timeline:
        before = time.perf_counter()
        with _trace.mark("asleep"):
            time.sleep(0.02)
        after = time.perf_counter()
    (event,) = timeline.record.events
    assert event.seconds >= 0.02
    zero = timeline.record.about["clock"]["zero"]
    # Sums of readings below 1e9 s are right to 1e-7.
    assert before - 1e-7 <= zero + event.start <= zero + event.end <= after + 1e-7


def test_an_error_keeps_what_was_recorded_and_ends_the_listening():
    with pytest.raises(ZeroDivisionError), Timeline() as timeline, _trace.mark("doomed"):
        _ = 1 / 0
    assert [e.name for e in timeline.record.events] == ["doomed"]
    assert _trace.listener is None


def test_a_timeline_is_entered_once_and_read_after_its_end():
    timeline = Timeline()
    with timeline, pytest.raises(RuntimeError, match="record: the timeline has not ended"):
        _ = timeline.record
    with pytest.raises(RuntimeError, match="entered before"), timeline:
        pass


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="title: got int, expected a text"):
        Timeline(3)
    with pytest.raises(TypeError, match=r"runtime: got LocalRuntime, expected one of pyparareal\.distributed"):
        Timeline(runtime=LocalRuntime())


def test_under_torchrun_every_rank_writes_a_file_of_its_own(tmp_path):
    for rank in (0, 1):
        code = "from pyparareal.profiling import Timeline\nwith Timeline() as t: pass\nprint(t.save('t.json').name)"
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert (done.stdout.strip(), done.stderr) == (f"t.rank{rank}.json", "")
        assert [clock.rank for clock in Timeline.load(tmp_path / f"t.rank{rank}.json").record.clocks] == [rank]
