# SPDX-License-Identifier: BSD-3-Clause
"""What a recorder hears of a solve is its schedule: every step once, on its level, in its region; no bit changes."""

import ast
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import pyparareal
from pyparareal import MGRIT, GraphRuntime, LocalRuntime, Newton, TimeGrid, _core, ops, serial_solve, solve, traced_ops
from pyparareal.implicit import ImplicitEuler
from pyparareal.profiling import Recorder
from pyparareal.propagators import Map
from pyparareal.runtime.local import Anew

REGION = re.compile(r"(backward )?[a-z_]+(\.[a-z_]+)?(\.[0-9]+)?")
HERE = LocalRuntime()
PACKAGE = Path(pyparareal.__file__).parent


class EveryTime(LocalRuntime):
    """Keeps no calls."""

    def repeat(self, u, unless, *, fixed=False):
        return Anew()


def heat(steps=64, points=15):
    grid = TimeGrid(0, 0.1, steps)
    off = np.full(points - 1, (points + 1.0) ** 2)
    phi = ImplicitEuler(off, np.full(points, -2 * (points + 1.0) ** 2), off, grid)
    return {"fine": phi, "u0": np.sin(np.linspace(0, 3, points))[None], "grid": grid}


def plain(levels=2):
    """Of functions, which the package calls step by step, and which agree so little that no state settles early."""
    coarse = [Map(lambda u: 0.6 * u + 0.1, batch_invariant=True)] * (levels - 1)
    fine = Map(lambda u: 0.9 * u + np.sin(u), batch_invariant=True)
    return {
        "fine": fine,
        "u0": np.ones((1, 2)),
        "grid": TimeGrid(0, 1, 48),
        "coarse": coarse if levels > 2 else coarse[0],
    }


CASES = {
    "parareal": plain() | {"m": 4, "tol": 1e-8},
    "parareal, guessed": plain() | {"m": 4, "tol": 1e-8, "initial": np.zeros((13, 1, 2))},
    "parareal, fixed": plain() | {"m": 4, "tol": None, "max_iterations": 3},
    "parareal, all points": plain() | {"m": 5, "tol": 1e-8, "save": "all"},
    "MGRIT": plain() | {"m": 4, "tol": 1e-8, "method": MGRIT()},
    "MGRIT, F-relaxation": plain() | {"m": 4, "tol": 1e-8, "method": MGRIT(nu=0)},
    "MGRIT, 3 levels": plain(3) | {"m": 2, "tol": 1e-8, "method": MGRIT(levels=3, cycle="F")},
    "MGRIT, nested": plain(3) | {"m": 2, "tol": 1e-8, "method": MGRIT(levels=3, nested=True)},
    "MGRIT, relaxed coarsest": plain(3) | {"m": 2, "tol": 1e-6, "method": MGRIT(levels=3, coarsest_sweeps=9)},
    "MGRIT, measured at the end": plain() | {"m": 4, "tol": 1e-8, "method": MGRIT(measure="end")},
    "heat, parareal": heat() | {"m": 8, "tol": 1e-9},
    "heat, MGRIT": heat() | {"m": 4, "tol": 1e-9, "method": MGRIT(levels=3)},
    "heat, MGRIT, all points": heat() | {"m": 4, "tol": 1e-9, "method": MGRIT(levels=3), "save": "all"},
}  # fmt: skip
NEWTON = plain() | {"m": 4, "tol": 1e-8, "method": Newton("none"), "coarse": None}


def recorded(case, runtime=HERE):
    with Recorder() as recorder:
        solution = solve(**case, runtime=runtime)
    return solution, recorder.record()


def outermost(events, kind="launch"):
    """Those of ``kind`` that are in no other of it on the same stream; events come in the order of their starts."""
    found, until = [], {}
    for event in events:
        if event.kind == kind and event.end > until.get(event.stream, -1.0):
            found.append(event)
            until[event.stream] = event.end
    return found


