# SPDX-License-Identifier: BSD-3-Clause
"""Prices of schedules: the steps a solve really takes, times what they cost."""

import itertools
import math
import time

import numpy as np
import pytest
from mgrit_cases import Decay, decay
from test_mgrit_fused import case as heat

from pyparareal import MGRIT, TimeGrid, ops, solve
from pyparareal.prediction import measured_costs, predict
from pyparareal.runtime.model import ModelRuntime, StepCost

COSTS = [StepCost(0.0, 1.0), StepCost(0.0, 0.5), StepCost(0.0, 0.25)]


def weigh(steps):
    return sum(count * cost.per_slice for count, cost in zip(steps, COSTS, strict=False))


@pytest.mark.parametrize("cycle", ["V", "F", "W"])
@pytest.mark.parametrize("options", [{}, {"nu": 0}, {"nu": 2, "skip_first_down": False}, {"nested": True},
                                     {"measure": "end"}, {"coarsest_sweeps": 2}, {"stopping": "jump"}])  # fmt: skip
@pytest.mark.parametrize("levels", [2, 3])
def test_one_processor_takes_every_step_and_many_take_those_that_wait(levels, options, cycle):
    case = decay(steps=131, levels=levels, cycle=cycle, tol=0, max_iterations=3, on_failure="return",
                 stagnation=None, **options)  # fmt: skip
    stats = solve(**case).stats
    filled = 131 % 4  # steps solve takes after the iteration, to reach the end of the grid
    grid, method = case["grid"], case["method"]
    ask = {"m": 4, "iterations": 3, "method": method}
    one = predict(grid, COSTS, processors=1, **ask)
    many = predict(grid, COSTS, processors=grid.steps, **ask)
    assert one.seconds == weigh(stats.steps_per_level) - filled
    assert many.seconds == weigh(stats.critical_steps_per_level) - filled
    assert one.serial_seconds == 131
    assert one.speedup == 131 / one.seconds < 1


def test_parareal_takes_the_steps_of_a_solve():
    case = decay(steps=48, tol=0, on_failure="return")
    stats = solve(**case | {"method": "parareal", "max_iterations": 5}).stats
    priced = [predict(case["grid"], COSTS, m=4, iterations=5, processors=p) for p in (1, 12)]
    assert priced[0].seconds == stats.fine_steps + 0.5 * stats.coarse_steps
    assert priced[1].seconds == stats.critical_fine_steps + 0.5 * stats.critical_coarse_steps


def test_the_slowest_processor_decides():
    # 32 slices on 5 processors: 7 slices each; 32 serial coarse steps; a call costs 3 however many slices it takes.
    grid, costs = TimeGrid(0, 1, 128), [StepCost(3.0, 1.0), StepCost(0.5, 0.0)]
    found = predict(grid, costs, m=4, iterations=1, processors=5, method=MGRIT(nu=0, skip_first_down=False))
    assert found.regions["mgrit.relax.0"] == 4 * (3 + 7)
    assert found.regions["mgrit.restrict.1"] == 0.5
    assert found.regions["mgrit.coarsest.1"] == 32 * 0.5
    assert found.seconds == sum(found.regions.values())
    assert found.serial_seconds == 128 * 4


def test_messages_cost_where_there_is_a_neighbour():
    ask = {"m": 4, "iterations": 2, "method": MGRIT(skip_first_down=False)}
    free, slow = (predict(TimeGrid(0, 1, 64), COSTS, processors=4, message=x, **ask) for x in (0.0, 1000.0))
    # A cycle shifts for each of two F-relaxations and for g of the pair, and exchanges one norm.
    assert slow.seconds - free.seconds == 2 * 4 * 1000
    alone = predict(TimeGrid(0, 1, 64), COSTS, processors=1, message=1000.0, **ask)
    assert alone.seconds == predict(TimeGrid(0, 1, 64), COSTS, processors=1, **ask).seconds


@pytest.mark.parametrize(("m", "levels"), [(16, 2), (4, 3)])
def test_the_known_limit_of_two_level_methods(m, levels):
    # Falgout et al. 2014: with FCF-relaxation two sweeps over a slice per cycle wait, so S <= P / (K (nu + 1)).
    for processors, k in itertools.product((1, 8, 64), (1, 3)):
        method = MGRIT(levels=levels, skip_first_down=False)
        found = predict(TimeGrid(0, 1, 1024), COSTS, m=m, iterations=k, processors=processors, method=method)
        assert found.speedup < processors / (2 * k)


def test_costs_are_measured_with_one_slice_and_with_many():
    class Sleeper:
        batch_invariant = True

        def step(self, u, points):
            time.sleep(0.002 + 0.001 * len(u))
            return u

    (cost,) = measured_costs([Sleeper()], np.zeros((1, 2)), [11], repeats=3)
    # Sleeping takes at least as long as asked for; the linear model has to reproduce both measurements.
    assert cost.seconds(1) >= 0.003
    assert cost.seconds(11) >= 0.013
    assert cost.per_slice > 0
    (single,) = measured_costs([Decay(TimeGrid(0, 1, 4))], np.zeros((1, 2)), [1])
    assert single.per_slice == 0
    assert single.call > 0


