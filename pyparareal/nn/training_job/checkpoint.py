# SPDX-License-Identifier: BSD-3-Clause
"""One run in one file: tensors as safetensors, everything else as JSON in its header. Never pickle.

Written to a temporary file in the same directory, synced, then renamed over the old one: at every
moment the name leads to a whole checkpoint.
"""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from .settings import Settings, differences

FORMATS = {"checkpoint": "pyparareal-checkpoint-1", "weights": "pyparareal-weights-1"}
# The first eight bytes are the header's length; a longer header than this is not one of ours.
MAX_HEADER_BYTES = 100_000_000


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or belongs to another run; the message names what differs."""


def save(
    path: Path, net: nn.Module, optimiser: torch.optim.Optimizer, identity: dict[str, Any], progress: dict[str, Any]
) -> None:
    """Write the whole state of a run to ``path``, atomically.

    Parameters
    ----------
    identity : what must be equal on resuming: settings, network, parts
    progress : where the run stands; any JSON values

    Raises
    ------
    OSError
        The write failed; what was at ``path`` before is still there, whole.
    """
    tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    slots, optimiser_tensors = _optimiser_state(optimiser)
    tensors |= optimiser_tensors
    random_json, random_tensors = _random_state()
    tensors |= random_tensors
    rest = {"identity": identity, "progress": progress, "optimiser": slots, "random": random_json}
    write_tensors(path, tensors, rest | {"format": FORMATS["checkpoint"], "torch": str(torch.__version__)})


def load(path: Path, net: nn.Module, optimiser: torch.optim.Optimizer, identity: dict[str, Any]) -> dict[str, Any]:
    """Put the state at ``path`` into ``net``, ``optimiser`` and the random streams; return ``progress``.

    Everything is checked before anything is changed.

    Raises
    ------
    CheckpointError
        Not a whole checkpoint, or of a run that differs from ``identity``.
    """
    tensors, rest = read_tensors(path)
    if rest["format"] != FORMATS["checkpoint"]:
        raise CheckpointError(f"{path}: got weights alone, expected a checkpoint")
    _require_same(path, identity, rest["identity"])
    own = net.state_dict()
    saved = {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
    # Extra state is what a network found out while it ran: it may be there or not, and has no fixed size.
    names = [sorted(n for n in state if not n.endswith("_extra_state")) for state in (own, saved)]
    wrong = sorted({*names[0]} ^ {*names[1]}) or [n for n in names[0] if own[n].shape != saved[n].shape]
    if wrong:
        raise CheckpointError(f"{path}: of another network, tensor {wrong[0]!r} is missing or has another shape")
    net.load_state_dict(saved)
    _set_optimiser_state(optimiser, rest["optimiser"], tensors)
    _set_random_state(rest["random"], tensors)
    progress: dict[str, Any] = rest["progress"]
    return progress


def read_progress(path: Path) -> dict[str, Any]:
    """Where the run at ``path`` stands, without its tensors."""
    progress: dict[str, Any] = _read_header(path)["progress"]
    return progress


def read_settings(path: Path) -> Settings:
    """The settings of the run at ``path``."""
    return Settings(**_read_header(path)["identity"]["settings"])


def write_tensors(path: Path, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    """Tensors and JSON values as one safetensors file, atomically."""
    from safetensors.torch import save as serialise

    # Tied tensors are written once for each name: safetensors refuses shared memory.
    separate = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, serialise(separate, {"pyparareal": json.dumps(rest)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    rest = _read_header(path)
    try:
        return parse(path.read_bytes()), rest
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole checkpoint: {error}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """``content`` at ``path``, or the old file unchanged and an OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not mkstemp, whose files nobody but the owner may read.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    # The rename itself is on disk only once its directory is.
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_header(path: Path) -> dict[str, Any]:
    """The JSON part of a checkpoint: safetensors is ``length, header, tensors``, ours is one entry of the header."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            rest: dict[str, Any] = json.loads(json.loads(file.read(length))["__metadata__"]["pyparareal"])
        if rest.get("format") not in FORMATS.values():
            raise ValueError(f"its format is {rest.get('format')!r}, expected one of {list(FORMATS.values())}")
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{path}: not a pyparareal checkpoint ({type(error).__name__}: {error})") from error
    return rest


def _require_same(path: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    found = differences(ours["settings"], theirs["settings"])
    found += differences(
        {k: v for k, v in ours.items() if k != "settings"}, {k: v for k, v in theirs.items() if k != "settings"}
    )
    if found:
        raise CheckpointError(f"{path}: of another run, nothing was changed. " + "; ".join(found))


def _optimiser_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Parameter groups and plain numbers as JSON, tensors under ``optimiser.<parameter>.<slot>``."""
    state = optimiser.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for number, slots in state["state"].items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{number}.{slot}"] = value
            else:
                plain.setdefault(str(number), {})[slot] = value
    return {"groups": state["param_groups"], "plain": plain}, tensors


def _set_optimiser_state(optimiser: torch.optim.Optimizer, saved: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {int(number): dict(slots) for number, slots in saved["plain"].items()}
    for name, tensor in tensors.items():
        kind, _, place = name.partition(".")
        if kind == "optimiser":
            number, _, slot = place.partition(".")
            state.setdefault(int(number), {})[slot] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": saved["groups"]})


def _random_state() -> tuple[dict[str, Any], dict[str, Tensor]]:
    name, keys, position, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state(legacy=True))  # noqa: NPY002 - the global stream
    tensors = {"random.torch": torch.get_rng_state(), "random.numpy": torch.from_numpy(keys.astype(np.int64))}
    numpy_rest = [name, int(position), int(has_gauss), float(gauss)]
    return {"python": random.getstate(), "numpy": numpy_rest}, tensors


def _set_random_state(saved: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, position, has_gauss, numpy_gauss = saved["numpy"]
    keys = tensors["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, has_gauss, numpy_gauss))  # noqa: NPY002
    torch.set_rng_state(tensors["random.torch"])