def steps_by_level(record):
    steps = Counter()
    for event in outermost(record.events):
        if "steps" in event.facts:
            steps[event.level] += event.facts["slices"] * event.facts["steps"]
    return steps


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize(
    "runtime", [LocalRuntime, lambda: LocalRuntime(slices_per_call=3)], ids=["at once", "in parts"]
)
def test_the_steps_on_every_level_are_those_of_the_schedule(case, runtime):
    solution, record = recorded(case, runtime())
    stats, steps = solution.stats, steps_by_level(record)
    expected = stats.steps_per_level or (stats.fine_steps, stats.coarse_steps)
    assert steps == Counter(dict(enumerate(expected)))


def test_every_step_of_newton_and_of_the_serial_chain_is_there():
    solution, record = recorded(NEWTON)
    assert steps_by_level(record) == {0: solution.stats.fine_steps}
    with Recorder() as recorder:
        serial_solve(**{name: NEWTON[name] for name in ("fine", "u0", "grid")})
    assert steps_by_level(recorder.record()) == {0: 48}


@pytest.mark.parametrize("case", [*CASES.values(), NEWTON], ids=[*CASES, "newton"])
def test_no_bit_changes(case):
    assert recorded(case)[0].u.tobytes() == solve(**case).u.tobytes()


@pytest.mark.parametrize("case", [*CASES.values(), NEWTON], ids=[*CASES, "newton"])
def test_spans_of_a_thread_are_nested_and_their_regions_are_those_around_them(case):
    record = recorded(case)[1]
    open_spans = []
    for event in record.events:
        while open_spans and open_spans[-1].end <= event.start:
            open_spans.pop()
        if open_spans:
            assert event.end <= open_spans[-1].end
        regions = [one.name for one in open_spans if one.kind == "region"]
        assert event.region == (regions[-1] if regions else "")
        open_spans.append(event)
    leaves = outermost(record.events)
    assert sum(event.seconds for event in leaves) <= record.about["seconds"]
    assert all(0 <= event.start <= event.end <= record.about["seconds"] for event in record.events)


def test_regions_have_the_form_that_is_documented():
    for case in [*CASES.values(), NEWTON]:
        for event in recorded(case)[1].events:
            assert REGION.fullmatch(event.region) or event.region == "", event.region
            assert event.kind != "region" or REGION.fullmatch(event.name), event.name


def outline(record):
    """All but the times."""
    return [(e.kind, e.name, e.region, e.level, e.facts.get("steps"), e.facts.get("bytes")) for e in record.events]


@pytest.mark.parametrize("options", [{}, {"levels": 3, "nu": 2}, {"levels": 4, "cycle": "F"}, {"omega": 1.2}], ids=str)
def test_cycles_of_kept_calls_are_like_those_done_anew(options):
    case = heat() | {"m": 2, "tol": None, "max_iterations": 7, "method": MGRIT(**options)}
    kept, anew = (recorded(case, runtime())[1] for runtime in (LocalRuntime, EveryTime))
    assert outline(kept) == outline(anew)
    assert sum(event.name == "mgrit.relax.0" for event in kept.events) >= 7


def test_one_solve_is_noted_with_its_residuals_as_samples():
    for case in [*CASES.values(), NEWTON]:
        solution, record = recorded(case)
        (noted,) = record.solves
        assert (noted.iterations, noted.status) == (solution.iterations, solution.status.name)
        np.testing.assert_array_equal(noted.residuals, solution.residuals)
        samples = [sample.value for sample in record.samples if sample.counter == "residual"]
        np.testing.assert_array_equal(samples, [r for r in solution.residuals if not np.isnan(r)])
        (region,) = [event for event in record.events if event.name == "solve"]
        assert noted.start <= region.start <= region.end <= noted.end
        assert noted.facts["slices"] == solution.stats.slices


