# SPDX-License-Identifier: BSD-3-Clause
"""Blocks for the tests of stacks."""

import torch
from torch import nn
from torch.nn import functional as F


class ConvBlock(nn.Module):
    def __init__(self, norm=nn.Identity):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(4, 4, 3, padding=1), norm(), nn.Conv2d(4, 4, 1)

    def forward(self, u):
        return u + 0.3 * self.second(torch.relu(self.norm(self.first(u))))


class Transformer(nn.Module):
    """Pre-LN: attention, then a two-layer network, each added."""

    def __init__(self, p=0.0, width=8, need_weights=False):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, dropout=p, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Dropout(p), nn.Linear(12, width), nn.Dropout(p))
        self.need_weights = need_weights

    def forward(self, u):
        x = self.norm1(u)
        u = u + self.attention(x, x, x, need_weights=self.need_weights)[0]
        return u + self.mlp(self.norm2(u))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRU(8, 8, batch_first=True)

    def forward(self, u):
        return self.cell(u)[0]


class Branching(nn.Module):
    """What it computes depends on the values of its argument."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, u):
        y = self.linear(u)
        return u + y if y.sum() > 0 else u - torch.tanh(y)


class Item(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, u):
        return u + self.linear(u) / (1 + u.detach().abs().max().item())


class Dense(nn.Module):
    def __init__(self, p=0.0):
        super().__init__()
        self.linear, self.p = nn.Linear(8, 8), p

    def forward(self, u):
        return F.dropout(torch.tanh(self.linear(u)), self.p, self.training)


class Noisy(nn.Module):
    """Draws by other means than dropout."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, u):
        return u + torch.tanh(self.linear(u)) + (0.1 * torch.randn_like(u) if self.training else 0.0)


def dense():
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh())


def row(make, layers=6, dtype=torch.float64, seed=0):
    """``layers`` blocks with weights of their own."""
    torch.manual_seed(seed)
    return [make().to(dtype) for _ in range(layers)]


def inputs(shape, slices=6, dtype=torch.float64, seed=1):
    return torch.randn(slices, *shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# name: (block, h, shape of one state)
KINDS = {
    "dense": (dense, 0.25, (3, 8)),
    "conv": (ConvBlock, None, (2, 4, 5, 5)),
    "transformer": (Transformer, None, (2, 5, 8)),
    "group norm": (lambda: ConvBlock(lambda: nn.GroupNorm(2, 4)), None, (2, 4, 5, 5)),
    "batch norm": (lambda: ConvBlock(lambda: nn.BatchNorm2d(4)), None, (3, 4, 5, 5)),
    "batch norm, eval": (lambda: ConvBlock(lambda: nn.BatchNorm2d(4)).eval(), None, (3, 4, 5, 5)),
    "recurrent": (Recurrent, None, (2, 5, 8)),
    "branching": (Branching, None, (3, 8)),
    "item": (Item, None, (3, 8)),
    "in place": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 8)), None, (3, 8)),
    "no parameters": (nn.Tanh, 0.5, (3, 8)),
    "no batch": (dense, 0.25, (8,)),
}
STACKED = [name for name in KINDS if name not in ("recurrent", "branching", "item")]
