# SPDX-License-Identifier: BSD-3-Clause
"""Residual dense layers inside the module: by kernels where they are for them, and the same network either way."""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from pyparareal.nn import LayerParallel  # noqa: E402
from pyparareal.nn.layer_parallel.block_step import BlockStep  # noqa: E402
from pyparareal.nn.layer_parallel.dense_step import DenseStep, SmoothReLU  # noqa: E402

WIDTH, BATCH = 6, 5
ACTIVATIONS = [nn.Tanh, nn.ReLU, nn.Sigmoid, nn.SiLU, SmoothReLU]


def blocks(layers, activation=nn.Tanh, dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=bias, dtype=dtype), activation()) for _ in range(layers)]


def inputs(dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(BATCH, WIDTH, dtype=dtype)


def gradients(net, x):
    x = x.clone().requires_grad_()
    y = net(x)
    parameters = list(net.parameters())
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *parameters])]


def propagator(net, u):
    return net._propagator(net.stack.frozen(u), u)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"mode": "serial"}, {"forward": 0}, {"backward": 0}, {"buffer": (2, 3)}])
def test_kernels_change_no_more_than_rounding(activation, bias, options):
    net = LayerParallel(blocks(23, activation, bias=bias), h=0.2, m=4, **options)
    assert isinstance(propagator(net, inputs()), DenseStep)
    found = gradients(net, inputs())
    net.kernels = False
    assert isinstance(propagator(net, inputs()), BlockStep)
    for got, by_torch in zip(found, gradients(net, inputs()), strict=True):
        torch.testing.assert_close(got, by_torch, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layers", [24, 26, 27])
def test_full_iterations_are_the_serial_mode_bit_for_bit(dtype, layers):
    """6 slices, two of them final in each cycle, after one that only goes up; and no sooner."""
    net = LayerParallel(blocks(layers, dtype=dtype), h=0.5, m=4, forward=4, backward=4)
    short = LayerParallel(copy.deepcopy(blocks(layers, dtype=dtype)), h=0.5, m=4, forward=3, backward=3)
    found, less = gradients(net, inputs(dtype)), gradients(short, inputs(dtype))
    net.mode = "serial"
    serial = gradients(net, inputs(dtype))
    assert all(torch.equal(got, expected) for got, expected in zip(found, serial, strict=True))
    assert not any(torch.equal(got, expected) for got, expected in zip(less, serial, strict=True))


def test_where_there_is_no_kernel():
    def of(net_blocks, u, **options):
        return type(propagator(LayerParallel(net_blocks, **{"h": 0.1, **options}), u))

    def hooked():
        found = blocks(8)
        for block in found:
            block[1].register_forward_hook(lambda *_: None)
        return found

    u = inputs()
    assert of(blocks(8), u) is DenseStep
    assert of(blocks(8), u.expand(3, BATCH, WIDTH)) is DenseStep
    assert of(blocks(8), u, kernels=False) is BlockStep
    assert of(blocks(8), u, h=None) is BlockStep
    assert of(blocks(8, nn.GELU), u) is BlockStep
    assert of(hooked(), u) is BlockStep
    assert of([*blocks(4), *blocks(4, nn.ReLU)], u) is BlockStep
    assert of(blocks(8, dtype=torch.bfloat16), u.bfloat16()) is BlockStep
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert of(blocks(8, dtype=torch.float32), u.float()) is BlockStep


def test_frozen_and_split_layers_have_the_gradients_they_should():
    """Parameters without ``requires_grad``, and stacked ones in two parts."""
    made = blocks(16)
    for block in made[:8]:
        block.requires_grad_(False)
    net = LayerParallel(made, h=0.3, m=4, forward=4, backward=4)
    u = inputs()
    assert isinstance(propagator(net, u), DenseStep)
    net(u).square().sum().backward()
    serial = net.serial()
    serial(u).square().sum().backward()
    expected = dict(serial.named_parameters())
    own = net.state_dict(keep_vars=True)
    assert set(own) == set(expected)
    parts = [p for p in net.parameters() if p.requires_grad]
    for part in parts:
        rows = [p.grad for p in expected.values() if p.grad is not None and p.shape == part.shape[1:]]
        torch.testing.assert_close(part.grad, torch.stack(rows), rtol=1e-11, atol=1e-11)
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)


def test_kernels_is_true_or_false():
    with pytest.raises(TypeError, match="kernels: got 1, expected True or False"):
        LayerParallel(blocks(4), h=0.1, kernels=1)


@pytest.mark.parametrize("axes", [6, 7, 8])
def test_states_of_many_axes(axes):
    net = LayerParallel(blocks(8), h=0.1, m=2, forward=8, backward=8)
    x = inputs().reshape(BATCH, *[1] * (axes - 2), WIDTH)
    net.mode = "serial"
    serial = net(x)
    net.mode = "parallel"
    assert isinstance(net._propagator(net.stack.frozen(x), x) if axes < 8 else None, DenseStep) == (axes == 6)
    if axes < 8:
        assert torch.allclose(net(x), serial, rtol=1e-13, atol=1e-13)
        return
    with pytest.raises(ValueError, match="u: got 8 axes, expected at most 7 with that of the batch"):
        net(x)


@pytest.mark.parametrize("hook", ["forward_pre", "forward", "full_backward_pre", "full_backward"])
def test_layers_with_hooks_are_called(hook):
    net, calls = LayerParallel(blocks(8), h=0.1, m=2), []
    getattr(net.stack.stacked[0][0], f"register_{hook}_hook")(lambda *_: calls.append(1))
    net(inputs().requires_grad_()).sum().backward()
    assert calls
