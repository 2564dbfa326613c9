# SPDX-License-Identifier: BSD-3-Clause
"""Folders of images: ``train/<class>/*.png`` or ``.jpg``; where there are, ``val/<class>/`` and ``test/<class>/``."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .files import DataError, missing
from .images import Images, Split, complete

SETS = ("train", "val", "test")
SUFFIXES = (".png", ".jpg", ".jpeg")
GREY, COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
LAYOUT = "train/<class>/*.png or .jpg, and perhaps val/ and test/ with the same classes"


def read(directory: Path, image_size: int | None = None) -> Split:
    """The folders of ``train`` are the classes, in alphabetical order; missing ``val`` or ``test`` are split off it.

    Three channels, or one if all images are grey. Transparency is dropped, an orientation in EXIF data not applied.
    With ``image_size`` the shorter side is resized to it (bilinear, antialiased) and the centre cut out; without,
    all images must have one size. Names that begin with a dot are not looked at.

    Raises
    ------
    ImportError
        Pillow is not installed.
    FileNotFoundError
        No ``train`` folder.
    DataError
        Classes that differ between the sets, a class without images, a file that is no PNG or JPEG, is damaged or
        holds more than 8 bits per channel, different sizes.
    """
    if not (directory / "train").is_dir():
        raise missing(directory, LAYOUT)
    image = _pillow()
    for place in _visible(directory):
        if place.is_dir() and place.name not in SETS:
            raise DataError(f"{directory}: got a folder {place.name!r}, expected no other than {', '.join(SETS)}")
    sets = {name: _files(directory / name) for name in SETS if (directory / name).exists()}
    classes = sorted({path.parent.name for path in sets["train"]})
    for name, paths in sets.items():
        _require_same_classes(directory / name, classes, sorted({path.parent.name for path in paths}))
    everything = [path for paths in sets.values() for path in paths]
    modes, size = _survey(image, everything, image_size)
    mode = "L" if modes <= set(GREY) else "RGB"
    labels = {name: number for number, name in enumerate(classes)}
    read = {name: _images(image, paths, labels, mode, size, image_size) for name, paths in sets.items()}
    return complete(read["train"], read.get("val"), read.get("test"), tuple(classes), len(classes), str(directory))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError('data "folder" needs Pillow: pip install "pyparareal[train]"') from error
    return Image


def _visible(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)


def _files(folder: Path) -> list[Path]:
    """All images of a set, class by class."""
    if not folder.is_dir():
        raise DataError(f"{folder}: got a file, expected a folder of classes")
    files = []
    for place in _visible(folder):
        if not place.is_dir():
            raise DataError(f"{place}: got a file, expected a folder for each class and nothing else")
        members = _visible(place)
        if not members:
            raise DataError(f"{place}: got an empty folder, expected images of this class")
        for path in members:
            if path.suffix.lower() not in SUFFIXES or not path.is_file():
                raise DataError(f"{path}: expected only {', '.join(SUFFIXES)} files in the folder of a class")
        files += members
    if not files:
        raise DataError(f"{folder}: got an empty folder, expected a folder for each class")
    return files


def _require_same_classes(folder: Path, expected: list[str], got: list[str]) -> None:
    more, fewer = sorted(set(got) - set(expected)), sorted(set(expected) - set(got))
    if more or fewer:
        difference = f"{more[0]!r} that train has not" if more else f"no {fewer[0]!r} that train has"
        raise DataError(f"{folder}: got {len(got)} classes, {difference}, expected the {len(expected)} of train")
    if len(expected) < 2:
        raise DataError(f"{folder}: got one class, {got[0]!r}, expected at least 2")


@contextmanager
def _understood(image: Any, path: Path) -> Iterator[None]:
    """Whatever Pillow says about a damaged file becomes one error that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image.DecompressionBombWarning)
            yield
    except (
        *(OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error),
        *(image.DecompressionBombWarning, image.DecompressionBombError),
    ) as error:
        raise DataError(f"{path}: got no readable image ({error}), expected PNG or JPEG") from error


def _survey(image: Any, paths: list[Path], image_size: int | None) -> tuple[set[str], tuple[int, int]]:
    """Modes of all images and the (width, height) they will have; reads headers only."""
    modes: set[str] = set()
    first: tuple[int, int] | None = None
    for path in paths:
        with _understood(image, path), image.open(path, formats=("PNG", "JPEG")) as opened:
            mode, size = opened.mode, opened.size
        if mode not in GREY + COLOUR:
            raise DataError(f"{path}: got pixels of type {mode}, expected 8 bits per channel")
        modes.add(mode)
        first = first or size
        if image_size is None and size != first:
            raise DataError(
                f"{path}: got {size[0]}x{size[1]} pixels, expected {first[0]}x{first[1]} as {paths[0]}; "
                "give an image size to have all resized"
            )
    assert first is not None  # _files returns no empty list
    return modes, first if image_size is None else (image_size, image_size)


def _images(
    image: Any, paths: list[Path], labels: dict[str, int], mode: str, size: tuple[int, int], image_size: int | None
) -> Images:
    width, height = size
    pixels = np.empty((len(paths), len(mode), height, width), np.uint8)
    for number, path in enumerate(paths):
        with _understood(image, path), image.open(path, formats=("PNG", "JPEG")) as opened:
            decoded = opened.convert(mode)
            if image_size is not None:
                decoded = _centre(image, decoded, image_size)
            pixels[number] = np.asarray(decoded).reshape(height, width, -1).transpose(2, 0, 1)
    y = torch.tensor([labels[path.parent.name] for path in paths], dtype=torch.int64)
    return Images(torch.from_numpy(pixels), y)


def _centre(image: Any, picture: Any, size: int) -> Any:
    """Shorter side resized to ``size``, then the middle ``size x size``."""
    width, height = picture.size
    shorter = min(width, height)
    width, height = (max(size, round(side * size / shorter)) for side in (width, height))
    resized = picture.resize((width, height), image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return resized.crop((left, top, left + size, top + size))
