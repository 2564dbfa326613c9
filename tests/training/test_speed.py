# SPDX-License-Identifier: BSD-3-Clause
"""The paper's count of steps, the prediction for P processors, and what is measured."""

import dataclasses
import math

import pytest

torch = pytest.importorskip("torch")

from pyparareal.runtime.model import StepCost  # noqa: E402
from pyparareal.training import problems, sigma  # noqa: E402
from pyparareal.training import speed as speed_module  # noqa: E402
from pyparareal.training.speed import OWN_STEP, predicted, speed  # noqa: E402


def test_sigma_is_the_papers():
    assert sigma(1, 2, "V") == 17
    assert sigma(3, 4, "V") == 3 * (17 + 16)
    assert sigma(2, 5, "F") == 2 * (17 + 17 + 25)  # sigma_V(1) + sigma_V(2) + sigma_V(3)
    assert sigma(2, 2, "F") == sigma(2, 2, "V")
    # Table 15 of the paper, V-cycles, levels until one has at most 10 steps: its iterations give these speed-ups.
    for steps, iterations, speedup in [
        (100, 4, 0.61),
        (400, 6, 1.17),
        (1600, 8, 2.74),
        (6400, 11, 6.54),
        (12800, 20, 6.60),
    ]:
        levels = problems.xor().runs(steps, levels=None).settings.levels_for(steps)
        assert steps / sigma(iterations, levels, "V") == pytest.approx(speedup, abs=0.005)


@pytest.mark.parametrize(("levels", "cycle"), [(1, "V"), (3, "W")])
def test_sigma_refuses(levels, cycle):
    with pytest.raises(ValueError, match=r"levels|cycle"):
        sigma(1, levels, cycle)


def test_speed_measures_serial_programs_and_predicts_more_from_more_processors():
    runs = problems.xor().runs(100, levels=None, cycle="V", alpha_max=8.0)
    result = runs.run()
    found = speed(runs, result, budget=0.2)
    assert set(found.serial) == {"the same step, one slice", "torch.optim"}
    assert found.serial[found.best_serial] == min(found.serial.values()) > 0
    assert found.measured == found.serial[found.best_serial] / result.seconds
    assert found.sigma == 100 / sigma(result.iterations[0], 5, "V")
    assert [p.processors for p in found.predictions] == [1, 4, 16, 50]
    speedups = [p.speedup for p in found.predictions]
    assert speedups == sorted(speedups)
    assert 0 < speedups[0] < 1  # all the cycles' steps on one processor


@pytest.mark.parametrize("budget", [0, float("nan"), float("inf")])
def test_a_budget_without_an_end_is_refused(budget):
    runs = problems.xor().runs(4)
    with pytest.raises(ValueError, match="budget: got"):
        speed(runs, runs.run(), budget=budget)


def test_nothing_is_predicted_from_a_run_that_failed():
    runs = problems.xor().runs(100, rules="naive", max_iterations=2)
    found = speed(runs, runs.run(), budget=0.05)
    assert found.predictions == ()
    assert math.isnan(found.sigma)


def stubbed(monkeypatch, own, ordinary, driver):
    """Runs and result whose steps take ``own`` s on all levels, torch.optim's ``ordinary``, and ``driver`` s beyond."""
    runs = problems.xor().runs(100, levels=None, cycle="V", alpha_max=8.0)
    result = runs.run()
    levels = result.windows[0].levels
    monkeypatch.setattr(speed_module, "measured_costs", lambda *args, **options: [StepCost(0.0, own)] * levels)
    monkeypatch.setattr(speed_module, "_own_step", lambda runs: own)
    monkeypatch.setattr(speed_module, "_torch_optim", lambda runs: ordinary)
    monkeypatch.setattr(speed_module, "_timed", lambda runs, seconds, budget: (1, seconds))
    alone = predicted(runs, result.windows[0], [1])[0].seconds
    window = dataclasses.replace(result.windows[0], seconds=alone + driver)
    return runs, dataclasses.replace(result, windows=(window,))


@pytest.mark.parametrize(("own", "ordinary"), [(3e-3, 1e-3), (1e-3, 3e-3)])
def test_predicted_and_measured_are_over_the_same_serial_program(monkeypatch, own, ordinary):
    runs, result = stubbed(monkeypatch, own, ordinary, driver=0.5)
    found = speed(runs, result)
    best = 100 * min(own, ordinary)
    assert found.serial == {OWN_STEP: 100 * own, "torch.optim": 100 * ordinary}
    for p in found.predictions:
        assert p.serial_seconds == pytest.approx(best)  # rounding: a product and a quotient
        assert p.speedup == pytest.approx(best / p.seconds)
    assert found.driver == pytest.approx(0.5)
    # The driver alone is between the measured speed-up and that predicted on 1 processor.
    assert best / (result.seconds - found.driver) == pytest.approx(found.predictions[0].speedup)
    assert found.measured < found.predictions[0].speedup


def test_without_driver_overhead_one_processor_is_what_was_measured(monkeypatch):
    runs, result = stubbed(monkeypatch, 3e-3, 1e-3, driver=0.0)
    found = speed(runs, result)
    assert found.predictions[0].speedup == pytest.approx(found.measured)
    assert found.driver == pytest.approx(0.0, abs=1e-12)


def test_no_driver_overhead_is_known_where_one_processor_was_not_predicted(monkeypatch):
    runs, result = stubbed(monkeypatch, 1e-3, 1e-3, driver=0.1)
    assert math.isnan(speed(runs, result, processors=[4]).driver)
