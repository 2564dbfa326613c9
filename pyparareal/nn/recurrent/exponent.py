# SPDX-License-Identifier: BSD-3-Clause
"""How fast a small difference grows along a recurrence: its largest Lyapunov exponent, estimated chunk by chunk.

Below zero the recurrence forgets what it came from, and chunks can be solved side by side; above zero it is chaotic and
no method that is parallel over its steps converges in fewer passes than there are chunks (X. Gonzalez et al.,
"Predictability enables parallelization of nonlinear state space models", NeurIPS 2025, arXiv 2508.16817).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...time_grid import shift_points

SETTLE = 8  # steps in which a difference of any direction turns to the one that grows fastest
STEPS = 24  # of a chunk, the first of them to settle
SAMPLES = 8  # chunks looked at


class Exponent(NamedTuple):
    """``mean``: of ``log |d[i+1]| / |d[i]|`` over the chunks looked at; ``worst``: the largest, of ``chunk``."""

    mean: float
    chunk: int | None
    worst: float


UNKNOWN = Exponent(math.nan, None, math.nan)


@torch.no_grad()
def exponent_of(step: Any, u: Tensor, m: int, samples: int = SAMPLES) -> Exponent:
    """Of the recurrence near the states ``u [length + 1, batch, F]``, in at most ``samples`` of its chunks of ``m``.

    A difference of the size ``sqrt(eps)`` of the states is taken along, and made small again after every step.
    """
    slices = (len(u) - 1) // m
    if slices == 0:
        return UNKNOWN
    stride = max(1, slices // samples)
    chunks = range(0, slices, stride)
    points = slice(0, chunks[-1] * m + 1, stride * m)
    steps, eps = min(m, STEPS), torch.finfo(u.dtype).eps
    first = 0 if steps <= 2 * SETTLE else SETTLE
    d = _direction(u[points])
    total = torch.zeros(d.shape[:2], dtype=torch.float64, device=u.device)
    for j in range(steps):
        here, there = u[shift_points(points, j)], u[shift_points(points, j + 1)]
        size = math.sqrt(eps) * _norm(here).clamp(min=1.0)
        moved = step.step(here + size[..., None] * d, shift_points(points, j)) - there
        length = _norm(moved)
        if j >= first:
            total += (length / size).double().clamp(min=eps).log()
        d = torch.where(length[..., None] > 0, moved / length[..., None], d)
    total /= steps - first
    per_chunk, overall = total.amax(1), total.mean(0).amax()
    worst = int(torch.where(per_chunk.isnan(), math.inf, per_chunk).argmax())
    return Exponent(float(overall), chunks[worst], float(per_chunk[worst]))


def _direction(u: Tensor) -> Tensor:
    """Any direction ``[slices, batch, F]`` of length 1, the same at every call."""
    numbers = torch.arange(1, u[0].numel() + 1, device=u.device, dtype=torch.float64)
    d = torch.cos(numbers * numbers).to(u.dtype).reshape(u.shape[1:])
    return (d / _norm(d)[..., None]).expand_as(u)


def _norm(u: Tensor) -> Tensor:
    return u.norm(dim=-1)
