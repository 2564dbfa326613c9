# SPDX-License-Identifier: BSD-3-Clause
"""Learning rates that change from step to step: the chain is torch's with that schedule, on every level and path."""

import math

import pytest

torch = pytest.importorskip("torch")

from networks import equal, examples, largest, mlp  # noqa: E402
from torch.optim import lr_scheduler  # noqa: E402

from pyparareal.nn.training_job.checkpoint import CheckpointError  # noqa: E402
from pyparareal.solution import Status  # noqa: E402
from pyparareal.training import HalfSquaredError, TrainingRuns  # noqa: E402
from pyparareal.training.optimisers import NAMES  # noqa: E402
from pyparareal.training.speed import speed  # noqa: E402

STEPS = 30
OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.8, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}
SCHEDULERS = {
    "cosine to 0": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS - 1),
    "warm-up from 0": lambda o: lr_scheduler.LambdaLR(o, lambda i: min(i / 8, 1.0)),
    "steps": lambda o: lr_scheduler.StepLR(o, 7, 0.5),
    "two": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 5), lr_scheduler.ExponentialLR(o, 0.9)], [10]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, 4), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=STEPS, cycle_momentum=False),
}


def make(lr, loss=None, **options):
    options = {"stagnation": None, **options}
    return TrainingRuns(mlp(), loss or torch.nn.MSELoss(), examples(), steps=STEPS, lr=lr, **options)


def falling(step):
    return 0.05 * 0.95**step


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_one_slice_is_torch_with_its_scheduler(optimiser, scheduler):
    """Weights of order 1, 30 steps that round a few times each; and Adam divides by roots of small moments."""
    net, (x, y), loss = mlp(), examples(), torch.nn.MSELoss()
    own = OPTIMISERS[optimiser](net.parameters())
    its = SCHEDULERS[scheduler](own)
    before = own.param_groups[0]["lr"], its.state_dict().get("last_epoch")
    runs = TrainingRuns(net, loss, (x, y), steps=STEPS, optimiser=own, lr=its)
    assert (own.param_groups[0]["lr"], its.state_dict().get("last_epoch")) == before
    assert equal(dict(mlp().named_parameters()), dict(net.named_parameters()))
    ours = runs.serial()

    other = mlp()
    theirs = OPTIMISERS[optimiser](other.parameters())
    schedule = SCHEDULERS[scheduler](theirs)
    for i in range(STEPS):
        theirs.zero_grad()
        loss(other(x), y).backward()
        theirs.step()
        if i + 1 < STEPS:
            schedule.step()
    assert largest(ours.weights, {name: p.detach() for name, p in other.named_parameters()}) < 2e-13


@pytest.mark.parametrize("optimiser", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("window", [None, 12])
@pytest.mark.parametrize("levels", [2, 4])
def test_full_iterations_are_bitwise_serial_training(optimiser, window, levels):
    options = {"optimiser": optimiser, "tol": 0.0, "deterministic": True, "levels": levels, "max_coarse": 2}
    runs = make(falling, window=window, divergence=1e300, **options)
    result, serial = runs.run(), runs.serial()
    assert result.status is Status.CONVERGED
    assert equal(result.weights, serial.weights)
    assert not equal(result.weights, make(0.05, **options).serial().weights)


@pytest.mark.parametrize("data", ["solver1", "solver2"])
@pytest.mark.parametrize("window", [None, 12])
def test_the_kernel_has_the_rate_of_each_step(data, window):
    """Cycle by cycle the other path's residuals, to rounding; and its chain: 30 steps differ by few times 1e-15."""
    options = {"loss": HalfSquaredError(), "rules": data, "window": window, "levels": None, "max_coarse": 3}
    a, b = (make(lambda i: 0.02 / (1 + i), fused=fused, **options) for fused in (True, False))
    assert largest(a.serial().weights, b.serial().weights) < 1e-13
    ours, theirs = a.run(), b.run()
    assert ours.iterations == theirs.iterations
    for mine, other in zip(ours.residuals, theirs.residuals, strict=True):
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-12)


