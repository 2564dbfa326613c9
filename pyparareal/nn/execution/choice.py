# SPDX-License-Identifier: BSD-3-Clause
"""The part of a network that knows how its parts are run: the choice, what ran, and what ``auto`` recorded."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from . import Mode, Modules, make
from .auto import Auto


class ExecutionChoice(nn.Module):
    """A module with parts ``preprocess`` and ``fine``, its ``execution`` mode and the mode that ``executed`` last.

    ``state_dict`` has one entry more, ``_extra_state``, once ``auto`` has measured: the modes found, as JSON in a
    tensor of bytes, so that a resumed run uses the same. Loading takes state with or without it.
    """

    preprocess: nn.ModuleList
    fine: nn.ModuleList
    executed: str | None = None
    _execution: str
    _mode: Mode

    @property
    def execution(self) -> str:
        """``"serial"``, ``"batched"``, ``"parallel"`` or ``"auto"``; what cannot run these parts is refused."""
        return self._execution

    @execution.setter
    def execution(self, name: str) -> None:
        mode = make(name)
        mode.require(*self.own_parts())
        self._execution, self._mode = name, mode

    @property
    def measured(self) -> dict[str, Any]:
        """What ``auto`` found: per kind of input the mode, seconds per mode, and why a mode was out of the question."""
        return dict(self._mode.recorded) if isinstance(self._mode, Auto) else {}

    def own_parts(self) -> tuple[Modules, Modules]:
        """``C^j`` and ``g^j`` of the parts that are run here: all."""
        return self.preprocess, self.fine

    def run_parts(self, preprocess: Modules, fine: Modules, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """``x_j = C^j(x)`` and ``y_j = g^j(x_j)`` of all parts in the chosen mode."""
        inputs, outputs, self.executed = self._mode.run(preprocess, fine, x)
        return inputs, outputs

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(json.dumps(self.measured).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        if isinstance(self._mode, Auto):
            self._mode.restore(json.loads(bytes(state.tolist())))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.measured:
            del destination[f"{prefix}_extra_state"]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if f"{prefix}_extra_state" in missing_keys:
            missing_keys.remove(f"{prefix}_extra_state")
