# SPDX-License-Identifier: BSD-3-Clause
"""Sequences of 100,003 steps, batch 1, three numbers: plain loops in float64 that recurrences must reproduce.

The forward loops are written out in NumPy, from the formulas of the cells. Backward, ``lambda[i] = w[i] + J[i+1]^T
lambda[i+1]`` is a loop over the Jacobians of one step at the states of the forward loop; these, and what the lambdas
make of inputs and weights, come from torch's autograd through single cells, all steps as one batch.
"""

import functools

import numpy as np
import torch
from torch import nn

from pyparareal.nn import GRU, LSTM, ImplicitGRU, Recurrence
from pyparareal.nn.recurrent.settings import tolerance_of

LENGTH, INPUTS, HIDDEN = 100_003, 2, 3  # a prime: no chunk divides it
METHODS = {
    "serial": {"method": "serial"},
    "chunks": {"method": "hybrid", "jacobian": "none"},
    "hybrid": {"method": "hybrid", "jacobian": "full"},
    "newton": {"method": "newton", "jacobian": "full"},
    "diagonal": {"method": "newton", "jacobian": "diagonal"},
    "mgrit": {"method": "mgrit", "chunk": 47, "levels": 3, "nu": 1},
    "auto": {"method": "auto"},
}


class Leaky(nn.Module):
    """``h' = 0.9 h + 0.1 tanh(W h + V x)``: a cell that no library has."""

    def __init__(self):
        super().__init__()
        self.own, self.into = nn.Linear(HIDDEN, HIDDEN), nn.Linear(INPUTS, HIDDEN, bias=False)

    def forward(self, x, h):
        return 0.9 * h + 0.1 * torch.tanh(self.own(h) + self.into(x))

    def initial_state(self, batch, dtype, device):
        return torch.zeros(batch, HIDDEN, dtype=dtype, device=device)


def module_of(kind, dtype, **options):
    """A module with weights that are the same numbers for every dtype, and memories of some twenty steps."""
    torch.manual_seed(3)
    if kind == "GRU":
        net = GRU(INPUTS, HIDDEN, **options)
        biases = net.bias_ih_l0, slice(HIDDEN, 2 * HIDDEN)
    elif kind == "LSTM":
        net = LSTM(INPUTS, HIDDEN, **options)
        biases = net.bias_ih_l0, slice(HIDDEN, 2 * HIDDEN)
    elif kind == "ImplicitGRU":
        net = ImplicitGRU(INPUTS, HIDDEN, **options)
        biases = net.cell.bias_ih_l0, slice(HIDDEN, 2 * HIDDEN)
    else:
        return Recurrence(Leaky(), **options).to(dtype)
    with torch.no_grad():
        biases[0][biases[1]] += 2.5  # a gate of about 0.92
    return net.to(dtype)


def cell_of(kind, net):
    """``(x, u) -> u`` for rows of states, float64, from the weights of ``net``."""
    if kind in ("GRU", "LSTM"):
        cell = (nn.GRUCell if kind == "GRU" else nn.LSTMCell)(INPUTS, HIDDEN, dtype=torch.float64)
        for name, weight in net.named_parameters():
            setattr(cell, name.removesuffix("_l0"), weight)
        if kind == "GRU":
            return cell
        return lambda x, u: torch.cat(cell(x, (u[:, :HIDDEN], u[:, HIDDEN:])), 1)
    if kind == "ImplicitGRU":
        return lambda x, u: net.cell(net.cell.project(x), u[:, None])[:, 0]
    return net.cell


def _s(a):
    return 1 / (1 + np.exp(-a))


def _gru(w, x, h):
    a, b = x @ w["weight_ih_l0"].T + w["bias_ih_l0"], w["bias_hh_l0"]
    for now in a:
        own = w["weight_hh_l0"] @ h + b
        r, z = np.split(_s(now[:6] + own[:6]), 2)
        n = np.tanh(now[6:] + r * own[6:])
        h = (1 - z) * n + z * h
        yield h


def _lstm(w, x, u):
    a, (h, c) = x @ w["weight_ih_l0"].T + w["bias_ih_l0"] + w["bias_hh_l0"], np.split(u, 2)
    for now in a:
        gates = now + w["weight_hh_l0"] @ h
        i, f, _, o = np.split(_s(gates), 4)
        c = f * c + i * np.tanh(gates[6:9])
        h = o * np.tanh(c)
        yield np.concatenate([h, c])


