# SPDX-License-Identifier: BSD-3-Clause
"""Labelled images in memory, their fixed split, batches in a reproducible order, augmentation.

Names are loaded on first use, so that importing this package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .names import AUGMENTATIONS as AUGMENTATIONS
from .names import DEFAULT_AUGMENTATION as DEFAULT_AUGMENTATION
from .names import NAMES as NAMES

if TYPE_CHECKING:
    from .batching import batches as batches
    from .batching import cropped_and_flipped as cropped_and_flipped
    from .batching import generator as generator
    from .batching import shifted as shifted
    from .batching import steps_per_epoch as steps_per_epoch
    from .cluttering import clutter as clutter
    from .curves import connected_curves as connected_curves
    from .files import DataError as DataError
    from .images import Images as Images
    from .images import Split as Split
    from .images import split as split
    from .images import standardised as standardised
    from .loading import cluttered_digits as cluttered_digits
    from .loading import digits as digits
    from .loading import load as load

_HOME = {
    "DataError": ".files",
    "Images": ".images",
    "Split": ".images",
    "batches": ".batching",
    "clutter": ".cluttering",
    "cluttered_digits": ".loading",
    "connected_curves": ".curves",
    "cropped_and_flipped": ".batching",
    "digits": ".loading",
    "generator": ".batching",
    "load": ".loading",
    "shifted": ".batching",
    "split": ".images",
    "standardised": ".images",
    "steps_per_epoch": ".batching",
}

__all__ = ["AUGMENTATIONS", "DEFAULT_AUGMENTATION", "NAMES", *_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
