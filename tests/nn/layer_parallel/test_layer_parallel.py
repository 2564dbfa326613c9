# SPDX-License-Identifier: BSD-3-Clause
"""LayerParallel is the serial network: values, gradients and names, for every way to cut it up."""

import copy
import math
import pickle
import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from torch import nn  # noqa: E402

from pyparareal import ConvergenceError, Status  # noqa: E402
from pyparareal.nn import LayerParallel  # noqa: E402
from pyparareal.nn.layer_parallel import Policy, Settings  # noqa: E402

WIDTH, BATCH = 6, 5
# float64; 40 layers whose Jacobians I + h J have norms up to 1.2, sums of 6 products, batched in another order:
# 40 * 1.2^40 * 6 u = 4e-11 in the worst case, for numbers of order 1.
ROUNDING = 4e-11


def dense(layers, width=WIDTH, seed=0):
    torch.manual_seed(seed)
    return [nn.Sequential(nn.Linear(width, width), nn.Tanh()).double() for _ in range(layers)]


def network(layers=40, seed=0, **options):
    blocks = dense(layers, seed=seed)
    ends = {"opening": nn.Linear(3, WIDTH).double(), "closing": nn.Linear(WIDTH, 2).double()}
    return LayerParallel(blocks, **{"h": 4 / max(layers, 4), **ends, **options})


def inputs(seed=1):
    torch.manual_seed(seed)
    return torch.randn(BATCH, 3, dtype=torch.float64)


def gradients(net, x):
    """Of a loss that is not linear, by the names of the serial network; and that of the input."""
    x = x.clone().requires_grad_()
    net.zero_grad()
    y = net(x)
    y.square().mul(torch.linspace(0.5, 1.5, y.shape[-1], dtype=y.dtype)).sum().backward()
    found = {}
    for name, view in named(net).items():
        assert view.grad is not None, name
        found[name] = view.grad
    return y.detach(), found | {"x": x.grad}


class View:
    def __init__(self, grad):
        self.grad = grad


def named(net):
    """Parameters by their serial names, with their part of a stacked gradient."""
    if not isinstance(net, LayerParallel):
        return dict(net.named_parameters())
    found = {n: p for n, p in net.named_parameters() if n.startswith(("opening", "closing"))}
    for home, layers in net._firsts().items():
        stack = getattr(net, home)
        for block, parameter in stack.named_parameters():
            kind, place, *rest = block.split(".")
            if kind == "blocks":
                found[f"blocks.{layers.start + int(place)}.{'.'.join(rest)}"] = parameter
                continue
            for row, layer in enumerate(stack._pieces[int(place)]):
                grad = None if parameter.grad is None else parameter.grad[row]
                found[f"blocks.{layers.start + layer}.{'.'.join(rest)}"] = View(grad)
    return found


def difference(net, other, x):
    """The largest relative differences of values and gradients."""
    (y, ours), (z, theirs) = gradients(net, x), gradients(other, x)
    assert ours.keys() == theirs.keys()
    worst = max(float((ours[n] - g).norm() / (1e-3 + g.norm())) for n, g in theirs.items())
    return float((y - z).norm() / z.norm()), worst


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


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_enough_iterations_give_the_serial_network_and_its_gradients(cut):
    net = network(forward=30, backward=30, **cut)
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
    net, x = network(m=4, mode="serial"), inputs()
    assert difference(net, net.serial(), x) == (0.0, 0.0)
    assert net.report.forward.status is Status.SERIAL
    assert net.report.gradient_error == 0
    net.mode = "parallel"
    net(x)
    assert net.report.forward.iterations == 2


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


class Failing(nn.Module):
    def __init__(self, when):
        super().__init__()
        self.linear, self.when = nn.Linear(WIDTH, WIDTH), when

    def forward(self, u):
        if self.when(u):
            raise KeyError("from the user's layer")
        return torch.tanh(self.linear(u))


def test_exceptions_of_layers_reach_the_caller():
    net = LayerParallel([Failing(lambda u: True) for _ in range(8)], h=0.1, m=2)
    with pytest.raises(KeyError, match="from the user's layer"):
        net(torch.randn(BATCH, WIDTH))


def test_what_is_not_finite_passes_through_as_in_the_serial_network():
    net = network(m=4)
    y = net(torch.full((BATCH, 3), math.nan, dtype=torch.float64))
    assert bool(torch.isnan(y).all())
    y.sum().backward()


class Explodes(nn.Module):
    """Layers that are harmless one by one, and not with a coarse step."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.full((1,), -30.0, dtype=torch.float64))

    def forward(self, u):
        return self.a * u + u**3


def unstable(**options):
    return LayerParallel([Explodes() for _ in range(64)], h=0.05, m=8, forward=3, backward=3, **options)


def test_failures_fall_back_to_the_serial_layers():
    x = torch.ones(2, 1, dtype=torch.float64)
    net = unstable()
    with pytest.warns(RuntimeWarning, match="forward failed"):
        value, gradient = difference(net, net.serial(), x)
    assert max(value, gradient) <= ROUNDING
    assert net.report.forward.status is Status.SERIAL_FALLBACK
    assert net.report.forward.failure is Status.NON_FINITE


def test_failures_are_raised_or_returned_if_asked_for():
    x = torch.ones(2, 1, dtype=torch.float64)
    with pytest.raises(ConvergenceError, match="layer-parallel"):
        unstable(on_failure="raise")(x)
    net = unstable(on_failure="return")
    with pytest.warns(RuntimeWarning, match="used as it is"):
        net(x)
    assert net.report.forward.failure is Status.NON_FINITE


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


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"m": 1}, ValueError, "m: got 1"),
        ({"m": 2.0}, TypeError, "m: got 2.0"),
        ({"m": [2, 2]}, ValueError, "m: got 2 factors"),
        ({"nu": -1}, ValueError, "nu: got -1"),
        ({"cycle": "X"}, ValueError, "cycle: got 'X'"),
        ({"levels": 0}, ValueError, "levels: got 0"),
        ({"guess": "none"}, ValueError, "guess"),
        ({"guess": "input"}, ValueError, "guess"),
        ({"forward": -1}, ValueError, "forward: iterations: got -1"),
        ({"forward": True}, TypeError, "forward: got bool"),
        ({"backward": "two"}, TypeError, "backward: got str"),
        ({"policy": "best"}, ValueError, "policy"),
        ({"policy": "tolerance"}, ValueError, "tol: got None"),
        ({"policy": "fixed", "tol": 0.1}, ValueError, "tol: got 0.1"),
        ({"policy": "tolerance", "tol": -1.0}, ValueError, "tol: got -1.0"),
        ({"policy": Policy(2, 2), "forward": 3}, ValueError, "policy: got one with 2 \\+ 2"),
        ({"policy": "adaptive", "forward": Settings(2, stopping="residual")}, ValueError, "stopping"),
        ({"buffer": 3}, TypeError, "buffer: got 3"),
        ({"buffer": (-1, 0)}, ValueError, "buffer"),
        ({"buffer": (4, 4)}, ValueError, "buffer: got \\(4, 4\\) of 8 layers"),
        ({"opening": 3}, TypeError, "opening: got int"),
        ({"recompute": 1}, TypeError, "recompute: got 1"),
        ({"on_failure": "ignore"}, ValueError, "on_failure"),
        ({"mode": "fast"}, ValueError, "mode"),
        ({"h": 0.0}, ValueError, "h: got 0.0"),
    ],
    ids=str,
)
def test_wrong_arguments(options, error, match):
    with pytest.raises(error, match=match):
        LayerParallel(dense(8), **{"h": 0.1, **options})
