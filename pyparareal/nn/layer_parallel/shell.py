# SPDX-License-Identifier: BSD-3-Clause
"""A module with other tensors in place of its own: as cheap to call as the module, and whole after the call too.

``torch.func.functional_call`` puts tensors in place for the length of a call. What runs again in the backward pass, as
``torch.utils.checkpoint`` does, would meet the module's own tensors then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn


class Shell:
    """``module`` with the parameters and buffers ``state``, by name; everything else is the module's own.

    The module must not refer to its parts by other attributes (:func:`.kinds.kinds` sets such blocks apart).

    Attributes
    ----------
    module : nn.Module
        To be called.
    """

    def __init__(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        self._buffers: dict[str, tuple[nn.Module, str]] = {}
        self._state = state
        self.module = self._copy(module, state, "", {})

    def _copy(self, module: nn.Module, state: Mapping[str, Tensor], prefix: str, seen: dict[int, Any]) -> nn.Module:
        if id(module) in seen:
            return seen[id(module)]
        new: nn.Module = object.__new__(type(module))
        seen[id(module)] = new
        own = new.__dict__
        own.update(module.__dict__)
        own["_parameters"] = {key: state.get(prefix + key, t) for key, t in module._parameters.items()}
        own["_buffers"] = {key: state.get(prefix + key, t) for key, t in module._buffers.items()}
        for key in module._buffers:
            self._buffers.setdefault(prefix + key, (new, key))
        own["_modules"] = {
            key: None if child is None else self._copy(child, state, f"{prefix}{key}.", seen)
            for key, child in module._modules.items()
        }
        return new

    def assigned(self) -> dict[str, Tensor]:
        """The tensors that are no longer those of ``state``."""
        now = [*self.module.named_parameters(), *self.module.named_buffers()]
        return {name: t for name, t in now if name in self._state and t is not self._state[name]}

    def put(self, buffers: Mapping[str, Tensor]) -> None:
        """Other buffers."""
        for name, t in buffers.items():
            owner, key = self._buffers[name]
            owner._buffers[key] = t

    def buffers(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Those of now: changed in place or assigned."""
        found = {}
        for name in names:
            owner, key = self._buffers[name]
            t = owner._buffers[key]
            assert t is not None
            found[name] = t
        return found
