# SPDX-License-Identifier: BSD-3-Clause
"""Networks with nothing wrong, among them many that look as if."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

from .chains import (
    clean,
    dense,
    layer_parallel,
    linear,
    parareal_network,
)

# Blocks and networks


@clean
def blocks_with_relu_in_place() -> tuple[Any, ...]:
    import torch
    from torch import nn

    return [nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True)) for _ in range(4)], torch.randn(8, 6), {}


@clean
def blocks_of_attention() -> tuple[Any, ...]:
    import torch
    from torch import nn

    return [nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)], torch.randn(3, 5, 16), {}


@clean
def blocks_with_layer_norm_in_float64() -> tuple[Any, ...]:
    import torch
    from torch import nn

    blocks = [nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU()).double() for _ in range(4)]
    return blocks, torch.randn(8, 6).double(), {}


@clean
def blocks_that_are_copies_as_a_whole() -> tuple[Any, ...]:

    import torch

    one = dense()
    return [copy.deepcopy(one) for _ in range(4)], torch.randn(8, 6), {}


@clean
def tied_as_it_should_be() -> tuple[Any, ...]:
    import torch
    from torch import nn

    one = dense()
    serial = nn.Sequential(one, linear(), one, linear())
    return list(serial), torch.randn(8, 6), {"serial": serial}


@clean
def convolutions() -> tuple[Any, ...]:
    import torch
    from torch import nn

    return [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(3)], torch.randn(2, 4, 6, 6), {}


@clean
def parareal_network_in_training() -> tuple[Any, ...]:
    import torch
    from torch import nn

    blocks = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2)) for _ in range(4)]
    return parareal_network(blocks), torch.randn(16, 6), {}


@clean
def parareal_network_of_differences() -> tuple[Any, ...]:
    import torch
    from torch import nn

    blocks = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True)) for _ in range(4)]
    return parareal_network(blocks, correction="difference"), torch.randn(16, 6), {}


@clean
def parareal_network_in_float64() -> tuple[Any, ...]:
    import torch

    return parareal_network([dense() for _ in range(4)]).double(), torch.randn(8, 6).double(), {}


@clean
def resnet() -> tuple[Any, ...]:
    import torch
    from torch import nn

    import pyparareal.nn as pnn

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
            )

        def forward(self, u: Any) -> Any:
            return u + self.body(u)

    net = pnn.PararealNetwork(
        [Residual() for _ in range(4)], 2, preprocess=[nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)],
        coarse=[nn.Conv2d(4, 4, 1)], head=nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 2)),
    )  # fmt: skip
    return net, torch.randn(4, 3, 6, 6), {}


@clean
def layers_in_parallel() -> tuple[Any, ...]:
    import torch

    return layer_parallel([dense() for _ in range(12)], h=0.1), torch.randn(4, 6), {}


@clean
def layers_with_dropout() -> tuple[Any, ...]:
    import torch
    from torch import nn

    blocks = [nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.3)) for _ in range(8)]
    return layer_parallel(blocks, h=0.1), torch.randn(4, 6), {}


@clean
def layers_with_few_iterations() -> tuple[Any, ...]:
    import torch

    import pyparareal.nn as pnn

    return pnn.LayerParallel([dense() for _ in range(16)], h=0.05, m=2), torch.randn(4, 6), {}


@clean
def layers_with_kernels_in_float64() -> tuple[Any, ...]:
    import torch

    import pyparareal.nn as pnn

    return pnn.LayerParallel([dense() for _ in range(8)], h=0.1, m=2).double(), torch.randn(4, 6).double(), {}


@clean
def gru() -> tuple[Any, ...]:
    import torch

    import pyparareal.nn as pnn

    return pnn.GRU(3, 4, method="newton"), torch.randn(30, 2, 3), {}


@clean
def lstm() -> tuple[Any, ...]:
    import torch

    import pyparareal.nn as pnn

    return pnn.LSTM(3, 4, num_layers=2, method="hybrid"), torch.randn(30, 2, 3), {}


@clean
def implicit_gru() -> tuple[Any, ...]:
    import torch

    import pyparareal.nn as pnn

    return pnn.ImplicitGRU(3, 4, method="mgrit", chunk=4), torch.randn(32, 2, 3), {}


@clean
def recurrence_of_a_cell() -> tuple[Any, ...]:
    import torch
    from torch import nn

    import pyparareal.nn as pnn

    return pnn.Recurrence(nn.RNNCell(3, 4), method="newton"), torch.randn(30, 2, 3), {}


@clean
def recurrence_of_an_lstm_cell() -> tuple[Any, ...]:
    import torch
    from torch import nn

    import pyparareal.nn as pnn

    return pnn.Recurrence(nn.LSTMCell(3, 4).double(), method="newton"), torch.randn(20, 2, 3).double(), {}


@clean
def training_runs() -> tuple[Any, ...]:
    from pyparareal.training import problems

    return problems.CATALOGUE["xor"](seed=1).runs(64, rules="solver1"), None, {}


@contextlib.contextmanager
def around(name: str) -> Any:
    """What a clean chain is verified within: mixed precision for those that say so."""
    if "mixed" not in name:
        yield
        return
    import torch

    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


@clean
def blocks_in_mixed_precision() -> tuple[Any, ...]:
    import torch

    return [dense() for _ in range(3)], torch.randn(8, 6), {}


@clean
def parareal_network_in_mixed_precision() -> tuple[Any, ...]:
    import torch
    from torch import nn

    blocks = [nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(4)]
    return parareal_network(blocks), torch.randn(16, 6), {}


@clean
def layers_in_mixed_precision() -> tuple[Any, ...]:
    import torch

    return layer_parallel([dense() for _ in range(8)], h=0.1), torch.randn(4, 6), {}
