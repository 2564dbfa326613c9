# SPDX-License-Identifier: BSD-3-Clause
"""Blocks of one kind, and one module with their parameters stacked: ``[layers, ...]`` in place of ``[...]``."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils import parametrize

from ..execution.congruence import first_difference

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def name_of(layer: int, block: nn.Module) -> str:
    """As messages name a layer."""
    return f"blocks.{layer} ({type(block).__name__})"


def check_blocks(blocks: Any) -> list[nn.Module]:
    """``blocks`` as a list.

    Raises
    ------
    TypeError, ValueError
        If they are not at least one ``nn.Module`` with initialised parameters.
    """
    if isinstance(blocks, nn.Module) and not isinstance(blocks, nn.Sequential | nn.ModuleList):
        raise TypeError(f"blocks: got {type(blocks).__name__}, expected a list, ModuleList or Sequential of blocks")
    if isinstance(blocks, nn.Sequential) and type(blocks).forward is not nn.Sequential.forward:
        raise TypeError(f"blocks: got {type(blocks).__name__} with a forward of its own, expected a plain Sequential")
    if isinstance(blocks, str | bytes | Tensor) or not hasattr(blocks, "__iter__"):
        raise TypeError(f"blocks: got {type(blocks).__name__}, expected a list, ModuleList or Sequential of blocks")
    # Not children(), which leave out the second mention of a module.
    found: list[Any] = list(blocks._modules.values()) if isinstance(blocks, nn.Module) else list(blocks)
    if not found:
        raise ValueError("blocks: got none, expected at least one")
    for i, block in enumerate(found):
        if not isinstance(block, nn.Module):
            raise TypeError(f"blocks: got {type(block).__name__} for block {i}, expected a torch.nn.Module")
        if any("_orig_mod" in part._modules for part in block.modules()):
            raise TypeError(
                f"blocks: got {name_of(i, block)} from torch.compile, which would run on parameters of its own; "
                "expected the module that was compiled"
            )
        _check_attributes(name_of(i, block), block)
        for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
            if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
                raise ValueError(
                    f"blocks: got {name_of(i, block)}, whose {name!r} has no shape yet, expected initialised blocks: "
                    "call it once"
                )
    return found


def _check_attributes(block_name: str, block: nn.Module) -> None:
    parts = {id(part) for part in block.modules()}
    for name, part in block.named_modules():
        for key, value in vars(part).items():
            here = f"{name}.{key}".lstrip(".")
            if isinstance(value, Tensor) and value.requires_grad and value.is_leaf:
                raise ValueError(
                    f"blocks: got {block_name}, whose {here!r} requires grad but is no nn.Parameter, expected "
                    "parameters: its gradient would be lost"
                )
            if isinstance(value, FunctionType) and any(id(one) in parts for one in _closure(value)):
                raise ValueError(
                    f"blocks: got {block_name}, whose {here!r} is a function made with the module itself, expected a "
                    "method: copies of the block would use the parameters of this one"
                )


def kinds(blocks: Sequence[nn.Module]) -> tuple[list[list[int]], dict[int, str]]:
    """The layers in sets that can be stacked, in order of their first, and why the others, alone in theirs, cannot be.

    Blocks of a kind have equal types, options, parameter shapes and dtypes, and no tensor in common.
    """
    holders = Counter(id(t) for block in blocks for t in {id(t): t for t in _tensors(block)}.values())
    found: list[list[int]] = []
    reasons: dict[int, str] = {}
    for i, block in enumerate(blocks):
        why = _why_alone(block, holders)
        if why is not None:
            reasons[i] = why
            found.append([i])
            continue
        home = next((k for k in found if k[0] not in reasons and first_difference(blocks[k[0]], block) is None), None)
        if home is None:
            found.append([i])
        else:
            home.append(i)
    for kind in found:
        if len(kind) == 1 and kind[0] not in reasons and len(blocks) > 1:
            other = blocks[1 if kind[0] == 0 else 0]
            what = first_difference(other, blocks[kind[0]])
            reasons[kind[0]] = f"is the only one of its kind: {what}"
    return found, reasons


def _tensors(block: nn.Module) -> Iterator[Tensor]:
    yield from block.parameters()
    yield from block.buffers()


def _why_alone(block: nn.Module, holders: Counter[int]) -> str | None:
    """Why ``block`` can have no stacked parameters, if so."""
    names: dict[int, str] = {}
    parts = {id(part) for part in block.modules()}
    for name, part in block.named_modules(remove_duplicate=False):
        if isinstance(part, torch.jit.ScriptModule):
            return "is compiled"
        if parametrize.is_parametrized(part):
            return f"has the parametrized module {name or 'itself'!r}"
        if any(getattr(part, hooks, None) for hooks in _HOOKS):
            return f"has hooks on its module {name or 'itself'!r}"
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            return f"saves more than tensors in its module {name or 'itself'!r}"
        for key, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is None:
                continue
            here = f"{name}.{key}" if name else key
            if type(tensor) not in (Tensor, nn.Parameter):
                return f"has {here!r} of type {type(tensor).__name__}"
            if holders[id(tensor)] > 1:
                return f"shares {here!r} with another block"
            if names.setdefault(id(tensor), here) != here:
                return f"has one tensor as {names[id(tensor)]!r} and as {here!r}"
        for key, value in vars(part).items():
            if key not in ("_parameters", "_buffers", "_modules") and (kept := _keeps(value, parts)):
                return f"refers to its {kept} by its attribute {key!r} too"
    return None


def _keeps(value: Any, parts: set[int]) -> str | None:
    """What ``value`` holds beside modules' own dicts: a parameter, a module, or a function that knows one of these.

    A copy of the block with other parameters would still use the old ones through it.
    """
    values = value if isinstance(value, list | tuple | set) else value.values() if isinstance(value, dict) else [value]
    for one in values:
        one = one.func if isinstance(one, partial) else one
        if isinstance(one, Tensor) and (one.requires_grad or isinstance(one, nn.Parameter)):
            return "parameters"
        if isinstance(one, nn.Module) or id(getattr(one, "__self__", None)) in parts:
            return "modules"
        if isinstance(one, FunctionType) and (kept := _keeps([*_closure(one), *(one.__defaults__ or ())], parts)):
            return kept
    return None


def _closure(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not set yet
            if not isinstance(cell.cell_contents, FunctionType):  # it may be the function itself
                yield cell.cell_contents


def stacked(blocks: Sequence[nn.Module]) -> nn.Module:
    """A copy of ``blocks[0]`` in which every parameter and buffer is that of all ``blocks``, stacked."""
    swaps: dict[int, Any] = {}
    parts = [dict(block.named_modules()) for block in blocks]
    for name, part in blocks[0].named_modules():
        for kind in ("_parameters", "_buffers"):
            for key, tensor in getattr(part, kind).items():
                if tensor is None:
                    continue
                rows = torch.stack([getattr(p[name], kind)[key].detach() for p in parts])
                swaps[id(tensor)] = nn.Parameter(rows, tensor.requires_grad) if kind == "_parameters" else rows
    return _copy_with(blocks[0], swaps)


def with_rows(module: nn.Module, rows: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of a :func:`stacked` module with ``rows(tensor)``, copied, for each of its tensors."""
    swaps: dict[int, Any] = {}
    for parameter in module.parameters():
        swaps[id(parameter)] = nn.Parameter(rows(parameter.detach()).clone(), parameter.requires_grad)
    for buffer in module.buffers():
        swaps[id(buffer)] = rows(buffer.detach()).clone()
    return _copy_with(module, swaps)


def _copy_with(module: nn.Module, swaps: dict[int, Any]) -> nn.Module:
    # What is in the memo of a deep copy already is not copied but taken from there.
    return copy.deepcopy(module, dict(swaps))


def of_flags(blocks: Sequence[nn.Module]) -> list[tuple[bool, ...]]:
    """Which parameters of each block require grad: a stacked parameter has one flag for all."""
    return [tuple(p.requires_grad for p in block.parameters()) for block in blocks]


def cut_where(keys: Sequence[Any]) -> list[slice]:
    """The runs of equal neighbours."""
    edges = [i for i in range(1, len(keys)) if keys[i] != keys[i - 1]]
    return [slice(a, b) for a, b in zip([0, *edges], [*edges, len(keys)], strict=True)]
