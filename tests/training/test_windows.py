# SPDX-License-Identifier: BSD-3-Clause
"""Windows hand their ends on; what fails is trained serially from its last exact point."""

import math

import pytest

torch = pytest.importorskip("torch")

from networks import equal, examples, largest, mlp  # noqa: E402

from pyparareal.errors import ConvergenceError  # noqa: E402
from pyparareal.solution import Status  # noqa: E402
from pyparareal.training import TrainingRuns, problems  # noqa: E402


def make(steps=60, **options):
    options = {"lr": 0.05, "stagnation": None, **options}
    return TrainingRuns(mlp(), torch.nn.MSELoss(), examples(), steps=steps, **options)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])  # Adam's bias correction counts from the start of the run
@pytest.mark.parametrize("rules", ["solver1", "solver2"])  # and so does the order of the examples
def test_windows_end_at_the_weights_of_serial_training(optimiser, rules):
    runs = make(optimiser=optimiser, lr=0.02, rules=rules, window=16, guess="constant")
    result = runs.run()
    assert [window.first for window in result.windows] == [0, 16, 32, 48]
    assert [window.steps for window in result.windows] == [16, 16, 16, 12]
    assert result.status is Status.CONVERGED
    assert result.steps_done == 60
    assert largest(result.weights, runs.serial().weights) < 1e-7  # each window adds its tolerance, 4e-9


def test_windows_are_bitwise_serial_training_with_full_iterations():
    runs = make(window=16, rules="solver2", tol=0.0, deterministic=True, optimiser="momentum")
    result, serial = runs.run(), runs.serial()
    assert equal(result.weights, serial.weights)
    assert len(result.windows) == 4


def test_a_window_too_short_for_two_levels_is_serial():
    result = make(steps=17, window=16).run()
    assert [window.levels for window in result.windows] == [2, 1]
    assert result.windows[1].steps_per_level == (1,)


def test_an_exact_prefix_ends_the_iteration_early():
    """With the coarse propagator of an exact coarse step, every slice is exact at once: residual zero, whatever tol."""
    runs = make(steps=32, lr=1e-300, tol=0.0, deterministic=True)  # updates below the rounding of the weights
    result = runs.run()
    assert result.status is Status.CONVERGED
    assert result.iterations[0] <= 3 < 32 / 4
    assert result.residuals[0][-1] == 0


# Failures


def test_a_failed_window_is_trained_serially_from_its_last_exact_point():
    """Four cycles of FCF-relaxation make eight slices of two steps exact, and the others are not."""
    options = {"rules": "naive", "lr": 0.5, "max_iterations": 4, "tol": 0.0, "deterministic": True}
    runs = make(steps=60, window=40, **options)
    result, serial = runs.run(), runs.serial()
    first, second = result.windows
    assert result.status is first.status is Status.SERIAL_FALLBACK
    assert first.failure is Status.MAX_ITERATIONS
    assert first.exact == 16
    assert second.status is Status.SERIAL  # what failed once is not tried again
    assert equal(result.weights, serial.weights)
    # 4 cycles of 2 relaxations of 40 steps, one to see what is exact, and the rest.
    assert first.steps_per_level[0] == 4 * 2 * 40 + 40 + 24


def test_stagnation_falls_back_too():
    """The residual of this run grows for some cycles before it falls: with little patience it counts as stagnated."""
    options = {"rules": "solver2", "levels": None, "cycle": "F", "alpha_max": 8.0}
    runs = problems.xor().runs(3200, stagnation=5, **options)
    result, serial = runs.run(), runs.serial()
    assert result.status is Status.SERIAL_FALLBACK
    assert result.windows[0].failure is Status.STAGNATED
    assert equal(result.weights, serial.weights)
    patient = problems.xor().runs(3200, **options).run()
    assert patient.status is Status.CONVERGED
    assert patient.iterations > result.iterations


@pytest.mark.parametrize("on_failure", ["return", "raise"])
def test_other_policies(on_failure):
    runs = make(rules="naive", max_iterations=2, window=30, on_failure=on_failure)
    before = {name: p.detach().clone() for name, p in runs.module.named_parameters()}
    if on_failure == "raise":
        with pytest.raises(ConvergenceError, match="iteration limit") as raised:
            runs.run()
        result = raised.value.solution
    else:
        result = runs.run()
    assert result.status is Status.MAX_ITERATIONS
    assert [window.iterations for window in result.windows] == [2]
    assert result.steps_done == 0
    assert equal(result.weights, before)
    assert equal(dict(runs.module.named_parameters()), before)


def test_an_unstable_learning_rate_is_named():
    """Curvatures up to 4: gradient descent is stable below 0.5, and level 3 would have 0.8."""
    x, y = 2 * torch.eye(2, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    net = torch.nn.Linear(2, 1, bias=False).double()
    loss = lambda prediction, target: 0.5 * (prediction - target).square().sum()  # noqa: E731

    def run(**options):
        runs = TrainingRuns(
            net, loss, (x, y), steps=800, lr=0.1, rules="solver1", levels=None, divergence=10.0, **options
        )
        return runs, runs.run()

    runs, result = run()
    assert result.status is Status.SERIAL_FALLBACK
    assert result.windows[0].failure is Status.DIVERGED
    assert "the residual grew from" in result.message
    assert "learning rates of the levels, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, are unstable" in result.message
    assert "alpha_max" in result.message
    assert result.windows[0].curvature == pytest.approx(4.0)
    assert "is 4, so that gradient descent is stable there below 0.5" in result.message
    assert largest(result.weights, runs.serial().weights) == 0
    assert run(alpha_max=0.2)[1].status is Status.CONVERGED


def test_a_guess_without_a_gradient_is_no_fault_of_the_learning_rate():
    """The norm of the weights has no derivative at zero."""

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.w = torch.nn.Parameter(torch.randn(3, 2, dtype=torch.float64))

        def forward(self, x):
            return x @ (self.w / self.w.norm())

    def run(guess):
        return TrainingRuns(Scaled(), torch.nn.MSELoss(), examples(), steps=20, lr=0.05, guess=guess).run()

    result = run("zeros")
    assert result.status is Status.SERIAL_FALLBACK
    assert "a step from the guess gives NaN or infinity, in the first cycle: set guess='constant'" in result.message
    assert "grew" not in result.message
    assert run("constant").status is Status.CONVERGED


def test_training_that_overflows_is_no_result():
    runs = make(steps=200, lr=100.0)
    before = {name: p.detach().clone() for name, p in runs.module.named_parameters()}
    result = runs.run()
    assert result.status is Status.NON_FINITE
    assert equal(dict(runs.module.named_parameters()), before)


def test_the_message_says_how_far_it_came():
    result = make(rules="naive", max_iterations=3).run()
    assert "steps from 0: the iteration limit was reached" in result.message
    assert math.isfinite(result.seconds)
    assert result.path == "torch"
    assert result.why_not_fused
