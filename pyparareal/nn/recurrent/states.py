# SPDX-License-Identifier: BSD-3-Clause
"""States of any structure as one array: a tensor, or tensors nested in tuples, as rows of numbers and back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

State = Any
"""A tensor ``[batch, ...]``, or a tuple of states."""


class Packing:
    """The structure of a state, known from an example: :meth:`pack` to ``[rows, F]``, :meth:`unpack` back.

    Parameters
    ----------
    example : State
        Its tensors have one dtype, device and batch.

    Raises
    ------
    TypeError, ValueError
        If they have not, or if a tensor is not floating point.
    """

    def __init__(self, example: State) -> None:
        tensors = leaves(example, "h0")
        first = tensors[0]
        for tensor in tensors:
            if tensor.ndim < 1:
                raise ValueError(f"h0: got a tensor without an axis, expected [batch, ...], all with {_kind(first)}")
            if (tensor.dtype, tensor.device, len(tensor)) != (first.dtype, first.device, len(first)):
                raise ValueError(
                    f"h0: got {_kind(tensor)} beside {_kind(first)}, expected one dtype, device and batch for all"
                )
        if not first.dtype.is_floating_point:
            raise TypeError(f"h0: got dtype {first.dtype}, expected a floating point dtype")
        self.batch, self.dtype, self.device = len(first), first.dtype, first.device
        self.shapes = [tuple(tensor.shape[1:]) for tensor in tensors]
        self.sizes = [math.prod(shape) for shape in self.shapes]
        self.features = sum(self.sizes)
        self._structure = _structure(example)
        self._flat = len(tensors) == 1 and isinstance(example, Tensor) and len(self.shapes[0]) == 1

    def pack(self, state: State) -> Tensor:
        """``[rows, F]`` from tensors ``[rows, ...]``."""
        if self._flat:
            return state
        parts = [tensor.reshape(len(tensor), -1) for tensor in leaves(state, "state")]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def unpack(self, u: Tensor) -> State:
        """Tensors ``[axes..., ...]`` from ``[axes..., F]``."""
        if self._flat:
            return u
        parts = u.split(self.sizes, dim=-1) if len(self.sizes) > 1 else (u,)
        shaped = [part.reshape(*u.shape[:-1], *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        return _rebuild(self._structure, iter(shaped))

    def kept(self, state: State, rows: int) -> Tensor:
        """:meth:`pack`, of what a cell has returned: under autocast in the dtype of the state, else as it must be."""
        if torch.is_autocast_enabled(self.device.type):
            state = map_state(lambda part: part.to(self.dtype), state)
        self.require(state, rows)
        return self.pack(state)

    def require(self, state: State, rows: int) -> None:
        """Refuse what a cell returned if it is no state of this structure with so many rows."""
        if self._flat and isinstance(state, Tensor):
            if state.shape == (rows, self.features) and state.dtype == self.dtype and state.device == self.device:
                return
        elif not self._flat and _structure(state) == self._structure:
            tensors = leaves(state, "cell")
            kinds = {(tensor.dtype, tensor.device) for tensor in tensors}
            if kinds == {(self.dtype, self.device)} and [tuple(t.shape) for t in tensors] == self._expected(rows):
                return
        raise ValueError(
            f"cell: returned {describe(state)}, expected {self._describe(rows)}: "
            "a cell keeps the structure, shape, dtype and device of the state"
        )

    def _expected(self, rows: int) -> list[tuple[int, ...]]:
        return [(rows, *shape) for shape in self.shapes]

    def _describe(self, rows: int) -> str:
        shapes = iter(self._expected(rows))

        def text(structure: Any) -> str:
            if structure is None:
                return f"{str(self.dtype).removeprefix('torch.')} {list(next(shapes))} on {self.device}"
            return f"({', '.join(map(text, structure))})"

        return text(self._structure)


def leaves(state: State, name: str) -> list[Tensor]:
    """The tensors of a state, from left to right."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, tuple | list) and state:
        return [tensor for part in state for tensor in leaves(part, name)]
    raise TypeError(f"{name}: got {describe(state)}, expected a tensor, or tensors nested in tuples")


def map_state(function: Any, state: State) -> State:
    """``function`` of every tensor, in the same structure."""
    return function(state) if isinstance(state, Tensor) else tuple(map_state(function, part) for part in state)


def describe(state: Any) -> str:
    if isinstance(state, Tensor):
        return f"{str(state.dtype).removeprefix('torch.')} {list(state.shape)} on {state.device}"
    if isinstance(state, tuple | list):
        return f"({', '.join(map(describe, state))})"
    return type(state).__name__


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} on {tensor.device} with batch {len(tensor) if tensor.ndim else 'none'}"


def _structure(state: Any) -> Any:
    if isinstance(state, tuple | list):
        return tuple(_structure(part) for part in state)
    return None if isinstance(state, Tensor) else type(state)


def _rebuild(structure: Any, tensors: Any) -> Any:
    return next(tensors) if structure is None else tuple(_rebuild(part, tensors) for part in structure)
