# SPDX-License-Identifier: BSD-3-Clause
"""The deep networks of the papers train: a few steps of the job's own loop, at full width."""

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from pyparareal.nn.data import Images, Split  # noqa: E402
from pyparareal.nn.training_job import build, device, job, loop  # noqa: E402
from pyparareal.nn.training_job.settings import Settings  # noqa: E402

STEPS = 3


def two_kinds(size):
    """Four images of two classes, bright above or below: what a network that learns can tell apart."""
    x = 0.1 * torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 0, 1])
    for image, label in zip(x, y, strict=True):
        image[:, size // 2 :] += 1.0 - 2.0 * label
    images = Images(x, y)
    return Split(images, images, images, 2)


CASES = [
    ("resnet110", 16, {"parts": 6}),
    ("vgg16", 32, {"parts": 3, "balance": "flops"}),
    ("vgg16_bn", 32, {"part_sizes": (5, 4, 3), "parts": 3}),
]


@pytest.mark.parametrize(("model", "size", "options"), CASES)
def test_it_trains_a_few_steps(model, size, options):
    data = two_kinds(size)
    # One batch is an epoch: a short enough step against its gradient lowers its own loss, whatever the network.
    recipe = {"batch_size": 4, "lr": 1e-3, "momentum": 0.0, "schedule": "constant", "warm_up": 0.0, "augment": "none"}
    settings = Settings(model=model, epochs=STEPS, **recipe, **options)
    with device.reproducible(settings):
        net, identity = build.build("parareal", settings, data)
        before = [p.detach().clone() for p in net.parameters()]
        state = loop.State()
        done = loop.train(
            net,
            loop.make_optimiser(net, settings),
            data,
            settings,
            state,
            save=lambda: None,
            interrupted=lambda: False,
            progress=job._Silent(),
        )
    assert done
    assert len(state.step_seconds) == STEPS
    losses = [row["train_loss"] for row in state.history]
    assert all(a > b for a, b in pairwise(losses))
    assert all(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert sum(identity["partition"]["sizes"]) == {"resnet110": 54}.get(model, 12)
