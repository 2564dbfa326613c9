# SPDX-License-Identifier: BSD-3-Clause
"""The folder of a run: ``step_000000012/`` is a complete checkpoint, or it is not there.

One is written as ``step_000000012.partial/``: the files of the ranks first, then ``manifest.json`` with their sizes and
SHA-256, each synced; the rename comes last. The manifest carries its own SHA-256. The sums find damage, not forgery;
what is read is JSON and safetensors, so a forged checkpoint has wrong numbers but runs nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ..atomic_files import sync, write_files

FORMAT, VERSION = "pyparareal-sharded-checkpoint", 1
MANIFEST = "manifest.json"
_STEP = re.compile(r"step_(\d{9,})")
_FILE = re.compile(r"shard-\d{5,}-model-\d{5}-of-\d{5}\.safetensors")  # the names of DCP's safetensors storage
_MAX_MANIFEST_BYTES = 1 << 30
_FIELDS = {"step": int, "ranks": int, "files": dict, "tensors": dict, "plain": dict}

_held: dict[tuple[int, str], int] = {}  # open lock files, by process, as a forked one has no lock, and folder


class NewerFormatError(CheckpointError):
    """Of a later version of this package: neither damaged nor readable."""


class StepFolders:
    """The complete checkpoints in ``folder``, and the one that is being written. Only rank 0 changes anything."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise TypeError(f"folder: got {type(folder).__name__}, expected a path")
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"folder: got {self.folder}, which is no folder")

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:09d}"

    def partial(self, step: int) -> Path:
        return self.folder / f"step_{step:09d}.partial"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, from the last to the first."""
        if not self.folder.is_dir():
            return []
        found = [_STEP.fullmatch(path.name) for path in self.folder.iterdir() if path.is_dir()]
        return sorted((int(one[1]) for one in found if one), reverse=True)

    def begin(self, step: int) -> None:
        """Room for the checkpoint of ``step``; what runs that died left behind is removed.

        A damaged checkpoint of this step or a later one, which a run that went on from an earlier one meets again, is
        renamed to ``.damaged``.

        Raises
        ------
        ValueError
            Another process writes into the folder, or it has a checkpoint of this step or of a later one.
        OSError
            The folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            for path in self.folder.glob("step_*"):
                if path.suffix in (".partial", ".old"):
                    shutil.rmtree(path)
            for later in (s for s in self.steps() if s >= step):
                self._set_aside(later, step)
            self.partial(step).mkdir()
        except OSError as error:
            raise OSError(error.errno, f"folder: {self.folder} cannot be written: {error.strerror}") from error

    def _lock(self) -> None:
        """A lock that ends with this process, however it ends, and that its children do not share."""
        name = os.getpid(), str(self.folder.resolve())
        if name in _held:
            return
        file = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise ValueError(f"folder: got {self.folder}, into which another run is writing") from None
        except OSError:
            os.close(file)
            raise
        _held[name] = file

    def _set_aside(self, later: int, step: int) -> None:
        try:
            content, _ = read_manifest(self.path(later))
            verify(self.path(later), content, list(content["files"]))
        except NewerFormatError:
            raise
        except (CheckpointError, OSError):
            aside = self.path(later).with_suffix(".damaged")
            if aside.exists():
                shutil.rmtree(aside)
            self.path(later).rename(aside)
        else:
            raise ValueError(
                f"step: got {step}, but {self.folder} has a checkpoint of step {later}; expected a later step, or"
                " another folder"
            )

    def finish(self, content: dict[str, Any], keep: int) -> None:
        """The manifest, and the name under which the checkpoint is found; then all but the last ``keep`` go."""
        step = content["step"]
        write_manifest(self.partial(step), content)
        publish(self.partial(step), self.path(step))
        for old in self.steps()[keep:]:
            gone = self.path(old).with_suffix(".old")  # never half of one under the name of a whole one
            self.path(old).rename(gone)
            shutil.rmtree(gone)

    def give_up(self, step: int) -> None:
        shutil.rmtree(self.partial(step), ignore_errors=True)


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content)
    whole = {"format": FORMAT, "version": VERSION, "sha256": _sum(text.encode()), "content": content}
    write_files(folder, {MANIFEST: json.dumps(whole, indent=1).encode()})


def publish(partial: Path, path: Path) -> None:
    """The one step after which the checkpoint is there."""
    os.rename(partial, path)
    sync(path.parent)


def describe(paths: list[Path]) -> dict[str, Any]:
    """What the manifest says of files."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": _sum_of_file(path)} for path in paths}


def read_manifest(folder: Path) -> tuple[dict[str, Any], str]:
    """The content of the manifest in ``folder``, and its SHA-256.

    Raises
    ------
    NewerFormatError
        It was written by a later version.
    CheckpointError
        It is no manifest, or damaged.
    """
    path = folder / MANIFEST
    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("it is no regular file")
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ValueError("it is too long")
        whole = json.loads(path.read_bytes())
        if not isinstance(whole, dict) or whole.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        if type(whole["version"]) is not int or whole["version"] < 1:
            raise ValueError(f"its version is {whole['version']!r}")
        if whole["version"] > VERSION:
            raise NewerFormatError(f"{path}: got version {whole['version']}, expected at most {VERSION}")
        content = whole["content"]
        if whole["sha256"] != _sum(json.dumps(content).encode()):
            raise ValueError("its SHA-256 is another")
        _require_fields(content)
    except NewerFormatError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a whole manifest ({type(error).__name__}: {error})") from error
    return content, whole["sha256"]


def _require_fields(content: Any) -> None:
    for name, kind in _FIELDS.items():
        if type(content[name]) is not kind:
            raise ValueError(f"{name} is {content[name]!r}")
    for name, file in content["files"].items():
        if not _FILE.fullmatch(name):  # no path that leads out of the folder, nor a file of another kind
            raise ValueError(f"{name!r} is no name of a file of ours")
        if type(file["bytes"]) is not int or type(file["sha256"]) is not str:
            raise ValueError(f"{name!r} has no size and sum")
    for name, tensor in content["tensors"].items():
        if type(tensor["dtype"]) is not str or any(type(n) is not int or n < 0 for n in tensor["shape"]):
            raise ValueError(f"tensor {name!r} has no shape and dtype")


def verify(folder: Path, content: dict[str, Any], names: list[str]) -> None:
    """Nothing is in ``folder`` but what the manifest lists, and the files ``names`` have its sizes and sums.

    Raises
    ------
    CheckpointError
        Naming the first file that is missing, unknown or damaged.
    """
    there = {path.name for path in folder.iterdir()} - {MANIFEST}
    for name in sorted(there ^ content["files"].keys()):
        raise CheckpointError(f"{folder / name}: {'unknown to the manifest' if name in there else 'missing'}")
    for name in names:
        path, expected = folder / name, content["files"][name]
        if path.is_symlink() or not path.is_file():
            raise CheckpointError(f"{path}: no regular file")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(f"{path}: damaged, it has {size} bytes, expected {expected['bytes']}")
        if _sum_of_file(path) != expected["sha256"]:
            raise CheckpointError(f"{path}: damaged, its SHA-256 is another than when it was written")


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sum_of_file(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
