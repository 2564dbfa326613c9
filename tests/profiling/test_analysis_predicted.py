# SPDX-License-Identifier: BSD-3-Clause
"""Costs of a step are found again from the launches of a schedule that has them; prices are those of ``predict``."""

import dataclasses

import pytest
from planted import launch, record, solve

from pyparareal import MGRIT, TimeGrid, prediction, problems
from pyparareal import solve as solved
from pyparareal.profiling import analyse, roofs
from pyparareal.profiling.analysis.roofline import roofline
from pyparareal.profiling.analysis.step_costs import Call, costs_of
from pyparareal.profiling.recorder import Recorder
from pyparareal.runtime.model import ModelRuntime, StepCost

FUSED = StepCost(20e-6, 1e-8, 3e-7, fused=True)
STEPWISE = StepCost(20e-6, 1e-7)
STEPS, M, K = 256, 8, 4


LEVELS = {"parareal.fine": 0, "parareal.guess": 1, "parareal.coarse": 1}


class Written(ModelRuntime):
    """A model that writes every call down as a launch, one after the other."""

    def __init__(self):
        super().__init__(1)
        self.events, self.now = [], 0.0

    def launch(self, name, cost, slices, steps):
        facts = {"shape": [slices, 1], "slices": slices, "steps": steps, "m": steps, "dtype": "float64"}
        where = {"level": LEVELS[self._regions[-1]], "region": self._regions[-1], "facts": facts}
        end = self.now + cost.seconds(slices, steps)
        self.events.append(launch(self.now, end, name, **where))
        self.now = end


class Phi:
    """A step that costs what it costs."""

    batch_invariant = True

    def __init__(self, cost, runtime):
        self.cost, self.runtime = cost, runtime
        if cost.fused:
            self.relax = self._relax

    def step(self, u, points):
        self.runtime.launch("Phi", self.cost, len(u), 1)
        return u

    def _relax(self, u, points, m, out, **_):
        self.runtime.launch("relax_rk", self.cost, len(u), m)


