# SPDX-License-Identifier: BSD-3-Clause
"""The backward pass differentiates the layers of the forward pass, whatever was done to the network in between."""

import gc

import pytest

torch = pytest.importorskip("torch")

from layer_parallel_nets import ROUNDING, named  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.nn import LayerParallel  # noqa: E402

WIDTH, LAYERS = 4, 8


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)

    def forward(self, u):
        return torch.tanh(self.norm(self.linear(u)))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.drop = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.3)

    def forward(self, u):
        return torch.tanh(self.drop(self.linear(u)))


class Averaging(nn.Module):
    """Its value depends on the buffer that it changes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, u):
        y = torch.tanh(self.linear(u) + self.mean)
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * u.detach().mean(0)
        return y


class Scheduled(nn.Module):
    """Stochastic depth, its rate set from outside."""

    def __init__(self):
        super().__init__()
        self.linear, self.rate = nn.Linear(WIDTH, WIDTH), 0.0

    def forward(self, u):
        y = torch.tanh(self.linear(u))
        return y * torch.bernoulli(torch.full((len(u), 1), 1 - self.rate, dtype=u.dtype)) if self.rate else y


def exact(blocks, **options):
    """A network whose iterations make it the serial one, and that."""
    net = LayerParallel(blocks, h=0.3, m=2, forward=LAYERS, backward=LAYERS, **options)
    return net, net.serial()


def several(block):
    torch.manual_seed(0)
    return [block().double() for _ in range(LAYERS)]


def inputs():
    torch.manual_seed(1)
    return torch.randn(5, WIDTH, dtype=torch.float64)


def same_gradients(net, serial):
    theirs = dict(serial.named_parameters(remove_duplicate=False))
    for name, view in named(net).items():
        assert torch.allclose(view.grad, theirs[name].grad, rtol=ROUNDING, atol=ROUNDING), name


@pytest.mark.parametrize("mixed", [False, True], ids=["stacked", "one by one"])
@pytest.mark.parametrize("block", [Normalised, Masked])
def test_the_mode_is_that_of_the_forward_pass(block, mixed):
    blocks = several(block)
    if mixed:
        blocks[3].register_forward_hook(lambda *_: None)  # sets it apart
    net, serial = exact(blocks)
    values = []
    for one in (net, serial):
        torch.manual_seed(2)
        values.append(one(inputs()))
        one.eval()
        values[-1].square().sum().backward()
        assert not any(part.training for part in one.modules())
    assert torch.allclose(*values, rtol=ROUNDING, atol=ROUNDING)
    same_gradients(net, serial)


def test_buffers_that_layers_change_are_those_of_the_forward_pass():
    net, serial = exact(several(Averaging))
    for one in (net, serial):
        first, second = one(inputs()), one(2 * inputs())
        first.square().sum().backward()
        second.square().sum().backward()
    same_gradients(net, serial)
    for name, t in serial.state_dict().items():
        assert torch.allclose(net.state_dict()[name], t, rtol=ROUNDING, atol=ROUNDING), name


@pytest.mark.parametrize("recompute", [False, True])
def test_statistics_that_others_changed_are_refused_as_torch_does_it(recompute):
    net, _ = exact(several(Normalised), recompute=recompute)
    y = net.eval()(inputs())
    net.train()(inputs())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.square().sum().backward()


@pytest.mark.parametrize("kernels", [False, True])
def test_frozen_weights_that_were_changed_are_refused_as_torch_does_it(kernels):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).double() for _ in range(LAYERS)]
    net, _ = exact([block.requires_grad_(False) for block in blocks], kernels=kernels)
    y = net(inputs().requires_grad_())
    with torch.no_grad():
        net.stack.stacked[0][0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("trained", [False, True])
def test_parameters_for_one_call_are_differentiated_in(trained):
    torch.manual_seed(0)
    acts = (nn.Tanh, nn.ReLU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Tanh)
    net, _ = exact([nn.Sequential(nn.Linear(WIDTH, WIDTH), act()).double() for act in acts])
    net.requires_grad_(trained)
    theta = {name: (1.5 * p.detach()).requires_grad_() for name, p in net.named_parameters()}
    y = torch.func.functional_call(net, theta, (inputs(),))
    found = torch.autograd.grad(y.square().sum(), list(theta.values()))
    with torch.no_grad():
        for name, p in net.requires_grad_().named_parameters():
            p.copy_(theta[name])
    z = net(inputs())
    assert torch.equal(y, z)
    for ours, wanted in zip(found, torch.autograd.grad(z.square().sum(), list(net.parameters())), strict=True):
        assert torch.equal(ours, wanted)


def test_layers_that_are_one_update_their_statistics_one_after_the_other():
    block = several(Normalised)[0]
    net, serial = exact([block] * 6)
    for _ in range(2):
        net(inputs())
        serial(inputs())
    assert int(net.state_dict()["blocks.0.norm.num_batches_tracked"]) == 12
    for name, t in serial.state_dict().items():
        assert torch.allclose(net.state_dict()[name], t, rtol=ROUNDING, atol=ROUNDING), name


def test_layers_that_are_one_and_change_their_value_are_refused():
    net, _ = exact([several(Averaging)[0]] * 6)
    with pytest.raises(ValueError, match=r"blocks.1 \(Averaging\): changes the buffer 'mean', which it shares with"):
        net(inputs())
    assert not net.state_dict()["blocks.0.mean"].any()


@pytest.mark.parametrize("apart", [False, True], ids=["stacked", "one by one"])
def test_chance_that_a_schedule_switches_on_is_the_same_in_all_iterations(apart):
    def value(nu):
        blocks = several(Scheduled)
        if apart:
            for block in blocks:
                block.register_forward_hook(lambda *_: None)
        net, _ = exact(blocks, nu=nu)
        net(inputs())
        for part in net.modules():
            if isinstance(part, Scheduled):
                part.rate = 0.5
        torch.manual_seed(3)
        return net(inputs())

    # Both are exact; with other draws in every iteration they would have nothing in common.
    assert torch.allclose(value(nu=0), value(nu=1), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("mode", ["parallel", "serial"])
@pytest.mark.parametrize("kernels", [False, True])
def test_values_may_be_written_to(kernels, mode):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).double() for _ in range(LAYERS)]
    net, serial = exact(blocks, kernels=kernels, closing=nn.ReLU(inplace=True), mode=mode)
    for one in (net, serial):
        one(inputs()).square().sum().backward()
    same_gradients(net, serial)
    with torch.no_grad():
        y = net(inputs())
    assert y.untyped_storage().nbytes() == y.nbytes  # not the states of all layers


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("block", [Normalised, Masked])
def test_nothing_of_a_pass_is_left_behind(block, checkpointed):
    net, _ = exact(several(block))

    def tensors():
        net.zero_grad()
        u = inputs().requires_grad_()
        y = torch.utils.checkpoint.checkpoint(net, u, use_reentrant=False) if checkpointed else net(u)
        y.sum().backward()
        del u, y
        gc.collect()
        return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())

    tensors()  # blocks are tried, once
    assert tensors() == tensors()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kernels", [False, True])
def test_the_states_are_gone_after_the_backward_pass(kernels, frozen):
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).double() for _ in range(32)]
    net = LayerParallel(blocks, h=0.1, m=4, kernels=kernels).requires_grad_(not frozen)
    u = torch.randn(200, WIDTH, dtype=torch.float64, requires_grad=True)

    def large():
        gc.collect()
        tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
        return {t.untyped_storage().data_ptr() for t in tensors if t.untyped_storage().nbytes() > 2 * u.nbytes}

    before = large()
    y = net(u)
    y.sum().backward()
    assert large() <= before  # while y is still there
