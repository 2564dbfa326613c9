# SPDX-License-Identifier: BSD-3-Clause
"""Newton's method on a block of the slices: its steps counted from the block's first, and the growth of all slices."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from . import arrays, growth
from .cuts import From
from .growth import Growth
from .hierarchy import Level
from .linearise import Linearised
from .newton import NewtonIteration
from .newton_run import NewtonRun
from .runtime.block import BlockRuntime
from .runtime.ranks import Ranks
from .stopping import History
from .time_grid import shift_points

Array = Any

EACH = 2  # numbers of a slice that are compared at once: its residual and its update


def local_newton(whole: NewtonIteration, levels: list[Level], block: BlockRuntime, callback: Any) -> NewtonIteration:
    """``whole`` on the ``levels`` of a block: the slices, and the steps of the guess if there are any."""
    phi: Any = levels[0].phi
    return dataclasses.replace(
        whole,
        fine=phi,
        linearised=None if whole.linearised is None else _shifted(whole.linearised, phi),
        predict=levels[1].phi if len(levels) > 1 else None,
        grid=levels[0].grid,
        runtime=block,
        callback=callback,
        residuals=History(),
        converged=[],
    )


def _shifted(linearised: Linearised, phi: From) -> Linearised:
    """The same, of the steps of ``phi``."""
    source, first = linearised.source, phi.first

    def step(u: Array, points: slice, kind: str) -> tuple[Array, Array]:
        return source.step(u, shift_points(points, first), kind)

    return Linearised(phi, dataclasses.replace(source, step=step), linearised.kind)


def gather_growth(whole: NewtonRun, mine: Any, logs: list[list[float] | None], u: Array, ranks: Ranks) -> Growth | None:
    """The growth of all slices, on every rank.

    ``logs`` are those of the slices of every rank with a block, ``mine`` is this one's run, ``u`` like its states. What
    a slice grows by has the bits of one process. The product of all is multiplied up block by block, so its rounding
    depends on the blocks: the logarithm by a few units in the last place of the sum of the ``|log J|``.
    """
    if not logs or logs[0] is None or not math.prod(u.shape[1:]):
        return None
    known = np.array([log for one in logs for log in one or []])
    finite, like = growth.leading_finite(known), whole.iterate.linearised
    if like is None or not finite:
        return growth.growth_from(known, whole.m)
    diagonal, first, parts = whole.iterate.diagonal, 0, []
    shape = like.empty_jacobians(u[:1])
    for rank, one in enumerate(logs):
        count = min(len(one or []), finite - first)
        if count <= 0:
            break
        part = growth.product_of(arrays.zeros(shape, tuple(shape.shape)), diagonal=diagonal)
        if rank == ranks.rank:
            part = growth.product_of(mine.iterate.jacobians[:count], diagonal=diagonal)
        for array in part:
            ranks.broadcast(array, rank, "gathering the growth")
        parts.append(part)
        first += count
    return growth.growth_from(known, whole.m, growth.log_of(parts, diagonal=diagonal))
