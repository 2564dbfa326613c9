# SPDX-License-Identifier: BSD-3-Clause
"""Recurrences solved in parallel over their steps: any cell, the GRU, the LSTM and Moon & Cyr's implicit GRU."""

from __future__ import annotations

import importlib
from typing import Any

from .report import SequenceReport as SequenceReport
from .settings import Settings as Settings

__all__ = ["SequenceReport", "Settings"]

_HOME = {"GRU": ".gru", "ImplicitGRU": ".implicit_gru", "LSTM": ".lstm", "Recurrence": ".recurrence"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
