# SPDX-License-Identifier: BSD-3-Clause
"""Data sets by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .images import Images, Split, split
from .names import NAMES


def load(name: str, directory: Path | None = None) -> Split:
    """The data set called ``name``, split; values scaled to zero mean and unit deviation over the training images.

    ``directory`` holds its files; ``digits`` needs none.
    """
    if name not in NAMES:
        raise ValueError(f"data: got {name!r}, expected {' or '.join(repr(known) for known in NAMES)}")
    return digits()


def digits() -> Split:
    """1,797 handwritten digits, 8x8 pixels, 10 classes (UCI, as bundled with scikit-learn)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('data "digits" needs scikit-learn: pip install "pyparareal[train]"') from error
    raw = load_digits()
    x = torch.from_numpy(raw.images.astype(np.float32))[:, None]
    y = torch.from_numpy(raw.target.astype(np.int64))
    return split(Images(x, y), classes=10)