def _implicit_gru(w, x, h):
    a, b = x @ w["cell.weight_ih_l0"].T + w["cell.bias_ih_l0"], w["cell.bias_hn_l0"]
    for now in a:
        own = w["cell.weight_hh_l0"] @ h
        r, z = np.split(_s(now[:6] + own[:6]), 2)
        n = np.tanh(now[6:] + r * (own[6:] + b))
        h = (h + (1 - z) * n) / (1 + (1 - z))
        yield h


def _leaky(w, x, h):
    a = x @ w["cell.into.weight"].T + w["cell.own.bias"]
    for now in a:
        h = 0.9 * h + 0.1 * np.tanh(w["cell.own.weight"] @ h + now)
        yield h


LOOPS = {"GRU": _gru, "LSTM": _lstm, "ImplicitGRU": _implicit_gru, "Leaky": _leaky}


@functools.cache
def data(kind, length):
    """Inputs ``[T, 1, inputs]``, an initial state ``[F]``, and factors of the outputs: float32 numbers."""
    generator = torch.Generator().manual_seed(5)
    numbers = functools.partial(torch.randn, generator=generator)
    return numbers(length, 1, INPUTS), 0.5 * numbers(HIDDEN * (1 + (kind == "LSTM"))), numbers(length, 1, HIDDEN)


@functools.cache
def reference(kind, length=LENGTH):
    """Outputs, final state, and the gradients of ``sum(outputs * w)``: of x, the initial state, and the weights."""
    x, u0, w = (t.double() for t in data(kind, length))
    net = module_of(kind, torch.float64)
    weights = {name: p.detach().numpy() for name, p in net.named_parameters()}
    u = torch.from_numpy(np.stack([u0.numpy(), *LOOPS[kind](weights, x[:, 0].numpy(), u0.numpy())]))
    starts, now = u[:-1].clone().requires_grad_(), x[:, 0].clone().requires_grad_()
    ends = cell_of(kind, net)(now, starts)
    assert float((ends.detach() - u[1:]).abs().max()) < 1e-14  # the loop's formula is the cell's, at every step
    rows = [torch.autograd.grad(ends[:, k].sum(), starts, retain_graph=True)[0] for k in range(len(u0))]
    jacobians = torch.stack(rows, 1).numpy()
    into = np.zeros_like(u[1:].numpy())
    into[:, :HIDDEN] = w[:, 0].numpy()
    for i in range(length - 1, 0, -1):
        into[i - 1] += into[i] @ jacobians[i]
    of_weights = torch.autograd.grad(ends, [now, *net.parameters()], torch.from_numpy(into))
    of_u0 = torch.from_numpy(into[0] @ jacobians[0])
    return u[1:, :HIDDEN], u[-1], [of_weights[0], of_u0, *of_weights[1:]]


def found(kind, dtype, options, length=LENGTH):
    """The same by a module, and its report."""
    x, u0, w = (t.to(dtype, copy=True) for t in data(kind, length))
    net, x, u0 = module_of(kind, dtype, **options), x.requires_grad_(), u0.requires_grad_()
    if kind == "LSTM":
        outputs, ends = net(x, tuple(part[None, None] for part in u0.chunk(2)))
        last = torch.cat(ends, -1).flatten()
    else:
        outputs, last = net(x, u0[None] if kind == "Leaky" else u0[None, None])
        last = last.flatten()
    gradients = torch.autograd.grad((outputs * w).sum(), [x, u0, *net.parameters()])
    report = net.report[0] if isinstance(net.report, list) else net.report
    return outputs[:, 0].detach(), last.detach(), [gradients[0][:, 0], *gradients[1:]], report


def tolerance(dtype):
    """Relative to the largest number of a tensor.

    A residual of ``eps^(3/4)`` between chunks, or of rounding in every step, is what errors are made of, and each step
    keeps 0.95 of them: 20 times that, and as much again for gates that stay near 1 for a while.
    """
    return 40 * tolerance_of(dtype)


def check(kind, dtype, options, length=LENGTH):
    """Values and gradients; those of weights are sums over all steps, and as exact as the states and lambdas they use.

    Twice as many factors with errors: the states, at which derivatives are taken, and the lambdas.
    """
    *got, report = found(kind, dtype, options, length)
    outputs, last, gradients = reference(kind, length)
    most = tolerance(dtype)
    for one, right in ((got[0], outputs), (got[1], last)):
        assert _error(one, right) < most
    for one, right in zip(got[2], gradients, strict=True):
        assert _error(one, right) < 4 * most
    return report


def _error(got, right):
    return float((got.double() - right).abs().max() / right.abs().max())
