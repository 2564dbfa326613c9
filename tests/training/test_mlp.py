# SPDX-License-Identifier: BSD-3-Clause
"""The kernel for small networks: chosen by itself where it fits, the same chain, and bitwise serial."""

import pytest

torch = pytest.importorskip("torch")

from networks import equal, examples, largest, mlp  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.solution import Status  # noqa: E402
from pyparareal.training import SGD, HalfSquaredError, Rules, TrainingRuns, problems  # noqa: E402

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}
DATA = {
    "full": Rules(),
    "serial": Rules(data="serial"),
    "batches": Rules(data="serial", batch=3),
    "injected": Rules(data="injected", batch=5),
}


def make(net=None, data=None, loss=None, **options):
    return TrainingRuns(
        net or mlp(), loss or HalfSquaredError(), data or examples(), **{"steps": 30, "lr": 0.02, **options}
    )


@pytest.mark.parametrize("rules", DATA)
@pytest.mark.parametrize("hidden", ACTIVATIONS)
@pytest.mark.parametrize("last", [None, "sigmoid"])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_chain_of_torch(rules, hidden, last, bias):
    """Every step rounds its sums in another order: 30 steps of weights of order 1 differ by few times 1e-15."""

    def net():
        torch.manual_seed(4)
        layers = [nn.Linear(3, 5, bias), ACTIVATIONS[hidden](), nn.Linear(5, 2, bias)]
        return nn.Sequential(*layers, *([ACTIVATIONS[last]()] if last else [])).double()

    ours, torchs = make(net(), rules=DATA[rules]), make(net(), rules=DATA[rules], fused=False)
    assert ours.why_not_fused == ""
    a, b = ours.serial(), torchs.serial()
    assert (a.path, b.path) == ("fused", "torch")
    assert largest(a.weights, dict(net().state_dict())) > 0
    assert largest(a.weights, b.weights) < 1e-13


@pytest.mark.parametrize("rules", DATA)
def test_coarse_levels_and_windows_too(rules):
    """Cycle by cycle the residuals are those of the other path, to rounding."""
    a, b = (
        make(rules=DATA[rules], window=16, levels=None, max_coarse=3, cycle="F", fused=f).run() for f in (None, False)
    )
    assert a.status is b.status is Status.CONVERGED
    assert a.iterations == b.iterations
    for ours, theirs in zip(a.residuals, b.residuals, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-12)
    assert largest(a.weights, b.weights) < 1e-9


@pytest.mark.parametrize("rules", DATA)
@pytest.mark.parametrize("solver", [{}, {"levels": None, "cycle": "F", "max_coarse": 3}])
def test_full_iterations_are_bitwise_serial_training(rules, solver):
    """Without padded blocks: the kernel's bits do not depend on company. 13 slices are exact in the 7th relaxation."""
    slow = DATA[rules].__class__(**{**DATA[rules].__dict__, "growth": 1.0})
    runs = make(steps=27, rules=slow, lr=0.3, tol=0.0, stagnation=None, divergence=1e300, **solver)
    result, serial = runs.run(), runs.serial()
    assert result.path == "fused"
    assert equal(result.weights, serial.weights)
    assert result.iterations == (7,)
    assert result.residuals[0][-1] == 0 < result.residuals[0][-2]


def test_problems_of_the_paper_use_it():
    for problem in (problems.xor(), problems.adder()):
        for rules in ("solver1", "solver2"):
            assert problem.runs(20, rules=rules, fused=True).why_not_fused == ""


class Own(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 1


def linear(*kinds):
    torch.manual_seed(0)
    return nn.Sequential(*kinds).double()


L = (nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2))
X, Y = examples()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"loss": nn.MSELoss()}, "the loss is MSELoss, not HalfSquaredError"),
        ({"optimiser": "momentum"}, "the optimiser is SGD"),
        ({"optimiser": SGD(weight_decay=0.1)}, "not plain SGD"),
        ({"rules": Rules(data="averaged")}, "the data rule is 'averaged'"),
        ({"rules": Rules(data=lambda level, points, stride: [[0]] * len(points))}, "the data rule is '<lambda>'"),
        ({"net": Own(L[0], nn.Tanh(), L[2]).double()}, "the module is Own, not Sequential"),
        ({"net": linear(L[0], nn.GELU(), L[2])}, "not Linear layers with one activation"),
        ({"net": linear(L[0], L[1], nn.Tanh(), L[2])}, "not Linear layers with one activation"),
        ({"net": linear(L[0], nn.Tanh(), L[1], nn.ReLU(), L[2])}, "different activations: tanh, relu"),
        ({"net": linear(L[0], nn.Tanh(), nn.Linear(5, 2, bias=False))}, "some layers have a bias and some have none"),
        ({"net": linear(L[0], nn.Tanh(), L[1], nn.Tanh(), L[1], nn.Tanh(), L[2])}, "shared or not trained"),
        ({"data": (X[:, None], Y[:, None])}, "inputs and targets are not both"),
    ],
)
def test_what_it_does_not_fit_is_said_and_trained_otherwise(options, said):
    runs = make(**options)
    assert said in runs.why_not_fused
    assert runs.serial().path == "torch"
    with pytest.raises(ValueError, match="fused: got True, but"):
        make(**options, fused=True)


def test_a_loader_in_another_order_is_not_fused():
    pairs, generator = torch.utils.data.TensorDataset(X, Y), torch.Generator().manual_seed(0)
    shuffled = torch.utils.data.DataLoader(pairs, batch_size=4, shuffle=True, generator=generator)
    assert make(data=shuffled, rules="solver2").why_not_fused == "the batches are no ranges of examples"
    assert make(data=torch.utils.data.DataLoader(pairs, batch_size=4), rules="solver2").why_not_fused == ""
