# SPDX-License-Identifier: BSD-3-Clause
"""LayerParallel when something is wrong: arguments, layers that raise, iterations that fail."""

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from layer_parallel_nets import BATCH, ROUNDING, WIDTH, dense, difference, network  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal import ConvergenceError, Status  # noqa: E402
from pyparareal.nn import LayerParallel  # noqa: E402
from pyparareal.nn.layer_parallel import Policy, Settings  # noqa: E402


class Failing(nn.Module):
    def __init__(self, when):
        super().__init__()
        self.linear, self.when = nn.Linear(WIDTH, WIDTH), when

    def forward(self, u):
        if self.when(u):
            raise KeyError("from the user's layer")
        return torch.tanh(self.linear(u))


@pytest.mark.parametrize("buffer", [(0, 0), (2, 1)])
@pytest.mark.parametrize("mode", ["parallel", "serial"])
@pytest.mark.parametrize("features", [3, 1])
def test_errors_name_the_layer_of_the_network(buffer, mode, features):
    """Also of a layer whose value would broadcast to the state."""
    blocks = dense(8)
    blocks[5] = nn.Linear(WIDTH, features).double()
    net = LayerParallel(blocks, h=0.1, m=2, buffer=buffer, mode=mode)
    expected = rf"^blocks\.5 \(Linear\): returned shape \(5, {features}\), expected \(5, 6\)"
    with pytest.raises(ValueError, match=expected):
        net(torch.randn(BATCH, WIDTH, dtype=torch.float64))


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


def test_tensors_in_two_parts_are_refused_by_name():
    block = nn.Linear(WIDTH, WIDTH)
    with pytest.raises(ValueError, match=r"blocks: got blocks\.1 \(Linear\), which shares 'weight' with blocks\.0"):
        LayerParallel([block] * 8, h=0.1, m=2, buffer=(1, 0))
    with pytest.raises(ValueError, match=r"shares 'weight' with opening, expected no tensor in common between blocks"):
        LayerParallel([block, *dense(4)], h=0.1, m=2, opening=block)


class Steep(nn.Module):
    """``-30 u``: a step of 0.05 damps, one of 0.4 multiplies by -11, and 50 of them overflow in float32."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.full((1,), -30.0))

    def forward(self, u):
        return self.a * u


def steep(**options):
    net = LayerParallel([Steep() for _ in range(400)], h=0.05, m=8, forward=0, backward=1, **options)
    return net, torch.linspace(0.5, 1.0, 6).reshape(2, 3).requires_grad_()


def test_backward_failures_fall_back_with_a_warning():
    net, x = steep()
    y = net(x)
    with pytest.warns(RuntimeWarning, match="backward failed"):
        y.sum().backward()
    (went,) = net.report.backward
    assert went.status is Status.SERIAL_FALLBACK
    assert went.failure is Status.NON_FINITE
    expected = torch.autograd.grad(net.serial()(x).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


def test_backward_failures_are_raised_or_returned_if_asked_for():
    net, x = steep(on_failure="raise")
    with pytest.raises(ConvergenceError, match="adjoint"):
        net(x).sum().backward()
    net, x = steep(on_failure="return")
    y = net(x)
    with pytest.warns(RuntimeWarning, match="the gradients are inexact"):
        y.sum().backward()


def test_losses_that_overflow_pass_through_without_a_word():
    net = network(20, m=4)
    x = torch.ones(BATCH, 3, dtype=torch.float64)
    (net(x) * math.inf).sum().backward()
    assert not all(bool(torch.isfinite(p.grad).all()) for p in net.parameters())


@pytest.mark.parametrize("mode", ["parallel", "serial"])
@pytest.mark.parametrize("u", [None, [1.0], (torch.ones(2, WIDTH),)], ids=str)
def test_what_is_no_tensor_is_refused(u, mode):
    net = LayerParallel(dense(8), h=0.1, m=2, mode=mode)
    with pytest.raises(TypeError, match=f"u: got {type(u).__name__}, expected a tensor"):
        net(u)


def test_a_mode_that_is_none_is_refused_when_it_is_used():
    net = LayerParallel(dense(8), h=0.1, m=2)
    net.mode = "series"
    with pytest.raises(ValueError, match="mode: got 'series', expected one of parallel, serial"):
        net(torch.ones(2, WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("name", ["nu", "omega"])
def test_settings_without_any_number_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: got none, expected one, or one per level"):
        Settings(iterations=2, **{name: []})


def test_options_of_layers_are_a_function():
    with pytest.raises(TypeError, match="options: got dict, expected a callable of the layer and the name"):
        LayerParallel(dense(8)).optim_groups({})


@pytest.mark.parametrize("inside", [False, True], ids=["itself", "in another"])
def test_loading_says_what_it_has_to_say_under_the_names_it_was_given(inside):
    own = LayerParallel(dense(8), h=0.1, m=2, buffer=(2, 1))
    net, prefix = (nn.ModuleDict({"a": own}), "a.") if inside else (own, "")
    state, before = net.state_dict(), net.state_dict()
    for layer in (0, 3, 7):
        del state[f"{prefix}blocks.{layer}.0.bias"]
    state[f"{prefix}blocks.4.0.more"] = torch.ones(2)
    keys = net.load_state_dict(state, strict=False)
    assert keys.missing_keys == [f"{prefix}blocks.{layer}.0.bias" for layer in (0, 3, 7)]
    assert keys.unexpected_keys == [f"{prefix}blocks.4.0.more"]
    bad = {**before, f"{prefix}blocks.7.0.weight": torch.ones(2, 2), f"{prefix}blocks.5.0.bias": 3}
    with pytest.raises(RuntimeError) as caught:
        net.load_state_dict(bad)
    assert f"size mismatch for {prefix}blocks.7.0.weight" in str(caught.value)
    assert f"{prefix}blocks.5.0.bias: got int, expected a tensor" in str(caught.value)
    assert "stack." not in str(caught.value)
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())
