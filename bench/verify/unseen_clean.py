# SPDX-License-Identifier: BSD-3-Clause
"""More chains with nothing wrong, thought of after the probes were written."""

from __future__ import annotations

from typing import Any

import numpy as np

from .chains import (
    Forcing,
    clean,
    dense,
    layer_parallel,
    linear,
    parareal_network,
    solve_of,
)

# Nothing wrong


@clean
def steps_that_know_their_slice() -> tuple[Any, ...]:
    return solve_of(Forcing(lambda p: np.arange(p.start, p.stop, p.step) // p.step))


@clean
def oscillating_signs() -> tuple[Any, ...]:
    return solve_of(lambda u: -0.95 * u)


@clean
def settles_at_once() -> tuple[Any, ...]:
    return solve_of(lambda u: 0.0 * u + 0.25)


@clean
def very_large_and_very_small_numbers() -> tuple[Any, ...]:
    step, u0, more = solve_of(lambda u: 0.9 * u)
    return step, u0 * np.array([1e-12, 1e-3, 1.0, 1e6, 1e12]), more


@clean
def counts_its_calls_in_a_hook() -> tuple[Any, ...]:
    import torch
    from torch import nn

    seen: list[Any] = []
    block = nn.Linear(6, 6)
    block.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    return [linear(), block, linear()], torch.randn(8, 6), {}


@clean
def group_norm_and_padding() -> tuple[Any, ...]:
    import torch
    from torch import nn

    block = nn.Sequential(nn.Conv1d(4, 4, 3, padding="same"), nn.GroupNorm(2, 4), nn.SiLU(inplace=True))
    return [block, nn.Conv1d(4, 4, 3, padding=1)], torch.randn(3, 4, 9), {}


@clean
def a_constant_in_float32() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.full((6,), 0.5))

        def forward(self, u: Any) -> Any:
            return u * self.scale.double()

    return [linear().double(), Block()], torch.randn(8, 6).double(), {}


@clean
def a_narrow_statistic_for_the_log() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.last = nn.Linear(6, 6), None

        def forward(self, u: Any) -> Any:
            y = torch.tanh(self.linear(u))
            self.last = y.detach().half().mean()
            return y

    return [dense(), Block()], torch.randn(8, 6), {}


@clean
def frozen_batch_norm() -> tuple[Any, ...]:
    import torch
    from torch import nn

    blocks = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6).eval()) for _ in range(4)]
    return parareal_network(blocks), torch.randn(16, 6), {}


@clean
def parameters_of_zeros_and_ones() -> tuple[Any, ...]:
    import torch
    from torch import nn

    blocks = [nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6)) for _ in range(4)]
    for block in blocks:
        nn.init.zeros_(block[1].weight)
    return layer_parallel(blocks, h=0.5), torch.randn(8, 6), {}


@clean
def a_cell_of_ones_own() -> tuple[Any, ...]:
    import torch
    from torch import nn

    import pyparareal.nn as pnn

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 8)

        def forward(self, x: Any, h: Any) -> Any:
            return 0.5 * h + torch.relu(self.a(x) + 0.3 * self.b(h))

        def initial_state(self, batch: int, dtype: Any, device: Any) -> Any:
            return torch.zeros(batch, 8, dtype=dtype, device=device)

    return pnn.Recurrence(Cell(), method="hybrid"), torch.randn(40, 3, 3), {}


@clean
def rough_steps() -> tuple[Any, ...]:
    return solve_of(lambda u: np.where(u > 0.6, 0.8 * u, u + 0.02 * np.abs(u - 0.5)))


@clean
def gradients_through_relu() -> tuple[Any, ...]:
    import torch
    from torch import nn

    step, _, more = solve_of(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6)), coarse=lambda u: 0.5 * u)
    return step, torch.rand(3, 6), more
