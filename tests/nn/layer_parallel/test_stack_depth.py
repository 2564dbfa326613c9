# SPDX-License-Identifier: BSD-3-Clause
"""Deeper stacks from shallow ones, and options of single layers."""

import math
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from stack_blocks import ConvBlock, dense, inputs, row  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.nn.layer_parallel import Stack  # noqa: E402


class Field(nn.Module):
    """``theta u``: with Euler steps, ``u' = theta(t) u``."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([theta], dtype=torch.float64))

    def forward(self, u):
        return self.theta * u


def test_refined_weights_lie_between():
    stack = Stack([Field(t) for t in (1.0, 2.0, 4.0)], 0.5)
    values = [float(t) for t in stack.refine(2).state_dict().values()]
    assert values == [1.0, 1.5, 2.0, 3.0, 4.0, 4.0]
    values = [float(t) for t in stack.refine(4).state_dict().values()]
    assert values == [1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 4.0, 4.0, 4.0]
    finer = stack.refine(4, interpolation="constant")
    assert [float(t) for t in finer.state_dict().values()] == [1.0] * 4 + [2.0] * 4 + [4.0] * 4
    assert finer.h == 0.125
    assert [float(t) for t in stack.state_dict().values()] == [1.0, 2.0, 4.0]
    assert len(finer) == 12
    assert finer.why_not_stacked is None


@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("constant", 1)])
def test_refined_stacks_converge_to_the_flow(interpolation, order):
    """Euler of ``u' = theta(t) u``, theta as interpolated: the error halves with the step."""
    stack = Stack([Field(t) for t in (0.2, 0.4, 0.6, 0.8)], 0.25)
    u = torch.ones(1, 1, dtype=torch.float64)
    integral = 0.5 if interpolation == "constant" else (0.3 + 0.5 + 0.7 + 0.8) / 4
    exact = math.exp(integral)
    errors = []
    for factor in (4, 8, 16, 32):
        finer = stack.refine(factor, interpolation=interpolation)
        errors.append(abs(finer(u).item() - exact))
    ratios = [a / b for a, b in pairwise(errors)]
    assert all(abs(math.log2(r) - order) < 0.1 for r in ratios)


def test_refining_twice_is_refining_by_four_where_constant():
    stack = Stack(row(dense, 3), 0.5)
    twice = stack.refine(2, interpolation="constant").refine(2, interpolation="constant").state_dict()
    once = stack.refine(4, interpolation="constant").state_dict()
    assert twice.keys() == once.keys()
    assert all(torch.equal(twice[k], once[k]) for k in once)


def test_refined_buffers_and_other_kinds_are_those_of_the_layer_before():
    blocks = [*row(lambda: ConvBlock(lambda: nn.BatchNorm2d(4)), 2), nn.Tanh()]
    with torch.no_grad():
        blocks[0].norm.running_mean.fill_(1)
        blocks[1].norm.running_mean.fill_(3)
    finer = Stack(blocks, 0.5).refine(2)
    state = finer.state_dict()
    assert [float(state[f"blocks.{i}.norm.running_mean"][0]) for i in range(4)] == [1, 1, 3, 3]
    between = (blocks[0].first.weight + blocks[1].first.weight) / 2
    torch.testing.assert_close(state["blocks.1.first.weight"], between.detach(), rtol=1e-15, atol=1e-15)
    assert torch.equal(state["blocks.3.first.weight"], blocks[1].first.weight)
    assert type(finer.layer(5)) is nn.Tanh


@pytest.mark.parametrize(
    ("stack", "options", "error", "message"),
    [
        (lambda: Stack(row(dense, 2)), {}, ValueError, "refine: got a stack without h"),
        (lambda: Stack(row(dense, 1) * 2, 0.5), {}, ValueError, "refine: got blocks that share parameters"),
        (lambda: Stack(row(dense, 2), 0.5), {"factor": 1}, ValueError, "factor: got 1, expected at least 2"),
        (lambda: Stack(row(dense, 2), 0.5), {"factor": 2.0}, TypeError, "factor: got 2.0"),
        (lambda: Stack(row(dense, 2), 0.5), {"interpolation": "cubic"}, ValueError, "one of linear, constant"),
    ],
)
def test_wrong_refinements(stack, options, error, message):
    with pytest.raises(error, match=message):
        stack().refine(**options)


# Options of single layers


