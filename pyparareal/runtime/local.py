# SPDX-License-Identifier: BSD-3-Clause
"""One process, one device: parallel in time means batched over slices."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from operator import methodcaller
from typing import Any

import numpy as np

from .. import _core, _trace, arrays, ops, reference
from ..propagators import Propagator, advance, is_fused, is_of
from ..time_grid import part_of_points
from ..traced_ops import launch
from .protocol import Link, Repeat

Array = Any

VERBS = frozenset(("map", "shift", "chain", "do", "mark"))  # of which work that is kept consists


class LocalRuntime:
    """All slices in one call per fine step.

    A cycle of MGRIT that is nothing but fused relaxations and ops is taken through the method once per set of arrays;
    then the same calls are made again without it. Each still calls the propagator, which may change in between, and
    the bits are the same. A subclass with a verb of its own has it called in every cycle.

    Parameters
    ----------
    slices_per_call : int, optional
        Cut the batch into calls of at most so many slices, to bound the memory of a step. With a
        batch-invariant propagator this does not change a bit of the result.
    devices, shares : sequences, optional
        Cut it into blocks that advance at the same time on several devices, or in several threads:
        :class:`.PlacedRuntime`, which the object then is.
    """

    def __new__(cls, *_: Any, devices: Any = None, shares: Any = None, **__: Any) -> LocalRuntime:
        if cls is LocalRuntime and (devices is not None or shares is not None):
            from .placement import PlacedRuntime

            return super().__new__(PlacedRuntime)
        return super().__new__(cls)

    def __init__(self, *, slices_per_call: int | None = None, devices: Any = None, shares: Any = None) -> None:
        if slices_per_call is not None and (
            isinstance(slices_per_call, bool) or not isinstance(slices_per_call, int | np.integer)
        ):
            raise TypeError(f"slices_per_call: got {slices_per_call!r}, expected an int or None")
        if slices_per_call is not None and slices_per_call < 1:
            raise ValueError(f"slices_per_call: got {slices_per_call}, expected at least 1")
        self.slices_per_call = slices_per_call
        self.seconds: dict[str, float] = {}

    def map(
        self,
        phi: Propagator,
        u: Array,
        points: slice,
        m: int = 1,
        *,
        out: Array | None,
        shifted: Array | None = None,
        **fused: Any,
    ) -> None:
        if not len(u):
            return
        self.do(steps_of(self.slices_per_call, phi, u, points, m, out, **fused))

    def shift(self, u: Array) -> Array:
        return u[:-1]  # one range holds all slices: the left neighbour's end is the row before

    def chain(self, link: Link, u: Array, first: int, *, whole: Callable[[Array], None] | None = None) -> None:
        if whole is not None and first == 0 and len(u) > 1:
            self.do(_at_once, whole, u)
        else:
            self.do(_in_turn, link, u, first)

    def scan(self, a: Array, b: Array, first: int, u: Array) -> None:
        with _trace.mark("scan", "verb"):
            u[:1] = 0
            (ops.scan_diag if a.ndim == b.ndim else ops.scan_block)(a, b, out=u[1:])

    def largest(self, u: Array) -> Array:
        if not math.prod(u.shape):
            return arrays.zeros(u, ())
        with _trace.mark("largest", "verb"):
            xp = arrays.namespace(u)
            return xp.amax(xp.abs(u))

    def do(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        calls = _kept.calls
        if calls is None:
            if _trace.listener is None:
                return call(*arguments, **named)
            with _trace.mark(_verb_of(call), "verb"):
                return call(*arguments, **named)
        calls.append(partial(call, *arguments, **named))
        _kept.calls = None  # a call is kept whole, with whatever it does here itself
        try:
            return LocalRuntime.do(self, call, *arguments, **named)
        finally:
            _kept.calls = calls

    def reduce(self, values: Array, combine: Any = np.add) -> float:
        if _trace.listener is not None:
            with _trace.mark("reduce", "verb"):
                return _reduced(arrays.to_numpy(values), combine)
        return _reduced(arrays.to_numpy(values), combine)

    def in_all(self, slices: int) -> int:
        return slices

    def left_of(self, n: int, slices: int) -> int:
        return min(n, slices)

    def gather(self, *values: Array) -> Sequence[Any]:
        with _trace.mark("gather", "verb"):
            return [arrays.to_numpy(one) for one in values]

    def mark(self, name: str) -> AbstractContextManager[None]:
        return Region(name, self)

    def repeat(self, u: Array, unless: Callable[[], str | None], *, fixed: bool = False) -> Repeat:
        # A subclass that does something else in a verb is asked every time.
        ours = all(is_of(LocalRuntime, self, verb) for verb in VERBS)
        return Kept(self) if fixed and ours else Anew()


def _reduced(values: Any, combine: Any) -> float:
    return _core.tree_sum(values) if combine is np.add else float(reference.tree_sum(values, combine))


def _at_once(whole: Callable[[Array], None], u: Array) -> None:
    whole(u)


def _in_turn(link: Link, u: Array, first: int) -> None:
    for n in range(first, len(u) - 1):
        link(n, u[n : n + 1], u[n + 1 : n + 2])


def steps_of(
    size: int | None, phi: Propagator, u: Array, points: slice, m: int, out: Any, **fused: Any
) -> Callable[[], None]:
    """The call that takes them, ``size`` slices at a time."""
    if size is None:
        return _steps(phi, u, points, m, out, **fused)
    return partial(_in_parts, size, phi, u, points, m, out, **fused)


def _in_parts(size: int, phi: Propagator, u: Array, points: slice, m: int, out: Any, **fused: Any) -> None:
    """One call for whoever keeps it: as many as there are parts would need memory."""
    for n in range(0, len(u), size):
        end = min(n + size, len(u))
        part = part_of_points(points, n, end)
        _steps(phi, u[n:end], part, m, None if out is None else out[n:end], **rows_of(fused, n, end))()


def rows_of(fused: dict[str, Any], first: int, end: int) -> dict[str, Any]:
    """What a relaxation takes besides, for some of its slices."""
    return {name: value if isinstance(value, str) else value[first:end] for name, value in fused.items()}


def _steps(phi: Propagator, u: Array, points: slice, m: int, out: Any, **fused: Any) -> Callable[[], None]:
    """The call that takes them; ``relax`` is looked up when it is made, as everything else in ``phi`` is."""
    if is_fused(phi) and _trace.listener is None:
        return partial(methodcaller("relax", u, points, m, out, **fused), phi)
    if is_fused(phi):
        return partial(_relax, phi, u, points, m, out, **fused)
    return partial(advance, phi, u, points, m, out=out)


def _relax(phi: Any, u: Array, points: slice, m: int, out: Any, **fused: Any) -> None:
    with launch(phi, u, m):
        phi.relax(u, points, m, out, **fused)


def _verb_of(call: Callable[..., Any]) -> str:
    """Which verb this call is made for."""
    while isinstance(call, partial):
        call = call.func
    if call is advance or call is _relax or call is _in_parts or isinstance(call, methodcaller):
        return "map"
    if isinstance(getattr(call, "__self__", None), LocalRuntime):  # as a subclass spreads it
        return "map"
    return "chain" if call is _in_turn or call is _at_once else "do"


class Anew:
    """Every time anew."""

    mode = "eager"

    def __call__(self, kind: Hashable, place: Hashable, work: Callable[[], Any]) -> Any:
        return work()


class Kept:
    """Anew the first time, with its calls kept; from then on those calls, without the way that led to them.

    What a CUDA graph is on a device, for the host: in short cycles less time passes between the kernels.
    """

    mode = "eager"

    def __init__(self, runtime: LocalRuntime) -> None:
        self._runtime = runtime
        self._known: dict[Hashable, tuple[Any, Calls]] = {}

    def __call__(self, kind: Hashable, place: Hashable, work: Callable[[], Any]) -> Any:
        key = kind, place
        if key in self._known and VERBS.isdisjoint(vars(self._runtime)):  # one replaced in this object is asked too
            result, calls = self._known[key]
            if _trace.listener is not None:
                _again(calls)
                return result
            for call in calls:
                call()
            return result
        outside, _kept.calls = _kept.calls, Calls()
        try:
            self._known[key] = work(), _kept.calls
        finally:
            _kept.calls = outside
        return self._known[key][0]


Calls = list[Callable[[], Any]]


class _Keeping(threading.local):
    """``calls`` of the work that this thread is keeping."""

    calls: Calls | None = None


_kept = _Keeping()


class Region:
    """A named region: in the trace while it lasts, in ``seconds`` when it ends. Cheaper than a generator.

    Where calls are kept, those inside are one of those outside.
    """

    __slots__ = ("begin", "name", "outside", "runtime", "traced")

    def __init__(self, name: str, runtime: LocalRuntime) -> None:
        self.name, self.runtime = name, runtime

    def __enter__(self) -> None:
        self.outside = _kept.calls
        if self.outside is not None:
            inside = Calls()
            self.outside.append(partial(_marked, self.name, self.runtime, inside))
            _kept.calls = inside
        self.begin = time.perf_counter()
        listener = _trace.listener  # read once: another thread may take it away
        self.traced = None if listener is None else listener.span("region", self.name, None)
        if self.traced is not None:
            self.traced.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self.outside is not None:
            _kept.calls = self.outside
        if self.traced is not None:
            self.traced.__exit__(*error)
        seconds = self.runtime.seconds
        seconds[self.name] = seconds.get(self.name, 0.0) + time.perf_counter() - self.begin


def _marked(name: str, runtime: LocalRuntime, calls: Calls) -> None:
    with Region(name, runtime):
        if _trace.listener is not None:
            _again(calls)
            return
        for call in calls:
            call()


def _again(calls: Calls) -> None:
    """The same, heard."""
    for call in calls:
        if isinstance(call, partial) and call.func is _marked:
            call()
        else:
            with _trace.mark(_verb_of(call), "verb"):
                call()
