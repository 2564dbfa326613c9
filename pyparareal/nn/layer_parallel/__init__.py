# SPDX-License-Identifier: BSD-3-Clause
"""Networks solved in parallel over their layers: the blocks as one stack, and the module that iterates on it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .stack import Stack as Stack

__all__ = ["Stack"]

_HOME = {"Stack": ".stack"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
