# SPDX-License-Identifier: BSD-3-Clause
"""A third set, thought of after the second had been used to mend the probes."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np

from .chains import At, Forcing, clean, dense, layer_parallel, linear, parareal_network, planted, smooth, solve_of


@planted("HIDDEN_STATE", slice=0)
def attribute_of_a_function() -> tuple[Any, ...]:
    def step(u: Any) -> Any:
        step.calls = getattr(step, "calls", 0) + 1  # type: ignore[attr-defined]
        return 0.9 * u + 1e-4 * (step.calls % 5)  # type: ignore[attr-defined]

    return solve_of(step)


@planted("HIDDEN_STATE", "NOT_REPEATABLE", slice=0)
def a_python_iterator() -> tuple[Any, ...]:
    numbers = itertools.count()
    return solve_of(lambda u: 0.9 * u + 1e-6 * next(numbers))


@planted("HIDDEN_STATE", slice=0)
def memory_in_slots() -> tuple[Any, ...]:
    class Step:
        __slots__ = ("last",)

        def __call__(self, u: Any) -> Any:
            before = getattr(self, "last", 0.0)
            self.last = float(u.flat[0])
            return 0.9 * u + 0.01 * before

    return solve_of(Step())


@planted("HIDDEN_STATE")
def memory_that_shows_late() -> tuple[Any, ...]:
    calls = [0]

    def step(u: Any) -> Any:
        calls[0] += 1
        return (0.9 if calls[0] < 10 else 0.8) * u + 0.1

    return solve_of(step)


@planted("HIDDEN_STATE", words="coarse.0")
def memory_of_a_coarse_net() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Coarse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(6, 6), 1.0

        def forward(self, u: Any) -> Any:
            self.scale *= 0.99
            return self.linear(u) * self.scale

    net = parareal_network([dense() for _ in range(4)])
    net.coarse[0] = Coarse()
    return net, torch.randn(8, 6), {}


@planted("UNFIXED_RANDOMNESS", slice=0)
def an_unseeded_random_object() -> tuple[Any, ...]:
    return solve_of(lambda u: 0.9 * u + 1e-5 * random.Random().random())


@planted("UNFIXED_RANDOMNESS", step=1)
def stochastic_depth_in_eval() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = dense()

        def forward(self, u: Any) -> Any:
            return u + self.body(u) if random.random() < 0.5 else u + 0.5 * self.body(u)

    return layer_parallel([dense(), Block(), dense(), dense()]).eval(), torch.randn(8, 6), {}


@planted("NARROWED_DTYPE", slice=0)
def rounded_to_some_digits() -> tuple[Any, ...]:
    return solve_of(lambda u: np.round(0.9 * u + 0.05, 4))


@planted("NARROWED_DTYPE", words="head")
def half_in_the_head() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Head(nn.Module):
        def forward(self, u: Any) -> Any:
            return (u.half() * 3).float()

    net = parareal_network([dense() for _ in range(4)])
    net.head = Head()
    return net, torch.randn(8, 6), {}


@planted("BATCH_NEIGHBOURS", slice=0)
def divided_by_the_number_of_slices() -> tuple[Any, ...]:
    return solve_of(lambda u: 0.9 * u + 0.1 / len(u))


@planted("BATCH_NEIGHBOURS", step=2)
def softmax_over_the_wrong_axis() -> tuple[Any, ...]:
    import torch
    from torch import nn

    return [linear(), linear(), nn.Softmax(dim=0), linear()], torch.randn(8, 6), {}


@planted("BATCH_NEIGHBOURS")
def the_first_slice_broadcast() -> tuple[Any, ...]:
    return solve_of(lambda u: 0.9 * u + 1e-4 * u[:1])


@planted("BATCH_NEIGHBOURS", slice=0)
def a_cell_that_centres_its_inputs() -> tuple[Any, ...]:
    import torch
    from torch import nn

    import pyparareal.nn as pnn

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(3, 4)

        def forward(self, x: Any, h: Any) -> Any:
            return self.cell(x - x.mean(0, keepdim=True), h)

    return pnn.Recurrence(Cell()), (torch.randn(20, 2, 3), torch.randn(2, 4)), {}


@planted("OFF_BY_ONE", slice=0)
def the_last_point_for_all() -> tuple[Any, ...]:
    return solve_of(Forcing(lambda p: range(p.start, p.stop, p.step)[-1]))


@planted("OFF_BY_ONE")
def slices_in_reverse_order() -> tuple[Any, ...]:
    return solve_of(Forcing(lambda p: np.arange(p.start, p.stop, p.step)[::-1]))


@planted("OFF_BY_ONE", words="coarse")
def coarse_one_slice_ahead() -> tuple[Any, ...]:
    class Coarse:
        batch_invariant = True

        def step(self, u: Any, points: slice) -> Any:
            i = 4 * (np.arange(points.start, points.stop, points.step) + 1)
            v = u
            for j in range(4):
                v = 0.9 * v + 0.3 * np.sin(i + j + 1.0).reshape(-1, 1, 1)
            return v

    return solve_of(Forcing(lambda p: np.arange(p.start, p.stop, p.step)), coarse=Coarse())


@planted("WRONG_ADJOINT", step=0)
def a_derivative_one_percent_off() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Nearly(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return 1.01 * g

    class Block(nn.Module):
        def forward(self, u: Any) -> Any:
            return Nearly.apply(u)

    return [Block().double(), linear().double()], torch.randn(8, 6).double(), {}


@planted("WRONG_ADJOINT", words="head")
def wrong_in_the_head() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3))

        def forward(self, u: Any) -> Any:
            return u @ self.weight.data

    net = parareal_network([dense() for _ in range(4)])
    net.head = Head()
    return net, torch.randn(8, 6), {}


@planted("WRONG_ADJOINT", slice=0)
def numpy_in_a_differentiable_step() -> tuple[Any, ...]:
    import torch

    _, _, more = solve_of(smooth, coarse=lambda u: 0.8 * u)
    step = lambda u: 0.9 * u + torch.as_tensor(0.1 * np.sin(u.detach().numpy()))  # noqa: E731
    return step, torch.rand(2, 5).double().requires_grad_(), more


@planted("STALE_STATISTICS", step=1)
def committed_twice_in_layers() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(6)

        def forward(self, u: Any) -> Any:
            return 0.5 * (self.norm(u) + self.norm(0.5 * u))

    return layer_parallel([dense(), Twice(), dense(), dense()]), torch.randn(16, 6), {}


@planted("TIED_PARAMETERS", step=3)
def copies_in_layers() -> tuple[Any, ...]:
    import copy

    import torch
    from torch import nn

    shared = dense()
    serial = nn.Sequential(linear(), shared, linear(), shared)
    return layer_parallel([copy.deepcopy(b) for b in serial]), torch.randn(8, 6), {"serial": serial}


@planted("ALIASING", slice=0)
def one_global_array() -> tuple[Any, ...]:
    out = {}

    def step(u: Any) -> Any:
        buffer = out.setdefault(u.shape, np.empty_like(u))
        np.multiply(u, 0.9, out=buffer)
        return buffer

    return solve_of(step)


@planted("ALIASING", slice=0, step=0)
def a_cell_that_writes_to_its_state() -> tuple[Any, ...]:
    import torch

    import pyparareal.nn as pnn

    def cell(x: Any, h: Any) -> Any:
        return h.mul_(0.5).add_(x)

    return pnn.Recurrence(cell), (torch.randn(20, 2, 4), torch.randn(2, 4)), {"gradients": False}


@planted("NON_FINITE", slice=2)
def an_overflow_in_float32() -> tuple[Any, ...]:
    step, u0, more = solve_of(At(lambda u: np.exp(np.float32(200) * u), 11))
    return step, u0.astype(np.float32), more


@planted("RAISED", slice=0)
def only_one_slice_at_a_time() -> tuple[Any, ...]:
    def step(u: Any) -> Any:
        if len(u) > 1:
            raise ValueError("one state, please")
        return 0.9 * u

    return solve_of(step)


# Nothing wrong


@clean
def seeds_its_own_generator_each_time() -> tuple[Any, ...]:
    return solve_of(lambda u: 0.9 * u + 0.01 * np.random.default_rng(5).random(u.shape[1:]))


@clean
def a_scratch_buffer_inside() -> tuple[Any, ...]:
    scratch = {}

    def step(u: Any) -> Any:
        buffer = scratch.setdefault(u.shape, np.empty_like(u))
        np.sin(u, out=buffer)
        return u + 0.1 * buffer

    return solve_of(step)


@clean
def weight_norm() -> tuple[Any, ...]:
    import torch
    from torch import nn

    return [nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)) for _ in range(3)], torch.randn(8, 6), {}


@clean
def weights_in_half_used_in_full() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(6, 6).half())

        def forward(self, u: Any) -> Any:
            return torch.tanh(u @ self.weight.float() / 3)

    return [linear(), Block(), linear()], torch.randn(8, 6), {}


@clean
def straight_through_where_nothing_is_rounded() -> tuple[Any, ...]:
    import torch
    from torch import nn

    class Block(nn.Module):
        def forward(self, u: Any) -> Any:
            return torch.where(u > 0, u, 0.1 * u) + (u - u.detach())

    return [linear(), Block(), linear()], torch.randn(8, 6), {"gradients": False}


@clean
def a_checkpointed_block() -> tuple[Any, ...]:
    import torch
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = dense()

        def forward(self, u: Any) -> Any:
            return u + checkpoint(self.body, u, use_reentrant=False)

    return [Block() for _ in range(3)], torch.randn(8, 6), {}


@clean
def multihead_attention_in_training() -> tuple[Any, ...]:
    import torch
    from torch import nn

    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    return layer_parallel([block, dense_like(8), dense_like(8), dense_like(8)]), torch.randn(3, 4, 8), {}


def dense_like(width: int) -> Any:
    """As :func:`.chains.dense`, of another width."""
    from torch import nn

    return nn.Sequential(nn.Linear(width, width), nn.Tanh())


@clean
def gru_with_several_layers_and_directions() -> tuple[Any, ...]:
    import torch

    import pyparareal.nn as pnn

    net = pnn.GRU(3, 4, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1, method="newton")
    return net, torch.randn(2, 20, 3), {}


@clean
def recurrence_that_chooses_for_itself() -> tuple[Any, ...]:
    import torch
    from torch import nn

    import pyparareal.nn as pnn

    return pnn.Recurrence(nn.GRUCell(3, 4)), torch.randn(50, 2, 3), {}


@clean
def a_mean_over_the_features() -> tuple[Any, ...]:
    return solve_of(lambda u: 0.9 * u + 0.1 * u.mean(-1, keepdims=True) + 0.01 * u.mean(1, keepdims=True))
