# SPDX-License-Identifier: BSD-3-Clause
"""What a timeline hears of messages between ranks. Both ends of one have the same flow, also if one end came late.

Messages from a rank to another arrive in the order in which they were sent, and all ranks take part in what is among
all in the same order, so that a number tells which is which. It is counted whether somebody listens or not.
"""

from __future__ import annotations

import secrets
from collections import Counter
from contextlib import AbstractContextManager
from typing import Any

from .. import _trace

Span = AbstractContextManager[None]


class Messages:
    """Those of the group that shares ``store``; this process is number ``rank``."""

    def __init__(self, store: Any, rank: int) -> None:
        self._store, self._rank = store, rank
        self._counts: Counter[str] = Counter()
        self._name: str | None = None
        self._asked: dict[int, str] = {}

    def sending(self, to: int, nbytes: int, what: str) -> Span:
        """A state leaves for rank ``to``."""
        flow = self._next(f"{self._rank}>{to}")
        return self._span("state", flow, nbytes, what, to=to)

    def receiving(self, source: int, nbytes: int, what: str) -> Span:
        """A state of rank ``source`` is waited for."""
        flow = self._asked.pop(source, None) or self._next(f"{source}>{self._rank}")
        return self._span("state", flow, nbytes, what, source=source)

    def ask(self, source: int) -> None:
        """It will be waited for; what is asked for first comes first."""
        self._asked[source] = self._next(f"{source}>{self._rank}")

    def broadcast(self, source: int, nbytes: int, what: str) -> Span:
        """From rank ``source`` to all."""
        flow = self._next(f"{source}>all")
        who = {"to": "all"} if source == self._rank else {"source": source}
        return self._span("state", flow, nbytes, what, **who)

    def among_all(self, name: str, nbytes: int, what: str) -> Span:
        """Everybody to everybody."""
        return self._span(name, self._next("all"), nbytes, what)

    def _next(self, way: str) -> str:
        self._counts[way] += 1
        return f"{way} {self._counts[way]}"

    def _span(self, name: str, flow: str, nbytes: int, what: str, **more: Any) -> Span:
        if _trace.listener is None:
            return _trace.NOTHING
        return _trace.mark(name, "message", {"flow": f"{self._group()} {flow}", "bytes": nbytes, "what": what, **more})

    def _group(self) -> str:
        """A name that all ranks of this group have for it, and no other group: that of who asked first."""
        if self._name is None:
            try:
                self._name = self._store.compare_set("name", "", secrets.token_hex(4)).decode()
            except RuntimeError:  # the store has gone with the rank that kept it; this message will fail, too
                return "lost"
        return self._name


def waiting(what: str) -> Span:
    """The host waits for a message to come ("message"), or for one to leave ("sent")."""
    return _trace.mark(what, "wait")
