# SPDX-License-Identifier: BSD-3-Clause
"""Named spans for profilers. Off unless a listener is set: one attribute read and a shared object."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

_OFF: AbstractContextManager[None] = nullcontext()

Facts = Mapping[str, Any]


class Listener(Protocol):
    """What hears of everything that is marked."""

    def span(self, kind: str, name: str, facts: Facts | None) -> AbstractContextManager[None]:
        """The context that a region, verb, launch, copy, wait or message (:data:`.profiling.events.KINDS`) runs in."""
        ...

    def sample(self, counter: str, value: float) -> None:
        """A counter has this value from now on: "residual"."""
        ...


listener: Listener | None = None
"""``None`` switches tracing off."""


def mark(name: str, kind: str = "region", facts: Facts | None = None) -> AbstractContextManager[None]:
    """A context manager that names what it encloses, e.g. ``with mark("mgrit.relax.0"):``."""
    return _OFF if listener is None else listener.span(kind, name, facts)


def sample(counter: str, value: float) -> None:
    """``counter`` has this ``value`` from now on."""
    if listener is not None:
        listener.sample(counter, value)
