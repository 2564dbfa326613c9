# SPDX-License-Identifier: BSD-3-Clause
"""See where the time goes: timelines, rooflines, captured kernels, and a report in plain words."""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {
    "Event": "events",
    "Sample": "events",
    "RankClock": "events",
    "Solve": "events",
    "Record": "events",
    "Recorder": "recorder",
    "Timeline": "timeline",
    "arrows": "flows",
    "merge": "merging",
    "capture": "capturing",
    "replay": "replaying",
    "ranges": "profiler_ranges",
    "analyse": "analysis",
    "Analysis": "analysis",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
