# SPDX-License-Identifier: BSD-3-Clause
"""Data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from . import cifar, folders, idx, svhn
from .cluttering import cluttered
from .curves import connected_curves
from .images import Images, Split, split
from .names import NAMES, WITHOUT_FILES

READERS: dict[str, Callable[[Path], Split]] = {
    "cifar10": partial(cifar.read, version=cifar.CIFAR10),
    "cifar100": partial(cifar.read, version=cifar.CIFAR100),
    "cifar100_coarse": partial(cifar.read, version=cifar.CIFAR100, label="coarse"),
    "mnist": partial(idx.read, name="mnist"),
    "fashion_mnist": partial(idx.read, name="fashion_mnist"),
    "svhn": svhn.read,
}


def load(name: str, directory: Path | None = None, *, image_size: int | None = None) -> Split:
    """The data set called ``name``; values scaled to zero mean and unit deviation over the training images.

    Parameters
    ----------
    name : one of ``NAMES``
    directory : where the original files are; CIFAR also: the .tar.gz itself
        Required except for ``digits``, ``cluttered_digits`` and ``connected_curves``. Read, never written; nothing
        is downloaded.
    image_size : int, optional
        Of ``folder``: see :func:`.folders.read`. Of ``cluttered_digits``, ``connected_curves``: the side of the canvas.

    Raises
    ------
    FileNotFoundError
        Which files were expected where, and where they are published.
    DataError
        A :class:`ValueError`: a file that is truncated, corrupt, or of another number of classes.
    """
    if name not in NAMES:
        raise ValueError(f"data: got {name!r}, expected one of {', '.join(NAMES)}")
    if image_size is not None and name not in ("folder", *MADE):
        raise ValueError(f"image_size: got {image_size} for {name}, expected it for {', '.join(MADE)} or folder only")
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size: got {image_size}, expected at least 1")
    if name in WITHOUT_FILES:
        if directory is not None:
            raise ValueError(f"directory: got {str(directory)!r}, expected none: {name} need no files")
        return digits() if name == "digits" else MADE[name](**_given(canvas=image_size))
    if directory is None:
        raise ValueError(f"directory: got none, expected where the original files of {name} are")
    if name == "folder":
        return folders.read(Path(directory), image_size)
    return READERS[name](Path(directory))


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


def cluttered_digits(canvas: int = 28, *, train: int = 4, held_out: int = 1, seed: int = 0) -> Split:
    """The digits, in the same three sets, in clutter: a harder task, made in memory. See :func:`.cluttering.clutter`.

    ``train`` and ``held_out`` are the copies of each training image and of each validation and test image.
    """
    return cluttered(digits(), canvas=canvas, train=train, held_out=held_out, seed=seed)


MADE: dict[str, Callable[..., Split]] = {"cluttered_digits": cluttered_digits, "connected_curves": connected_curves}


def _given(**options: int | None) -> dict[str, int]:
    return {name: value for name, value in options.items() if value is not None}
