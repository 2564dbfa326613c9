# SPDX-License-Identifier: BSD-3-Clause
"""Networks as a user may have them."""

import torch
from torch import nn


class Named(nn.Module):
    """First layers, body and last layers with functions in between, arguments with defaults, and a loop."""

    def __init__(self, skip=False, peek=False, noise=False, order=(0, 1, 2)):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.inner = nn.Module()
        self.inner.body = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))
        self.before, self.after = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.last = nn.Linear(6, 3)
        self.skip, self.peek, self.noise, self.order = skip, peek, noise, order

    def forward(self, x, mask=None):
        u = start = torch.relu(self.first(x)) * self.before
        if mask is not None:
            u = u * mask
        seen = []
        for i in self.order:
            u = self.inner.body[i](u)
            seen.append(u)
        if self.peek:
            u = u + seen[0]
        if self.skip:
            u = u + start
        u = nn.functional.dropout(u, 0.5, self.training and self.noise)
        return self.last(u * self.after).log_softmax(1)


class Patches(nn.Module):
    """Images cut into a sequence of patches by a convolution, as in vision transformers."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 6, 4, 4)
        self.body = nn.Sequential(*(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh()) for _ in range(4)))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.body(self.patches(x).flatten(2).transpose(1, 2)).mean(1))
