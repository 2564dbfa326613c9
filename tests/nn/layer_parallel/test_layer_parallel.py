# SPDX-License-Identifier: BSD-3-Clause
"""LayerParallel is the serial network: values and gradients, for every way to cut it up."""

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from layer_parallel_nets import BATCH, ROUNDING, WIDTH, dense, difference, gradients, inputs, named, network  # noqa: E402

from pyparareal import Status  # noqa: E402
from pyparareal.nn import LayerParallel  # noqa: E402
from pyparareal.nn.layer_parallel import Settings  # noqa: E402

CUTS = [
    {"m": 4},
    {"m": 4, "levels": 3},
    {"m": 2, "levels": None},
    {"m": 3},
    {"m": 7, "nu": 0},
    {"m": 4, "nu": 2, "cycle": "F", "levels": 3},
    {"m": [4, 3], "levels": 3, "cycle": "W"},
    {"m": 4, "guess": "zero"},
    {"m": 4, "buffer": (3, 2)},
    {"m": 4, "recompute": True},
    {"m": 3, "recompute": True, "buffer": (1, 0)},
    {"m": 40},
    {"m": 1000},
    {"m": 2, "levels": 60},
    {"m": 4, "levels": 1},
]


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_enough_iterations_give_the_serial_network_and_its_gradients(cut, kernels):
    net = network(forward=30, backward=30, kernels=kernels, **cut)
    value, gradient = difference(net, net.serial(), inputs())
    assert max(value, gradient) <= ROUNDING
    assert net.report.gradient_error == 0


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("m", [2, 4])
def test_few_layers(layers, m):
    net = network(layers, m=m, forward=10, backward=10)
    assert max(difference(net, net.serial(), inputs())) <= ROUNDING


def test_exact_iterations_and_not_one_fewer():
    # 10 slices; the first iteration is the coarse solve and FCF-relaxation makes two slices exact in each that follows.
    x = inputs()
    errors = []
    for k in range(1, 8):
        net = network(m=4, forward=k, backward=k)
        errors.append(max(difference(net, net.serial(), x)))
    assert all(error > 1e3 * ROUNDING for error in errors[:3])
    assert errors[4] > ROUNDING  # the fifth still misses slices 9 and 10
    assert max(errors[5:]) <= ROUNDING
    assert errors == sorted(errors, reverse=True) or max(errors[5:]) <= ROUNDING


def test_iterations_that_change_nothing_are_left_out():
    net = network(m=4, forward=50, backward=50)
    gradients(net, inputs())
    assert (net.report.forward.iterations, net.report.backward[0].iterations) == (6, 6)
    assert net.report.forward.exact
    assert net.report.backward[0].exact


@pytest.mark.parametrize("tol", [1e-4, 1e-8])
def test_tolerance(tol):
    net = network(m=4, tol=tol)
    value, gradient = difference(net, net.serial(), inputs())
    report = net.report
    assert report.forward.status is report.backward[0].status is Status.CONVERGED
    assert report.forward.residuals[-1] < tol
    assert report.backward[0].residuals[-1] < tol
    # The last change is what the iteration before left, and this one contracted it further.
    assert value < 10 * tol
    assert gradient < 10 * tol


def test_directions_have_settings_of_their_own():
    x = inputs()
    serial = gradients(network().serial(), x)[1]
    exact = network(m=4, forward=30, backward=0)
    only_backward = network(m=4, forward=0, backward=2)
    mixed = network(m=4, forward=Settings(tol=1e-11), backward=Settings(iterations=3, nu=0, levels=3))
    for net in (exact, only_backward, mixed):
        gradients(net, x)
    assert exact.report.backward[0].status is Status.SERIAL
    assert only_backward.report.forward.status is Status.SERIAL
    assert only_backward.report.backward[0].iterations == 2
    assert mixed.report.forward.status is Status.CONVERGED
    assert mixed.report.backward[0].status is Status.FIXED
    assert mixed.report.backward[0].iterations == 3
    assert difference(exact, exact.serial(), x)[1] <= ROUNDING
    # What one direction leaves is its own: with exact states the gradient errs by the adjoint alone, and y not at all.
    y, found = gradients(only_backward, x)
    assert float((y - gradients(network().serial(), x)[0]).norm()) <= ROUNDING
    assert float((found["x"] - serial["x"]).norm()) > 1e-6


