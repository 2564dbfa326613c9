# SPDX-License-Identifier: BSD-3-Clause
"""Sequences of different lengths in one tensor: padded at their ends, or packed as torch packs them.

What comes after the end of a sequence cannot disturb it, so a recurrence runs over the padding too. Its output there is
set to zero, the final state is the one after the last step of the sequence, and the other direction starts from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence


class Padded:
    """A batch of ``[steps, batch, features]``, of which sequence ``b`` uses the first ``lengths[b]`` steps.

    Parameters
    ----------
    steps : int
    lengths : int64 tensor ``[batch]``, optional
        Without it all steps are used.
    rows : (steps, members), optional
        Where the rows of a :class:`torch.nn.utils.rnn.PackedSequence` belong.
    """

    def __init__(self, steps: int, lengths: Tensor | None = None, rows: tuple[Tensor, Tensor] | None = None) -> None:
        self.steps, self.lengths, self.rows = steps, lengths, rows
        if lengths is not None:
            time = torch.arange(steps, device=lengths.device)[:, None]
            self._used = time < lengths
            self._members = torch.arange(len(lengths), device=lengths.device)
            self._mirrored = torch.where(self._used, lengths - 1 - time, time)

    def without_padding(self, x: Tensor) -> Tensor:
        """``x``, zero (whatever it was) where no sequence is."""
        return x if self.lengths is None else torch.where(self._used[..., None], x, x.new_zeros(()))

    def reversed(self, x: Tensor) -> Tensor:
        """Every sequence backwards, the padding behind it again."""
        return x.flip(0) if self.lengths is None else x[self._mirrored, self._members]

    def ends(self, start: Tensor, states: Tensor) -> Tensor:
        """Of the states after every step, ``[steps, batch, ...]``, those after each sequence; ``start`` after none."""
        if self.lengths is None:
            return states[-1]
        last = states[(self.lengths - 1).clamp(min=0), self._members]
        return torch.where(self.lengths[:, None] > 0, last, start)

    def dropout(self, x: Tensor, rate: float) -> Tensor:
        """Dropout as torch does it between layers: on the rows of a packed batch, if it is one."""
        if self.rows is None:
            return F.dropout(x, rate)
        return torch.zeros_like(x).index_put(self.rows, F.dropout(x[self.rows], rate))


def unpacked(packed: PackedSequence) -> tuple[Tensor, Padded]:
    """``[steps, batch, features]``, in the sorted order of the packed batch."""
    sizes, data = packed.batch_sizes, packed.data
    steps, batch = len(sizes), int(sizes[0])
    time = torch.repeat_interleave(torch.arange(steps), sizes)
    first = torch.cumsum(sizes, 0) - sizes
    members = torch.arange(len(time)) - first[time]
    rows = (time.to(data.device), members.to(data.device))
    lengths = (sizes[:, None] > torch.arange(batch)).sum(0).to(data.device)
    x = data.new_zeros((steps, batch, *data.shape[1:])).index_put(rows, data)
    return x, Padded(steps, lengths, rows)


def packed_like(packed: PackedSequence, x: Tensor, layout: Padded) -> PackedSequence:
    """``x [steps, batch, ...]`` in the rows and the order of ``packed``."""
    return PackedSequence(x[layout.rows], packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)


def checked_lengths(lengths: Any, steps: int, batch: int, device: torch.device) -> Tensor:
    """``lengths`` as int64 ``[batch]`` on ``device``.

    Raises
    ------
    TypeError, ValueError
        Unless they are ``batch`` integers from 0 to ``steps``.
    """
    if not isinstance(lengths, Tensor):
        if not isinstance(lengths, Sequence) or not all(type(n) is int for n in lengths):
            raise TypeError(f"lengths: got {lengths!r}, expected a tensor or a list of integers")
        lengths = torch.tensor(lengths, dtype=torch.int64)
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype == torch.bool:
        raise TypeError(f"lengths: got dtype {lengths.dtype}, expected integers")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths: got shape {tuple(lengths.shape)}, expected ({batch},): one for each sequence")
    wrong = [n for n in lengths.tolist() if not 0 <= n <= steps]
    if wrong:
        raise ValueError(f"lengths: got {wrong[0]}, expected from 0 to {steps}, the steps of the input")
    return lengths.to(device=device, dtype=torch.int64)
