# SPDX-License-Identifier: BSD-3-Clause
"""What a recurrence is called with, and whether its cell is a function of its arguments: checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ...vjp import require_repeatable
from .states import Packing, State, describe


def check_inputs(x: Any, batch_first: bool) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """The tensors of ``x``, time first, and what makes of such tensors the argument of the cell.

    Raises
    ------
    TypeError, ValueError
        Unless they are tensors ``[T, batch, ...]`` with the same ``T >= 1`` and ``batch``.
    """
    if isinstance(x, PackedSequence):
        raise TypeError("x: got a PackedSequence, expected a padded tensor, with lengths= for what it holds")
    single = isinstance(x, Tensor)
    if not single and (not isinstance(x, tuple | list) or not x or not all(isinstance(t, Tensor) for t in x)):
        raise TypeError(f"x: got {describe(x)}, expected a tensor or a tuple of tensors")
    layout = "[batch, T, ...]" if batch_first else "[T, batch, ...]"
    tensors = [x] if single else list(x)
    for tensor in tensors:
        if tensor.ndim < 2:
            raise ValueError(f"x: got shape {tuple(tensor.shape)}, expected {layout}")
        if tensor.shape[:2] != tensors[0].shape[:2]:
            raise ValueError(
                f"x: got shapes {', '.join(str(tuple(t.shape)) for t in tensors)}, expected the same first two axes"
            )
    if batch_first:
        tensors = [tensor.transpose(0, 1) for tensor in tensors]
    if tensors[0].shape[0] == 0:
        raise ValueError(f"x: got {layout} = {tuple((x if single else x[0]).shape)}, expected at least one step")
    if tensors[0].shape[1] == 0:
        raise ValueError(f"x: got {layout} = {tuple((x if single else x[0]).shape)}, expected a batch of at least 1")
    return tensors, (_first if single else tuple)


def _first(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


def mask_of(
    lengths: Tensor | None, mask: Tensor | None, steps: int, batch: int, batch_first: bool, device: torch.device
) -> Tensor | None:
    """The lengths ``[batch]`` on ``device``; None if all are ``steps``.

    Raises
    ------
    TypeError, ValueError
        For both, for lengths beyond ``steps`` or below 0, and for masks with a gap.
    """
    if lengths is None and mask is None:
        return None
    if mask is not None:
        if lengths is not None:
            raise ValueError("mask: got one and lengths too, expected one of them")
        lengths = _lengths_of(mask, steps, batch, batch_first)
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.as_tensor(lengths)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"lengths: got {lengths!r}, expected a tensor or a list of integers") from None
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths: got dtype {lengths.dtype}, expected int64")
    if lengths.shape != (batch,):
        raise ValueError(f"lengths: got shape {tuple(lengths.shape)}, expected one for each of the batch of {batch}")
    host = lengths.cpu()
    if int(host.max()) > steps:
        raise ValueError(f"lengths: got {int(host.max())}, expected at most the {steps} steps of x")
    if int(host.min()) < 0:
        raise ValueError(f"lengths: got {int(host.min())}, expected at least 0")
    return None if int(host.min()) == steps else lengths.to(device, torch.int64)


def _lengths_of(mask: Any, steps: int, batch: int, batch_first: bool) -> Tensor:
    expected = (batch, steps) if batch_first else (steps, batch)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask: got {describe(mask)}, expected a bool tensor")
    if tuple(mask.shape) != expected:
        raise ValueError(f"mask: got shape {tuple(mask.shape)}, expected {expected}")
    mask = mask.t() if batch_first else mask
    lengths = mask.sum(0)
    if not torch.equal(mask, torch.arange(steps, device=mask.device)[:, None] < lengths):
        row = int((mask != (torch.arange(steps, device=mask.device)[:, None] < lengths)).any(0).nonzero()[0])
        raise ValueError(
            f"mask: sequence {row} has a gap, expected the first steps True and the rest False: "
            "a recurrence cannot skip steps"
        )
    return lengths


def check_cell(
    cell: Any, nested: Any, inputs: Sequence[Tensor], h0: State, packing: Packing, checked: set[Any]
) -> None:
    """Refuse a cell that is no function of its arguments, row by row; judged once per mode and kind of arguments.

    It is called twice with the same, and once in the company of as many other rows.

    Raises
    ------
    ValueError
        If it changes shape, dtype or device of the state; if the second call differs, or random numbers were drawn;
        if a row depends on its company; if gradients are asked for and do not lead to the state.
    """
    kinds = tuple((x.shape[1:], x.dtype, x.device) for x in inputs)
    modes = tuple(module.training for module in cell.modules()) if isinstance(cell, nn.Module) else ()
    key = (kinds, modes, tuple(packing.shapes), packing.dtype, torch.is_grad_enabled())
    if key in checked:
        return
    if isinstance(cell, nn.Module):
        _refuse_chance(cell)
    rows = packing.batch
    given = [*(part[0] for part in inputs), packing.pack(h0)]
    x, h0 = [part.clone() for part in given[:-1]], packing.unpack(given[-1].clone())  # a cell may write to them
    with torch.no_grad():
        before = _random_states(packing.device)
        first = packing.kept(cell(nested(x), h0), rows).clone()
        if not all(_same(a, b) for a, b in zip(given, [*x, packing.pack(h0)], strict=True)):
            raise ValueError("cell: writes to its arguments, expected a new state: they are used again")
        again = packing.kept(cell(nested(x), h0), rows)
        drawn = any(not torch.equal(a, b) for a, b in zip(before, _random_states(packing.device), strict=True))
        _restore(before, packing.device)
    if drawn:
        raise ValueError(
            "cell: draws random numbers, expected the same state for the same arguments; call eval() on it"
        )
    if not _same(first, again):
        raise ValueError(
            "cell: returned another state when called again with the same arguments: it keeps something between "
            "calls, expected all of its memory in the state h"
        )
    _check_company(cell, nested, x, h0, packing, first)
    checked.add(key)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(), b.nan_to_num())


def _refuse_chance(cell: nn.Module) -> None:
    try:
        require_repeatable([cell])
    except ValueError as error:
        raise ValueError(str(error).replace("fine: ", "cell: ", 1)) from None


def _check_company(cell: Any, nested: Any, x: Sequence[Tensor], h0: State, packing: Packing, alone: Tensor) -> None:
    rows = packing.batch

    def doubled(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, 0.5 * tensor if tensor.is_floating_point() else tensor])

    packed = packing.pack(h0)
    state = packing.unpack(doubled(packed))
    with torch.no_grad():
        try:
            both = cell(nested([doubled(part) for part in x]), state)
        except (RuntimeError, ValueError, IndexError) as error:
            raise ValueError(
                f"cell: fails with {2 * rows} rows where it works with {rows}: {error}; "
                "expected any number of rows: chunks are more rows of the batch"
            ) from error
        both = packing.kept(both, 2 * rows)
    eps = torch.finfo(packing.dtype).eps
    allowed = eps**0.5 * alone.nan_to_num().abs().max()  # a matrix product of other rows rounds otherwise, no more
    if not bool(((both[:rows] - alone).nan_to_num().abs() <= allowed).all()):
        raise ValueError(
            "cell: the state of a row depends on which other rows there are, expected rows that are independent"
        )


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _restore(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
