# SPDX-License-Identifier: BSD-3-Clause
"""The verbs: ``map`` and ``do``, ``shift``, ``chain``, ``scan``, ``reduce``, ``mark``; and ``repeat``.

A method that has to know of slices which are not its own asks for their numbers with ``gather`` and ``largest``, how
many there are with ``in_all``, and where its own lie with ``left_of``. ``repeat`` is for work that comes again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from ..propagators import Propagator

Array = Any
Link = Callable[[int, Array, Array], None]


class Repeat(Protocol):
    """What runs a piece of work each time it comes again; ``mode`` says how it did."""

    @property
    def mode(self) -> str: ...

    def __call__(self, kind: Hashable, place: Hashable, work: Callable[[], Any]) -> Any:
        """What ``work()`` returns, or returned the last time for the same ``kind`` and ``place``.

        Work of the same kind does the same, though maybe in other arrays; at the same place, in the same ones. It
        returns the arrays that hold its results and changes nothing else on the host.
        """
        ...


class Runtime(Protocol):
    """What a method may ask for.

    A runtime owns a contiguous range of slices, numbered ``0 .. S - 1`` here. Their states are one
    array ``u [S + 1, batch, features...]``: row ``n`` is the start of slice ``n`` and row ``n + 1`` its end,
    so row 0 belongs to the left neighbour (or is the initial value) and the rest is ours.
    """

    seconds: dict[str, float]

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
        """``out[n] = Phi^m(u[n])`` for all slices at once, slice ``n`` starting from ``points[n]``.

        ``shifted``: ``out`` is all rows but the first of this array, and the next thing done to it is its ``shift``.
        ``fused`` is what :meth:`.FusedPropagator.relax` takes besides, for a ``phi`` that is one.
        """
        ...

    def shift(self, u: Array) -> Array:
        """The starts ``u[0 .. S - 1]``, after row 0 has received the left neighbour's end state."""
        ...

    def chain(self, link: Link, u: Array, first: int, *, whole: Callable[[Array], None] | None = None) -> None:
        """``link(n, u[n], u[n + 1])`` for ``n = first, first + 1, ...``, each after the one before: the serial part.

        ``link`` reads the first state, ``[1, batch, features...]``, and writes the second. ``whole``, where there is
        one, does the same for all rows of the ``u`` it is given, from the first to the last, in one call.
        """
        ...

    def scan(self, a: Array, b: Array, first: int, u: Array) -> None:
        """``u[i + 1] = a[i] u[i] + b[i]`` for the slices from number ``first`` of all: a chain that is linear.

        ``a`` and ``b`` are those of our slices from there on. ``a`` like ``b [S, ...]`` is diagonal, ``a [S, ..., d,
        d]`` has a block for every ``b [S, ..., d]``. ``u [S + 1, ...]`` is written; its row 0 is the left neighbour's
        end, or 0 before slice ``first``. The bits are those of :func:`pyparareal.ops.scan_block` over all slices.
        """
        ...

    def largest(self, u: Array) -> Array:
        """The largest absolute number in ``u [S, ...]`` of all slices: without axes, like ``u``; 0 if there is none."""
        ...

    def reduce(self, values: Array, combine: Any = np.add) -> float:
        """Combine ``values [S]``, float64, over the fixed binary tree on the global slice index; 0 if there are none.

        ``combine`` is ``np.add`` or, for values that are not negative, ``np.maximum``.
        """
        ...

    def in_all(self, slices: int) -> int:
        """How many slices there are in all, if ``slices`` are ours."""
        ...

    def left_of(self, n: int, slices: int) -> int:
        """How many of our ``slices`` lie left of slice ``n`` of all."""
        ...

    def gather(self, *values: Array) -> Sequence[Any]:
        """Each of ``values``, numbers of some of our slices, joined with those of all ranges: float64, on the host."""
        ...

    def mark(self, name: str) -> AbstractContextManager[None]:
        """Name the enclosed work in the trace and add its host seconds to ``seconds[name]``."""
        ...

    def do(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """``call(*arguments, **named)``: an op on all slices, as ``map`` is for a propagator."""
        ...

    def repeat(self, u: Array, unless: Callable[[], str | None], *, fixed: bool = False) -> Repeat:
        """For work on arrays like ``u``. ``unless()`` is why it has to be done anew each time, None if it need not.

        ``fixed``: of one kind at one place it is nothing but ``map``, ``chain``, ``do`` and ``mark`` with the same
        arguments.
        """
        ...
