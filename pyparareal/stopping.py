# SPDX-License-Identifier: BSD-3-Clause
"""When to stop: norms in space and in time, and what a history of residuals says about its end."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import _trace, arrays, ops
from .norms import NORMS
from .runtime import Runtime
from .solution import Status

Array = Any
SpatialNorm = str | Callable[[Array], Any]

TEMPORAL = ("l2", "l1", "inf")


def spatial_norms(norm: SpatialNorm, u: Array, v: Array | None = None) -> Array:
    """The norm of ``u[i] - v[i]`` (or of ``u[i]``) for every ``i``: float64 ``[points]`` on the device of ``u``.

    ``norm`` is a name or a function of a batch of states, ``[points, batch, features...] -> [points]``.
    """
    return finished(norm, raw_norms(norm, u, v), math.prod(u.shape[1:]))


def raw_norms(norm: SpatialNorm, u: Array, v: Array | None = None, *, out: Array | None = None) -> Array:
    """What :func:`finished` makes the norms of; in ``out`` if ``norm`` is a name."""
    if isinstance(norm, str):
        return ops.slice_norms(u, v, norm=NORMS[norm].op, out=out)
    d = u if v is None else u - v
    values = norm(d)
    shape = getattr(values, "shape", None)
    if shape is None or tuple(shape) != (len(u),):
        got = f"shape {tuple(shape)}" if shape is not None else type(values).__name__
        raise ValueError(f"norm: returned {got} for {len(u)} states, expected an array [{len(u)}]")
    return arrays.float64_copy(values)


def finished(norm: SpatialNorm, raw: Array, size: int) -> Array:
    """The norms of states of ``size`` numbers, from :func:`raw_norms`: a root, where there is one to take."""
    return NORMS[norm].finish(raw, size) if isinstance(norm, str) else raw


def require_norm(norm: SpatialNorm, u: Array) -> None:
    """Refuse a user's ``norm`` that is not one, judged on the state ``u [1, ...]``: ``|0| = 0``, ``|-2u| = 2|u|``."""
    if isinstance(norm, str):
        return
    zero, one, scaled = (float(arrays.to_numpy(spatial_norms(norm, v))[0]) for v in (u - u, u, -2 * u))
    # The dtype of u decides how exactly a norm can double; 16 bits are the coarsest.
    if zero != 0 or not one >= 0 or not math.isclose(scaled, 2 * one, rel_tol=1e-2, abs_tol=0.0):
        raise ValueError(
            f"norm: |0| = {zero:g}, |u0| = {one:g}, |-2 u0| = {scaled:g}: not a norm, "
            "expected 0, a number of at least 0, and twice that"
        )


def temporal_norm(kind: str, values: Array, runtime: Runtime) -> float:
    """``(sum x^2)^(1/2)``, ``sum x`` or ``max x`` over the points, by the fixed tree; NaN stays NaN."""
    if kind == "inf":
        return runtime.reduce(values, np.maximum)
    return math.sqrt(runtime.reduce(values * values)) if kind == "l2" else runtime.reduce(values)


class History(list[float]):
    """Residuals in the order of the iterations; a timeline hears of each that is a number when it is known."""

    def append(self, residual: float) -> None:
        super().append(residual)
        if _trace.listener is not None and not math.isnan(residual):
            _trace.sample("residual", residual)

    def __iadd__(self, residuals: Iterable[float]) -> History:  # type: ignore[misc,override]
        for residual in residuals:
            self.append(residual)
        return self


def leading(small: Any) -> int:
    """How many of ``small [points]`` are true before the first that is not."""
    return len(small) if small.all() else int(small.argmin())


def settled(moves: Array, last_move: float, tol: float) -> bool:
    """Whether a state of parareal that has become exact moves the end of the next slice by less than ``tol`` yet.

    It moved by ``moves[0]`` and before that by ``last_move``, of which ``F - G`` made ``moves[1]``. The jump of that
    end tells alone only if ``G`` sees what its start does: for ``G = 0`` the end follows in the next iteration.
    """
    moved, *following = arrays.to_numpy(moves).tolist()
    if moved < tol or not following or not math.isfinite(last_move):
        return bool(moved < tol)
    return bool(moved < math.sqrt(tol) and following[0] * moved < tol * last_move)


