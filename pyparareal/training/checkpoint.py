# SPDX-License-Identifier: BSD-3-Clause
"""A training run in one file: states as arrays, everything else as JSON, in NumPy's ``.npz`` format without pickle.

Written whole or not at all (:mod:`pyparareal.nn.atomic_files`).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError as CheckpointError
from ..nn.atomic_files import write_files

FORMAT = "pyparareal-training-runs-3"

_JSON = ("first", "windows", "serial", "residuals", "parts", "seconds", "sizes")


@dataclass
class Progress:
    """Where a run stands.

    Attributes
    ----------
    state : tensor ``[1, s (1 + moments)]``
        At the start of the window that is being solved.
    first : int
        Its first step.
    windows : list of dict
        Those that are done.
    serial : bool
        A window failed: the rest is trained serially.
    c : tensor, optional
        C-points after the last cycle of the window, with their ``residuals``.
    parts, seconds : tuple of int, float
        Cycles of each part of an interrupted iteration of the window, those of the present part not among them; what
        the window has taken.
    sizes : (int, int or None)
        Steps of a window and gradients at a time, which memory may have decided on: they decide on bits.
    """

    state: Tensor
    first: int = 0
    windows: list[dict[str, Any]] = field(default_factory=list)
    serial: bool = False
    c: Tensor | None = None
    residuals: list[float] = field(default_factory=list)
    parts: tuple[int, ...] = ()
    seconds: float = 0.0
    sizes: tuple[int, int | None] | None = None


def require_place(checkpoint: str | os.PathLike[str]) -> Path:
    """``checkpoint`` as a path that can be read or written, as far as can be known before.

    Raises
    ------
    TypeError, ValueError
        No path; a directory or another thing that is no file; in a directory that is not there.
    """
    if not isinstance(checkpoint, str | os.PathLike):
        raise TypeError(f"checkpoint: got {type(checkpoint).__name__}, expected a path")
    path = Path(checkpoint)
    if path.is_dir():
        raise ValueError(f"checkpoint: got {path}, a directory, expected a file")
    if path.exists() and not path.is_file():  # such as a pipe, which may never be read to its end
        raise ValueError(f"checkpoint: got {path}, which is no regular file")
    if not path.parent.is_dir():
        raise ValueError(f"checkpoint: got {path}, whose directory {path.parent} does not exist")
    return path


def save(path: Path, progress: Progress, identity: dict[str, Any]) -> None:
    """Write ``progress`` to ``path``, atomically.

    Raises
    ------
    OSError
        The write failed; what was at ``path`` before is still there, whole.
    """
    rest = {name: getattr(progress, name) for name in _JSON}
    arrays = {"state": progress.state.cpu().numpy(), "json": np.frombuffer(_bytes(rest, identity), np.uint8)}
    if progress.c is not None:
        arrays["c"] = progress.c.cpu().numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    try:
        write_files(path.parent, {path.name: buffer.getvalue()})
    except OSError as error:
        raise OSError(error.errno, f"checkpoint: {path} cannot be written: {error.strerror}") from error


def load(path: Path, identity: dict[str, Any], like: Tensor) -> Progress:
    """What :func:`save` wrote, on the device of ``like``.

    Raises
    ------
    CheckpointError
        Not a whole checkpoint, or of a run that differs from ``identity``.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())):
            pass  # NumPy reads other files as well
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        rest = json.loads(arrays["json"].tobytes())
        if not isinstance(rest, dict):
            raise ValueError(f"its JSON is a {type(rest).__name__}, expected a dict")
        if rest["format"] != FORMAT:
            raise ValueError(f"its format is {rest['format']!r}, expected {FORMAT!r}")
        theirs = rest["identity"]
        missing = [name for name in _JSON if name not in rest] + ["state"] * ("state" not in arrays)
        if missing or not isinstance(theirs, dict):
            raise ValueError(f"without {', '.join(missing) or 'its identity'}")
    except (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: not a whole checkpoint of training runs ({error})") from error
    ours = json.loads(json.dumps(identity))
    wrong = sorted(name for name in {*ours, *theirs} if not same(ours.get(name), theirs.get(name), like.dtype))
    if wrong:
        name = wrong[0]
        there, here = theirs.get(name), ours.get(name)
        is_what = "is another" if isinstance(here, list) else f"is {there!r} there, {here!r} here"
        raise CheckpointError(f"{path}: of another run, nothing was changed: {name} {is_what}")
    tensors = {name: torch.from_numpy(arrays[name]).to(like.device) for name in ("state", "c") if name in arrays}
    return Progress(
        tensors["state"],
        rest["first"],
        rest["windows"],
        rest["serial"],
        tensors.get("c"),
        rest["residuals"],
        tuple(rest["parts"]),
        rest["seconds"],
        tuple(rest["sizes"]),
    )


def same(ours: Any, theirs: Any, dtype: torch.dtype) -> bool:
    """Equal; lists of numbers, which were computed, up to what another order of sums does to them."""
    rows = [row for row in (ours, theirs) if isinstance(row, list) and all(isinstance(x, float) for x in row)]
    if len(rows) < 2 or len(ours) != len(theirs):
        return bool(ours == theirs)
    within = math.sqrt(torch.finfo(dtype).eps) * max((abs(x) for x in ours), default=0.0)
    return all(a == b or abs(a - b) <= within or (a != a and b != b) for a, b in zip(ours, theirs, strict=True))


def digest(*tensors: Tensor | None) -> str:
    """Of shapes, dtypes and numbers."""
    found = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            # As bytes: NumPy does not know all dtypes.
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _bytes(rest: dict[str, Any], identity: dict[str, Any]) -> bytes:
    return json.dumps({"format": FORMAT, "identity": identity, **rest}).encode()
