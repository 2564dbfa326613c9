# SPDX-License-Identifier: BSD-3-Clause
"""One slice is ``torch.optim``; a coarse step is ``q`` updates with the gradient of the first."""

import pytest

torch = pytest.importorskip("torch")

from networks import examples, mlp  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.training import SGD, Adam, TrainingRuns  # noqa: E402
from pyparareal.training.optimisers import NAMES, find  # noqa: E402
from pyparareal.training.speed import torch_optimiser  # noqa: E402

STEPS = 25
OWN = {
    "sgd": SGD(),
    "sgd with decay": SGD(weight_decay=0.1),
    "momentum": SGD(momentum=0.9, weight_decay=0.1),
    "nesterov": SGD(momentum=0.8, nesterov=True),
    "adam": Adam(weight_decay=0.1),
    "adamw": Adam(betas=(0.8, 0.99), weight_decay=0.1, decoupled=True),
}


@pytest.mark.parametrize("name", OWN)
def test_one_slice_is_torch_optim(name):
    net, (x, y), loss = mlp(), examples(), torch.nn.MSELoss()
    runs = TrainingRuns(net, loss, (x, y), steps=STEPS, optimiser=OWN[name], lr=0.05)
    ours = runs.serial()

    other = mlp()
    optimiser = torch_optimiser(runs, other)
    for _ in range(STEPS):
        optimiser.zero_grad()
        loss(other(x), y).backward()
        optimiser.step()
    # Weights of order 1; each step rounds a few times, and Adam divides by roots of small moments: 1e3 ulps in all.
    for key, value in other.named_parameters():
        torch.testing.assert_close(ours.weights[key], value.detach(), rtol=0, atol=2e-13)
        torch.testing.assert_close(dict(net.named_parameters())[key], value, rtol=0, atol=2e-13)
        for slot, moments in ours.moments.items():
            torch.testing.assert_close(moments[key], optimiser.state[value][slot], rtol=0, atol=2e-13)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("q", [2, 5])
def test_a_coarse_step_is_q_steps_with_one_gradient(name, q):
    """Exactly so for SGD of any kind; for Adam the moments are, and the weights to the drift of their quotient."""
    own, generator = OWN[name], torch.Generator().manual_seed(0)
    w, g, *moments = (torch.randn(2, 7, generator=generator, dtype=torch.float64) for _ in range(2 + len(own.moments)))
    if isinstance(own, Adam):
        moments = [0.5 * g, g * g]  # as gradients like this one leave them
    count, alpha = torch.full((2, 1), 1e5, dtype=torch.float64), 1e-3  # bias corrections of 1
    if own.weight_decay and not getattr(own, "decoupled", False):
        own = type(own)(**{**own.__dict__, "weight_decay": 0.0})  # L2 decay is part of the gradient, not frozen here

    fine = [w, *moments]
    for j in range(q):
        fine = own.update(fine[0], fine[1:], g, alpha, 1.0, count - q + 1 + j)
    coarse = own.update(w, moments, g, q * alpha, float(q), count)

    for slot, (a, b) in enumerate(zip(fine, coarse, strict=True)):
        # 1e-14: sums of q terms of order 1. Adam's weights: q steps of alpha, whose second moment drifts by q (1 - b2).
        tolerance = alpha * q * q * 0.02 if isinstance(own, Adam) and slot == 0 else 1e-14
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
    assert float((coarse[0] - own.update(w, moments, g, alpha, 1.0, count)[0]).abs().max()) > 0.1 * alpha * q


def test_adams_bound_holds_for_moments_of_gradients_and_bounds_others():
    own, w = Adam(betas=(0.9, 0.999)), torch.zeros(1, 4, dtype=torch.float64)
    moments = [torch.zeros_like(w), torch.zeros_like(w)]
    growing = torch.tensor([[1.0, -1.0, 1e3, 1e-8]], dtype=torch.float64)
    for i in range(60):  # growing gradients come close to the bound
        before = own._most()
        w, *moments = own.update(w, moments, growing * 1.1**i, 0.1, 1.0, torch.full((1, 1), i + 1.0))
        assert bool((moments[0].abs() <= before * moments[1].sqrt()).all())
    one = torch.ones_like(w)
    moved = own.update(w, [one, -one], 0 * one, 0.1, 1.0, torch.full((1, 1), 10000.0))[0] - w
    # A negative second moment: at most _most() * alpha, not alpha / eps.
    assert float(moved.abs().max()) <= 0.1 * own._most() * 1.01


def test_names_and_torch_optimisers():
    net = mlp()
    assert find("nesterov", 0.1, net, 4) == (NAMES["nesterov"], 0.1)
    assert find(torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.5), None, net, 4) == (SGD(momentum=0.5), 0.2)
    assert find(torch.optim.AdamW(net.parameters(), lr=0.2), None, net, 4) == (
        Adam(weight_decay=0.01, decoupled=True),
        0.2,
    )
    assert find(torch.optim.Adam(net.parameters(), lr=0.2, betas=(0.5, 0.6)), None, net, 4) == (
        Adam(betas=(0.5, 0.6)),
        0.2,
    )


def with_hook(optimiser):
    optimiser.register_step_post_hook(lambda *given: None)
    return optimiser


