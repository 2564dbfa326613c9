# SPDX-License-Identifier: BSD-3-Clause
"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


def write_files(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Every file of ``contents`` in ``directory``, or all files as they were and the error.

    All are written beside their names and synced first, so that a full disk is met before anything is replaced; then
    they are renamed in order. A process that is *killed* between two renames leaves the first files new and the others
    old, each of them whole: put first what can be read without the rest.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Not mkstemp, whose files nobody but the owner may read.
    new = {name: directory / f".{name}.{os.getpid()}.new" for name in contents}
    old = {name: directory / f".{name}.{os.getpid()}.old" for name in contents}
    replaced: list[str] = []
    try:
        for name, content in contents.items():
            _write(new[name], content)
        for name in contents:
            if (directory / name).exists():
                _keep(directory / name, old[name])
        for name in contents:
            os.replace(new[name], directory / name)
            replaced.append(name)
    except BaseException:
        for name in replaced:
            if old[name].exists():
                os.replace(old[name], directory / name)
            else:
                (directory / name).unlink()
        raise
    finally:
        for path in (*new.values(), *old.values()):
            path.unlink(missing_ok=True)
    sync(directory)


def remove_leftovers(directory: Path) -> None:
    """Delete what killed processes left in ``directory``; the files themselves are whole."""
    for file in directory.glob(".*.[0-9]*.*"):
        if file.name.rsplit(".", 2)[1].isdigit() and file.suffix in (".new", ".old"):
            file.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _keep(path: Path, copy: Path) -> None:
    copy.unlink(missing_ok=True)  # of a process of the same number that was killed
    try:
        os.link(path, copy)
    except OSError:  # file systems without hard links
        shutil.copy2(path, copy)


def sync(directory: Path) -> None:
    # The renames themselves are on disk only once their directory is.
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
