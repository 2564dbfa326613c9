# SPDX-License-Identifier: BSD-3-Clause
"""How a run ended: what never iterated is serial, not converged."""

import pytest

torch = pytest.importorskip("torch")

from networks import equal, examples, largest, mlp  # noqa: E402

from pyparareal.solution import Status  # noqa: E402
from pyparareal.training import TrainingRuns, problems  # noqa: E402


def make(steps, **options):
    return TrainingRuns(mlp(), torch.nn.MSELoss(), examples(), steps=steps, lr=0.05, **options)


@pytest.mark.parametrize(
    ("steps", "options"), [(1, {}), (20, {"levels": 1}), (43, {"window": 8, "m": 4, "levels": None})]
)
def test_windows_of_one_level_are_serial(steps, options):
    runs = make(steps, **options)
    result = runs.run()
    assert set(result.iterations) == {0}
    assert {window.levels for window in result.windows} == {1}
    assert result.status is Status.SERIAL
    assert result.status.ok
    assert result.message == f"{Status.SERIAL.value}; no window has a coarse level"
    assert result.steps_done == steps
    serial = runs.serial()
    if len(result.windows) == 1:
        assert equal(result.weights, serial.weights)
    # Torch's products need not round alike in every window: 43 steps of weights near 1, some roundings each.
    assert largest(result.weights, serial.weights) < 1e-12
    assert serial.message == Status.SERIAL.value


def test_a_last_window_of_one_step_is_named_and_the_rest_converged():
    result = make(33, window=16).run()
    assert [window.levels for window in result.windows] == [2, 2, 1]
    assert result.status is Status.CONVERGED
    assert result.message.endswith("1 of 3 windows have no coarse level: their steps were taken serially")


def test_a_run_of_cycles_says_nothing_of_serial():
    result = make(32, window=16).run()
    assert result.status is Status.CONVERGED
    assert result.message == Status.CONVERGED.value


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: problems.quadratic([]), r"curvatures: got \[\], expected finite numbers above 0, at least one"),
        (lambda: problems.quadratic([1.0, -1.0]), "curvatures: got"),
        (lambda: problems.adder(bits=0), "bits: got 0, expected at least 1"),
        (lambda: problems.adder(bits=40), "bits: got 40, expected at most 31"),
        (lambda: problems.adder(pairs=0), "pairs: got 0"),
        (lambda: problems.digits(hidden=0), "hidden: got 0"),
    ],
)
def test_problems_that_are_none_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
