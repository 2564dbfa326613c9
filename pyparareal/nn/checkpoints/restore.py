# SPDX-License-Identifier: BSD-3-Clause
"""The way back of :mod:`.state`: everything is looked at first, nothing is changed before everything is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import CheckpointError
from .plain import decode
from .state import by_parameter, dtype_name, groups_of, things, values

Change = Callable[[], Any]
OPTIONAL = "_extra_state"  # what a module found out while it ran: it may be there or not, and has no fixed size


class Restoring:
    """``state`` about to take what a checkpoint has.

    Attributes
    ----------
    targets : dict
        New tensors of this rank, by name, into which the files are read.
    wanted : set of str
        All names that this rank has a use for.

    Raises
    ------
    CheckpointError
        The checkpoint is of something else; it names the first difference.
    """

    def __init__(self, state: Mapping[str, Any], content: dict[str, Any]) -> None:
        self._tensors, self._plain = content["tensors"], content["plain"]
        self._room = sum(file["bytes"] for file in content["files"].values())
        self._slots_of: dict[str, list[str]] = {}
        for full in self._tensors:
            self._slots_of.setdefault(full.rpartition(".")[0], []).append(full)
        self.targets: dict[str, Tensor] = {}
        self.wanted: set[str] = set()
        self._generators: dict[str, torch.Generator] = {}
        self._changes: list[Change] = [self._change(*one) for one in things(state)]

    def check(self) -> None:
        """What can only be known of the bytes that were read."""
        for name, generator in self._generators.items():
            try:
                torch.Generator(generator.device).set_state(self.targets[name])
            except (RuntimeError, TypeError) as error:
                raise CheckpointError(f"{name!r} is no state of a generator there") from error

    def apply(self) -> None:
        """Change what ``state`` holds."""
        for change in self._changes:
            change()

    def _change(self, name: str, thing: Any, owners: dict[int, str]) -> Change:
        if isinstance(thing, Tensor):
            self._target(name, thing)
            return lambda: thing.detach().copy_(self.targets[name])
        if isinstance(thing, nn.Module):
            return self._module(name, thing)
        if isinstance(thing, Optimizer):
            return self._optimiser(name, thing, owners)
        if isinstance(thing, torch.Generator):
            self._target(name, thing.get_state())
            self._generators[name] = thing
            return lambda: thing.set_state(self.targets[name])
        if isinstance(thing, np.random.Generator):
            return self._numpy_generator(name, thing.bit_generator)
        for _ in values(name, thing, owners):  # refuses what is of no known type
            pass
        value = self._value(name)
        return lambda: thing.load_state_dict(value)

    def _target(self, name: str, like: Tensor) -> None:
        """Room for the tensor ``name``, of the shape and dtype of ``like``."""
        there = self._tensors.get(name)
        if there is None:
            raise CheckpointError(f"tensor {name!r} is missing there")
        saved, own = f"{there['shape']} {there['dtype']}", f"{list(like.shape)} {dtype_name(like)}"
        if saved != own:
            raise CheckpointError(f"tensor {name!r} is {saved} there, {own} here")
        self._read(name, torch.empty_like(like.detach()))

    def _read(self, name: str, target: Tensor) -> None:
        self.targets[name] = target
        self.wanted.add(name)

    def _value(self, name: str) -> Any:
        if name not in self._plain:
            raise CheckpointError(f"{name!r} is missing there")
        self.wanted.add(name)
        try:
            return decode(self._plain[name])
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{name!r} cannot be read: {error}") from error

    def _module(self, name: str, module: nn.Module) -> Change:
        keys = [key for key in module.state_dict() if not key.endswith(OPTIONAL)]
        for key, tensor in module.state_dict().items():
            if key in keys:
                self._target(f"{name}.{key}", tensor)
        for part, _ in module.named_modules():
            key = f"{part}.{OPTIONAL}".lstrip(".")
            if f"{name}.{key}" in self._tensors:
                self._read(f"{name}.{key}", self._of_any_size(f"{name}.{key}"))
                keys.append(key)
        return lambda: module.load_state_dict({key: self.targets[f"{name}.{key}"] for key in keys})

    def _of_any_size(self, name: str) -> Tensor:
        shape, dtype = torch.Size(self._tensors[name]["shape"]), self._dtype(name)
        if shape.numel() * dtype.itemsize > self._room:  # before anything of that size is made
            raise CheckpointError(f"tensor {name!r} is {list(shape)} there, more than the files have")
        return torch.empty(shape, dtype=dtype)

    def _dtype(self, name: str) -> torch.dtype:
        dtype = getattr(torch, self._tensors[name]["dtype"], None)
        if not isinstance(dtype, torch.dtype):
            raise CheckpointError(f"tensor {name!r} is of dtype {self._tensors[name]['dtype']!r} there")
        return dtype

    def _optimiser(self, name: str, optimiser: Optimizer, owners: dict[int, str]) -> Change:
        theirs, ours = self._value(name), groups_of(optimiser)
        said = [_named(one) for one in (theirs, ours)]
        if said[0] != said[1]:
            raise CheckpointError(f"{name!r} is {said[0]} there, {said[1]} here")
        state: dict[int, dict[str, Any]] = {}
        slots: dict[int, dict[str, str]] = {}
        parameters: list[Tensor] = []
        for number, (parameter, (tensor, group, _)) in enumerate(by_parameter(name, optimiser, owners).items()):
            record = self._value(f"{name}.{parameter}")
            if not isinstance(record, dict) or record.get("group") != group:
                raise CheckpointError(f"{name!r}: parameter {parameter!r} is in another group there than {group}")
            parameters.append(tensor)
            state[number], slots[number] = dict(record["slots"]), self._slots(f"{name}.{parameter}", tensor)

        def change() -> None:
            for number, names in slots.items():
                state[number] |= {slot: self.targets[full] for slot, full in names.items()}
            groups = optimiser.state_dict()["param_groups"]
            merged = [now | saved for now, saved in zip(groups, theirs["groups"], strict=True)]
            optimiser.load_state_dict({"state": {n: s for n, s in state.items() if s}, "param_groups": merged})
            for number, names in slots.items():  # torch gives them the dtype of the parameter
                kept = optimiser.state[parameters[number]] if names else {}
                kept |= {
                    s: self.targets[full] for s, full in names.items() if kept[s].dtype != self.targets[full].dtype
                }

        return change

    def _slots(self, prefix: str, parameter: Tensor) -> dict[str, str]:
        """What the optimiser keeps for one parameter, by slot: numbers on the host, tensors mostly of its shape."""
        found = {}
        for full in self._slots_of.get(prefix, []):
            shape, dtype = self._tensors[full]["shape"], self._dtype(full)
            if not shape:
                room = torch.empty([], dtype=dtype)
            elif shape == list(parameter.shape):
                room = torch.empty_like(parameter.detach(), dtype=dtype)
            else:  # such as Adafactor's rows and columns
                room = self._of_any_size(full).to(parameter.device)
            self._read(full, room)
            found[full.rpartition(".")[2]] = full
        return found

    def _numpy_generator(self, name: str, bits: np.random.BitGenerator) -> Change:
        value = self._value(name)
        try:
            type(bits)().state = value
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{name!r} is no state of {type(bits).__name__} there: {error}") from error
        return lambda: setattr(bits, "state", value)


def _named(groups: Any) -> str:
    return f"{groups['type']} with {len(groups['groups'])} groups of parameters"
