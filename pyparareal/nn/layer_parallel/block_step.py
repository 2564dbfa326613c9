# SPDX-License-Identifier: BSD-3-Clause
"""Layers as steps of a chain: ``u[i+1] = block_i(u[i])`` or ``u[i] + h block_i(u[i])``, for any strided set at once."""

from __future__ import annotations

from torch import Tensor

from ...propagators import require_like
from ...time_grid import count_points
from .frozen import Frozen


class BlockStep:
    """A frozen stack as a :class:`pyparareal.propagators.Propagator`.

    On a level with ``factor`` ``c`` there is every ``c``-th layer, with a step ``c`` times as long:
    ``u + c h block(u)``, or ``u + c (block(u) - u)`` for blocks that are the whole map.

    Parameters
    ----------
    frozen : Frozen
    factor : int

    Attributes
    ----------
    parameters : list of tensors
        What requires grad: a step depends on ``u`` and on these. Stacked parameters are one tensor.
    fixed_tensors : list of tensors
        What nobody may write to before the backward pass.
    steps : int
    """

    batch_invariant = False

    def __init__(self, frozen: Frozen, factor: int = 1) -> None:
        self.frozen, self.factor = frozen, factor
        self.steps = frozen.layers // factor
        self.parameters, self.fixed_tensors = frozen.parameters, frozen.fixed_tensors

    def step(self, u: Tensor, points: slice) -> Tensor:
        """``u [slices, batch, features...]`` through the layers at ``points``, one layer for each slice."""
        c, h = self.factor, self.frozen.h
        first, count = points.start * c, count_points(points)
        layers = range(first, first + (count - 1) * points.step * c + 1, points.step * c)
        y = self.frozen.blocks(u, layers)
        if h is not None:
            return require_like(u + (c * h) * y, u, self)
        return require_like(y if c == 1 else u + c * (y - u), u, self)

    def rediscretise(self, m: int) -> BlockStep:
        """Every ``m``-th of these steps, ``m`` times as long."""
        return BlockStep(self.frozen, self.factor * m)