@dataclass(frozen=True)
class Limits:
    """When a history that does not converge is given up.

    Attributes
    ----------
    divergence : diverged once the residual exceeds so many times the first one; ``inf``: never
    stagnation : stagnated when the smallest residual is that of so many cycles ago or older; None: never
    """

    divergence: float
    stagnation: int | None

    def judge(self, history: Sequence[float], floor: Callable[[], float]) -> Status | None:
        """The status that ends the iteration, or None. ``floor()`` is the residual that rounding alone explains."""
        known = [r for r in history if not math.isnan(r)]
        if not known:
            return None
        if known[-1] > self.divergence * known[0] or math.isinf(known[-1]):
            return Status.DIVERGED
        if self.stagnation is not None and len(known) > self.stagnation:
            best = min(known[: -self.stagnation])
            if min(known[-self.stagnation :]) >= best:
                return Status.ROUND_OFF if best <= floor() else Status.STAGNATED
        return None


@dataclass(frozen=True)
class Rule:
    """What counts as converged (see :class:`pyparareal.mgrit.MGRIT` for the names); with ``tol=None`` nothing does."""

    tol: float | None
    relative: str | None
    scope: str
    temporal: str


class Monitor:
    """The history of a solve: takes the norms of each cycle where they are, judges them ``lag`` cycles later.

    With ``tol=None`` they stay where they are until no cycle will follow, and are only noted.

    Parameters
    ----------
    finish : callable
        :func:`finished` for the norm in use, applied on the host.

    Attributes
    ----------
    history : list of float
        Temporal norm per judged cycle, NaN where a cycle had nothing to measure.
    """

    def __init__(
        self,
        rule: Rule,
        limits: Limits,
        lag: int,
        keep_going: bool,
        runtime: Runtime,
        finish: Callable[[Array], Array],
    ) -> None:
        self.rule, self.limits, self.lag, self.keep_going, self.runtime = rule, limits, lag, keep_going, runtime
        self.finish = finish
        self.history = list[float]()
        self._pending: deque[tuple[Callable[[], Any] | None, Callable[[], Any] | None]] = deque()

    def record(self, norms: Array | None, states: Array | None = None) -> None:
        """:func:`raw_norms` of a cycle, lent until the next: of what must become small, and of the states."""
        self._pending.append((self._kept(norms), self._kept(states)))

    def _kept(self, norms: Array | None) -> Callable[[], Any] | None:
        if norms is None:
            return None
        if self.rule.tol is None:
            return partial(arrays.to_numpy, arrays.copy(norms))
        return arrays.read_later(arrays.copy(norms) if self.lag else norms)

    def judge(self, floor: Callable[[], float], *, all_of_them: bool = False) -> Status | None:
        """The status that ends the iteration, or None; ``all_of_them``: no cycle will follow."""
        if self.rule.tol is None and not all_of_them:
            return None
        while len(self._pending) > (0 if all_of_them else self.lag):
            status = self._judge(*self._pending.popleft(), floor)
            if status is not None:
                return status
        return None

    def _judge(
        self, norms: Callable[[], Any] | None, states: Callable[[], Any] | None, floor: Callable[[], float]
    ) -> Status | None:
        if norms is None:
            self.history.append(math.nan)
            return None
        values, scales = self.finish(norms()), None if states is None else self.finish(states())
        total = temporal_norm(self.rule.temporal, values, self.runtime)
        self.history.append(total)
        if _trace.listener is not None and not math.isnan(total):
            _trace.sample("residual", total)
        if self.rule.tol is None:
            return None
        if not math.isfinite(total):
            return None if self.keep_going else Status.NON_FINITE
        if self._converged(self.rule.tol, total, values, scales):
            return Status.CONVERGED
        return self.limits.judge(self.history, floor)

    def _converged(self, tol: float, total: float, values: Any, scales: Any) -> bool:
        if total == 0:  # exact, however small the tolerance
            return True
        rule = self.rule
        if rule.relative == "first":
            first = next((r for r in self.history if math.isfinite(r)), total)
            tol *= first
        if rule.scope == "global":
            scale = 1.0 if scales is None else temporal_norm(rule.temporal, scales, self.runtime)
            return math.isfinite(scale) and total < tol * scale
        worst = values - tol * (1.0 if scales is None else scales)
        return self.runtime.reduce(np.where(worst < 0, 0.0, 1.0), np.maximum) == 0
