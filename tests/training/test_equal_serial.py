# SPDX-License-Identifier: BSD-3-Clause
"""A parallel run ends at the weights of serial training: bitwise with full iterations, else to its tolerance."""

import math

import pytest

torch = pytest.importorskip("torch")

from networks import equal, examples, largest, mlp  # noqa: E402

from pyparareal.solution import Status  # noqa: E402
from pyparareal.training import TrainingRuns, problems  # noqa: E402

OPTIMISERS = {"sgd": 0.5, "momentum": 0.1, "adam": 0.05}
SOLVERS = {"two levels": {}, "F-cycles": {"levels": None, "cycle": "F", "max_coarse": 3}}


def make(optimiser, steps, **options):
    options = {"lr": OPTIMISERS[optimiser], **options}
    return TrainingRuns(mlp(), torch.nn.MSELoss(), examples(), steps=steps, optimiser=optimiser, **options)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_full_iterations_are_bitwise_serial_training(optimiser, solver):
    """FCF-relaxation makes two more C-points exact in every cycle, so the 13th is in the relaxation of cycle 7.

    The naive coarse step with large learning rates is poor enough that none is earlier.
    """
    steps = 27  # an odd number: a trailing step
    options = {"rules": "naive", "tol": 0.0, "deterministic": True, "stagnation": None, "divergence": 1e300}
    runs = make(optimiser, steps, **options, **SOLVERS[solver])
    result, serial = runs.run(), runs.serial()
    assert result.status is Status.CONVERGED
    assert equal(result.weights, serial.weights)
    assert all(equal(result.moments[name], serial.moments[name]) for name in serial.moments)
    assert result.iterations == (7,)
    assert result.residuals[0][-1] == 0 < result.residuals[0][-2]


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("rules", ["solver1", "solver2"])
def test_fewer_iterations_are_serial_training_to_the_tolerance(optimiser, rules):
    """The residual bounds the error by the growth of the chain, here below 1 per step or little more: 100 times."""
    runs = make(optimiser, 120, rules=rules, lr=OPTIMISERS[optimiser] / 10, guess="constant", stagnation=None)
    result = runs.run()
    assert result.status is Status.CONVERGED
    assert 3 <= result.iterations[0] < 30  # exactness alone would take 30
    difference = largest(result.weights, runs.serial().weights)
    assert 0 < difference < 100 * 1e-9 * math.sqrt(120)


def test_float32_has_a_tolerance_it_can_reach():
    net, data = mlp(dtype=torch.float32), examples(dtype=torch.float32)
    runs = TrainingRuns(net, torch.nn.MSELoss(), data, steps=80, lr=0.05)
    result = runs.run()
    assert result.status is Status.CONVERGED
    assert 1e-9 < runs.settings.tol < 1e-5
    assert largest(result.weights, runs.serial().weights) < 100 * runs.settings.tol * math.sqrt(80)


@pytest.mark.slow
def test_digits_reach_the_accuracy_of_serial_training():
    problem = problems.digits()
    runs = problem.runs(100)
    assert runs.run().status is Status.CONVERGED
    found = problem.accuracy()
    runs.serial()
    assert found == problem.accuracy() > 0.5  # a tenth by guessing


def test_the_module_gets_the_weights_and_the_result_loads_them():
    net = mlp()
    result = TrainingRuns(net, torch.nn.MSELoss(), examples(), steps=20, lr=0.1).run()
    assert equal(result.weights, {name: p.detach() for name, p in net.named_parameters()})
    assert not equal(result.weights, dict(mlp().state_dict()))
    other = mlp()
    result.load(other)
    assert equal(result.state_dict(), other.state_dict())
    with pytest.raises(ValueError, match=r"module: got Linear without '0\.weight'"):
        result.load(torch.nn.Linear(1, 1))


def test_a_module_that_does_not_fit_gets_no_weight_at_all():
    result = TrainingRuns(mlp(), torch.nn.MSELoss(), examples(), steps=4, lr=0.1).run()
    narrow = mlp()
    narrow[2] = torch.nn.Linear(5, 3).double()
    for wrong, error, said in [
        (narrow, ValueError, r"module: got 2\.weight float64 \[3, 5\], expected float64 \[2, 5\]"),
        (mlp(dtype=torch.float32), ValueError, r"module: got 0\.weight float32 \[5, 3\], expected float64 \[5, 3\]"),
        (3, TypeError, "module: got int, expected a torch module"),
    ]:
        before = [p.detach().clone() for p in wrong.parameters()] if wrong != 3 else []
        with pytest.raises(error, match=said):
            result.load(wrong)
        assert all(torch.equal(a, b) for a, b in zip(before, wrong.parameters() if before else [], strict=True))


def test_frozen_and_shared_parameters_stay_what_they_are():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.scale = torch.nn.Linear(3, 3), torch.nn.Parameter(torch.ones(2, 3), requires_grad=False)
            self.b, self.c = self.a, torch.nn.Linear(3, 3, bias=False)
            self.c.weight = self.a.weight

        def forward(self, x):
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x))))) @ self.scale.T

    net = Twice().double()
    runs = TrainingRuns(net, torch.nn.MSELoss(), examples(), steps=10, lr=0.1)
    assert list(runs.run().weights) == ["a.weight", "a.bias"]
    assert torch.equal(net.scale, torch.ones(2, 3, dtype=torch.float64))
    twin = Twice().double()
    optimiser = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.1)
    x, y = examples()
    for _ in range(10):
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(twin(x), y).backward()
        optimiser.step()
    assert largest(dict(net.state_dict()), dict(twin.state_dict())) < 1e-8
