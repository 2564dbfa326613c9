# SPDX-License-Identifier: BSD-3-Clause
"""Gradients of recurrences where they could be wrong in silence: windows, failures, writing in place; and leaks."""

import gc

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from gru_cases import agree, layers, results, tolerance  # noqa: E402
from recurrence_cells import cells, largest_error, loop  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal import Adjoint, ConvergenceError  # noqa: E402
from pyparareal.nn import GRU, LSTM, Recurrence  # noqa: E402
from pyparareal.solution import Status  # noqa: E402

WAYS = {
    "chunks": {"method": "hybrid", "jacobian": "none"},
    "mgrit": {"method": "mgrit"},
    "newton": {"method": "newton", "jacobian": "diagonal"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_windows_of_layers_have_the_gradients_of_the_whole(kind, way):
    # The gates are computed from the input and the weights; every window has its own part of them.
    ours, theirs = layers(kind, 3, 4, 2, own=WAYS[way] | {"memory": 5000})
    x = torch.randn(37, 2, 3, dtype=torch.float64, requires_grad=True)
    got = results(ours, x)
    assert all(report.windows > 2 for report in ours.report)
    agree(got, results(theirs, x), tolerance(torch.float64))


@pytest.mark.parametrize("way", WAYS)
def test_a_backward_pass_that_fails_falls_back_as_the_forward_pass_does(way):
    # One iteration is too few for 1e-13: on_failure of the settings holds where the backward pass has none of its own.
    cell, inputs, h = cells(torch.float64)["gru"]
    x = inputs(60)
    w = torch.randn(60, 2, 5, dtype=torch.float64)
    expected = torch.autograd.grad((loop(cell, x, h)[0][0] * w).sum(), [x, h, *cell.parameters()])
    options = WAYS[way] | {"chunk": 4, "warm_up": 0, "backward": Adjoint(tol=1e-13, max_iterations=1)}
    net = Recurrence(cell, **options)
    states, _ = net(x, h)
    assert net.report.status is Status.CONVERGED
    loss = (states * w).sum()
    what = "one chunk after the other instead" if way == "chunks" else f"backward pass by {way} failed: .* serially"
    with pytest.warns(RuntimeWarning, match=what) as told:
        got = torch.autograd.grad(loss, [x, h, *cell.parameters()])
    assert len(told) == 1
    assert net.report.backward[-1].status is Status.SERIAL_FALLBACK
    assert largest_error(got, expected) < 1e-10  # of the states: 60 steps to eps^(3/4) = 2e-12
    states, _ = Recurrence(cell, **options, on_failure="raise")(x, h)
    with pytest.raises(ConvergenceError):
        states.sum().backward()


@pytest.mark.parametrize("way", WAYS)
def test_inputs_written_to_before_the_backward_pass_are_refused(way):
    # Steps are taken again in the backward pass. torch looks by itself only at inputs that need a gradient.
    cell = nn.GRUCell(3, 4)
    x = torch.randn(40, 2, 3)
    states, _ = Recurrence(cell, **WAYS[way])(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        states.sum().backward()


@pytest.mark.parametrize("way", WAYS)
def test_frozen_weights_written_to_before_the_backward_pass_are_refused(way):
    cell = nn.GRUCell(3, 4).requires_grad_(False)
    x = torch.randn(40, 2, 3, requires_grad=True)
    states, _ = Recurrence(cell, **WAYS[way])(x)
    cell.weight_hh.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        states.sum().backward()


class Leaky(nn.Module):
    """A leaky cell whose rate is a buffer, and which counts its calls in another one."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(3, 4)
        self.register_buffer("rate", torch.full((4,), 0.5))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, h):
        self.calls += 1
        return h * self.rate + torch.tanh(self.into(x))


@pytest.mark.parametrize("way", WAYS)
def test_buffers_written_to_before_the_backward_pass_are_refused(way):
    # But for those that the cell writes to itself, which do not change what it returns: that is looked at by its calls.
    x, h, cell = torch.randn(40, 2, 3), torch.zeros(2, 4), Leaky()
    first, _ = Recurrence(cell, **WAYS[way])(x, h)
    Recurrence(cell, **WAYS[way])(x, h)
    first.sum().backward()
    second, _ = Recurrence(cell, **WAYS[way])(x, h)
    cell.rate.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        second.sum().backward()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [GRU, LSTM, Recurrence])
def test_second_derivatives_are_refused_whatever_comes_in(kind, way):
    # The gradient of a sum is a constant, for which torch takes what comes out to be one too.
    net = Recurrence(nn.GRUCell(3, 4), **WAYS[way]) if kind is Recurrence else kind(3, 4, **WAYS[way])
    x = torch.randn(40, 2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x)[0].sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        (gradient**2).sum().backward()


# Leaks


@pytest.fixture
def few_objects():
    """What is there already is left out of collections, which take long otherwise."""
    gc.freeze()
    yield
    gc.unfreeze()


def bytes_alive():
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("way", [*WAYS, "auto"])
@pytest.mark.parametrize("kind", [GRU, LSTM, Recurrence])
def test_calls_leave_no_tensors_behind(kind, way, backward, few_objects):
    options = WAYS.get(way, {"method": "auto"})
    net = Recurrence(nn.GRUCell(3, 8), **options) if kind is Recurrence else kind(3, 8, **options)

    def call():
        x = torch.randn(64, 2, 3, requires_grad=True)
        out = net(x)[0]
        if backward:
            out.sum().backward()

    call()  # gradients of the weights, and what the first call keeps once
    before = bytes_alive()
    for _ in range(3):
        call()
    assert bytes_alive() <= before


@pytest.mark.parametrize("way", [*WAYS, "serial"])
def test_hooks_of_tensors_see_the_whole_gradient_once(way):
    # torch.autograd.grad calls the hooks of what it differentiates in: a backward pass made of such calls is one.
    cell, inputs, h = cells(torch.float64)["gru"]
    x, options = inputs(24), WAYS.get(way, {"method": "serial"})
    known = {"x": x, "h": h, **dict(cell.named_parameters())}
    expected = torch.autograd.grad(Recurrence(cell, **options)(x, h)[0].square().sum(), list(known.values()))
    calls = []
    handles = [t.register_hook(lambda g, n=n: calls.append(n) or 2 * g) for n, t in known.items()]
    Recurrence(cell, **options)(x, h)[0].square().sum().backward()
    assert sorted(calls) == sorted(known)
    for tensor, gradient in zip(known.values(), expected, strict=True):
        assert torch.equal(tensor.grad, 2 * gradient)
    for tensor, handle in zip(known.values(), handles, strict=True):
        handle.remove()
        tensor.grad = None
    Recurrence(cell, **options)(x, h)[0].square().sum().backward()
    assert len(calls) == len(known)  # none of them is left behind