@pytest.mark.parametrize("cycle", ["V", "F"])
@pytest.mark.parametrize("nu", [0, 1, 2])
@pytest.mark.parametrize("levels", [2, 3, 4])
def test_a_fused_relaxation_is_priced_as_the_one_call_it_is(levels, nu, cycle, monkeypatch):
    calls = []
    original = ops.relax_tridiagonal
    monkeypatch.setattr(ops, "relax_tridiagonal", lambda *a, **k: calls.append(1) or original(*a, **k))
    method = {"levels": levels, "nu": nu, "cycle": cycle, "nested": True}
    stats = solve(**heat(162, **method) | {"tol": None}, max_iterations=3).stats
    ask = {"grid": TimeGrid(0, 0.1, 162), "m": 3, "iterations": 3, "method": MGRIT(**method), "processors": 1}
    # 162 divides by 3 on all levels but the last, so solve takes no step more than the cycles.
    assert predict(costs=[StepCost(1.0, 0.0, fused=True)] * levels, **ask).seconds == len(calls)
    per_slice = predict(costs=[StepCost(0.0, 1.0, fused=True)] * levels, **ask)
    assert per_slice.seconds == sum(stats.steps_per_level)
    assert per_slice.serial_seconds == 162
    per_step = predict(costs=[StepCost(0.0, 0.0, 1.0, fused=True)] * levels, **ask)
    assert per_step.seconds == sum(stats.critical_steps_per_level)
    everyone = predict(costs=[StepCost(0.0, 1.0, fused=True)] * levels, **ask | {"processors": 162})
    assert everyone.seconds == sum(stats.critical_steps_per_level)
    assert predict(costs=[StepCost(5.0, 0.0, 1.0, fused=True)] * levels, **ask).serial_seconds == 5 + 162


def test_of_a_fused_propagator_relaxations_are_measured():
    given = []

    class Sleeper:
        batch_invariant = fused = True

        def step(self, u, points):
            raise AssertionError("this is not what runs")

        def relax(self, u, points, m, out, f=None, g=None, every=None):
            assert out.shape == u.shape
            for side in (f, g):
                assert side is None or side.shape == (len(u), m, *u.shape[1:])
            given.append((len(u), m, f is not None))
            time.sleep(0.002 + m * (0.001 + 0.0005 * len(u)))

    fine, coarse = measured_costs([Sleeper(), Sleeper()], np.zeros((1, 2)), [5, 1], steps=[4, 3], repeats=1)
    assert given == [(1, 1, False), (1, 4, False), (5, 4, False), (1, 1, True), (1, 3, True)]
    # Sleeping takes at least as long as asked for; the linear model has to reproduce all three measurements.
    for cost, slices, m in ((fine, 1, 1), (fine, 1, 4), (fine, 5, 4), (coarse, 1, 3)):
        assert cost.fused
        assert cost.seconds(slices, m) >= 0.002 + m * (0.001 + 0.0005 * slices) - 1e-9
    assert coarse.per_slice == 0
    with pytest.raises(ValueError, match="steps: got 1, expected at least 2 steps in a call of a fused propagator"):
        measured_costs([Sleeper()], np.zeros((1, 2)), [3], steps=1)


def test_costs_of_kernels():
    fine = heat(48)["fine"]
    costs = measured_costs([fine, fine.rediscretise(4)], np.ones((2, 17)), [12, 1], steps=[4, 12])
    assert all(cost.fused and cost.seconds(12, 4) > 0 for cost in costs)
    stats = predict(fine.grid, costs, m=4, iterations=2, processors=1, method=MGRIT())
    assert 0 < stats.speedup < math.inf


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"processors": 0}, "processors: got 0, expected an integer of at least 1"),
        ({"iterations": -1}, "iterations: got -1"),
        ({"message": -1.0}, "message: got -1.0"),
        ({"message": math.nan}, "message: got nan"),
        ({"method": "newton"}, "method: got 'newton', expected 'parareal', 'mgrit' or MGRIT options"),
        ({"costs": COSTS[:1]}, "costs: got 1, expected one per level"),
        ({"method": MGRIT(levels=4)}, "coarse: got 2 propagators, expected 3"),
        ({"m": 64, "method": "mgrit"}, "m: got 64, which leaves one level"),
    ],
)
def test_wrong_arguments(wrong, match):
    good = {"grid": TimeGrid(0, 1, 64), "costs": COSTS, "m": 4, "iterations": 2, "processors": 4}
    with pytest.raises(ValueError, match=match):
        predict(**good | wrong)


def test_a_model_runtime_is_a_runtime():
    runtime = ModelRuntime(2)
    with runtime.mark("there"):
        runtime.spend(2.0)
    runtime.spend(1.0)
    assert runtime.seconds == {"there": 2.0, "other": 1.0}
    assert runtime.total == 3.0
