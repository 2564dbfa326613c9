# SPDX-License-Identifier: BSD-3-Clause
"""More of what :mod:`.planted_steps` has, thought of after the probes were written."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from .chains import (
    dense,
    linear,
    parareal_network,
    planted,
    solve_of,
)

COUNT = [0]


class Counts:
    """A step whose count is its class's."""

    calls = 0

    def __call__(self, u: Any) -> Any:
        Counts.calls += 1
        return 0.9 * u + 1e-3 * (Counts.calls % 7)


@planted("HIDDEN_STATE", slice=0)
def count_of_a_class() -> tuple[Any, ...]:
    return solve_of(Counts())


@planted("HIDDEN_STATE", slice=0)
def count_in_a_global_list() -> tuple[Any, ...]:
    def step(u: Any) -> Any:
        COUNT[0] += 1
        return 0.9 * u + 1e-5 * np.sin(COUNT[0])

    return solve_of(step)


@planted("HIDDEN_STATE", slice=0)
def first_result_kept_by_shape() -> tuple[Any, ...]:
    known: dict[Any, Any] = {}

    def step(u: Any) -> Any:
        if u.shape not in known:
            known[u.shape] = 0.9 * u + 0.1
        return known[u.shape].copy()

    return solve_of(step)


@planted("HIDDEN_STATE", slice=0)
def adaptive_step_size_that_is_remembered() -> tuple[Any, ...]:
    class Adaptive:
        batch_invariant = True
        h = 0.1

        def step(self, u: Any, points: slice) -> Any:
            v = u + self.h * np.cos(u)
            self.h = 0.1 + 0.01 * float(np.abs(v - u).max())
            return v

    return solve_of(Adaptive())


@planted("HIDDEN_STATE", step=2)
def spectral_norm_that_iterates() -> tuple[Any, ...]:
    import torch
    from torch import nn

    block = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
    for vector in block.parametrizations.weight[0].buffers():
        nn.init.normal_(vector)  # far from what the iteration ends in
    return [linear(), linear(), block, linear()], torch.randn(8, 6), {}


@planted("HIDDEN_STATE", "NOT_REPEATABLE", step=1)
def state_of_a_thread() -> tuple[Any, ...]:
    import torch
    from torch import nn

    local = threading.local()

    class Block(nn.Module):
        def forward(self, u: Any) -> Any:
            local.n = getattr(local, "n", 0) + 1
            return u * (1 + 0.01 * local.n)

    return nn.Sequential(linear(), Block(), linear()), torch.randn(8, 6), {}


@planted("UNFIXED_RANDOMNESS", step=2)
def dropout_that_is_always_on() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Always(nn.Module):
        def forward(self, u: Any) -> Any:
            return nn.functional.dropout(u, 0.3)

    net = parareal_network([dense(), dense(), Always(), dense()])
    return net.eval(), torch.randn(8, 6), {}


@planted("UNFIXED_RANDOMNESS", slice=0)
def random_of_a_stored_generator() -> tuple[Any, ...]:
    class Noisy:
        batch_invariant = False

        def __init__(self) -> None:
            self.rng = np.random.default_rng(0)

        def step(self, u: Any, points: slice) -> Any:
            return 0.9 * u + 1e-7 * self.rng.random(u.shape)

    return solve_of(Noisy())


@planted("UNFIXED_RANDOMNESS", slice=0, step=0)
def cell_with_noise() -> tuple[Any, ...]:
    import torch
    from torch import nn

    import pyparareal.nn as pnn

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.RNNCell(3, 4)

        def forward(self, x: Any, h: Any) -> Any:
            return self.cell(x, h) + 1e-3 * torch.rand(4)

    return pnn.Recurrence(Cell()), (torch.randn(20, 2, 3), torch.zeros(2, 4)), {}


@planted("NARROWED_DTYPE", slice=0)
def half_inside_a_float32_solve() -> tuple[Any, ...]:
    step, u0, more = solve_of(lambda u: 0.9 * np.tanh(u.astype(np.float16)).astype(np.float32) + 0.05)
    return step, u0.astype(np.float32), more


@planted("NARROWED_DTYPE", slice=0)
def a_small_term_in_float32() -> tuple[Any, ...]:
    def step(u: Any) -> Any:
        return u + 0.05 * np.cos(u.astype(np.float32)).astype(np.float64)

    return solve_of(step)


@planted("NARROWED_DTYPE", step=1)
def numpy_within_a_block() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Block(nn.Module):
        def forward(self, u: Any) -> Any:
            return torch.from_numpy(np.tanh(u.detach().numpy().astype(np.float32)).astype(np.float64))

    blocks = [linear().double(), Block(), linear().double()]
    return blocks, torch.randn(8, 6).double(), {"gradients": False}


@planted("NARROWED_DTYPE", slice=0, step=0)
def bfloat16_in_a_cell() -> tuple[Any, ...]:
    import torch
    from torch import nn

    import pyparareal.nn as pnn

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(3, 4)

        def forward(self, x: Any, h: Any) -> Any:
            return self.cell(x, h.bfloat16().float())

    return pnn.Recurrence(Cell()), (torch.randn(20, 2, 3), torch.randn(2, 4)), {}


@planted("BATCH_NEIGHBOURS")
def one_scale_for_all_slices() -> tuple[Any, ...]:
    return solve_of(lambda u: u * (1 - 1e-6 * np.linalg.norm(u)))


@planted("BATCH_NEIGHBOURS")
def stops_when_all_have_converged() -> tuple[Any, ...]:
    def step(u: Any) -> Any:
        v = u
        for _ in range(50):
            w = u + 0.3 * np.cos(v)
            if np.abs(w - v).max() < 1e-4:
                return w
            v = w
        return v

    return solve_of(step)


@planted("BATCH_NEIGHBOURS", step=1)
def neighbours_by_a_roll() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Block(nn.Module):
        def forward(self, u: Any) -> Any:
            return u + 0.1 * torch.roll(u, 1, 0)

    return nn.ModuleList([linear(), Block(), linear()]), torch.randn(8, 6), {}
