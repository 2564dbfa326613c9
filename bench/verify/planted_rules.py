# SPDX-License-Identifier: BSD-3-Clause
"""Chaos, wrong points, wrong derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np

from .chains import (
    Forcing,
    chaotic,
    dense,
    layer_parallel,
    linear,
    parareal_network,
    planted,
    right_points,
    solve_of,
)

# Chaos


@planted("CHAOS")
def logistic_map() -> tuple[Any, ...]:
    return chaotic(lambda u: 3.9 * u * (1 - u), 60, 3, 1e-4)


@planted("CHAOS")
def long_lorenz() -> tuple[Any, ...]:
    from pyparareal import problems

    return {**problems.model_problem("lorenz").arguments(), "method": "parareal"}, None, {}


# Wrong points


@planted("OFF_BY_ONE", slice=1)
def the_first_point_for_all() -> tuple[Any, ...]:
    return solve_of(Forcing(lambda p: p.start))


@planted("OFF_BY_ONE", slice=1)
def stride_forgotten() -> tuple[Any, ...]:
    return solve_of(Forcing(lambda p: np.arange(p.start, p.start + len(range(p.start, p.stop, p.step)))))


@planted("OFF_BY_ONE", slice=0)
def relax_one_step_short() -> tuple[Any, ...]:
    def relax(self: Any, u: Any, points: slice, m: int, out: Any) -> None:
        v = u
        for j in range(max(m - 1, 1)):
            v = self.step(v, slice(points.start + j, points.stop + j, points.step))
        out[...] = v

    return solve_of(Forcing(right_points, relax))


@planted("OFF_BY_ONE", slice=0)
def relax_one_point_late() -> tuple[Any, ...]:
    def relax(self: Any, u: Any, points: slice, m: int, out: Any) -> None:
        v = u
        for j in range(m):
            v = self.step(v, slice(points.start + j + (m > 1), points.stop + j + (m > 1), points.step))
        out[...] = v

    return solve_of(Forcing(right_points, relax))


@planted("OFF_BY_ONE", words="coarse")
def coarse_points_shifted() -> tuple[Any, ...]:
    class Coarse:
        batch_invariant = True

        def step(self, u: Any, points: slice) -> Any:
            v = u
            for j in range(4):
                i = 4 * (np.arange(points.start, points.stop, points.step) - 1) + j
                v = 0.9 * v + 0.3 * np.sin(i + 1.0).reshape(-1, 1, 1)
            return v

    return solve_of(Forcing(right_points), coarse=Coarse())


# Derivatives


def square_of_torch() -> Any:
    import torch

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * ctx.saved_tensors[0]  # 2 forgotten

    return Square


@planted("WRONG_ADJOINT", slice=0)
def factor_forgotten_in_a_solve() -> tuple[Any, ...]:
    import torch

    square = square_of_torch()
    step, _, more = solve_of(lambda u: 0.9 * u + 0.1 * square.apply(u), coarse=lambda u: 0.7 * u + 0.1)
    u0 = (0.5 + torch.rand(2, 5, generator=torch.Generator().manual_seed(0))).double() * 0.3
    return step, u0.requires_grad_(), more


@planted("WRONG_ADJOINT", step=3)
def factor_forgotten_in_a_block() -> tuple[Any, ...]:
    import torch
    from torch import nn

    square = square_of_torch()

    class Block(nn.Module):
        def forward(self, u: Any) -> Any:
            return 0.5 * square.apply(u)

    return [linear(), linear(), linear(), Block()], torch.randn(8, 6), {}


@planted("WRONG_ADJOINT", step=1)
def gradient_of_a_weight_missing() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 6) / 3)
            self.scale = nn.Parameter(torch.ones(6))

        def forward(self, u: Any) -> Any:
            return u @ self.weight + self.scale.detach() * u

    return layer_parallel([dense(), Block(), dense(), dense()]), torch.randn(4, 6), {}


@planted("WRONG_ADJOINT", step=2)
def sign_wrong_in_a_parameter() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Shift(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, b: Any) -> Any:
            return x + b

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g, -g.sum(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(6))

        def forward(self, u: Any) -> Any:
            return Shift.apply(u, self.bias)

    return parareal_network([dense(), dense(), Block(), dense()]), torch.randn(8, 6), {}
