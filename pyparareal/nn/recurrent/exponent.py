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
    """``mean`` of ``log |d[i+1]| / |d[i]|`` over what was looked at; the largest, ``worst``, from step ``first``."""

    mean: float
    first: int | None
    worst: float


@torch.no_grad()
def exponent_of(step: Any, u: Tensor, m: int, samples: int = SAMPLES) -> Exponent:
    """Of the recurrence near the states ``u [length + 1, batch, F]``, in about ``samples`` of its chunks of ``m``.

    A difference of the size ``sqrt(eps)`` of the states is taken along, and made small again after every step.
    """
    m = min(m if m > SETTLE else STEPS, len(u) - 1)
    slices, steps = (len(u) - 1) // m, min(m, STEPS)
    stride = max(1, slices // samples)
    chunks = range(0, slices, stride)
    points = slice(0, chunks[-1] * m + 1, stride * m)
    per_chunk = growth_along(step, torch.stack([u[shift_points(points, j)] for j in range(steps + 1)]), points)
    overall, per_chunk = per_chunk.mean(0).amax(), per_chunk.amax(1)
    worst = int(torch.where(per_chunk.isnan(), math.inf, per_chunk).argmax())
    return Exponent(float(overall), chunks[worst] * m, float(per_chunk[worst]))


def growth_along(step: Any, u: Tensor, points: slice) -> Tensor:
    """Mean of ``log |d[i+1]| / |d[i]|`` along the states ``u [steps + 1, chunks, batch, F]``: ``[chunks, batch]``.

    ``points`` are where the chunks start. If there are enough steps, the first ones are not counted.
    """
    steps, eps = len(u) - 1, torch.finfo(u.dtype).eps
    first = SETTLE if steps > SETTLE else 0
    d = _direction(u[0])
    total = torch.zeros(d.shape[:2], dtype=torch.float64, device=u.device)
    for j in range(steps):
        size = math.sqrt(eps) * _norm(u[j]).clamp(min=1.0)
        moved = step.step(u[j] + size[..., None] * d, shift_points(points, j)) - u[j + 1]
        length = _norm(moved)
        if j >= first:
            total += (length / size).double().clamp(min=eps).log()
        d = torch.where(length[..., None] > 0, moved / length[..., None], d)
    return total / (steps - first)


def _direction(u: Tensor) -> Tensor:
    """Any direction ``[slices, batch, F]`` of length 1, the same at every call."""
    numbers = torch.arange(1, u[0].numel() + 1, device=u.device, dtype=torch.float64)
    d = torch.cos(numbers * numbers).to(u.dtype).reshape(u.shape[1:])
    return (d / _norm(d)[..., None]).expand_as(u)


def _norm(u: Tensor) -> Tensor:
    return u.norm(dim=-1)
