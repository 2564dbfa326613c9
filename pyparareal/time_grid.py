# SPDX-License-Identifier: BSD-3-Clause
"""The time axis: points, step sizes and every piece of index arithmetic the methods need.

A grid of ``N = steps`` steps has the points ``0 .. N``. With a coarsening factor ``m`` the multiples
of ``m`` are its C-points and the rest its F-points; slice ``n`` is the ``m`` steps from C-point ``n``
to C-point ``n + 1``. If ``m`` does not divide ``N``, the last ``N mod m`` points are trailing F-points:
they belong to no whole slice and are reached from the last C-point.

Sets of points are Python ``slice`` objects with a constant stride, never index arrays, so that a
state array, a parameter array and a device kernel can all be addressed with the same three integers.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class TimeGrid:
    """``t[i] = t0 + i (t1 - t0) / N``, or any increasing times; immutable.

    Parameters
    ----------
    t0, t1 : float
        First and last time, ``t0 < t1``.
    steps : int
        Number of steps ``N >= 1``; the grid has ``N + 1`` points.
    trailing : int, optional
        For a grid made by :meth:`coarsen`: how many points of the finer grid lie right of its end.

    Raises
    ------
    TypeError, ValueError
        If a time is not a finite number, ``t1 <= t0``, or ``steps`` is not an integer of at least 1.
    """

    __slots__ = ("_dt", "_times", "steps", "t0", "t1", "trailing")

    t0: float
    t1: float
    steps: int
    trailing: int
    _dt: float | Array
    _times: Array | None

    def __init__(self, t0: float, t1: float, steps: int, *, trailing: int = 0) -> None:
        t0, t1 = _finite("t0", t0), _finite("t1", t1)
        steps, trailing = _integer("steps", steps, 1), _integer("trailing", trailing, 0)
        if t1 <= t0:
            raise ValueError(f"t1: got {t1}, expected a time after t0 = {t0}")
        self._set(t0=t0, t1=t1, steps=steps, trailing=trailing, _dt=(t1 - t0) / steps, _times=None)

    @classmethod
    def from_times(cls, times: Sequence[float] | Array, *, trailing: int = 0) -> TimeGrid:
        """A grid with the given points, strictly increasing and not necessarily equidistant; they are copied."""
        t = np.array(times, dtype=np.float64)
        if t.ndim != 1 or len(t) < 2:
            raise ValueError(f"times: got shape {t.shape}, expected one axis with at least two times")
        if not np.isfinite(t).all():
            raise ValueError(
                f"times: got {t[~np.isfinite(t)][0]} at index {np.flatnonzero(~np.isfinite(t))[0]}, "
                "expected finite times"
            )
        if not (np.diff(t) > 0).all():
            i = int(np.flatnonzero(np.diff(t) <= 0)[0])
            raise ValueError(f"times: got {t[i]} followed by {t[i + 1]} at index {i}, expected increasing times")
        t.flags.writeable = False
        grid = cls.__new__(cls)
        grid._set(
            t0=float(t[0]),
            t1=float(t[-1]),
            steps=len(t) - 1,
            trailing=_integer("trailing", trailing, 0),
            _dt=np.diff(t),
            _times=t,
        )
        return grid

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"TimeGrid is immutable: {name} cannot be set")

    def __repr__(self) -> str:
        kind = "" if self.uniform else ", non-uniform"
        return f"TimeGrid(t0={self.t0}, t1={self.t1}, steps={self.steps}{kind})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TimeGrid):
            return NotImplemented
        same = (self.t0, self.t1, self.steps, self.uniform) == (other.t0, other.t1, other.steps, other.uniform)
        return same and (self.uniform or np.array_equal(self.times(), other.times()))

    def __hash__(self) -> int:
        return hash((self.t0, self.t1, self.steps, self.uniform))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.t0, self.t1, self.steps, self.trailing, self._times)

    @property
    def uniform(self) -> bool:
        """Whether all steps have the same size by construction."""
        return self._times is None

    # Times and step sizes

    def times(self, points: slice = slice(None)) -> Array:
        """``t[points]``, float64."""
        if self._times is not None:
            return self._times[points]
        i = np.arange(*points.indices(self.steps + 1))
        # The last point is t1 itself: t0 + (t1 - t0) may differ from it by a rounding error.
        return np.where(i == self.steps, self.t1, self.t0 + (self.t1 - self.t0) * (i / self.steps))

    def dt(self, points: slice = slice(None)) -> float | Array:
        """``t[i+1] - t[i]`` for the steps that start at ``points``: one float if uniform, else float64 ``[points]``."""
        return self._dt if isinstance(self._dt, float) else self._dt[points]

    # Index arithmetic: C-points, F-points, slices

    def slices(self, m: int) -> int:
        """``floor(N / m)``: how many whole slices of ``m`` steps the grid has."""
        return self.steps // self._factor(m)

    def coarsen(self, m: int) -> TimeGrid:
        """The grid of the C-points: ``floor(N / m)`` steps; it remembers the ``N mod m`` trailing points."""
        c, trailing = self.c_points(m), self.steps % m
        if self._times is not None:
            return TimeGrid.from_times(self._times[c], trailing=trailing)
        return TimeGrid(self.t0, self.times(c)[-1] if trailing else self.t1, self.slices(m), trailing=trailing)

    def c_points(self, m: int) -> slice:
        """The C-points ``0, m, 2m, ...``: ``slices(m) + 1`` of them."""
        return slice(0, self.slices(m) * m + 1, m)

    def f_points(self, m: int, j: int) -> slice:
        """The points ``j`` steps right of a C-point, trailing ones included, ``0 <= j < m``."""
        j = _integer("j", j, 0)
        if j >= self._factor(m):
            raise ValueError(f"j: got {j}, expected less than m = {m}")
        return slice(j, self.steps + 1, m)

    def starts(self, m: int, first: int = 0, last: int | None = None, *, j: int = 0) -> slice:
        """Points that step ``j`` of the slices ``first .. last - 1`` starts from; whole slices only."""
        last = self.slices(m) if last is None else last
        if not 0 <= first <= last <= self.slices(m):
            raise ValueError(f"first, last: got {first}, {last}, expected 0 <= first <= last <= {self.slices(m)}")
        return shift_points(slice(first * m, max(first * m, (last - 1) * m + 1), m), j)

    def _factor(self, m: int) -> int:
        m = _integer("m", m, 1)
        if m > self.steps:
            raise ValueError(f"m: got {m}, expected at most the {self.steps} steps of the grid")
        return m


def shift_points(points: slice, j: int) -> slice:
    """The points ``j`` steps further right."""
    return slice(points.start + j, points.stop + j, points.step)


def count_points(points: slice) -> int:
    """How many points a slice with explicit start, stop and step names."""
    return len(range(points.start, points.stop, points.step))


def part_of_points(points: slice, first: int, last: int) -> slice:
    """Elements ``first .. last - 1`` of ``points``, as points with the same stride."""
    start = points.start + first * points.step
    return slice(start, max(start, points.start + (last - 1) * points.step + 1), points.step)


def _rebuild(t0: float, t1: float, steps: int, trailing: int, times: Array | None) -> TimeGrid:
    if times is None:
        return TimeGrid(t0, t1, steps, trailing=trailing)
    return TimeGrid.from_times(times, trailing=trailing)


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: got {value!r}, expected a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{name}: got {number}, expected a finite number")
    return number


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool):
        raise TypeError(f"{name}: got {value!r}, expected an integer")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: got {value!r}, expected an integer") from None
    if number < least:
        raise ValueError(f"{name}: got {number}, expected at least {least}")
    return number
