# SPDX-License-Identifier: BSD-3-Clause
"""Stale statistics, tied parameters, shared memory, and the rest."""

from __future__ import annotations

import copy
import time
from typing import Any

import numpy as np

from .chains import (
    At,
    dense,
    layer_parallel,
    linear,
    parareal_network,
    planted,
    solve_of,
)

# Batch norm


@planted("STALE_STATISTICS", step=1)
def committed_twice() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(6)

        def forward(self, u: Any) -> Any:
            self.norm(u)
            return self.norm(u)

    return parareal_network([dense(), Twice(), dense(), dense()]), 2 + torch.randn(16, 6), {}


@planted("STALE_STATISTICS", step=2)
def not_committed() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Never(nn.BatchNorm1d):
        def forward(self, u: Any) -> Any:
            return nn.functional.batch_norm(u, None, None, self.weight, self.bias, True)

    return parareal_network([dense(), dense(), Never(6), dense()]), torch.randn(16, 6), {}


@planted("STALE_STATISTICS", step=0)
def out_of_date_in_eval() -> tuple[Any, ...]:
    import torch
    from torch import nn

    return [nn.BatchNorm1d(6).eval(), linear()], 30 + torch.randn(32, 6), {}


# Tied parameters


@planted("TIED_PARAMETERS", step=2)
def deep_copies_of_one_weight() -> tuple[Any, ...]:
    import torch
    from torch import nn

    shared = nn.Linear(6, 6)
    serial = nn.Sequential(nn.Sequential(shared, nn.Tanh()), linear(), nn.Sequential(shared, nn.Tanh()), linear())
    blocks = [copy.deepcopy(b) for b in serial]
    return blocks, torch.randn(8, 6), {"serial": serial}


@planted("TIED_PARAMETERS", step=3)
def one_weight_of_two_copied() -> tuple[Any, ...]:
    import torch
    from torch import nn

    first, last = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    last[0].weight.data.copy_(first[0].weight.data)
    return layer_parallel([first, dense(), dense(), last]), torch.randn(4, 6), {}


@planted("TIED_PARAMETERS", step=2)
def gradient_not_summed() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Uses(nn.Module):
        def __init__(self, weight: Any, detach: bool) -> None:
            super().__init__()
            self.weight, self.detach = weight, detach

        def forward(self, u: Any) -> Any:
            return torch.tanh(u @ (self.weight.detach() if self.detach else self.weight))

    weight = nn.Parameter(torch.randn(6, 6) / 2)
    return [Uses(weight, False), linear(), Uses(weight, True), linear()], torch.randn(8, 6), {}


# Memory


@planted("ALIASING", slice=0)
def a_view_of_the_input() -> tuple[Any, ...]:
    return solve_of(lambda u: u[..., ::-1])


@planted("ALIASING", slice=0)
def writes_into_its_input() -> tuple[Any, ...]:
    def step(u: Any) -> Any:
        u *= 0.9
        return u + 0.1

    return solve_of(step)


@planted("ALIASING", step=1)
def one_buffer_for_all_results() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Buffer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = None

        def forward(self, u: Any) -> Any:
            if self.out is None or self.out.shape != u.shape:
                self.out = torch.empty_like(u)
            with torch.no_grad():
                torch.mul(u, 0.5, out=self.out)
            return self.out

    return [linear(), Buffer(), linear()], torch.randn(8, 6), {"gradients": False}


@planted("ALIASING", slice=0)
def depends_on_strides() -> tuple[Any, ...]:
    def step(u: Any) -> Any:
        flat = u.ravel(order="K")  # the order of memory
        return 0.9 * flat.reshape(u.shape) + 0.1

    return solve_of(step)


@planted("ALIASING", words="fine.1.0")
def overwrites_the_guess() -> tuple[Any, ...]:
    import torch
    from torch import nn

    return (
        parareal_network([dense(), dense(), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6)), dense()]),
        torch.randn(8, 6), {},
    )  # fmt: skip


# Other


@planted("NON_FINITE", slice=5, step=1)
def division_by_zero() -> tuple[Any, ...]:
    return solve_of(At(lambda u: u / (u - u), 21))


@planted("NOT_REPEATABLE", slice=0)
def reads_the_clock() -> tuple[Any, ...]:
    return solve_of(lambda u: 0.9 * u + 1e-6 * (time.perf_counter() % 1.0))


@planted("COARSE_INCONSISTENT", words="coarse")
def coarse_of_the_wrong_sign() -> tuple[Any, ...]:
    return solve_of(lambda u: 0.98 * u, coarse=lambda u: 1.2 * u)


@planted("BROKEN_PROMISE")
def promise_not_kept() -> tuple[Any, ...]:
    from pyparareal.propagators import Map

    a = np.random.default_rng(0).standard_normal((65, 65)) / 20

    def step(u: Any) -> Any:
        scale = 1 + 2.0**-50 * len(u)
        return scale * (0.5 * u + 0.1 * np.tanh((u[..., None, :] * a).sum(-1)))

    return solve_of(Map(step, batch_invariant=True), shape=(2, 65))


@planted("RAISED", slice=2, step=0)
def raises_at_one_point() -> tuple[Any, ...]:
    def wrong(u: Any) -> Any:
        raise RuntimeError("no table for this time")

    return solve_of(At(wrong, 8))


@planted("OTHER_SHAPE", step=1)
def another_width() -> tuple[Any, ...]:
    import torch
    from torch import nn

    return [linear(), nn.Linear(6, 7), nn.Linear(7, 6)], torch.randn(8, 6), {}
