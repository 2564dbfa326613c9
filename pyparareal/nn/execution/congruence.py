# SPDX-License-Identifier: BSD-3-Clause
"""Which modules are the same program on different numbers, and where two of them first differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from . import Modules

# Bookkeeping of torch.nn.Module; "training" and everything a module's own __init__ sets is compared.
_OWN_STATE = {"_parameters", "_buffers", "_modules", "_compiled_call_impl"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def first_difference(a: nn.Module, b: nn.Module) -> str | None:
    """Where running ``a`` and ``b`` as one network would not be the same as running each, or None.

    They must have equal types, options and training flags, parameters and buffers of equal shapes, no hooks, and no
    buffer in common; values of parameters and buffers may differ.
    """
    found = next(_differences(a, b, ""), None)
    if found is None:
        common = {id(t): name for name, t in a.named_buffers()}
        found = next((f"share the buffer {common[id(t)]}" for t in b.buffers() if id(t) in common), None)
    return found


def congruent_groups(modules: Modules, inputs: Sequence[Tensor]) -> list[list[int]]:
    """Indices of ``modules`` in groups of equal structure and equal kind of input, in order of first members."""
    groups: list[list[int]] = []
    for j, module in enumerate(modules):
        for group in groups:
            k = group[0]
            same_input = inputs[j].shape == inputs[k].shape and inputs[j].dtype == inputs[k].dtype
            if same_input and all(first_difference(modules[i], module) is None for i in group):
                group.append(j)
                break
        else:
            groups.append([j])
    return groups


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself, where torch.compile has wrapped it."""
    original = module._modules.get("_orig_mod")
    return module if original is None else original


def _differences(a: nn.Module, b: nn.Module, name: str) -> Iterator[str]:
    here = f"{name}: " if name else ""
    a, b = uncompiled(a), uncompiled(b)
    if type(a) is not type(b):
        yield f"{here}{type(a).__name__} against {type(b).__name__}"
        return
    if any(getattr(m, hooks) for m in (a, b) for hooks in _HOOKS):
        yield f"{here}{type(a).__name__} has hooks, which one network for both would not call"
    yield from _attributes(vars(a), vars(b), here)
    yield from _tensors(a._parameters, b._parameters, here)
    yield from _tensors(a._buffers, b._buffers, here)
    if len(a._modules) != len(b._modules):
        yield f"{here}{len(a._modules)} modules against {len(b._modules)}"
        return
    for (n, x), (m, y) in zip(a._modules.items(), b._modules.items(), strict=True):
        if n != m and not isinstance(a, nn.Sequential):
            yield f"{here}{n} against {m}"
        elif x is not None and y is not None:
            yield from _differences(x, y, f"{name}.{n}" if name else n)
        elif x is not y:
            yield f"{here}{n} is missing in one of them"


def _attributes(a: dict[str, Any], b: dict[str, Any], here: str) -> Iterator[str]:
    for key in chain(a, (k for k in b if k not in a)):
        if key in _OWN_STATE or key in _HOOKS or (key.startswith("_") and "hook" in key):
            continue
        if key not in a or key not in b:
            yield f"{here}{key} is set in one of them"
        elif not _equal(a[key], b[key]):
            yield f"{here}{key} {a[key]!r} against {b[key]!r}"


def _equal(x: Any, y: Any) -> bool:
    if x is y:
        return True
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        kind = isinstance(x, Tensor) and isinstance(y, Tensor) and x.dtype == y.dtype and x.device == y.device
        return kind and torch.equal(x, y)
    try:
        return type(x) is type(y) and bool(x == y)
    except (TypeError, ValueError, RuntimeError):  # not comparable as a whole, e.g. NumPy arrays: count as different
        return False


def _tensors(a: Mapping[str, Tensor | None], b: Mapping[str, Tensor | None], here: str) -> Iterator[str]:
    if a.keys() != b.keys():
        yield f"{here}tensors {', '.join(a)} against {', '.join(b)}"
        return
    for key, x in a.items():
        y = b[key]
        if (x is None) != (y is None):
            yield f"{here}{key} is missing in one of them"
        elif x is not None and y is not None:
            for what in ("shape", "dtype", "device"):
                if getattr(x, what) != getattr(y, what):
                    yield f"{here}{key} of {what} {_plain(getattr(x, what))} against {_plain(getattr(y, what))}"


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, torch.Size) else value
