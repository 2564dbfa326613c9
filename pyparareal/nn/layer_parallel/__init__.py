# SPDX-License-Identifier: BSD-3-Clause
"""Networks solved in parallel over their layers: the blocks as one stack, and the module that iterates on it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .layer_parallel import LayerParallel as LayerParallel
    from .policy import Policy as Policy
    from .report import DepthReport as DepthReport
    from .settings import Settings as Settings
    from .stack import Stack as Stack

__all__ = ["DepthReport", "LayerParallel", "Policy", "Settings", "Stack"]

_HOME = {
    "DepthReport": ".report",
    "LayerParallel": ".layer_parallel",
    "Policy": ".policy",
    "Settings": ".settings",
    "Stack": ".stack",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
