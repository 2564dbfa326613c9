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


def test_refined_networks_are_deeper_and_nearly_the_same():
    # Euler's method with half the step: the difference is of first order in h = 4 / 40.
    net, x = network(40, m=4, buffer=(2, 1), forward=30), inputs()
    finer, finest = net.refine(2), net.refine(4)
    assert (finer.layers, finer.before.layers, finer.after.layers) == (80, 4, 2)
    assert finer.forward_settings == net.forward_settings
    watched = network(12, m=2, policy="adaptive").refine()
    assert watched.policy.batch == 0
    with torch.no_grad():
        y = [one(x) for one in (net, finer, finest)]
    first, second = float((y[1] - y[0]).norm()), float((y[2] - y[1]).norm())
    assert 0 < second < 0.8 * first < 0.2 * float(y[0].norm())
    names = {name for name in finest.state_dict() if name.startswith("blocks.159.")}
    assert names == {"blocks.159.0.weight", "blocks.159.0.bias"}


def test_options_of_layers_for_an_optimiser():
    net = network(9, m=2, buffer=(2, 1))
    groups = net.optim_groups(lambda layer, name: {"weight_decay": 0.1 if name.endswith("weight") else 0.0})
    torch.optim.SGD(groups, lr=0.1)
    ours = [id(p) for group in groups for p in group["params"]]
    assert sorted(ours) == sorted(id(p) for p in net.parameters())
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(p) for name, p in net.named_parameters() if name.endswith("weight")}
    ends = net.optim_groups(lambda layer, name: {"lr": 0.1 if layer is None else 0.01})
    assert {id(p) for group in ends if group["lr"] == 0.1 for p in group["params"]} == {
        id(p) for end in (net.opening, net.closing) for p in end.parameters()
    }
    with pytest.raises(ValueError, match="options: got other ones for layer"):
        net.optim_groups(lambda layer, name: {"lr": 0.1 if layer is None else 0.01 * layer})


def test_tied_layers_and_ends():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()).double()
    net = LayerParallel([block] * 12, h=0.1, m=2, forward=20, backward=20)
    assert len(list(net.parameters())) == 2
    x = torch.randn(BATCH, WIDTH, dtype=torch.float64)
    found = []
    for one in (net, net.serial()):
        found.append(torch.autograd.grad(one(x).square().sum(), list(one.parameters())))
    for got, expected in zip(*found, strict=True):
        assert float((got - expected).norm()) <= 12 * ROUNDING
    opening, closing = nn.Linear(WIDTH, WIDTH).double(), nn.Linear(WIDTH, WIDTH).double()
    closing.weight = opening.weight
    net = LayerParallel([copy.deepcopy(block) for _ in range(4)], h=0.1, m=2, opening=opening, closing=closing)
    own = net.serial()
    assert own.opening.weight is own.closing.weight


@pytest.mark.parametrize("kernels", [True, False])
def test_checkpoints_around_the_network(kernels):
    net, x = network(20, m=4, kernels=kernels), inputs().requires_grad_()
    calls = []
    net.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    first = torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False)
    assert len(calls) == 1
    found = torch.autograd.grad(first.square().sum(), x)[0]
    assert len(calls) == 2
    assert torch.equal(found, torch.autograd.grad(net(x).square().sum(), x)[0])


@pytest.mark.parametrize("kernels", [True, False])
def test_batches_without_rows(kernels):
    net = network(20, m=4, kernels=kernels)
    x = torch.zeros(0, 3, dtype=torch.float64, requires_grad=True)
    y = net(x)
    y.sum().backward()
    assert y.shape == (0, 2)
    assert all(not p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits(dtype):
    net = network(20, m=4, forward=20, backward=20).to(dtype)
    serial, x = net.serial(), inputs().to(dtype)
    y, z = net(x).detach(), serial(x).detach()
    assert y.dtype == dtype
    # 20 layers and two more, each rounded once or twice to 8 or 11 bits.
    assert float((y - z).float().norm() / z.float().norm()) < 44 * torch.finfo(dtype).eps
