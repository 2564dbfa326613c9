# SPDX-License-Identifier: BSD-3-Clause
"""A parareal network on disk: ``config.json`` says how to make it, ``model.safetensors`` holds its tensors. No pickle.

``model.safetensors`` carries the same record in its header, with a digest of everything, so that each file says whether
the two belong together: a save that was killed between them leaves a whole network, the old or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from . import models
from .atomic_files import write_files
from .automatic import build_parareal
from .models.parareal_version import interface_maps
from .parareal_network import PararealNetwork
from .partitioning import Partition

FORMAT, VERSION = "pyparareal-network", 1
CONFIG, TENSORS = "config.json", "model.safetensors"
OPTIONAL = "_extra_state"  # what execution="auto" measured


def save(network: PararealNetwork, directory: str | os.PathLike[str]) -> None:
    """Write ``network`` to ``directory``, whole or not at all.

    For networks made by ``build_parareal``, in any mode, on any device, of any dtypes. Which layers are in training
    mode or frozen is not written.

    Raises
    ------
    TypeError, ValueError
        No parareal network; one put together by hand; one with state that is no tensor.
    OSError
        The write failed; what was in ``directory`` before is still there, whole.
    """
    if not isinstance(network, PararealNetwork):
        raise TypeError(f"network: got {type(network).__name__}, expected a PararealNetwork")
    if network.construction is None:
        raise ValueError(
            "network: got one put together by hand, without a record of how; expected one from build_parareal "
            "(or save network.state_dict() yourself)"
        )
    serialise, _ = _safetensors()
    tensors: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(f"network: got {type(value).__name__} as {name!r}, expected tensors only")
        # Tied tensors are written once for each name: safetensors refuses shared memory.
        tensors[name.replace("_orig_mod.", "")] = value.detach().cpu().clone().contiguous()
    config: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "pyparareal": __version__,
        "execution": network.execution,
        "construction": network.construction,
    }
    config["sha256"] = _digest(config, tensors)
    files = {
        TENSORS: serialise(tensors, {"pyparareal": json.dumps(config)}),
        CONFIG: (json.dumps(config, indent=1) + "\n").encode(),
    }
    write_files(Path(directory), files)


def load(
    directory: str | os.PathLike[str],
    serial: nn.Module | Sequence[nn.Module] | None = None,
    *,
    preprocess: Sequence[nn.Module | None] | None = None,
    coarse: Sequence[nn.Module | None] | None = None,
) -> PararealNetwork:
    """The network that :func:`save` wrote: the same parts, maps, mode, tensors and dtypes, in training mode.

    Parameters
    ----------
    serial : the serial network, newly built, or the list of its blocks
        Its modules become those of the result, as in ``build_parareal``, and take over the saved tensors. Not needed
        for networks from :func:`.models.build`.
    preprocess, coarse : new modules for the maps that were supplied to ``build_parareal``, None in the other places

    Raises
    ------
    FileNotFoundError, ValueError
        Nothing there; not a saved network, not whole, edited, or of a newer version; one of another network than
        ``serial``, naming what differs. Nothing is changed then, neither in ``serial`` nor in random streams.
    """
    config, tensors = _read(Path(directory))
    if serial is None and config["construction"]["model"] is None:
        raise ValueError(f"serial: got None, expected a new serial network for {directory}, which does not name it")
    if serial is not None and not isinstance(serial, nn.Module):
        serial = list(serial)
    with torch.random.fork_rng(devices=[]):
        network = _rebuilt(config, serial, preprocess, coarse)
    whole = [serial] if isinstance(serial, nn.Module) else serial or ()
    _fill(network, tensors, [*whole, *(preprocess or ()), *(coarse or ())], Path(directory))
    return network


def _rebuilt(
    config: dict[str, Any],
    serial: nn.Module | Sequence[nn.Module] | None,
    preprocess: Sequence[nn.Module | None] | None,
    coarse: Sequence[nn.Module | None] | None,
) -> PararealNetwork:
    construction = config["construction"]
    if serial is None:
        serial = models.build(**construction["model"])
    cut = Partition.from_config(construction["partition"], serial)
    ours = construction.get("interface_maps")
    if ours is not None and preprocess is None and coarse is None:
        preprocess, coarse = interface_maps(cut, **ours)
    network = build_parareal(
        cut,
        preprocess=preprocess,
        coarse=coarse,
        coarse_budget=construction["budget"],
        recorded=construction["maps"],
        correction=construction["correction"],
        execution=config["execution"],
    )
    assert network.construction is not None
    network.construction |= {key: construction[key] for key in ("model", "interface_maps") if key in construction}
    return network


def _fill(
    network: PararealNetwork, tensors: dict[str, Tensor], theirs: Sequence[nn.Module | None], directory: Path
) -> None:
    """Copy the tensors; those that are not in the caller's modules take over the saved dtype, too."""
    given = {id(t) for m in theirs if m is not None for t in m.state_dict(keep_vars=True).values()}
    own = network.state_dict(keep_vars=True)
    missing = [name for name in own if name not in tensors and name != OPTIONAL]
    unknown = [name for name in tensors if name not in own and name != OPTIONAL]
    found = [f"{name!r}: only here" for name in missing] + [f"{name!r}: only there" for name in unknown]
    for name, tensor in own.items():
        saved = tensors.get(name, tensor)
        if tensor.shape != saved.shape:
            found.append(f"{name!r}: shape {tuple(saved.shape)} there, {tuple(tensor.shape)} here")
        elif tensor.dtype != saved.dtype and id(tensor) in given:
            found.append(f"{name!r}: {saved.dtype} there, {tensor.dtype} here")
    if found:
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise ValueError(f"{directory}: of another network, nothing was changed: {'; '.join(found[:3])}{more}")
    for name, tensor in own.items():
        if tensor.dtype != tensors[name].dtype:
            tensor.data = tensor.data.to(tensors[name].dtype)
    network.load_state_dict(tensors)


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Record and tensors, checked for wholeness and version."""
    _, parse = _safetensors()
    readable = _config_file(directory / CONFIG)
    config, tensors = parse(directory / TENSORS)
    _require_known(config, directory / TENSORS)
    if _digest(config, tensors) != config.get("sha256"):
        raise ValueError(f"{directory / TENSORS}: damaged, its content does not match its digest")
    # Another digest is that of another save, which was cut short between the files: the tensors' own record holds.
    if readable is not None and readable.get("sha256") == config["sha256"] and readable != config:
        differ = [key for key in {**readable, **config} if readable.get(key) != config.get(key)]
        raise ValueError(
            f"{directory / CONFIG}: edited, {', '.join(differ)} differ from the record in {TENSORS}; delete "
            f"{CONFIG} to load what was saved"
        )
    return config, tensors


def _config_file(path: Path) -> dict[str, Any] | None:
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    _require_known(config, path)
    return dict(config)


def _require_known(config: Any, path: Path) -> None:
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{path}: not a saved parareal network")
    version = config.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        hint = (
            f"; written by pyparareal {config.get('pyparareal')}, newer than this one ({__version__})" if newer else ""
        )
        raise ValueError(f"{path}: got version {version!r} of the format, expected {VERSION}{hint}")


def _digest(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps({k: v for k, v in config.items() if k != "sha256"}, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _safetensors() -> tuple[Any, Any]:
    """``serialise(tensors, metadata) -> bytes`` and ``parse(path) -> (record, tensors)``."""
    try:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import save as serialise
    except ImportError as error:
        raise ImportError('saving networks needs safetensors: pip install "pyparareal[train]"') from error

    def parse(path: Path) -> tuple[Any, dict[str, Tensor]]:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file, expected the tensors of a saved parareal network")
        try:
            with safe_open(path, "pt") as file:
                record = json.loads((file.metadata() or {}).get("pyparareal", "null"))
                return record, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path}: not a whole safetensors file: {error}") from error

    return serialise, parse
