# SPDX-License-Identifier: BSD-3-Clause
"""Named spans for profilers. Off unless a listener is set: one attribute read and a shared object."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol, cast

Facts = Mapping[str, Any]
"""JSON values, and besides them only shapes (tuples of int) and dtypes: no arrays, which it would keep alive."""


class Listener(Protocol):
    """What hears of everything that is marked, from all threads."""

    def span(self, kind: str, name: str, facts: Facts | None) -> AbstractContextManager[None]:
        """The context that a region, verb, launch, copy, wait or message (:data:`.profiling.events.KINDS`) runs in."""
        ...

    def sample(self, counter: str, value: float) -> None:
        """A counter has this value from now on: "residual"."""
        ...

    def carry(self) -> AbstractContextManager[None]:
        """See :func:`carry`."""
        ...

    def note(self, what: str, facts: Facts) -> None:
        """Something is known that is no span: a "solve" and how it ended."""
        ...


class _Off:
    """Nothing, as fast as Python can do it: both methods are a C function that takes anything and returns "", false.

    One of :func:`contextlib.nullcontext` takes twice as long.
    """

    __slots__ = ()
    __enter__ = __exit__ = "".format


NOTHING = cast("AbstractContextManager[None]", _Off())
"""A context that does nothing."""

listener: Listener | None = None
"""``None`` switches tracing off."""


def mark(name: str, kind: str = "region", facts: Facts | None = None) -> AbstractContextManager[None]:
    """A context manager that names what it encloses, e.g. ``with mark("mgrit.relax.0"):``."""
    who = listener  # read once: another thread may set it to None in between
    return NOTHING if who is None else who.span(kind, name, facts)


def sample(counter: str, value: float) -> None:
    """``counter`` has this ``value`` from now on."""
    who = listener
    if who is not None:
        who.sample(counter, value)


def carry() -> AbstractContextManager[None]:
    """A context for another thread, whose spans then are in the region that this thread is in."""
    who = listener
    return NOTHING if who is None else who.carry()


def carried(task: Callable[[], Any]) -> Callable[[], Any]:
    """``task`` for another thread, in :func:`carry` of this one."""
    context = carry()

    def inside() -> Any:
        with context:
            return task()

    return inside


def note(what: str, facts: Facts) -> None:
    """``what`` is known."""
    who = listener
    if who is not None:
        who.note(what, facts)


class _Several:
    """Listeners that all hear of everything; the spans of the first are the outermost."""

    def __init__(self, listeners: tuple[Listener, ...]) -> None:
        self.listeners = listeners

    def span(self, kind: str, name: str, facts: Facts | None) -> AbstractContextManager[None]:
        return _Contexts([one.span(kind, name, facts) for one in self.listeners])

    def carry(self) -> AbstractContextManager[None]:
        return _Contexts([one.carry() for one in self.listeners])

    def sample(self, counter: str, value: float) -> None:
        for one in self.listeners:
            one.sample(counter, value)

    def note(self, what: str, facts: Facts) -> None:
        for one in self.listeners:
            one.note(what, facts)


class _Contexts(AbstractContextManager[None]):
    def __init__(self, contexts: list[AbstractContextManager[None]]) -> None:
        self.contexts, self.entered = contexts, ExitStack()

    def __enter__(self) -> None:
        for one in self.contexts:
            self.entered.enter_context(one)

    def __exit__(self, *error: Any) -> None:
        self.entered.__exit__(*error)


_lock = threading.Lock()


def listen(new: Listener) -> None:
    """Have ``new`` hear of everything from now on, besides those that already do."""
    global listener
    with _lock:
        _set((*_all(), new))


def leave(old: Listener) -> None:
    """Have it hear no more; the others do."""
    with _lock:
        found = list(_all())
        if not any(one is old for one in found):
            raise ValueError(f"listener: got {old!r}, expected one that listens")
        last = max(n for n, one in enumerate(found) if one is old)
        _set((*found[:last], *found[last + 1 :]))


def _all() -> tuple[Listener, ...]:
    return listener.listeners if isinstance(listener, _Several) else () if listener is None else (listener,)


def _set(listeners: tuple[Listener, ...]) -> None:
    global listener
    listener = None if not listeners else listeners[0] if len(listeners) == 1 else _Several(listeners)


def _after_fork() -> None:
    """A child process has listeners that nobody asks, and a lock that a thread which is not there may hold."""
    global listener, _lock
    listener, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
