# SPDX-License-Identifier: BSD-3-Clause
"""FLOPs of torch modules that a record has steps of, counted afterwards, once for each module and shape."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from .. import traced_ops
from .events import Record


def tell(record: Record) -> None:
    """Add "flops" to the facts of the launches of modules that still live; those of others stay unknown.

    A state ``[slices, batch, features...]`` passes a module as ``[slices * batch, features...]``, and nothing is
    computed: it runs on torch's meta device. Products of matrices, convolutions and attention alone count.
    """
    alive = {number: module for module, number in traced_ops.modules.items()}
    known: dict[tuple[int, tuple[int, ...], str], int | None] = {}
    for event in record.events:
        module = alive.get(event.facts.get("module", -1)) if event.kind == "launch" else None
        if module is None:
            continue
        shape, dtype = tuple(event.facts["shape"]), str(event.facts["dtype"])
        key = event.facts["module"], shape, dtype
        if key not in known:
            known[key] = _counted(module, shape, dtype)
        if known[key] is not None:
            event.facts["flops"] = known[key] * event.facts["steps"]


def _counted(module: Any, shape: Sequence[int], dtype: str) -> int | None:
    """Of one step; None where the module cannot run without values, or nothing in it counts."""
    torch = sys.modules["torch"]
    from ..nn.costs import count_flops

    rows = math.prod(shape[:2]) if len(shape) > 2 else shape[0]
    x = torch.empty((rows, *shape[2:]) if len(shape) > 2 else tuple(shape), dtype=getattr(torch, dtype), device="meta")
    try:
        return count_flops(module, x) or None
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
