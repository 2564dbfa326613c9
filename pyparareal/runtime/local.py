# SPDX-License-Identifier: BSD-3-Clause
"""One process, one device: parallel in time means batched over slices."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .. import _trace, arrays, reference
from ..propagators import Propagator, advance, is_fused
from ..time_grid import part_of_points
from .protocol import Link, Repeat

Array = Any


class LocalRuntime:
    """All slices in one call per fine step.

    Parameters
    ----------
    slices_per_call : int, optional
        Cut the batch into calls of at most so many slices, to bound the memory of a step. With a
        batch-invariant propagator this does not change a bit of the result.
    """

    def __init__(self, *, slices_per_call: int | None = None) -> None:
        if slices_per_call is not None and slices_per_call < 1:
            raise ValueError(f"slices_per_call: got {slices_per_call}, expected at least 1")
        self.slices_per_call = slices_per_call
        self.seconds: dict[str, float] = {}

    def map(self, phi: Propagator, u: Array, points: slice, m: int = 1, *, out: Array | None, **fused: Any) -> None:
        if self.slices_per_call is None:
            if len(u):
                _advance(phi, u, points, m, out, fused)
            return
        size = self.slices_per_call
        for n in range(0, len(u), size):
            end = min(n + size, len(u))
            part = part_of_points(points, n, end)
            more = {name: value if isinstance(value, str) else value[n:end] for name, value in fused.items()}
            _advance(phi, u[n:end], part, m, None if out is None else out[n:end], more)

    def shift(self, u: Array) -> Array:
        return u[:-1]  # one range holds all slices: the left neighbour's end is the row before

    def chain(self, link: Link, u: Array, first: int, *, whole: Callable[[Array], None] | None = None) -> None:
        if whole is not None and first == 0 and len(u) > 1:
            whole(u)
            return
        for n in range(first, len(u) - 1):
            link(n, u[n : n + 1], u[n + 1 : n + 2])

    def reduce(self, values: Array, combine: Any = np.add) -> float:
        return float(reference.tree_sum(arrays.to_numpy(values), combine))

    def mark(self, name: str) -> AbstractContextManager[None]:
        return Region(name, self.seconds)

    def repeat(self, u: Array, unless: Callable[[], str | None]) -> Repeat:
        return Anew()


def _advance(phi: Any, u: Array, points: slice, m: int, out: Array | None, fused: dict[str, Any]) -> None:
    if is_fused(phi):
        phi.relax(u, points, m, out, **fused)
    else:
        advance(phi, u, points, m, out=out)


class Anew:
    """Every time anew."""

    mode = "eager"

    def __call__(self, kind: Hashable, place: Hashable, work: Callable[[], Any]) -> Any:
        return work()


class Region:
    """A named region: in the trace while it lasts, in ``seconds`` when it ends. Cheaper than a generator."""

    __slots__ = ("begin", "name", "seconds", "traced")

    def __init__(self, name: str, seconds: dict[str, float]) -> None:
        self.name, self.seconds = name, seconds

    def __enter__(self) -> None:
        self.begin = time.perf_counter()
        self.traced = None if _trace.listener is None else _trace.mark(self.name)
        if self.traced is not None:
            self.traced.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self.traced is not None:
            self.traced.__exit__(*error)
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self.begin