def written(cost):
    """The record of a parareal solve on one processor whose every step costs ``cost``, to the last digit."""
    runtime = Written()
    prediction._run_parareal(TimeGrid(0.0, 1.0, STEPS), [Phi(cost, runtime)] * 2, M, K, runtime)
    facts = {"slices": STEPS // M, "m": M, "levels": 2, "grid_steps": STEPS, "mode": "eager"}
    return record(*runtime.events, solves=[solve(0.0, runtime.now, "parareal", K, **facts)])


@pytest.mark.parametrize("cost", [FUSED, STEPWISE], ids=["fused", "stepwise"])
def test_costs_are_found_again_and_priced_as_predict_does(cost):
    (found,) = analyse(written(cost)).predicted
    assert found["reason"] is None
    assert found["ratio"] == pytest.approx(1)  # the schedule that is priced is the one that ran
    for level in found["costs"]:
        assert level["fused"] == (cost.fused and level["level"] == 0), "the coarse chain goes link by link"
        parts = (level["call"], level["per_step"], level["per_slice"])
        # Least squares on exact numbers whose condition is at most the ratio of the costs, 20e-6 / 1e-8.
        assert parts == pytest.approx((cost.call, cost.per_step, cost.per_slice), rel=1e-9)
    grid = TimeGrid(0.0, 1.0, STEPS)
    for row in found["processors"]:
        expected = prediction.predict(grid, [cost, cost], m=M, iterations=K, processors=row["processors"])
        assert row["seconds"] == pytest.approx(expected.seconds)
        assert row["serial_seconds"] == pytest.approx(cost.seconds(1, STEPS))
    assert [row["processors"] for row in found["processors"]] == [1, 2, 4, 8, 16, 32]
    assert found["serial_wins"] == all(row["speedup"] <= 1 for row in found["processors"])


def calls(*sizes, fused=False):
    """Calls of so many slices and steps that took so long, on the finest level."""
    return [Call(0, "Phi", slices, steps, seconds, fused) for slices, steps, seconds in sizes]


def test_steps_one_by_one_cost_a_call_each():
    """``steps (call + n per_slice)`` of launches that take several."""
    seconds = [(n, m, m * (2e-5 + n * 1e-7)) for n, m in ((32, 8), (4, 8), (1, 1))]
    ((cost, row),) = costs_of(calls(*seconds), 1)
    assert (cost.call, cost.per_slice, cost.per_step) == pytest.approx((2e-5, 1e-7, 0))
    assert row["launches"] == 3


@pytest.mark.parametrize("fused", [True, False])
def test_costs_are_never_negative(fused):
    """More slices that took less: noise, which must not make more processors slower or time run backwards."""
    ((cost, _),) = costs_of(calls((64, 4, 1.0), (1, 4, 2.0), (16, 8, 1.5), fused=fused), 1)
    assert min(cost.call, cost.per_slice, cost.per_step) >= 0
    assert cost.seconds(1, 1) > 0


def test_a_level_costs_what_its_own_calls_took():
    fine, coarse = calls((8, 2, 1.0), (4, 2, 0.6)), [Call(1, "Phi", 1, 1, 5.0, False)]
    (first, _), (second, _) = costs_of([*fine, *coarse], 2)
    assert first.seconds(8, 2) + first.seconds(4, 2) == pytest.approx(1.6)
    assert second.seconds(1, 1) == pytest.approx(5.0)


def test_a_chain_that_came_link_by_link_is_priced_so():
    """Relaxations that are one launch do not make the coarsest chain one."""
    relaxed = calls((16, 8, 1.0), (16, 4, 0.6), fused=True)
    (fine, _), (coarse, _) = costs_of([*relaxed, *[Call(1, "Phi", 1, 1, 0.2, False)] * 9], 2)
    assert (fine.fused, coarse.fused) == (True, False)
    assert coarse.seconds(1, 9) == pytest.approx(9 * 0.2)


def test_changes_are_priced_with_their_own_schedule():
    (found,) = analyse(written(FUSED)).predicted
    changes = {row["change"]: row for row in found["what_if"]}
    grid = TimeGrid(0.0, 1.0, STEPS)
    for m in (4, 16, 32):
        row = changes[f"m = {m} instead of 8"]
        expected = prediction.predict(grid, [FUSED] * 2, m=m, iterations=K, processors=row["processors"])
        assert row["seconds"] == pytest.approx(expected.seconds)
    row = changes["3 levels instead of 2"]
    method = MGRIT(levels=3, nu=0, skip_first_down=True)
    expected = prediction.predict(
        grid, [FUSED] * 3, m=[8, 8], iterations=K, processors=row["processors"], method=method
    )
    assert row["seconds"] == pytest.approx(expected.seconds)
    assert len(changes) == 4, "there is no level to take away"


def test_a_solve_that_really_ran():
    """Not how long it took, but that all of its schedule is in the price: every region of the method has one."""
    problem = problems.model_problem("heat-1d", points=15, steps=256)
    case = problem.arguments(None) | {"m": 4}
    with Recorder() as recorder:
        solution = solved(**case, method=MGRIT(levels=3), on_failure="return")
    (found,) = analyse(recorder.record()).predicted
    assert found["reason"] is None
    assert found["costs"][0]["launches"] > 0
    priced = {row["region"] for row in found["regions"] if row["predicted"]}
    assert {"mgrit.relax.0", "mgrit.relax.1", "mgrit.coarsest.2"} <= priced
    measured = {row["region"] for row in found["regions"] if row["measured"] is not None}
    assert priced <= measured
    seconds = [row["seconds"] for row in found["processors"]]
    assert seconds == sorted(seconds, reverse=True), "free communication: more processors are never slower"
    assert solution.stats.slices == found["processors"][-1]["processors"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"method": "newton"}, "no model"),
        ({"method": "serial"}, "no schedule"),
        ({"mode": "graph"}, "CUDA graph"),
        ({"levels": 1}, "serially"),
        ({"grid_steps": 10**8, "m": 2}, "too many"),
    ],
)
def test_what_is_not_priced_says_why(changed, words):
    made = written(FUSED)
    one = made.solves[0]
    one.method = changed.pop("method", one.method)
    one.facts |= changed
    (found,) = analyse(made).predicted
    assert words in found["reason"]
    assert found["processors"] == []


