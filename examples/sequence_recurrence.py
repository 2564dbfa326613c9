# SPDX-License-Identifier: BSD-3-Clause
"""A cell of your own along a long sequence: the loop, and all chunks at once.

Usage: python examples/sequence_recurrence.py [steps]

The cell is a gated unit whose state is a matrix, updated by an outer product, which no library has a kernel for.
"""

import sys
import time

import torch
from torch import nn

from pyparareal.nn import Recurrence


class MatrixMemory(nn.Module):
    """``H' = f H + (1 - f) v k^T``: a forget gate for every row, and what is written, from the input and the state."""

    def __init__(self, inputs, rows, columns):
        super().__init__()
        self.rows, self.columns = rows, columns
        self.write = nn.Linear(inputs + rows, 2 * rows + columns)

    def forward(self, x, h):
        read = h.mean(2)
        gate, value, key = self.write(torch.cat([x, read], 1)).split([self.rows, self.rows, self.columns], 1)
        gate = torch.sigmoid(gate)[:, :, None]
        return gate * h + (1 - gate) * value[:, :, None] * torch.softmax(key, 1)[:, None]

    def initial_state(self, batch, dtype, device):
        return torch.zeros(batch, self.rows, self.columns, dtype=dtype, device=device)


def loop(cell, x, h):
    states = []
    for now in x.unbind(0):
        h = cell(now, h)
        states.append(h)
    return torch.stack(states), h


def timed(work):
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def main(steps):
    torch.manual_seed(0)
    cell, x = MatrixMemory(16, 8, 8), torch.randn(steps, 4, 16)
    h0 = cell.initial_state(4, x.dtype, x.device)
    net = Recurrence(cell)

    def train(solve):
        states, _ = solve(x, h0)
        return torch.autograd.grad(states.square().mean(), list(cell.parameters()))

    train(net)  # measures once, and chooses
    print(net.report)
    print(net.report.reason)
    serial_seconds, serial = timed(lambda: train(lambda x, h: loop(cell, x, h)))
    seconds, found = timed(lambda: train(net))
    error = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(serial, found, strict=True))
    print(f"forward and backward: loop {serial_seconds:.2f} s, recurrence {seconds:.2f} s")
    print(f"gradients differ by {error:.1e} of the largest")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8192)
