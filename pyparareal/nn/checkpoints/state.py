# SPDX-License-Identifier: BSD-3-Clause
"""What a rank holds, as tensors and JSON under names that mean the same on every rank; and the way back.

==============================  =====================================================================================
a tensor                        ``name``
a module                        ``name.<key of its state_dict>``
an optimiser                    ``name.<parameter>.<slot>``, and as JSON ``name`` (its groups) and ``name.<parameter>``
a ``torch.Generator``           ``name``, its state as bytes
a ``numpy.random.Generator``    JSON ``name``
anything with ``state_dict``    JSON ``name``: a learning-rate schedule, a place in the data
==============================  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .plain import encode
from .tensors import writable


@dataclass
class Share:
    """Of one rank: ``tensors``, not copied, and ``plain`` values, encoded."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)

    def add(self, found: dict[str, Any]) -> None:
        for name, value in found.items():
            if name in self.tensors or name in self.plain:
                raise ValueError(f"state: two things are named {name!r}")
            if isinstance(value, Tensor):
                if not writable(value.dtype):
                    raise TypeError(f"state: {name}: got {value.dtype}, which safetensors files do not hold")
                self.tensors[name] = value.detach()
            else:
                self.plain[name] = encode(value, f"state: {name}")


def share_of(state: Mapping[str, Any]) -> Share:
    """``state``, by names.

    Raises
    ------
    TypeError, ValueError
        For a thing that is none of those above, or that cannot be written without pickle.
    """
    share = Share()
    for name, thing, owners in things(state):
        share.add({f"{name}{key}": value for key, value in values(name, thing, owners)})
    return share


def things(state: Mapping[str, Any]) -> Iterator[tuple[str, Any, dict[int, str]]]:
    """Name, thing, and the names of parameters by identity; what a rank has not is None there, or not at all."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state: got {type(state).__name__}, expected a dict of names")
    owners: dict[int, str] = {}
    for name, thing in state.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"state: got the name {name!r}, expected a text")
        if isinstance(thing, nn.Module):
            for key, parameter in thing.named_parameters():
                owners.setdefault(id(parameter), f"{name}.{key}")
        elif isinstance(thing, Tensor):
            owners.setdefault(id(thing), name)
    for name, thing in state.items():
        if thing is not None:
            yield name, thing, owners


def values(name: str, thing: Any, owners: dict[int, str]) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, Tensor):
        yield "", thing
    elif isinstance(thing, nn.Module):
        for key, value in thing.state_dict().items():
            if not isinstance(value, Tensor):
                raise TypeError(f"state: {name}.{key}: got {type(value).__name__}, expected a tensor")
            yield f".{key}", value
    elif isinstance(thing, Optimizer):
        yield "", groups_of(thing)
        for parameter, (_, group, slots) in by_parameter(name, thing, owners).items():
            rest = {slot: value for slot, value in slots.items() if not isinstance(value, Tensor)}
            yield f".{parameter}", {"group": group, "slots": rest}
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    yield f".{parameter}.{slot}", value
    elif isinstance(thing, torch.Generator):
        yield "", thing.get_state()
    elif isinstance(thing, np.random.Generator):
        yield "", _numpy_state(thing)
    elif hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict"):
        yield "", thing.state_dict()
    else:
        raise TypeError(
            f"state: {name}: got {type(thing).__name__}, expected a tensor, a module, an optimiser, a generator or a"
            " thing with state_dict and load_state_dict"
        )


def groups_of(optimiser: Optimizer) -> dict[str, Any]:
    groups = [{k: v for k, v in g.items() if k not in ("params", "param_names")} for g in optimiser.param_groups]
    return {"type": type(optimiser).__name__, "groups": groups}


def by_parameter(
    name: str, optimiser: Optimizer, owners: dict[int, str]
) -> dict[str, tuple[Tensor, int, dict[str, Any]]]:
    """By the name of each parameter: itself, its group, its slots; in the optimiser's order."""
    found = {}
    for number, group in enumerate(optimiser.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in owners:
                raise ValueError(f"state: {name}: a parameter of group {number} belongs to no module in state")
            found[owners[id(parameter)]] = parameter, number, dict(optimiser.state.get(parameter, {}))
    return found


def _numpy_state(generator: np.random.Generator) -> dict[str, Any]:
    def listed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: listed(one) for key, one in value.items()}
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else value

    return dict(listed(dict(generator.bit_generator.state)))


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
