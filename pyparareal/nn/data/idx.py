# SPDX-License-Identifier: BSD-3-Clause
"""MNIST and Fashion-MNIST: IDX files, plain or .gz.

An IDX file is two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a 32-bit
big-endian integer, and the values, last index fastest. Format: Y. LeCun, C. Cortes, C. Burges, "The MNIST database".
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from .files import DataError, Reader, listed, missing, require_labels, require_size
from .images import Images, Split, complete

UNSIGNED_BYTE = 8
CLASSES = 10
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
PUBLISHED = {
    "mnist": 'the page "The MNIST database of handwritten digits" of Yann LeCun',
    "fashion_mnist": "the project page fashion-mnist of Zalando Research",
}
GARMENTS = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def read(directory: Path, name: str) -> Split:
    """Training images less 10 % for validation, and the t10k images of ``mnist`` or ``fashion_mnist``.

    Raises
    ------
    FileNotFoundError
        Files are missing; each may be plain or end with .gz.
    DataError
        Bad magic number, wrong dimensions, truncated, numbers of images and labels that differ, labels above 9.
    """
    names = [file for pair in FILES.values() for file in pair]
    paths = {file: path for file in names if (path := _path(directory, file))}
    lacking = [file for file in names if file not in paths]
    if lacking:
        raise missing(directory, f"{listed(lacking)}, plain or .gz", PUBLISHED[name])
    train, test = (_images(paths[images], paths[labels]) for images, labels in FILES.values())
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise DataError(
            f"{paths[FILES['test'][0]]}: got images of {_size(test)} pixels, "
            f"expected {_size(train)} as in {paths[FILES['train'][0]].name}"
        )
    return complete(train, None, test, GARMENTS if name == "fashion_mnist" else (), CLASSES, str(directory))


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, ``dimensions`` of them, all at least 1."""
    length = 4 + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(length)
            magic = bytes((0, 0, UNSIGNED_BYTE, dimensions))
            if head[:4] != magic:
                raise DataError(f"{path}: got {head[:4].hex() or 'nothing'} as magic number, expected {magic.hex()}")
            if len(head) < length:
                raise DataError(f"{path}: got {len(head)} bytes, expected {length} of dimensions alone; truncated")
            shape = np.frombuffer(head, ">u4")[1:].tolist()
            if not all(shape):
                raise DataError(f"{path}: got dimensions {shape}, expected all at least 1")
            values = _read(file, path, int(np.prod(shape, dtype=object)))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: got a damaged or truncated file ({error}), expected a whole .gz") from error
    return np.frombuffer(values, np.uint8).reshape(shape).copy()


def _read(file: Reader, path: Path, size: int) -> bytes:
    # One byte more, so that a longer file is seen and the checksum of a .gz compared. Piece by piece, as the
    # dimensions of a corrupt file ask for any amount of memory.
    pieces, left = [], size + 1
    while left and (piece := file.read(min(left, 1 << 24))):
        pieces.append(piece)
        left -= len(piece)
    return require_size(str(path), b"".join(pieces), size)


def _path(directory: Path, name: str) -> Path | None:
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _images(images: Path, labels: Path) -> Images:
    pixels, y = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(y):
        raise DataError(f"{labels}: got {len(y):,} labels, expected {len(pixels):,} as images in {images.name}")
    require_labels(str(labels), y, 0, CLASSES - 1)
    return Images(torch.from_numpy(pixels)[:, None], torch.from_numpy(y.astype(np.int64)))


def _size(images: Images) -> str:
    return "x".join(map(str, images.pixels.shape[2:]))
