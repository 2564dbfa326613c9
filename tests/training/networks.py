# SPDX-License-Identifier: BSD-3-Clause
"""Small networks and examples of the tests here."""

import torch
from torch import nn


def mlp(seed=0, dtype=torch.float64, bias=True):
    """3-5-2, tanh."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5, bias=bias), nn.Tanh(), nn.Linear(5, 2, bias=bias)).to(dtype)


def examples(count=16, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, 3, generator=generator, dtype=dtype),
        torch.randn(count, 2, generator=generator, dtype=dtype),
    )


def largest(a, b):
    """Largest difference of two dicts of tensors."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
