# SPDX-License-Identifier: BSD-3-Clause
"""Reading the original files of a data set: all of it or one clear error. Nothing is downloaded or written."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

# What a damaged archive raises, besides being too short.
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError)


class Reader(Protocol):
    """An open file, unpacked or not."""

    def read(self, size: int, /) -> bytes: ...


class DataError(ValueError):
    """A file of a data set is not what its format demands. The message names the file, what it got and expected."""


def missing(place: Path, expected: str, published: str | None = None) -> FileNotFoundError:
    """The error for files that are not there: which, where, and where the originals are published."""
    origin = f". Nothing is downloaded for you; published on {published}" if published else ""
    return FileNotFoundError(f"{place}: expected {expected}; got {_seen(place)}{origin}")


def read_exactly(path: Path, size: int) -> bytes:
    """The whole file, which must have ``size`` bytes."""
    with path.open("rb") as file:
        return require_size(str(path), file.read(size + 1), size)


def require_size(name: str, content: bytes, size: int) -> bytes:
    if len(content) != size:
        got = f"{len(content):,}" if len(content) < size else f"more than {size:,}"
        raise DataError(f"{name}: got {got} bytes, expected {size:,}; it is truncated or another file")
    return content


def require_labels(name: str, y: NDArray[Any], least: int, most: int) -> None:
    wrong = np.flatnonzero((y < least) | (y > most))
    if len(wrong):
        raise DataError(f"{name}: got label {y[wrong[0]]} in record {wrong[0]}, expected {least} to {most}")


def read_members(archive: Path, sizes: dict[str, int], folder: str) -> dict[str, bytes]:
    """Contents of ``folder/name`` or ``name`` for every ``name`` of ``sizes``, from a .tar.gz file.

    Members are read into memory, so no path in the archive, however written, reaches the disk; a member's size is
    checked before it is read, and the checksum of the whole archive after. ``-1`` stands for any size up to 64 KiB.
    """
    found: dict[str, bytes] = {}
    places = {f"{prefix}{name}": name for name in sizes for prefix in (f"{folder}/", "", f"./{folder}/", "./")}
    try:
        with gzip.open(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as members:
            for member in members:
                name = places.get(member.name)
                if name is None:
                    continue
                _require_member(archive, member, name in found, sizes[name])
                content = members.extractfile(member)
                assert content is not None  # for a regular file
                found[name] = require_size(f"{archive}: {member.name}", content.read(), member.size)
            _read_to_the_end(archive, unpacked)
    except DAMAGED as error:
        raise DataError(f"{archive}: got a damaged or truncated archive ({error}), expected a whole .tar.gz") from error
    lacking = [name for name in sizes if name not in found]
    if lacking:
        raise DataError(f"{archive}: got no {folder}/{lacking[0]}, expected {listed(sizes)}")
    return found


def listed(names: Sequence[str] | dict[str, int]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _require_member(archive: Path, member: tarfile.TarInfo, again: bool, size: int) -> None:
    if not member.isreg():
        raise DataError(f"{archive}: got a link or a special file as {member.name}, expected a regular file")
    if again:
        raise DataError(f"{archive}: got {member.name} twice, expected it once")
    if member.size != size if size >= 0 else member.size > 1 << 16:
        expected = f"{size:,}" if size >= 0 else "at most 65,536"
        raise DataError(f"{archive}: {member.name}: got {member.size:,} bytes, expected {expected}")


def _read_to_the_end(archive: Path, unpacked: Reader) -> None:
    """So that the checksum is compared. Archives end with a few KiB of zeros."""
    if len(unpacked.read(1 << 20)) == 1 << 20:
        raise DataError(f"{archive}: got more data after the last member, expected the end of the archive")


def _seen(place: Path) -> str:
    if not place.exists():
        return "nothing there"
    if not place.is_dir():
        return "a file"
    names = sorted(entry.name for entry in place.iterdir())
    return (
        ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "an empty folder"
    )
