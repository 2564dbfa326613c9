# SPDX-License-Identifier: BSD-3-Clause
"""One run in one file: tensors as safetensors, everything else as JSON in its header. Never pickle.

Written whole or not at all (:mod:`pyparareal.nn.atomic_files`): at every moment the name leads to a whole checkpoint.
"""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import CheckpointError as CheckpointError
from ..atomic_files import write_files
from .settings import Settings, differences, few

FORMATS = {"checkpoint": "pyparareal-checkpoint-2", "weights": "pyparareal-weights-2"}
# The first eight bytes are the header's length; a longer header than this is not one of ours.
MAX_HEADER_BYTES = 100_000_000


def save(
    path: Path, net: nn.Module, optimiser: torch.optim.Optimizer, identity: dict[str, Any], progress: dict[str, Any]
) -> None:
    """Write the whole state of a run to ``path``, atomically.

    Parameters
    ----------
    identity : what must be equal on resuming: settings, network, partition, maps; any JSON values
    progress : where the run stands; any JSON values

    Raises
    ------
    OSError
        The write failed; what was at ``path`` before is still there, whole.
    """
    tensors = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    slots, optimiser_tensors = _optimiser_state(optimiser)
    tensors |= optimiser_tensors
    random_json, random_tensors = _random_state(_device(net))
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
    saved = {name.removeprefix("net."): t for name, t in tensors.items() if name.startswith("net.")}
    _require_tensors(path, net.state_dict(), saved)
    _require_groups(path, optimiser, rest["optimiser"])
    net.load_state_dict(saved)
    _set_optimiser_state(optimiser, rest["optimiser"], tensors)
    _set_random_state(rest["random"], tensors, _device(net))
    progress: dict[str, Any] = rest["progress"]
    return progress


def read_progress(path: Path) -> dict[str, Any]:
    """Where the run at ``path`` stands, without its tensors."""
    progress: dict[str, Any] = _read_header(path)["progress"]
    return progress


def read_settings(path: Path) -> Settings:
    """The settings of the run at ``path``."""
    return settings_of(path, read_identity(path))


def read_identity(path: Path) -> dict[str, Any]:
    """What a run must have in common with the one at ``path`` to continue it."""
    identity: dict[str, Any] = _read_header(path)["identity"]
    return identity


def settings_of(path: Path, identity: dict[str, Any]) -> Settings:
    """The settings in ``identity``, read from ``path``."""
    try:
        return Settings(**identity["settings"])
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: got settings of another version of pyparareal ({error})") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    """Tensors and JSON values as one safetensors file, atomically."""
    from safetensors.torch import save as serialise

    # Tied tensors are written once for each name: safetensors refuses shared memory.
    separate = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_files(path.parent, {path.name: serialise(separate, {"pyparareal": json.dumps(rest)})})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    rest = _read_header(path)
    try:
        return parse(path.read_bytes()), rest
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole checkpoint: {error}") from error


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


def require_same_settings(path: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Refuse a checkpoint of a run with other settings; both are those of :meth:`.Settings.as_dict`."""
    elsewhere = {"data_dir": None}  # the data may have moved
    _refuse(path, differences(ours | elsewhere, theirs | elsewhere))


def _require_same(path: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Settings first: where they differ, partition and maps differ in consequence."""
    ours = json.loads(json.dumps(ours))  # tuples are lists there
    require_same_settings(path, ours["settings"], theirs["settings"])
    _refuse(path, differences(ours | {"settings": None}, theirs | {"settings": None}))


def _refuse(path: Path, found: list[str]) -> None:
    if found:
        raise CheckpointError(f"{path}: of another run, nothing was changed. {few(found)}")


def _require_tensors(path: Path, own: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    # Extra state is what a network found out while it ran: it may be there or not, and has no fixed size.
    names = [sorted(n for n in state if not n.endswith("_extra_state")) for state in (own, saved)]
    wrong = sorted({*names[0]} ^ {*names[1]})
    if wrong:
        there = "missing there" if wrong[0] in own else "unknown here"
        raise CheckpointError(f"{path}: of another network, nothing was changed: tensor {wrong[0]!r} is {there}")
    for name in names[0]:
        kinds = [f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in (saved[name], own[name])]
        if kinds[0] != kinds[1]:
            raise CheckpointError(
                f"{path}: of another network, nothing was changed: tensor {name!r} is {kinds[0]} there, {kinds[1]} here"
            )


def _require_groups(path: Path, optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    sizes = [[len(group["params"]) for group in groups] for groups in (saved["groups"], optimiser.param_groups)]
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"{path}: of another optimiser, nothing was changed: groups of {sizes[0]} parameters there, {sizes[1]} here"
        )


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


def _device(net: nn.Module) -> torch.device:
    return next((p.device for p in net.parameters()), torch.device("cpu"))


def _random_state(device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    name, keys, position, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state(legacy=True))  # noqa: NPY002 - the global stream
    tensors = {"random.torch": torch.get_rng_state(), "random.numpy": torch.from_numpy(keys.astype(np.int64))}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    numpy_rest = [name, int(position), int(has_gauss), float(gauss)]
    return {"python": random.getstate(), "numpy": numpy_rest}, tensors


def _set_random_state(saved: dict[str, Any], tensors: dict[str, Tensor], device: torch.device) -> None:
    version, numbers, gauss = saved["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, position, has_gauss, numpy_gauss = saved["numpy"]
    keys = tensors["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, has_gauss, numpy_gauss))  # noqa: NPY002
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors and device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
