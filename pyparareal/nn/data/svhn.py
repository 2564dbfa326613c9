# SPDX-License-Identifier: BSD-3-Clause
"""SVHN, cropped digits (format 2): MATLAB 5 files with ``X [32, 32, 3, count]`` uint8, ``y [count, 1]``; 10 is a zero.

Format: Y. Netzer et al., "The Street View House Numbers (SVHN) Dataset". ``extra_32x32.mat`` is not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from .files import DataError, listed, missing, require_labels
from .images import Images, Split, complete

CLASSES = 10
FILES = ("train_32x32.mat", "test_32x32.mat")
PUBLISHED = 'the page "The Street View House Numbers (SVHN) Dataset" of Stanford University, as format 2'


def read(directory: Path) -> Split:
    """Training images less 10 % for validation, and the test images.

    Raises
    ------
    ImportError
        SciPy is not installed.
    FileNotFoundError, DataError
        Files are missing; a file is no MATLAB 5 file, truncated, without ``X`` or ``y``, or these are not as above.
    """
    lacking = [name for name in FILES if not (directory / name).is_file()]
    if lacking:
        raise missing(directory, listed(lacking), PUBLISHED)
    train, test = (_images(directory / name) for name in FILES)
    return complete(train, None, test, (), CLASSES, str(directory))


def _images(path: Path) -> Images:
    content = _variables(path)
    for name in ("X", "y"):
        if not isinstance(content.get(name), np.ndarray):
            raise DataError(f"{path}: got no variable {name}, expected X and y")
    x, y = content["X"], content["y"]
    if x.dtype != np.uint8 or x.shape[:3] != (32, 32, 3) or x.ndim != 4:
        raise DataError(f"{path}: got X {x.dtype} {list(x.shape)}, expected uint8 [32, 32, 3, count]")
    if y.dtype.kind not in "uif" or y.size != x.shape[3] or y.ndim != 2:
        raise DataError(f"{path}: got y {y.dtype} {list(y.shape)}, expected {x.shape[3]} labels as X has images")
    y = y.ravel()
    require_labels(str(path), y, 1, CLASSES)
    if np.any(y != np.floor(y)):
        raise DataError(f"{path}: got labels that are no integers, expected 1 to {CLASSES}")
    pixels = np.ascontiguousarray(x.transpose(3, 2, 0, 1))
    return Images(torch.from_numpy(pixels), torch.from_numpy(y.astype(np.int64) % CLASSES))


def _variables(path: Path) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError('data "svhn" needs SciPy: pip install "pyparareal[train]"') from error
    try:
        return dict(loadmat(path, appendmat=False, variable_names=["X", "y"]))
    except NotImplementedError as error:
        raise DataError(f"{path}: got a MATLAB 7.3 file, expected MATLAB 5 as published") from error
    except (
        Exception
    ) as error:  # SciPy's parser raises a dozen types, and no single base, on bytes it does not understand
        raise DataError(f"{path}: got a damaged or truncated file ({error}), expected MATLAB 5") from error