@pytest.mark.parametrize(
    ("make", "lr", "error", "said"),
    [
        (lambda p: "rmsprop", 0.1, ValueError, "optimiser: got 'rmsprop', expected one of sgd, momentum"),
        (lambda p: 3, 0.1, TypeError, "optimiser: got int"),
        (lambda p: torch.optim.RMSprop(p), None, ValueError, "optimiser: got RMSprop, expected torch.optim.SGD"),
        (lambda p: torch.optim.SGD(p, lr=0.1, maximize=True), None, ValueError, "maximize"),
        (lambda p: torch.optim.Adam(p, amsgrad=True), None, ValueError, "amsgrad"),
        (lambda p: torch.optim.SGD([{"params": [q]} for q in p], lr=0.1), None, ValueError, "4 groups"),
        (lambda p: with_hook(torch.optim.SGD(p, lr=0.1)), None, ValueError, "SGD with hooks of its step"),
        (lambda p: torch.optim.SGD(p, lr=0.1), 0.1, ValueError, "lr: got 0.1 beside a torch optimiser"),
        (lambda p: "sgd", None, TypeError, "lr: got None, expected a number"),
        (lambda p: "sgd", -1.0, ValueError, "lr: got -1.0"),
        (lambda p: "sgd", "fast", TypeError, "lr: got 'fast', expected a number"),
    ],
)
def test_unknown_optimisers_are_refused(make, lr, error, said):
    with pytest.raises(error, match=said.replace("(", r"\(")):
        TrainingRuns(mlp(), torch.nn.MSELoss(), examples(), steps=4, optimiser=make(list(mlp().parameters())), lr=lr)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda net: net[0].parameters(), "got SGD without 2.weight, 2.bias, expected it over the 4 parameters"),
        (lambda net: mlp().parameters(), "without 0.weight, .* and with 4 that are not the module's"),
        (lambda net: [*net.parameters(), nn.Parameter(torch.zeros(2))], "got SGD with 1 that are not the module's"),
    ],
)
def test_a_torch_optimiser_of_other_parameters_is_refused(make, said):
    net = mlp()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match=said):
        TrainingRuns(net, nn.MSELoss(), examples(), steps=4, optimiser=torch.optim.SGD(make(net), lr=0.1))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_frozen_parameters_may_be_among_a_torch_optimisers():
    """It passes over them, as the runs do."""
    net = mlp()
    net[0].requires_grad_(False)
    for given in (net.parameters(), net[2].parameters()):
        assert find(torch.optim.SGD(given, lr=0.1), None, net, 4) == (SGD(), 0.1)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("lr", [0.0, float("nan"), float("inf")])
def test_a_torch_optimisers_learning_rate_is_checked_like_ours(kind, lr):
    net = mlp()
    own = kind(net.parameters(), lr=0.1)
    own.param_groups[0]["lr"] = lr  # some of torch refuse NaN themselves
    for optimiser, given in ((own, None), ("sgd", lr)):
        with pytest.raises(ValueError, match=f"lr: got {lr}, expected a finite number above 0"):
            TrainingRuns(net, nn.MSELoss(), examples(), steps=4, optimiser=optimiser, lr=given)


@pytest.mark.parametrize("own", [Adam(), Adam(betas=(0.8, 0.99), weight_decay=0.1, decoupled=True)])
@pytest.mark.parametrize("steps", [1, 10, 100])
def test_adam_in_float32_is_torchs_to_rounding(own, steps):
    """The same gradients for both, so that nothing but the rounding of the updates themselves differs.

    Twelve roundings of half an ulp in an update of either (root, its correction, eps, length, product, quotient, and
    twice so), two in the weights of either for the decay and the sum: ``eps (6 |update| + 2 |w|)`` a step, summed.
    """
    generator, alpha = torch.Generator().manual_seed(2), 1.0
    w = torch.zeros(1, 50)
    moments, bound = [torch.zeros_like(w), torch.zeros_like(w)], torch.zeros_like(w)
    theirs = nn.Parameter(w[0].clone())
    kind = torch.optim.AdamW if own.decoupled else torch.optim.Adam
    optimiser = kind([theirs], lr=alpha, betas=own.betas, eps=own.eps, weight_decay=own.weight_decay)
    for i in range(steps):
        g = torch.randn(w.shape, generator=generator)
        before = w
        w, *moments = own.update(w, moments, g, alpha, 1.0, torch.full((1, 1), i + 1.0))
        theirs.grad = g[0]
        optimiser.step()
        bound += torch.finfo(w.dtype).eps * (6 * (w - before).abs() + 2 * before.abs() + 2 * w.abs())
    assert bool(((w[0] - theirs.detach()).abs() <= bound[0]).all())


@pytest.mark.parametrize(
    ("kind", "wrong", "error", "said"),
    [
        (SGD, {"momentum": "x"}, TypeError, "momentum: got 'x', expected a number of at least 0 and below 1"),
        (SGD, {"momentum": float("nan")}, ValueError, "momentum: got nan"),
        (SGD, {"weight_decay": None}, TypeError, "weight_decay: got None, expected a finite number"),
        (SGD, {"weight_decay": float("inf")}, ValueError, "weight_decay: got inf, expected a finite number"),
        (SGD, {"momentum": 0.9, "nesterov": "yes"}, TypeError, "nesterov: got 'yes', expected True or False"),
        (Adam, {"betas": (0.9,)}, ValueError, r"betas: got \(0.9,\), expected a pair of numbers"),
        (Adam, {"betas": 0.9}, TypeError, "betas: got 0.9, expected a pair of numbers"),
        (Adam, {"betas": (0.9, "x")}, TypeError, "betas: got 'x', expected a number"),
        (Adam, {"betas": (0.9, 1.0)}, ValueError, "betas: got 1.0"),
        (Adam, {"eps": "x"}, TypeError, "eps: got 'x'"),
        (Adam, {"decoupled": 1}, TypeError, "decoupled: got 1, expected True or False"),
    ],
)
def test_what_is_no_option_is_named(kind, wrong, error, said):
    with pytest.raises(error, match=said):
        kind(**wrong)


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"weight_decay": -1}, {"nesterov": True}])
def test_options_of_ours_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SGD(**wrong)