def test_a_coarse_step_has_the_rate_of_its_first_fine_step():
    runs = make(lambda i: float(i % 5), alpha_max=6.0)  # 0 1 2 3 4 0 ...
    step = runs.step.moved(level=1, stride=2, offset=4)
    alpha, q = step.rates_at(torch.arange(4))  # fine steps 4, 6, 8, 10
    assert alpha.tolist() == [6.0, 2.0, 6.0, 0.0]  # twice 4, 1, 3, 0, at most 6
    assert q.tolist() == [1.5, 2.0, 2.0, 2.0]
    fine, one = runs.step.rates_at(torch.tensor([0, 7, 29, 40]))  # behind the last: the last
    assert (fine.tolist(), one) == ([0.0, 2.0, 4.0, 4.0], 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_many_equal_rates_are_one(name):
    """On coarse levels too, to the rounding of one step."""
    own, generator = NAMES[name], torch.Generator().manual_seed(0)
    w, g, *moments = (torch.randn(3, 7, generator=generator, dtype=torch.float64) for _ in range(2 + len(own.moments)))
    moments = [0.5 * g, g * g][: len(moments)]
    count, column = torch.full((3, 1), 9.0, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    for q in (1.0, 2.0, 3.5):
        one = own.update(w, moments, g, 0.01 * q, q, count)
        many = own.update(w, moments, g, 0.01 * q * column, q * column, count)
        for a, b in zip(one, many, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
        single = own.update(w.float(), [v.float() for v in moments], g.float(), 0.01 * q * column, q * column, count)
        assert {part.dtype for part in single} == {torch.float32}


def test_the_rates_shown_are_the_largest():
    runs = make(falling, window=10)
    result = runs.run()
    assert [window.alphas for window in result.windows] == [
        pytest.approx((falling(first), 2 * falling(first))) for first in (0, 10, 20)
    ]
    found = speed(runs, result, budget=0.05)
    assert math.isfinite(found.measured)


def test_a_checkpoint_knows_the_schedule(tmp_path):
    path = tmp_path / "run.npz"
    make(falling).run(checkpoint=path, stop=lambda: True)
    with pytest.raises(CheckpointError, match="of another run, nothing was changed: lr is"):
        make(lambda i: 0.05 * 0.95**i if i < 29 else 0.0).run(checkpoint=path)
    assert equal(make(falling).run(checkpoint=path).weights, make(falling).run().weights)


def plateau(o):
    return lr_scheduler.ReduceLROnPlateau(o)


def stepped(o):
    scheduler = lr_scheduler.StepLR(o, 5)
    o.step()  # without a gradient it does nothing
    scheduler.step()
    return scheduler


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (plateau, "lr: got ReduceLROnPlateau, which waits for a loss; expected a function of the step"),
        (stepped, "lr: got StepLR that has taken 1 steps, expected a new one"),
        (lambda o: SCHEDULERS["steps"](OPTIMISERS["sgd"](mlp().parameters())), "lr: got StepLR of another optimiser"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=STEPS), "OneCycleLR, which changes momentum as well"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=9, cycle_momentum=False), "without a rate for step 10"),
        (lambda o: falling, "lr: got <function falling .* beside a torch optimiser, expected it in one of them, or a"),
        (lambda o: SCHEDULERS["steps"](o) and None, "lr: got SGD with a scheduler of its learning rate; expected lr="),
    ],
)
def test_schedulers_that_no_number_of_a_step_decides_are_refused(scheduler, said):
    net = mlp()
    own = OPTIMISERS["nesterov"](net.parameters())
    with pytest.raises(ValueError, match=said):
        TrainingRuns(net, torch.nn.MSELoss(), examples(), steps=STEPS, optimiser=own, lr=scheduler(own))


@pytest.mark.parametrize(
    ("lr", "error", "said"),
    [
        (lambda i: 0.1 if i < 9 else -0.1, ValueError, "lr: step 9: got -0.1, expected a finite number of at least 0"),
        (lambda i: float("nan"), ValueError, "lr: step 0: got nan"),
        (lambda i: None, TypeError, "lr: step 0: got None, expected a number"),
        (lambda i: 0, ValueError, "lr: got 0 in all steps"),
        (SCHEDULERS["steps"](OPTIMISERS["sgd"](mlp().parameters())), ValueError, "lr: got StepLR, expected it beside"),
    ],
)
def test_what_is_no_learning_rate_is_named(lr, error, said):
    with pytest.raises(error, match=said):
        make(lr)