def test_the_serial_chain_that_was_timed_is_said():
    made = written(FUSED)
    made.about["serial_seconds"] = 0.25
    (told,) = analyse(made).predicted
    assert told["serial_measured"] == 0.25
    assert {row["serial_seconds"] for row in told["processors"] + told["what_if"]} == {0.25}, "no model knows better"
    assert all(row["speedup"] == 0.25 / row["seconds"] for row in told["processors"])
    del made.about["serial_seconds"]
    made.solves.append(solve(10.0, 10.5, "serial", 0, grid_steps=STEPS, fine=7))
    made.solves[0].facts["fine"] = 7
    told = analyse(made).predicted[0]
    assert told["serial_measured"] == told["processors"][0]["serial_seconds"] == 0.5
    for name, best in (("relax_rk", 0.2), ("Python", 0.5)):
        facts = {"shape": [1, 3], "dtype": "float64", "m": STEPS // 2, "steps": STEPS // 2}
        links = [launch(10.0 + n / 4, 10.1 + n / 4, name, level=0, region="serial", facts=facts) for n in range(2)]
        told = analyse(dataclasses.replace(made, events=made.events + links)).predicted[0]
        assert told["serial_measured"] == 0.5
        assert told["processors"][0]["serial_seconds"] == pytest.approx(best), "two launches could be one"
    made.solves[0].facts["fine"] = 8
    assert analyse(made).predicted[0]["serial_measured"] is None, "of another propagator"


def test_a_network_has_the_prices_of_its_pieces():
    pieces = dict.fromkeys(("preprocess", "fine", "coarse"), ((1.0, 2.0),)) | {"head": (0.5, 0.5), "update": 1.0}
    network = {
        "parts": 2, "step_seconds": 12.0, "serial_step_seconds": 7.0, "pieces": pieces,
        "predicted_seconds": {"1": 10.0, "2": 6.0}, "coarse_seconds": {"1": 3.0, "2": 3.0},
    }  # fmt: skip
    (found,) = analyse(record(launch(0, 1), network=network)).predicted
    assert [row["speedup"] for row in found["processors"]] == [0.7, pytest.approx(7 / 6)]
    assert found["processors"][1]["coarse_share"] == 0.5
    assert found["ratio"] == 1.2
    assert not found["serial_wins"]


# The roofline

ROOF = {"device": "cpu", "dtype": "float64", "flops_per_second": 100.0, "bytes_per_second": 10.0, "how": ""}
ROW = {"op": "x", "device": "cpu", "dtype": "float64", "encloses": False, "calls": 2}


@pytest.mark.parametrize(
    ("nbytes", "flops", "seconds", "bound", "fraction", "cached"),
    [(10, 40, 4, "bytes", 0.25, False), (10, 200, 4, "flops", 0.5, False), (80, 8, 4, "bytes", 2.0, True)],
)
def test_points_under_the_roof(nbytes, flops, seconds, bound, fraction, cached):
    row = ROW | {"bytes": nbytes, "flops": flops, "seconds": seconds}
    lower = ROOF | {"threads": 1, "flops_per_second": 1.0, "bytes_per_second": 1.0}
    (point,) = roofline([lower, ROOF | {"threads": 4}], [row])["points"]
    assert (point["bound"], point["fraction"], point["in_caches"]) == (bound, fraction, cached)
    assert point["threads"] == 4, "that of all threads"
    assert point["intensity"] == flops / nbytes


def test_what_is_unknown_is_no_point():
    rows = [ROW | {"bytes": None, "flops": 3, "seconds": 1}, ROW | {"op": "y", "bytes": 1, "flops": None, "seconds": 1}]
    found = roofline([ROOF | {"threads": 1}], rows)
    assert found["points"] == []
    assert found["unknown"] == ["x", "y"]


def test_roofs_are_measured_for_what_ran_and_kept(monkeypatch):
    monkeypatch.setattr(roofs, "threads_in_use", lambda: 2)
    asked = []

    def quick(dtype, threads):
        asked.append((dtype, threads))
        return roofs.Roof(1.0 * threads, 2.0, "said")

    monkeypatch.setattr(roofs, "quick", quick)
    rows = roofs.of_record(record(launch(0, 1, facts={"dtype": "float32"}), launch(1, 2, facts={"dtype": "int64"})))
    assert asked == [("float32", 1), ("float32", 2)]
    assert [(row["threads"], row["flops_per_second"]) for row in rows] == [(1, 1.0), (2, 2.0)]


def test_a_quick_roof_is_measured_once():
    roof = roofs.quick("float32", 1)
    assert roof.flops > 0
    assert roof.bytes > 0
    assert roofs.quick("float32", 1) is roof


def test_the_record_is_not_changed():
    made = written(STEPWISE)
    before = repr(made)
    analyse(made)
    assert repr(made) == before