def test_one_shot_is_two_forward_and_one_backward():
    net = network(policy="one-shot")
    gradients(net, inputs())
    assert (net.report.forward.iterations, net.report.backward[0].iterations) == (2, 1)
    assert math.isnan(net.report.gradient_error)  # one iteration does not tell


def test_serial_mode_is_autograd_itself():
    net, x = network(m=4, mode="serial", kernels=False), inputs()
    assert difference(net, net.serial(), x) == (0.0, 0.0)
    assert net.report.forward.status is Status.SERIAL
    assert net.report.gradient_error == 0
    net.mode = "parallel"
    net(x)
    assert net.report.forward.iterations == 2


@pytest.mark.parametrize("recompute", [True, False])
def test_states_that_are_kept(recompute):
    kept = []
    net = network(40, m=4, recompute=recompute)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        net(inputs())
    states = [shape[0] for shape in kept if shape[1:] == (BATCH, WIDTH)]
    assert max(states) == (11 if recompute else 41)


def test_without_gradients():
    net, x = network(m=4, forward=30), inputs()
    expected = net.serial()(x)
    with torch.no_grad():
        assert float((net(x) - expected).norm()) <= ROUNDING
    assert net.report.passes == []
    with torch.inference_mode():
        assert float((net(x) - expected).norm()) <= ROUNDING
    net.requires_grad_(False)
    assert not net(x).requires_grad


def test_frozen_layers_and_inputs_that_need_gradients():
    net, x = network(m=4, forward=30, backward=30), inputs().requires_grad_()
    net.requires_grad_(False)
    net(x).sum().backward()
    expected = torch.autograd.grad(net.serial()(x).sum(), x)[0]
    assert float((x.grad - expected).norm()) <= ROUNDING


def test_several_passes_before_one_backward():
    net, x = network(m=4, forward=30, backward=30), inputs()
    a = gradients(net, x)[1]["x"]
    b = gradients(net, 2 * x)[1]["x"]
    scale = torch.linspace(0.5, 1.5, 2, dtype=torch.float64)
    u, v = x.clone().requires_grad_(), (2 * x).requires_grad_()
    (net(u).square() * scale).sum().add((net(v).square() * scale).sum()).backward()
    assert float((u.grad - a).norm()) <= ROUNDING
    assert float((v.grad - b).norm()) <= ROUNDING


def test_used_twice_in_one_graph():
    net = LayerParallel(dense(12), h=0.1, m=2, forward=20, backward=20)
    serial = net.serial()
    x = torch.randn(BATCH, WIDTH, dtype=torch.float64)
    found = []
    for one in (net, serial):
        u = x.clone().requires_grad_()
        one(one(u)).sum().backward()
        found.append(u.grad)
    assert float((found[0] - found[1]).norm()) <= ROUNDING
    theirs = dict(serial.named_parameters())
    for name, view in named(net).items():
        assert float((view.grad - theirs[name].grad).norm()) <= ROUNDING


def test_accumulated_gradients():
    net, x = network(m=4), inputs()
    once = gradients(net, x)[1]
    u = x.clone().requires_grad_()
    net.zero_grad()
    for _ in range(2):
        y = net(u)
        (y.square() * torch.linspace(0.5, 1.5, 2, dtype=torch.float64)).sum().backward()
    for name, view in named(net).items():
        assert torch.allclose(view.grad, 2 * once[name], rtol=1e-13, atol=0)


def test_two_backward_passes_through_one_forward():
    net, x = network(m=4), inputs().requires_grad_()
    y = net(x)
    first = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    second = torch.autograd.grad(y.sum(), x)[0]
    assert torch.equal(first, second)
    assert len(net.report.backward) == 2


def test_second_derivatives_are_refused():
    net, x = network(m=4), inputs().requires_grad_()
    (g,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="not differentiable again"):
        g.sum().backward()


def test_gradcheck():
    net = LayerParallel(dense(7, 2), h=0.3, m=2, forward=20, backward=20)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    theta = list(net.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: net(x), (x, *theta))
