# SPDX-License-Identifier: BSD-3-Clause
"""What is marked, shown to other profilers: as NVTX ranges (``nsys``, ``ncu``) and as ranges of ``torch.profiler``.

::

    with profiling.ranges(nvtx=True):
        solve(...)

or, for a whole program, ``PYPARAREAL_TRACE=nvtx nsys profile python script.py``; likewise ``torch`` or ``nvtx,torch``.
NVTX ranges are in a domain of their own, ``pyparareal``, which ``nsys`` shows on a row of its own.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from .. import _core, _trace, traced_ops

VARIABLE = "PYPARAREAL_TRACE"
CHOICES = ("nvtx", "torch")


@contextmanager
def ranges(*, nvtx: bool = False, torch: bool = False) -> Iterator[None]:
    """Show all regions, verbs, launches, copies, waits and messages to NVTX, to torch's profiler, or both.

    Raises
    ------
    ValueError
        Neither was asked for.
    RuntimeError
        ``nvtx``, and the extension was built without the header of NVTX, which is part of the CUDA toolkit.
    ImportError
        ``torch``, and it is not installed.
    """
    chosen = {"nvtx": nvtx, "torch": torch}
    for name, value in chosen.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: got {value!r}, expected True or False")
    if not any(chosen.values()):
        raise ValueError("ranges: got neither nvtx=True nor torch=True, expected at least one")
    with ExitStack() as left:
        for one in [_LISTENERS[name]() for name, value in chosen.items() if value]:
            listen(one)
            left.callback(_leave, one, os.getpid())
        yield


def listen(one: _Ranges) -> None:
    """From now on."""
    traced_ops.want()
    _trace.listen(one)


def _leave(one: _Ranges, process: int) -> None:
    if process == os.getpid():  # in a child of a fork nobody listens
        _trace.leave(one)
        traced_ops.no_more()


def from_environment() -> None:
    """What ``PYPARAREAL_TRACE`` says, for the rest of the process.

    Raises
    ------
    ValueError
        For a word that is not one of ``nvtx``, ``torch``.
    """
    words = [word.strip() for word in os.environ.get(VARIABLE, "").split(",")]
    names = list(dict.fromkeys(word for word in words if word))
    for name in names:
        if name not in CHOICES:
            raise ValueError(f"{VARIABLE}: got {name!r}, expected {' or '.join(CHOICES)}, or both with a comma")
    for one in [_LISTENERS[name]() for name in names]:
        listen(one)


class _Ranges:
    """A listener that shows spans elsewhere and keeps nothing; each is between ``begin(name)`` and ``end()``."""

    def __init__(self, begin: Callable[[str], Any], end: Callable[[], Any]) -> None:
        self.begin, self.end = begin, end

    def span(self, kind: str, name: str, facts: Mapping[str, Any] | None) -> AbstractContextManager[None]:
        return _Range(self, titled(kind, name))

    def sample(self, counter: str, value: float) -> None:
        pass

    def note(self, what: str, facts: Mapping[str, Any]) -> None:
        pass

    def carry(self) -> AbstractContextManager[None]:
        return _trace.NOTHING


class _Range(AbstractContextManager[None]):
    __slots__ = ("name", "of")

    def __init__(self, of: _Ranges, name: str) -> None:
        self.of, self.name = of, name

    def __enter__(self) -> None:
        self.of.begin(self.name)

    def __exit__(self, *error: Any) -> None:
        self.of.end()


class _TorchRanges(_Ranges):
    def __init__(self) -> None:
        self.of_torch = importlib.import_module("torch.profiler").record_function

    def span(self, kind: str, name: str, facts: Mapping[str, Any] | None) -> AbstractContextManager[None]:
        found: AbstractContextManager[None] = self.of_torch(f"pyparareal: {titled(kind, name)}")
        return found


def _nvtx() -> _Ranges:
    push, pop = getattr(_core, "_nvtx_push", None), getattr(_core, "_nvtx_pop", None)
    if push is None or pop is None:
        raise RuntimeError(
            "nvtx: this build has no NVTX, because nvtx3/nvToolsExt.h of the CUDA toolkit was not there; use torch"
        )
    return _Ranges(push, pop)


_LISTENERS: dict[str, Callable[[], _Ranges]] = {"nvtx": _nvtx, "torch": _TorchRanges}


def titled(kind: str, name: str) -> str:
    """Regions and launches by their name, all others after their kind: "wait threads"."""
    return name if kind in ("region", "launch") else f"{kind} {name}"
