# SPDX-License-Identifier: BSD-3-Clause
"""LayerParallel as a module of torch: files, copies, dropout, batch norm, autocast, compilers, foreign tensors."""

import copy
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from layer_parallel_nets import BATCH, ROUNDING, WIDTH, gradients, inputs, named, network  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.nn import LayerParallel  # noqa: E402


def test_names_are_those_of_the_serial_network():
    net = network(9, m=2, buffer=(2, 1))
    serial = net.serial()
    state = net.state_dict()
    assert set(state) == set(serial.state_dict())
    assert "blocks.8.0.weight" in state
    other = network(9, m=2, buffer=(0, 3), seed=5)
    assert other.load_state_dict(serial.state_dict()).missing_keys == []
    for name, value in other.state_dict().items():
        assert torch.equal(value, state[name])
    serial.load_state_dict(other.state_dict())
    outer, whole = nn.Sequential(other), nn.Sequential(serial)
    outer.load_state_dict(whole.state_dict())
    assert set(outer.state_dict()) == set(whole.state_dict())


def test_wrong_names_are_reported():
    net = network(5, m=2, buffer=(1, 0))
    state = net.state_dict()
    state["blocks.7.0.weight"] = state.pop("blocks.3.0.weight")
    with pytest.raises(RuntimeError, match=r"blocks\.3\.0\.weight|blocks\.2\.0\.weight"):
        net.load_state_dict(state)


def test_dropout_and_batch_norm_in_training_are_those_of_the_serial_network():
    torch.manual_seed(3)
    blocks = [
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh(), nn.Dropout(0.3)) for _ in range(12)
    ]
    net = LayerParallel(nn.ModuleList(blocks).double(), h=0.1, m=2, forward=20, backward=20)
    serial = net.serial()
    x = torch.randn(16, WIDTH, dtype=torch.float64)
    found = []
    for one in (net, serial):
        torch.manual_seed(7)
        u = x.clone().requires_grad_()
        one(u).square().sum().backward()
        found.append(u.grad)
    assert float((found[0] - found[1]).norm()) <= 1e3 * ROUNDING  # batch norm divides by deviations of some 0.1
    ours, theirs = net.state_dict(), serial.state_dict()
    for name in theirs:
        assert torch.allclose(ours[name].double(), theirs[name].double(), rtol=1e-9, atol=1e-10), name


class Conditioned(nn.Module):
    """A layer that also depends on a tensor which belongs to nobody."""

    def __init__(self, context):
        super().__init__()
        self.linear, self.context = nn.Linear(WIDTH, WIDTH).double(), context

    def forward(self, u):
        return torch.tanh(self.linear(u) + self.context[0])


def test_gradients_of_tensors_from_elsewhere():
    torch.manual_seed(0)
    source = torch.randn(WIDTH, dtype=torch.float64, requires_grad=True)
    context = [torch.zeros(WIDTH, dtype=torch.float64)]
    net = LayerParallel([Conditioned(context) for _ in range(12)], h=0.1, m=2, forward=20, backward=20)
    serial = net.serial()
    for one in (net.stack, serial):
        for module in one.modules():
            if isinstance(module, Conditioned):
                module.context = context
    context[0] = torch.sin(source)
    x = torch.randn(BATCH, WIDTH, dtype=torch.float64)
    found = [torch.autograd.grad(one(x).square().sum(), source)[0] for one in (net, serial)]
    assert float((found[0] - found[1]).norm()) <= ROUNDING


def test_autocast():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, u):
            return u + 0.1 * torch.tanh(self.linear(u)).float()

    torch.manual_seed(0)
    net = LayerParallel([Residual() for _ in range(12)], m=2, forward=20, backward=20)
    serial, x = net.serial(), torch.randn(BATCH, WIDTH)
    found = []
    for one in (net, serial):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = one(x)
        y.square().sum().backward()
        found.append([y.detach()])
    grads = {n: v.grad for n, v in named(net).items()}
    # bfloat16 products, rounded to 8 bits, a tenth of which is added in each of 12 layers.
    assert float((found[0][0] - found[1][0]).norm() / found[1][0].norm()) < 12 * 0.1 * 2**-8
    for name, p in serial.named_parameters():
        assert float((grads[name] - p.grad).norm() / p.grad.norm()) < 12 * 2**-7


def test_compiled_networks_work():
    torch._dynamo.reset()
    net, x = network(12, m=2), inputs()
    y, expected = gradients(net, x)
    compiled = torch.compile(net, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, about itself
        u = x.clone().requires_grad_()
        found = compiled(u)
        (found.square() * torch.linspace(0.5, 1.5, 2, dtype=found.dtype)).sum().backward()
    torch._dynamo.reset()
    assert torch.equal(found, y)
    assert torch.equal(u.grad, expected["x"])


def test_copies_and_pickles():
    net, x = network(9, m=2), inputs()
    y = net(x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.report is None
        assert torch.equal(other(x), y)
