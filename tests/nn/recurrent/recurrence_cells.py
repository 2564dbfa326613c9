# SPDX-License-Identifier: BSD-3-Clause
"""Cells for the tests of recurrences, and the loop that they are compared with."""

import torch
from torch import nn

METHODS = {
    "chunks": {"method": "hybrid", "jacobian": "none"},
    "hybrid": {"method": "hybrid", "jacobian": "full"},
    "newton": {"method": "newton", "jacobian": "full"},
    "diagonal": {"method": "newton", "jacobian": "diagonal"},
    "mgrit": {"method": "mgrit"},
    "auto": {"method": "auto"},
}


class MatrixCell(nn.Module):
    """A cell whose state is a matrix: ``h [rows, 4, 3]``, mixed from the left, driven by the input."""

    def __init__(self, gain=0.3):
        super().__init__()
        self.mix = nn.Parameter(gain * torch.randn(4, 4))
        self.into = nn.Linear(3, 12)

    def forward(self, x, h):
        return torch.tanh(torch.einsum("ij,bjk->bik", self.mix, h) + self.into(x).reshape(-1, 4, 3))

    def initial_state(self, batch, dtype, device):
        return torch.zeros(batch, 4, 3, dtype=dtype, device=device)


class NestedCell(nn.Module):
    """A cell with the state ``(a, (b, c))`` of different shapes, and two inputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3 + 2, 4), nn.Linear(2 + 4, 2)

    def forward(self, x, h):
        (v, w), (a, (b, c)) = x, h
        a = 0.5 * a + torch.tanh(self.a(torch.cat([v, b], 1)))
        b = torch.tanh(self.b(torch.cat([w, a], 1)))
        return a, (b, 0.7 * c + b.sum(1)[:, None, None])

    def initial_state(self, batch, dtype, device):
        a, b, c = (torch.zeros(batch, *shape, dtype=dtype, device=device) for shape in ((4,), (2,), (1, 3)))
        return a, (b, c)


class Logistic(nn.Module):
    """``h -> r h (1 - h) + x``, number by number: chaotic for r = 3.9, and the same bits in any company."""

    def __init__(self, r=3.9):
        super().__init__()
        self.r = nn.Parameter(torch.tensor(r, dtype=torch.float64))

    def forward(self, x, h):
        return self.r * h * (1 - h) + x


class Linear:
    """``u -> a u + b_i`` as a propagator."""

    batch_invariant = True

    def __init__(self, a, b):
        self.a, self.b = a, b

    def step(self, u, points):
        return self.a * u + self.b[points]


def flat(state):
    """The tensors of a state, from left to right."""
    return [state] if isinstance(state, torch.Tensor) else [t for part in state for t in flat(part)]


def loop(cell, x, h):
    """The states after every step, tensor by tensor, and the last one: what a recurrence must reproduce."""
    inputs = zip(*(part.unbind(0) for part in x), strict=True) if isinstance(x, tuple) else x.unbind(0)
    states = []
    for now in inputs:
        h = cell(now, h)
        states.append(flat(h))
    return [torch.stack(parts) for parts in zip(*states, strict=True)], h


def cells(dtype, batch=2):
    """Name -> (cell, inputs of T steps, initial state)."""
    torch.manual_seed(0)

    def numbers(*shape):
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    def one(steps):
        return numbers(steps, batch, 3)

    def two(steps):
        return numbers(steps, batch, 3), numbers(steps, batch, 2)

    return {
        "gru": (nn.GRUCell(3, 5, dtype=dtype), one, numbers(batch, 5)),
        "lstm": (nn.LSTMCell(3, 5, dtype=dtype), one, (numbers(batch, 5), numbers(batch, 5))),
        "rnn": (nn.RNNCell(3, 5, dtype=dtype), one, numbers(batch, 5)),
        "matrix": (MatrixCell().to(dtype), one, numbers(batch, 4, 3)),
        "nested": (NestedCell().to(dtype), two, (numbers(batch, 4), (numbers(batch, 2), numbers(batch, 1, 3)))),
    }


def results(solve, x, h, cell, seed=1):
    """Values and all gradients of a function of every state and of the last one."""
    states, last = solve(x, h)
    values = [*flat(states), *flat(last)]
    generator = torch.Generator().manual_seed(seed)
    loss = sum((v * torch.randn(v.shape, dtype=v.dtype, generator=generator)).sum() for v in values)
    wanted = [t for t in [*flat(x), *flat(h), *cell.parameters()] if t.requires_grad]
    return [v.detach() for v in values], torch.autograd.grad(loss, wanted)


def largest_error(found, expected):
    """Relative to the largest entry of each."""
    return max(
        float((a - b).detach().abs().max()) / max(float(b.detach().abs().max()), 1e-30)
        for a, b in zip(found, expected, strict=True)
    )