def train(make, optimiser_of, steps=5):
    """Some steps on a fixed goal; the state afterwards under serial names."""
    network, groups = make()
    optimiser = optimiser_of(groups)
    x, y = inputs((3, 8), 2)
    for _ in range(steps):
        optimiser.zero_grad()
        if isinstance(network, Stack):
            phi = network.propagator(network.frozen(x))
            u = x[None]
            for i in range(len(network)):
                u = phi.step(u, slice(i, i + 1, 1))
            u = u[0]
        else:
            u = network(x)
        (u - y).square().sum().backward()
        optimiser.step()
    return [t.detach() for t in network.state_dict().values()]


@pytest.mark.parametrize("of", [torch.optim.SGD, torch.optim.AdamW])
def test_options_of_every_layer_as_in_the_serial_network(of):
    def options(layer, name):
        return {"lr": 1e-2 * 0.7**layer, "weight_decay": 0.0 if name.endswith("bias") else 0.1}

    def stacked():
        stack = Stack(row(dense, 5), 0.5).split(lambda layer: layer)
        assert stack.why_not_stacked is None
        assert len(list(stack.parameters())) == 10
        return stack, stack.optim_groups(options)

    def serial():
        network = Stack(row(dense, 5), 0.5).serial()
        groups = [
            {"params": [p], **options(i, name)}
            for i, block in enumerate(network)
            for name, p in block.named_parameters()
        ]
        return network, groups

    # Five steps of an optimiser that divides by the size of gradients: rounding errors of 1e-16 grow to 1e-13 or so.
    for a, b in zip(train(stacked, of), train(serial, of), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_equal_options_share_a_group():
    stack = Stack([*row(dense, 4), nn.PReLU().double()], 0.5)
    groups = stack.optim_groups(lambda layer, name: {"weight_decay": 0.0 if "bias" in name else 0.1})
    assert sorted((g["weight_decay"], len(g["params"])) for g in groups) == [(0.0, 1), (0.1, 2)]
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in stack.parameters())


def test_runs_of_equal_keys_stay_one_parameter_and_one_call():
    blocks = row(dense, 6)
    stack = Stack(blocks, 0.5).split(lambda layer: layer < 2)
    assert [len(p) for p in stack.parameters()] == [2, 2, 4, 4]
    assert stack.h == 0.5
    u, w = inputs((3, 8), 6), inputs((3, 8), 6, seed=2)
    frozen = stack.frozen(u[0])
    assert frozen.stacked["0.weight"].shape == (6, 8, 8)
    stack.propagator(frozen).step(u[1::2], slice(1, 6, 2)).backward(w[1::2])
    (v,) = [p.grad for n, p in stack.named_parameters() if n == "stacked.1.0.weight"]
    (u[3] + 0.5 * blocks[3](u[3])).backward(w[3])
    torch.testing.assert_close(v[1], blocks[3][0].weight.grad, rtol=1e-12, atol=1e-12)
    assert not v[0].any()


@pytest.mark.parametrize("frozen_layers", [0, 2])
def test_parts_in_other_modes_are_run_in_them(frozen_layers):
    """Batch norm of the first layers in eval mode: their statistics are used and stay."""
    stack = Stack(row(lambda: ConvBlock(lambda: nn.BatchNorm2d(4)), 4)).split(lambda layer: layer < 2)
    if frozen_layers:
        stack.stacked[0].eval()
    serial = stack.serial()
    u = inputs((3, 4, 5, 5), 4)
    frozen = stack.frozen(u[0])
    y = stack.propagator(frozen).step(u, slice(0, 4, 1))
    torch.testing.assert_close(y, torch.stack([b(v) for b, v in zip(serial, u, strict=True)]), rtol=1e-12, atol=1e-12)
    frozen.commit(u)
    for (name, a), b in zip(stack.state_dict().items(), serial.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)
    assert [int(n) for k, n in stack.state_dict().items() if "tracked" in k] == [1 - bool(frozen_layers)] * 2 + [1, 1]


def test_options_that_do_not_fit():
    stack = Stack(row(dense, 4), 0.5)
    with pytest.raises(ValueError, match=r"options: got other ones for layer 1 than for layer 0, .*use split\(key\)"):
        stack.optim_groups(lambda layer, name: {"lr": 0.1 * layer})
    with pytest.raises(ValueError, match="options: got 'params'"):
        stack.optim_groups(lambda layer, name: {"params": []})
    with pytest.raises(TypeError, match="key: got int, expected a callable"):
        stack.split(3)