def test_a_solve_that_is_raised_is_noted_too():
    from pyparareal import ConvergenceError

    with pytest.raises(ConvergenceError), Recorder() as recorder:
        solve(**CASES["parareal"] | {"max_iterations": 2})
    record = recorder.record()
    assert [(one.status, one.iterations) for one in record.solves] == [("MAX_ITERATIONS", 2)]
    assert [e.facts["error"] for e in record.events if e.name == "solve"] == ["ConvergenceError"]


def test_a_captured_cycle_is_one_launch():
    class Playback:
        """Stands in for a device's graphs: what was done is done again."""

        def record(self, work):
            return work(), launched.append

    launched = []

    class Once(Playback):
        def record(self, work):
            result = work()
            return result, lambda: launched.append(1)

    case = heat() | {"m": 4, "tol": None, "max_iterations": 6, "method": MGRIT()}
    record = recorded(case, GraphRuntime(recorder=Once()))[1]
    graphs = [event for event in record.events if event.name == "graph" and event.kind == "launch"]
    assert len(graphs) == len(launched) > 0
    assert all(event.facts == {"op": "graph"} and event.region == "graph" for event in graphs)


def halve(u):
    return u / 2


def test_every_verb_is_heard():
    runtime, u = LocalRuntime(), np.ones((5, 1, 2))
    half = Map(halve, batch_invariant=True)
    with Recorder() as recorder:
        runtime.map(half, u[:-1], slice(0, 4, 1), 2, out=np.empty((4, 1, 2)))
        runtime.map(half, u[:-1], slice(0, 4, 1), out=np.empty((4, 1, 2)))
        runtime.chain(lambda n, start, end: None, u, 0)
        runtime.chain(lambda n, start, end: None, u, 0, whole=lambda rows: None)
        runtime.scan(u[1:], u[1:], 0, np.empty_like(u))
        runtime.largest(u)
        runtime.reduce(np.ones(4))
        runtime.gather(np.ones(4))
        runtime.do(ops.slice_norms, u)
        with runtime.mark("a.region.3"):
            assert runtime.shift(u) is not u  # a view of what is there: nothing happens
        GraphRuntime(recorder=None).repeat(u, lambda: None)
    events = recorder.record().events
    verbs = ["map", "map", "chain", "chain", "scan", "largest", "reduce", "gather", "do"]
    assert [event.name for event in events if event.kind == "verb"] == verbs
    assert [(event.name, event.kind) for event in events if event.name == "a.region.3"] == [("a.region.3", "region")]
    launched = [(event.name, event.facts.get("steps")) for event in events if event.kind == "launch"]
    assert launched == [("halve", 2), ("halve", 1), ("scan_diag", None), ("slice_norms", None)]


def test_every_op_is_called_where_it_is_heard():
    """All of the package's callers say ``_core.name(...)``: what is put into its place there is what they call."""
    public = {
        line.split("(")[0][4:] for line in (PACKAGE / "_core.pyi").read_text().splitlines() if "stream: Any" in line
    }
    assert public - {"rk_arguments", "rk_launched"} == set(traced_ops.FORMS)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("_core"):
                assert not {alias.name for alias in node.names} & public, path
    with Recorder():
        assert all(getattr(_core, op).__name__ == "traced" for op in traced_ops.FORMS)


class Rotation:
    """One's own, with attributes that mean something else than in a propagator of ours: an angle, and a flag."""

    batch_invariant = True

    def __init__(self, phi):
        self.phi, self.works = phi, True

    def step(self, u, points):
        return np.cos(self.phi) * u

    def rediscretise(self, m):
        return Rotation(self.phi * m)


def test_a_propagator_is_called_by_its_own_name_whatever_its_attributes_are_called():
    case = {"fine": Rotation(0.1), "u0": np.ones((1, 2)), "grid": TimeGrid(0, 1, 12), "m": 3, "tol": 1e-8}
    for more in ({}, {"rhs": np.ones((12, 1, 2))}):
        with Recorder() as recorder:
            solve(**case, **more)
        assert {e.name for e in recorder.record().events if "steps" in e.facts} == {"Rotation"}
