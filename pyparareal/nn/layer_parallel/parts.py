# SPDX-License-Identifier: BSD-3-Clause
"""A network of several stacks as one: its blocks, options of its layers, and no tensor in two of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from .kinds import name_of
from .stack import Stack


def refuse_ties(blocks: Sequence[nn.Module], cuts: tuple[int, int], ends: Mapping[str, nn.Module | None]) -> None:
    """Refuse tensors that a block has in common with a block of another part, or with one of the ``ends``.

    Stacking copies tensors, and sees what is shared within one stack only.

    Parameters
    ----------
    blocks : all of them
    cuts : where the second and third part begin
    ends : opening and closing, by name

    Raises
    ------
    ValueError
        Naming the block and the tensor.
    """
    homes: dict[int, tuple[int, str]] = {}
    for place, (name, module) in enumerate(ends.items()):
        if module is not None:
            for tensor in [*module.parameters(), *module.buffers()]:
                homes.setdefault(id(tensor), (-1 - place, name))
    for i, block in enumerate(blocks):
        part = sum(i >= cut for cut in cuts)
        for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
            home, holder = homes.setdefault(id(tensor), (part, name_of(i, block)))
            if home != part:
                what = "buffer layers and the others" if home >= 0 else f"blocks and {holder}"
                raise ValueError(
                    f"blocks: got {name_of(i, block)}, which shares {name!r} with {holder}, expected no tensor in "
                    f"common between {what}"
                )


def all_blocks(stacks: Sequence[Stack]) -> list[nn.Module]:
    """Copies of all blocks, in order."""
    return [block for stack in stacks for block in stack.serial()]


def groups(
    stacks: Sequence[tuple[int, Stack]],
    ends: Mapping[str, nn.Module | None],
    options: Callable[[int | None, str], Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: those of the stacks, with their first layers, and those of the ``ends``."""
    if not callable(options):
        raise TypeError(f"options: got {type(options).__name__}, expected a callable of the layer and the name")
    found: list[dict[str, Any]] = []
    for first, stack in stacks:
        found += stack.optim_groups(lambda layer, name, first=first: options(first + layer, name))  # type: ignore[misc]
    by_options: dict[Any, dict[str, Any]] = {}
    seen = {id(p) for group in found for p in group["params"]}
    for end, module in ends.items():
        for name, parameter in module.named_parameters() if module is not None else ():
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            wanted = dict(options(None, f"{end}.{name}"))
            if "params" in wanted:
                raise ValueError("options: got 'params', expected options of a group, such as lr")
            group = by_options.setdefault(tuple(sorted((k, repr(v)) for k, v in wanted.items())), wanted)
            group.setdefault("params", []).append(parameter)
    return [*found, *by_options.values()]
