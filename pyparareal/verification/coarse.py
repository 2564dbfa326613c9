# SPDX-License-Identifier: BSD-3-Clause
"""The coarse propagator: the probes of every step, and whether one of its steps is about ``m`` fine ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .calls import Call, Raised, guarded
from .faults import NOTE, Fault, Finding, Place
from .measures import copy, digits, epsilon, finite_rows, numbers
from .precision import precision
from .probes import probes

Array = Any


def coarse_probes(work: Any, coarse: Any) -> Iterator[Finding]:
    """Of the coarse steps from the serial C-points of ``work``, a :class:`.chain.ChainVerifier`."""
    m, count = work.m, work.slices
    starts, ends = work.u[: (count - 1) * m + 1 : m], work.u[m : count * m + 1 : m]

    def at(point: int, row: Array) -> Array:
        return coarse.step(row, slice(point, point + 1, 1))

    call = Call(
        run=lambda rows: coarse.step(rows, slice(0, count, 1)),
        rows=starts,
        places=[Place(n, None, f"the coarse step of {work.word} {n}") for n in range(count)],
        alone=at,
        held=work.held,
        promises=bool(coarse.batch_invariant),
        points=list(range(count)),
        step_at=at,
    )
    try:
        found = list(probes(call)) or list(precision(call, call(copy(starts))))
        yield from found
        if not found:
            yield from _consistent(call, starts, ends)
    except Raised as raised:
        yield raised.finding()


def _consistent(call: Call, starts: Array, ends: Array) -> Iterator[Finding]:
    here = _defects(call(copy(starts)), starts, ends)
    usual = float(np.median(here))
    for shift in (1, -1, 2, -2):
        rows = [n for n in range(len(starts)) if 0 <= n + shift < len(starts)]
        if len(rows) < 2:
            continue
        try:
            moved = [guarded(call.step_at, call.places[n], n + shift, copy(starts[n : n + 1])) for n in rows]  # type: ignore[arg-type]
        except Raised:
            continue
        there = np.concatenate(
            [_defects(v, starts[n : n + 1], ends[n : n + 1]) for v, n in zip(moved, rows, strict=True)]
        )
        if np.median(there) < 0.1 * np.median(here[rows]) and np.mean(there < here[rows]) > 0.8:
            text = (
                f"The step from coarse point {rows[0]} misses the {len(rows)} fine slices by {digits(usual)} of their "
                f"change (median); that from point {rows[0] + shift} misses them by {digits(float(np.median(there)))}: "
                f"its points are shifted by {shift}."
            )
            yield Finding(Fault.OFF_BY_ONE, call.places[rows[0]], text, numbers={"shift": shift, "defect": usual})
            return
    if usual > 1.0:
        n = int(np.argmax(here > 1.0))
        text = (
            f"One coarse step misses the end of its slice by {digits(usual)} times what the slice changes (median): to "
            "do nothing would be nearer. The iteration heals that, one slice at a time."
        )
        yield Finding(Fault.COARSE_INCONSISTENT, call.places[n], text, NOTE, numbers={"defect": usual})


def _defects(v: Array, starts: Array, ends: Array) -> Any:
    """``|G(u[n]) - u[n+1]| / |u[n+1] - u[n]|`` in the 2-norm, per slice."""
    x, a, b = (numbers(u).reshape(len(u), -1) for u in (v, starts, ends))
    # A chain that has settled changes by next to nothing: a thousandth of the state is as near as one may ask.
    floor = max(1e-3, 1e3 * epsilon(starts)) * np.linalg.norm(b, axis=1) + 1e-300
    change = np.linalg.norm(b - a, axis=1)
    d = np.linalg.norm(x - b, axis=1) / np.maximum(change, floor)
    d[~finite_rows(v)] = np.inf
    return d
