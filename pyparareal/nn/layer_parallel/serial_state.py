# SPDX-License-Identifier: BSD-3-Clause
"""Stacked tensors under the names they have in a serial network, in both directions.

``stacked.0.weight [layers, ...]`` is saved as ``blocks.0.weight``, ``blocks.1.weight`` and so on.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def to_serial(
    state: MutableMapping[str, Any], prefix: str, pieces: Sequence[Sequence[int]], layers: int, *, copy: bool
) -> None:
    """Replace the stacked tensors of ``state`` by those of the layers, in the order of the layers.

    ``pieces[k]`` are the layers in ``stacked.k``. ``copy``: each tensor gets memory of its own, so that saving one
    does not save all; otherwise they are views with a graph to the parameters.
    """
    metadata = getattr(state, "_metadata", {})
    of_layers: list[dict[str, Any]] = [{} for _ in range(layers)]
    for k, members in enumerate(pieces):
        here = f"{prefix}stacked.{k}"
        for name in [name for name in state if name.startswith(f"{here}.")]:
            tensor = state.pop(name)
            for n, layer in enumerate(members):
                row = tensor[n]
                of_layers[layer][name.removeprefix(f"{here}.")] = row.clone() if copy else row
        for name in [name for name in metadata if name == here or name.startswith(f"{here}.")]:
            version = metadata.pop(name)
            for layer in members:
                metadata[f"{prefix}blocks.{layer}{name.removeprefix(here)}"] = dict(version)
    metadata.pop(f"{prefix}stacked", None)
    for layer, found in enumerate(of_layers):
        here = f"{prefix}blocks.{layer}."
        for name in [name for name in state if name.startswith(here)]:
            found[name.removeprefix(here)] = state.pop(name)
        for name, value in found.items():
            state[here + name] = value


def from_serial(
    state: MutableMapping[str, Any],
    prefix: str,
    pieces: Sequence[tuple[nn.Module, Sequence[int]]],
    *,
    assign: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Replace the layers' tensors in ``state`` by stacked ones, for the modules ``pieces`` with their layers.

    What is missing or does not fit is reported under the names of the layers, and keeps its value.
    """
    for name in [name for name in state if name.startswith(f"{prefix}stacked.")]:
        unexpected.append(name)
        del state[name]
    for k, (module, layers) in enumerate(pieces):
        for name, tensor in module.state_dict(keep_vars=True).items():
            rows: dict[int, Tensor] = {}
            for n, layer in enumerate(layers):
                key = f"{prefix}blocks.{layer}.{name}"
                if key not in state:
                    missing.append(key)
                    continue
                value = state.pop(key)
                problem = _problem(key, value, tensor[n])
                if problem is None:
                    rows[n] = value
                else:
                    errors.append(problem)
            state[f"{prefix}stacked.{k}.{name}"] = _merged(tensor, rows, assign)


def _problem(key: str, value: Any, row: Tensor) -> str | None:
    if not isinstance(value, Tensor):
        return f"{key}: got {type(value).__name__}, expected a tensor"
    if value.shape != row.shape:
        return (
            f"size mismatch for {key}: copying a param with shape {value.shape} from checkpoint, "
            f"the shape in current model is {row.shape}."
        )
    return None


def _merged(tensor: Tensor, rows: dict[int, Tensor], assign: bool) -> Tensor:
    """``tensor`` with some of its rows replaced; itself if there is nothing to replace."""
    if not rows:
        return tensor
    with torch.no_grad():
        if assign and len(rows) == len(tensor):
            return torch.stack([rows[n].detach() for n in range(len(tensor))])
        merged = tensor.detach().clone()
        for n, row in rows.items():
            merged[n].copy_(row)
        return merged
