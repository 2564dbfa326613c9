# SPDX-License-Identifier: BSD-3-Clause
"""Steps with a memory, random numbers, a narrow dtype, or an eye on their neighbours."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from .chains import (
    At,
    dense,
    layer_parallel,
    linear,
    parareal_network,
    planted,
    smooth,
    solve_of,
)

# Hidden state


@planted("HIDDEN_STATE", slice=0)
def counter_in_a_closure() -> tuple[Any, ...]:
    calls = [0]

    def step(u: Any) -> Any:
        calls[0] += 1
        return 0.9 * u + 1e-3 * calls[0]

    return solve_of(step)


@planted("HIDDEN_STATE", slice=2, step=1)
def memory_at_one_point() -> tuple[Any, ...]:
    class Remembers:
        def __init__(self) -> None:
            self.last: Any = 0.0

        def __call__(self, u: Any) -> Any:
            v = 0.9 * u + 0.01 * self.last
            self.last = float(u.mean()) + 1.0
            return v

    return solve_of(At(Remembers(), 9))


@planted("HIDDEN_STATE", step=2)
def buffer_in_a_block() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Average(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.register_buffer("mean", torch.zeros(6))

        def forward(self, u: Any) -> Any:
            self.mean.mul_(0.9).add_(0.1 * u.detach().mean(0))
            return self.linear(u) + self.mean

    return [linear(), linear(), Average(), linear()], torch.randn(8, 6), {}


@planted("HIDDEN_STATE", slice=0, step=0)
def cell_with_a_memory() -> tuple[Any, ...]:
    import torch
    from torch import nn

    import pyparareal.nn as pnn

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.count = nn.GRUCell(3, 4), 0

        def forward(self, x: Any, h: Any) -> Any:
            self.count += 1
            return self.cell(x, h) * (1.0 - 0.01 * (self.count % 3))

    return pnn.Recurrence(Cell(), settings=None), (torch.randn(20, 2, 3), torch.zeros(2, 4)), {}


@planted("HIDDEN_STATE", step=3)
def memory_in_a_parareal_part() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Toggles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.sign = nn.Linear(6, 6), 1.0

        def forward(self, u: Any) -> Any:
            self.sign = -self.sign
            return torch.tanh(self.linear(u)) + 0.1 * self.sign

    return parareal_network([dense(), dense(), dense(), Toggles()]), torch.randn(8, 6), {}


# Random numbers


@planted("UNFIXED_RANDOMNESS", slice=0)
def noise_of_numpy() -> tuple[Any, ...]:
    return solve_of(lambda u: 0.9 * u + 1e-4 * np.random.standard_normal(u.shape))  # noqa: NPY002


@planted("UNFIXED_RANDOMNESS", slice=4, step=0)
def noise_of_python_at_one_point() -> tuple[Any, ...]:
    return solve_of(At(lambda u: 0.9 * u + 1e-4 * random.random(), 16))


@planted("UNFIXED_RANDOMNESS", step=1)
def noise_of_torch_in_a_block() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Noisy(nn.Module):
        def forward(self, u: Any) -> Any:
            return u + 0.01 * torch.randn_like(u)

    return nn.Sequential(linear(), Noisy(), linear()).eval(), torch.randn(8, 6), {}


@planted("UNFIXED_RANDOMNESS", step=2)
def generator_of_its_own() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(3)

        def forward(self, u: Any) -> Any:
            return u + 0.01 * torch.randn(u.shape, generator=self.generator)

    return [linear(), linear(), Noisy()], torch.randn(8, 6), {}


@planted("UNFIXED_RANDOMNESS", slice=0)
def a_new_generator_each_call() -> tuple[Any, ...]:
    return solve_of(lambda u: 0.9 * u + 1e-4 * np.random.default_rng().random())


# Narrowed dtypes


@planted("NARROWED_DTYPE", slice=0)
def float32_in_the_middle() -> tuple[Any, ...]:
    return solve_of(lambda u: np.sin(u.astype(np.float32)).astype(np.float64) * 0.9 + 0.1)


@planted("NARROWED_DTYPE", slice=3, step=2)
def cast_back_at_one_point() -> tuple[Any, ...]:
    return solve_of(At(lambda u: smooth(u).astype(np.float32).astype(np.float64), 14))


@planted("NARROWED_DTYPE", step=1)
def half_in_a_block() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, u: Any) -> Any:
            return u + torch.tanh(self.linear(u).half().float())

    return [linear(), Half(), linear()], torch.randn(8, 6), {}


@planted("NARROWED_DTYPE", step=2)
def float32_in_a_layer() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, u: Any) -> Any:
            return torch.tanh(self.linear(u).float()).double()

    return layer_parallel([b.double() for b in (dense(), dense(), Narrow(), dense())]), torch.randn(4, 6).double(), {}


@planted("NARROWED_DTYPE", slice=0)
def another_dtype_returned() -> tuple[Any, ...]:
    return solve_of(lambda u: (0.9 * u).astype(np.float32))


# Neighbours


@planted("BATCH_NEIGHBOURS", slice=0)
def mean_over_the_slices() -> tuple[Any, ...]:
    return solve_of(lambda u: 0.9 * u + 0.01 * u.mean(0, keepdims=True))


@planted("BATCH_NEIGHBOURS")
def sorted_rows() -> tuple[Any, ...]:
    return solve_of(lambda u: 0.9 * np.sort(u, axis=0) + 0.01)


@planted("BATCH_NEIGHBOURS", step=1)
def normalised_over_the_batch() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Normalise(nn.Module):
        def forward(self, u: Any) -> Any:
            return (u - u.mean(0)) / (u.std(0) + 1e-5)

    return [linear(), Normalise(), linear()], torch.randn(8, 6), {}


@planted("BATCH_NEIGHBOURS", slice=0)
def cell_that_sees_the_batch() -> tuple[Any, ...]:
    import torch
    from torch import nn

    import pyparareal.nn as pnn

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(3, 4)

        def forward(self, x: Any, h: Any) -> Any:
            return self.cell(x, h - 0.1 * h.mean(0))

    return pnn.Recurrence(Cell()), (torch.randn(20, 2, 3), torch.randn(2, 4)), {}


@planted("BATCH_NEIGHBOURS", step=0)
def largest_of_the_batch_in_a_network() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Scale(nn.Module):
        def forward(self, u: Any) -> Any:
            return u / u.abs().max()

    return parareal_network([Scale(), dense(), dense(), dense()]).eval(), torch.randn(8, 6), {}
