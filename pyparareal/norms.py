# SPDX-License-Identifier: BSD-3-Clause
"""Spatial norms of one slice: which sum the kernel makes, and what is left to do with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SliceNorm:
    """``finish(op(d), size)`` is the norm of ``d`` with ``size`` elements; ``op`` is a norm of ``ops.slice_norms``."""

    op: str
    finish: Callable[[Any, int], Any]


NORMS = {
    "inf": SliceNorm("max_abs", lambda value, size: value),
    "l1": SliceNorm("sum_abs", lambda value, size: value),
    "l2": SliceNorm("sum_squares", lambda value, size: value**0.5),
    "rms": SliceNorm("sum_squares", lambda value, size: (value / size) ** 0.5),
}
