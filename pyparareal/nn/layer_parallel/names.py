# SPDX-License-Identifier: BSD-3-Clause
"""The serial network, and its names for the tensors of stacks that hold parts of its layers."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

from .stack import SerialEuler

_BLOCK = re.compile(r"blocks\.(\d+)(\..*)?$")


class SerialNetwork(nn.Module):
    """``closing(block_{L-1}(... block_0(opening(u))))``, one after the other.

    Parameters
    ----------
    blocks : list of modules
    h : float, optional
        Layers are ``u + h block(u)`` with it.
    opening, closing : modules, optional
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        h: float | None = None,
        opening: nn.Module | None = None,
        closing: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.opening, self.closing = opening, closing
        self.blocks = nn.Sequential(*blocks) if h is None else SerialEuler(list(blocks), h)

    def forward(self, u: Tensor) -> Tensor:
        """The value."""
        if self.opening is not None:
            u = self.opening(u)
        u = self.blocks(u)
        return u if self.closing is None else self.closing(u)


def serial_names(state: MutableMapping[str, Any], prefix: str, layers: Mapping[str, range]) -> None:
    """``stack.blocks.3.weight`` becomes ``blocks.{a + 3}.weight`` for a stack whose first layer is ``a``; in place."""
    for entries in (state, getattr(state, "_metadata", {})):
        for name in [name for name in entries if name.startswith(prefix)]:
            home, _, rest = name.removeprefix(prefix).partition(".")
            if home not in layers:
                continue
            value, found = entries.pop(name), _BLOCK.match(rest)
            if found:
                entries[f"{prefix}blocks.{int(found[1]) + layers[home].start}{found[2] or ''}"] = value


def stack_names(state: MutableMapping[str, Any], prefix: str, layers: Mapping[str, range]) -> None:
    """The reverse of :func:`serial_names`."""
    for entries in (state, getattr(state, "_metadata", {})):
        for name in [name for name in entries if name.startswith(f"{prefix}blocks.")]:
            found = _BLOCK.match(name.removeprefix(prefix))
            home = found and next((n for n, has in layers.items() if int(found[1]) in has), None)
            if found and home:
                inner = f"{home}.blocks.{int(found[1]) - layers[home].start}"
                entries[f"{prefix}{inner}{found[2] or ''}"] = entries.pop(name)


def name_serially(messages: list[str], prefix: str, layers: Mapping[str, range]) -> None:
    """In messages, ``stack.blocks.3`` becomes ``blocks.{a + 3}`` for a stack whose first layer is ``a``; in place."""
    inner = re.compile(rf"{re.escape(prefix)}({'|'.join(layers)})\.blocks\.(\d+)")
    for i, message in enumerate(messages):
        messages[i] = inner.sub(lambda m: f"{prefix}blocks.{int(m[2]) + layers[m[1]].start}", message)


def renumbered(message: str, first: int) -> str:
    """A message that begins with the name of a layer, with its number in the network; ``first`` is its stack's."""
    found = re.match(r"blocks\.(\d+) \(", message)
    return message if found is None else f"blocks.{int(found[1]) + first}{message[found.end(1) :]}"
