# SPDX-License-Identifier: BSD-3-Clause
"""A cell with its inputs as a propagator: one step of the recurrence for many chunks at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...time_grid import count_points, shift_points
from .states import Packing

Cell = Callable[[Any, Any], Any]


class CellStep:
    """``u[i+1] = cell(x[i], u[i])``, states packed to ``[slices, batch, F]``: a :class:`.Propagator`.

    The cell sees the chunks as more rows of the batch: ``x [slices * batch, ...]``, ``h [slices * batch, ...]``.

    Parameters
    ----------
    cell : callable
        ``cell(x, h) -> h``.
    inputs : tensors ``[T, batch, ...]``
    nested : callable
        Makes of a list of such tensors what the cell takes as ``x``.
    packing : Packing
    mask : bool tensor ``[T, batch]``, optional
        The state is zero after steps where it is False.
    """

    batch_invariant = False

    def __init__(
        self, cell: Cell, inputs: Sequence[Tensor], nested: Any, packing: Packing, mask: Tensor | None = None
    ) -> None:
        self.cell, self.inputs, self.packing, self.mask = cell, list(inputs), packing, mask
        self._nested = nested

    def step(self, u: Tensor, points: slice) -> Tensor:
        return self._apply(u, [x[points] for x in self.inputs], None if self.mask is None else self.mask[points])

    def unroll(self, u: Tensor, points: slice, m: int) -> list[Tensor]:
        """The ``m`` states ``[slices, batch, F]`` after ``u``, with a graph that is cheap to go back through.

        Inputs are cut once, not step by step: the derivative of each cut would be an array as long as the sequence.
        """
        cuts = zip(*[cut(x, points, m) for x in self.inputs], strict=True)
        masks = [None] * m if self.mask is None else cut(self.mask, points, m)
        states = []
        for inputs, mask in zip(cuts, masks, strict=True):
            u = self._apply(u, list(inputs), mask)
            states.append(u)
        return states

    def serial(self, u0: Tensor, length: int) -> Tensor:
        """All states ``[length + 1, batch, F]``: the plain loop over the cell, under autograd."""
        return torch.stack([u0, *(u[0] for u in self.unroll(u0[None], slice(0, 1, 1), length))])

    def windows(self, lengths: Sequence[int]) -> list[CellStep]:
        """The same for parts of the sequence."""
        inputs = [x[: sum(lengths)].split(list(lengths)) for x in self.inputs]
        masks = [None] * len(lengths) if self.mask is None else self.mask[: sum(lengths)].split(list(lengths))
        return [
            CellStep(self.cell, [parts[n] for parts in inputs], self._nested, self.packing, masks[n])
            for n in range(len(lengths))
        ]

    def coarsened(self, m: int, cell: Cell) -> CellStep:
        """``cell`` for ``m`` of these steps, with the input of the first of them."""
        mask = None if self.mask is None else self.mask[::m]
        return CellStep(cell, [x[::m] for x in self.inputs], self._nested, self.packing, mask)

    def _apply(self, u: Tensor, inputs: list[Tensor], mask: Tensor | None) -> Tensor:
        rows = u.shape[0] * u.shape[1]
        h = self.packing.unpack(u.reshape(rows, u.shape[2]))
        x = [part.reshape(rows, *part.shape[2:]) for part in inputs]
        h = self.cell(self._nested(x), h)
        u_next = self.packing.kept(h, rows).reshape(u.shape)
        return u_next if mask is None else torch.where(mask[..., None], u_next, 0)


def cut(x: Tensor, points: slice, m: int) -> Sequence[Tensor]:
    """``x[points], x[points + 1], ...``, ``m`` of them: views, and one node of the graph for all."""
    if points.step == m or count_points(points) == 1:
        first, count = points.start, count_points(points)
        return x[first : first + count * m].unflatten(0, (count, m)).unbind(1)
    return [x[shift_points(points, j)] for j in range(m)]
