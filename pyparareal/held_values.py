# SPDX-License-Identifier: BSD-3-Clause
"""What a propagator computes with, as far as it can be seen, so that ranks find out that theirs are not the same.

Seen are, of an object with ``step`` and of a function:

* modules, with their parameters and buffers, and tensors that require grad, under any name;
* arrays and floats that are public attributes, or that a function has from around it or as defaults;
* the same of what it calls, and of lists of all these.

Arrays and floats with a leading underscore are the propagator's own business: room to work in, a cache, a clock. So
are integers, which may count. Not seen are globals, dictionaries and slots.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

import numpy as np

from . import arrays
from .runtime.group import checksum

Array = Any


def fingerprints(name: str, phi: Any) -> dict[str, str]:
    """Checksums of what ``phi`` computes with, by names that begin with ``name``."""
    found: dict[str, int] = {}
    for where, value in _seen(name, phi):
        found[where] = zlib.crc32(fingerprint(value).encode(), found.get(where, 0))
    return {where: f"values with checksum {one:08x}" for where, one in found.items()}


def fingerprint(value: Any) -> str:
    """Of a number, or of the shape, dtype and bits of an array."""
    if isinstance(value, float):
        return repr(value)
    if arrays.is_torch(value):
        return checksum([value.resolve_conj().resolve_neg()])
    values = np.ascontiguousarray(value)
    return f"{values.dtype} {values.shape} {zlib.crc32(values.reshape(-1).view(np.uint8).data):08x}"


def _seen(name: str, phi: Any) -> Iterator[tuple[str, Any]]:
    done: set[int] = set()
    todo = [(name, phi, True)]  # the last: whether it is public
    while todo:
        name, value, public = todo.pop()
        if _is_array(value) or isinstance(value, float):
            if public or getattr(value, "requires_grad", False):
                yield name, value
            continue
        if id(value) in done:
            continue
        done.add(id(value))
        if _is_module(value):
            held = (*value.parameters(), *_constant_buffers(value))
            todo.extend((name, one, True) for one in held)
        elif isinstance(value, list | tuple):
            todo.extend((name, one, public) for one in value)
        elif not isinstance(value, type) and (hasattr(value, "step") or callable(value)):
            todo.extend((f"{name}{more}", one, shown) for more, one, shown in _parts(value))


def _parts(phi: Any) -> Iterator[tuple[str, Any, bool]]:
    """What an object or a function keeps: what it is called, and whether that is public."""
    for name, value in getattr(phi, "__dict__", {}).items():
        if not isinstance(getattr(type(phi), name, None), cached_property):
            numbers = hasattr(phi, "step") or not isinstance(value, float)
            yield f".{name}", value, numbers and not name.startswith("_")
    yield "", getattr(phi, "__self__", None), True  # the object of a bound method
    if isinstance(phi, partial):
        yield "", (phi.func, *phi.args, *phi.keywords.values()), True
    code = getattr(phi, "__code__", None)
    for name, cell in zip(getattr(code, "co_freevars", ()), getattr(phi, "__closure__", None) or (), strict=False):
        yield f" with {name}", _content(cell), True
    yield (
        "",
        (*(getattr(phi, "__defaults__", None) or ()), *(getattr(phi, "__kwdefaults__", None) or {}).values()),
        True,
    )


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _is_array(value: Any) -> bool:
    """One whose bits can be read."""
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    if not arrays.is_torch(value):
        return False
    torch: Any = sys.modules["torch"]
    return value.layout == torch.strided and value.device.type in ("cpu", "cuda")


def _is_module(value: Any) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _constant_buffers(module: Any) -> Iterator[Array]:
    """Without the statistics of what each rank has seen in training."""
    for part in module.modules():
        if not (part.training and getattr(part, "track_running_stats", False)):
            yield from part.buffers(recurse=False)
