# SPDX-License-Identifier: BSD-3-Clause
"""CIFAR-10 and CIFAR-100, binary version: records of label bytes and 3,072 pixels, red, green, blue, row by row.

No pickle is read. The files may lie in the folder given, in the folder of that name that the archive makes, or
still in the .tar.gz, which is read without unpacking it to disk. Format: A. Krizhevsky, "The CIFAR-10 dataset" page.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .files import DataError, listed, missing, read_exactly, read_members, require_labels
from .images import Images, Split, complete

SIDE, CHANNELS = 32, 3
PIXELS = CHANNELS * SIDE * SIDE


@dataclass(frozen=True)
class Version:
    """One of the two data sets, as published."""

    folder: str
    archive: str
    labels: dict[str, int]  # label bytes of a record in order, and the number of classes of each
    names: dict[str, str]  # file of the class names for each of them
    train: dict[str, int]  # files and their numbers of records
    test: dict[str, int]


CIFAR10 = Version(
    "cifar-10-batches-bin",
    "cifar-10-binary.tar.gz",
    {"fine": 10},
    {"fine": "batches.meta.txt"},
    {f"data_batch_{i}.bin": 10_000 for i in range(1, 6)},
    {"test_batch.bin": 10_000},
)
CIFAR100 = Version(
    "cifar-100-binary",
    "cifar-100-binary.tar.gz",
    {"coarse": 20, "fine": 100},
    {"coarse": "coarse_label_names.txt", "fine": "fine_label_names.txt"},
    {"train.bin": 50_000},
    {"test.bin": 10_000},
)


def read(directory: Path, version: Version, label: str = "fine") -> Split:
    """Training images less 10 % for validation, and the test images; ``label`` of CIFAR-100: ``"fine"``, ``"coarse"``.

    Raises
    ------
    FileNotFoundError
        Files are missing.
    DataError
        A file is truncated or too long, a label or the number of class names is out of range.
    """
    classes = version.labels[label]
    place, contents = _contents(directory, version)
    names = _class_names(f"{place}: {version.names[label]}", contents[version.names[label]], classes)
    sets = [_images(place, contents, files, version.labels, label) for files in (version.train, version.test)]
    return complete(sets[0], None, sets[1], names, classes, str(place))


def _contents(directory: Path, version: Version) -> tuple[Path, dict[str, bytes]]:
    """Where the files were found, and their bytes."""
    record = len(version.labels) + PIXELS
    sizes = {name: records * record for name, records in (version.train | version.test).items()}
    wanted = sizes | dict.fromkeys(version.names.values(), -1)
    for place in (directory, directory / version.folder):
        found = [name for name in wanted if (place / name).is_file()]
        if found:
            _require_all(place, list(wanted), found)
            read = {name: read_exactly(place / name, size) for name, size in sizes.items()}
            return place, read | {name: (place / name).read_bytes() for name in version.names.values()}
    for archive in (directory, directory / version.archive):
        if archive.is_file():
            return archive, read_members(archive, wanted, version.folder)
    raise missing(directory, f"{listed(wanted)}, or {version.folder}, or {version.archive}", PUBLISHED)


PUBLISHED = 'the page "The CIFAR-10 dataset" of Alex Krizhevsky, University of Toronto, as "binary version"'


def _require_all(place: Path, wanted: list[str], found: list[str]) -> None:
    lacking = [name for name in wanted if name not in found]
    if lacking:
        raise missing(place, f"also {listed(lacking)}", PUBLISHED)


def _images(
    place: Path, contents: dict[str, bytes], files: dict[str, int], labels: dict[str, int], label: str
) -> Images:
    """Fills the whole array file by file and forgets each file, so that no more than one is held twice."""
    count, width = sum(files.values()), len(labels)
    pixels, y = np.empty((count, PIXELS), np.uint8), np.empty(count, np.int64)
    start = 0
    for name, records in files.items():
        table = np.frombuffer(contents.pop(name), np.uint8).reshape(records, width + PIXELS)
        for column, (kind, classes) in enumerate(labels.items()):
            require_labels(f"{place}: {name}", table[:, column], 0, classes - 1)
            if kind == label:
                y[start : start + records] = table[:, column]
        pixels[start : start + records] = table[:, width:]
        start += records
    return Images(torch.from_numpy(pixels).reshape(count, CHANNELS, SIDE, SIDE), torch.from_numpy(y))


def _class_names(name: str, content: bytes, classes: int) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in content.decode("ascii").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: got bytes that are no text, expected {classes} class names") from error
    if len(names) != classes or len(set(names)) != classes:
        raise DataError(f"{name}: got {len(set(names))} different class names, expected {classes}")
    return names
