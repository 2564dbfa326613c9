# SPDX-License-Identifier: BSD-3-Clause
"""More of what :mod:`.planted_rules` and :mod:`.planted_memory` have, thought of after the probes were written."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .chains import (
    At,
    Forcing,
    dense,
    layer_parallel,
    linear,
    parareal_network,
    planted,
    smooth,
    solve_of,
)


@planted("OFF_BY_ONE", slice=0)
def next_point_where_there_are_several() -> tuple[Any, ...]:
    return solve_of(Forcing(lambda p: np.arange(p.start, p.stop, p.step) + (len(range(p.start, p.stop, p.step)) > 1)))


@planted("OFF_BY_ONE", "RELAX_DIFFERS", slice=0)
def relax_that_repeats_the_first_step() -> tuple[Any, ...]:
    def relax(self: Any, u: Any, points: slice, m: int, out: Any) -> None:
        v = u
        for _ in range(m):
            v = self.step(v, points)
        out[...] = v

    return solve_of(Forcing(lambda p: np.arange(p.start, p.stop, p.step), relax))


@planted("WRONG_ADJOINT", step=1)
def clipped_in_the_backward_pass_only() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Clip(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x * 1.0

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g.clamp(-0.1, 0.1)

    class Block(nn.Module):
        def forward(self, u: Any) -> Any:
            return Clip.apply(u)

    return parareal_network([dense(), Block(), dense(), dense()]), torch.randn(8, 6), {}


@planted("WRONG_ADJOINT", slice=0)
def own_adjoint_of_another_step() -> tuple[Any, ...]:
    import torch

    class Step:
        batch_invariant = True

        def step(self, u: Any, points: slice) -> Any:
            return u + 0.1 * torch.sin(u)

        def adjoint(self, u: Any, last: int, w: Any) -> Any:
            return Back(u, last, w)

        def parameter_gradients(self, u: Any, w: Any, parameters: Any) -> Any:
            return [None] * len(parameters)

    class Back:
        batch_invariant = True

        def __init__(self, u: Any, last: int, w: Any) -> None:
            self.u, self.last, self.w = u, last, w

        def step(self, v: Any, points: slice) -> Any:
            here = [self.last - 1 - p for p in range(points.start, points.stop, points.step)]
            v_next = v * (1 + 0.1 * torch.cos(self.u[[i + 1 for i in here]]))  # one state too far
            return v_next if self.w is None else v_next + self.w[here]

    class Coarse(Step):
        def step(self, u: Any, points: slice) -> Any:
            return u + 0.4 * torch.sin(u)

    _, _, more = solve_of(smooth, coarse=Coarse())
    return Step(), torch.rand(2, 5).double().requires_grad_(), more


@planted("WRONG_ADJOINT", slice=0, step=0)
def cell_with_a_detached_state() -> tuple[Any, ...]:
    import torch
    from torch import nn

    import pyparareal.nn as pnn

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(3, 4)

        def forward(self, x: Any, h: Any) -> Any:
            return self.cell(x, h) + 0.1 * torch.sin(h.detach())

    return pnn.Recurrence(Cell()), (torch.randn(20, 2, 3), torch.randn(2, 4)), {}


@planted("STALE_STATISTICS", step=2)
def a_norm_used_in_two_places() -> tuple[Any, ...]:
    import torch
    from torch import nn

    norm = nn.BatchNorm1d(6)
    blocks = [dense(), dense(), nn.Sequential(nn.Linear(6, 6), norm, nn.Tanh(), norm), dense()]
    return parareal_network(blocks), torch.randn(16, 6), {}


@planted("STALE_STATISTICS", step=1)
def statistics_of_an_old_stem() -> tuple[Any, ...]:
    import torch
    from torch import nn

    norm = nn.BatchNorm1d(6)
    norm.running_mean.fill_(40.0)
    return layer_parallel([dense(), norm, dense(), dense()]).eval(), torch.randn(32, 6), {}


@planted("TIED_PARAMETERS", step=2)
def weights_tied_and_then_cloned() -> tuple[Any, ...]:
    import torch
    from torch import nn

    a, b = linear(), linear()
    b.weight = nn.Parameter(a.weight.detach().clone())
    return parareal_network([a, dense(), b, dense()]), torch.randn(8, 6), {}


@planted("ALIASING", step=1)
def a_transposed_view_that_is_written_to() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Block(nn.Module):
        def forward(self, u: Any) -> Any:
            return u.t().mul_(0.5).t()

    return nn.Sequential(linear(), Block(), linear()), torch.randn(8, 6), {}


@planted("ALIASING", slice=0)
def memory_read_as_if_contiguous() -> tuple[Any, ...]:
    def step(u: Any) -> Any:
        memory = np.lib.stride_tricks.as_strided(u, (u.size,), (u.itemsize,))  # whatever the strides are
        return 0.9 * memory.reshape(u.shape) + 0.1

    return solve_of(step)


@planted("NOT_REPEATABLE", step=1)
def hour_of_the_day() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Block(nn.Module):
        def forward(self, u: Any) -> Any:
            return u * (1 + 1e-3 * (time.monotonic_ns() % 1000))

    return [linear(), Block()], torch.randn(8, 6), {}


@planted("NON_FINITE", step=2)
def logarithm_of_negative_numbers() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Log(nn.Module):
        def forward(self, u: Any) -> Any:
            return torch.log(u)

    return layer_parallel([dense(), dense(), Log(), dense()]), torch.randn(8, 6), {}


@planted("RAISED", step=1)
def only_for_a_full_batch() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Block(nn.Module):
        def forward(self, u: Any) -> Any:
            return u.view(8, 6) * 0.5

    return [linear(), Block(), linear()], torch.randn(8, 6), {}


@planted("COARSE_INCONSISTENT", "OFF_BY_ONE", words="coarse")
def coarse_with_the_step_of_the_fine_one() -> tuple[Any, ...]:
    from pyparareal.propagators import Map

    fine = Map(lambda u: 0.6 * u, batch_invariant=True)
    return solve_of(fine, coarse=Map(lambda u: -0.9 * u, batch_invariant=True))


@planted("RAISED", "NON_FINITE", "NOT_CONVERGED", words="coarse")
def coarse_that_overflows() -> tuple[Any, ...]:
    return solve_of(smooth, coarse=lambda u: np.exp(1e3 * u))


@planted("HIDDEN_STATE", "BATCH_NEIGHBOURS", slice=3, step=1)
def a_wrong_slice_after_the_others() -> tuple[Any, ...]:
    class Step(At):
        def step(self, u: Any, points: slice) -> Any:
            v = smooth(u)
            for n, i in enumerate(range(points.start, points.stop, points.step)):
                if i == 13 and len(u) > 1:
                    v[n] += 1e-6 * v[n - 1]
            return v

    return solve_of(Step(smooth))
