# SPDX-License-Identifier: BSD-3-Clause
"""Small theorems about a step, each tried by itself: what holds of every step that can be taken in parallel.

Repeatable: the same call twice gives the same. Pure: neither the input nor an earlier result is written to. Row by
row: a row does not depend on its company, nor on strides. As exact as its dtype (:mod:`.precision`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .calls import Call, Raised, guarded
from .faults import Fault, Finding, Place
from .measures import (
    copy,
    differences,
    digits,
    epsilon,
    finite_rows,
    like,
    moved,
    numbers,
    per_row,
    shares_memory,
    sizes,
    strided,
)

Array = Any

# A result is the same "to rounding" below so many units of rounding of its size, or so many times what a change of the
# input by 4 units makes of it: sums of up to some thousand terms in another order, and ill-conditioned steps.
UNITS, TIMES = 256.0, 32.0

MORE_CALLS = 16
MOST_POINTS = 512  # tried to find which one a step has used


def probes(call: Call) -> Iterator[Finding]:
    """All findings about a call, the cheapest probes first."""
    call.held.restore()
    out = call(copy(call.rows))
    draws = call.random and bool(call.held.random.changed())
    kept = list(_kind(call, out))
    if kept:
        yield from kept
        return
    yield from _finite(call, out)
    varies = list(repeatable(call, out))
    yield from varies
    call.held.restore()
    if varies:
        return  # what varies by itself would look like a dependence on anything
    yield from _pure(call, out)
    call.held.restore()
    yield from company(call, out, draws)
    call.held.restore()
    if not draws:  # the order in which numbers are drawn may follow the strides
        yield from _strides(call, out)
    call.held.restore()


def _kind(call: Call, out: Any) -> Iterator[Finding]:
    """Shape and dtype."""
    rows, place = call.rows, call.places[0]
    if not hasattr(out, "shape") or not hasattr(out, "dtype"):
        yield Finding(Fault.OTHER_SHAPE, place, f"It returned {type(out).__name__}, not an array.")
    elif tuple(out.shape) != tuple(rows.shape):
        if call.strict_shape:
            yield Finding(
                Fault.OTHER_SHAPE, place, f"From {tuple(rows.shape)} it made {tuple(out.shape)}.",
                numbers={"shape": list(out.shape)},
            )  # fmt: skip
    elif out.dtype != rows.dtype and epsilon(rows) <= _eps(rows):  # mixed precision makes other dtypes
        text = f"It got {_name(rows)} and returned {_name(out)}."
        yield Finding(Fault.NARROWED_DTYPE, place, text, numbers={"got": _name(rows), "returned": _name(out)})


def _eps(u: Array) -> float:
    torch = sys.modules.get("torch")
    return float(
        torch.finfo(u.dtype).eps if torch is not None and isinstance(u, torch.Tensor) else np.finfo(u.dtype).eps
    )


def _name(u: Array) -> str:
    return str(u.dtype).removeprefix("torch.")


def _finite(call: Call, out: Array) -> Iterator[Finding]:
    bad = finite_rows(call.rows) & ~finite_rows(out) if len(out) == len(call.rows) else np.zeros(0, bool)
    for j in np.flatnonzero(bad)[:1]:
        values = numbers(out)[j]
        count = int((~np.isfinite(values)).sum())
        yield Finding(
            Fault.NON_FINITE, call.places[j],
            f"From finite input (largest {digits(sizes(call.rows)[j])}) it made {count} of {values.size} numbers NaN "
            "or infinite.",
            numbers={"count": count},
        )  # fmt: skip


def tolerance(call: Callable[[Array], Array], rows: Array, out: Array) -> Any:
    """What rounding may do to every row of ``out``."""
    eps = epsilon(rows)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], numbers(rows).shape)
    reaction = per_row(differences(call(moved(rows, signs, 4 * eps)), out)) if len(out) == len(rows) else 0.0
    reaction = np.where(np.isfinite(reaction), reaction, 0.0)
    return UNITS * eps * np.maximum(sizes(out), 1e-300) + TIMES * np.minimum(reaction, 1e-3 * sizes(out))


# Repeatable


def repeatable(call: Call, first: Array) -> Iterator[Finding]:
    """The same call again, with everything reset and without; once after another call."""
    call.held.restore()
    first = copy(call(copy(call.rows)))
    changed, drawn = call.held.changes(), call.held.drawn()
    again = copy(call(copy(call.rows)))
    elsewhere = moved(call.rows, np.ones(numbers(call.rows).shape), 0.25)
    other = copy(call(copy(elsewhere)))
    later = copy(call(copy(call.rows)))
    call.held.restore()
    reset = copy(call(copy(call.rows)))
    call.held.restore()
    d = np.maximum(per_row(differences(first, again)), per_row(differences(first, later)))
    d = np.maximum(d, per_row(differences(other, call(copy(elsewhere)))))  # the other input, now by itself
    call.held.restore()
    back = per_row(differences(first, reset))
    if not max(d.max(), back.max()) > 0:
        # What has a memory, or draws, may take some calls to show it.
        for _ in range(MORE_CALLS if changed or drawn else 0):
            d = np.maximum(d, per_row(differences(first, call(copy(call.rows)))))
        call.held.restore()
        if not d.max() > 0:
            return
    small = UNITS * epsilon(call.rows) * sizes(first)
    j = int(np.argmax(np.maximum(d, back) > 0))
    yield from _why_not_repeatable(call, j, float(d.max()), float(back.max()), changed, drawn, small)


def _why_not_repeatable(
    call: Call, j: int, again: float, back: float, changed: list[str], drawn: list[str], small: Any
) -> Iterator[Finding]:
    place, numbers_ = call.places[j], {"again": again, "after_reset": back}
    how = f"Called twice with the same state its results differ by {digits(again)}"
    if drawn and call.random and set(drawn) <= {"torch's default generator"}:
        return
    if drawn:
        text = f"{how}; it drew from {', '.join(drawn[:3])}, and with that reset they differ by {digits(back)}."
        yield Finding(Fault.UNFIXED_RANDOMNESS, place, text, numbers=numbers_ | {"drawn": drawn[:3]})
        return
    if changed and back < again:
        text = (
            f"{how}; {', '.join(changed[:3])} changed between them, and with all reset they differ by {digits(back)}."
        )
        yield Finding(Fault.HIDDEN_STATE, place, text, numbers=numbers_ | {"changed": changed[:3]})
        return
    sources = watched(call)
    if sources["random"]:
        text = f"{how}; it makes a generator that nothing seeds ({', '.join(sources['random'])})."
        yield Finding(Fault.UNFIXED_RANDOMNESS, place, text, numbers=numbers_)
    elif sources["clock"]:
        text = f"{how}; it reads the clock ({', '.join(sources['clock'])})."
        yield Finding(Fault.NOT_REPEATABLE, place, text, numbers=numbers_)
    elif max(again, back) <= float(np.max(small)):
        text = f"{how}, which is rounding: sums are added up in another order, as by several threads."
        yield Finding(Fault.ROUNDING, place, text, "note", numbers=numbers_)
    else:
        text = f"{how}, also with all reset that it was found to hold, and it drew from no known generator."
        yield Finding(Fault.NOT_REPEATABLE, place, text, numbers=numbers_)


_CLOCKS = {"time", "perf_counter", "monotonic", "process_time", "time_ns", "perf_counter_ns", "monotonic_ns", "now"}
_SEEDS = {"default_rng", "urandom", "getrandbits", "randbits", "uuid4", "SystemRandom", "token_bytes", "seed"}


def watched(call: Call) -> dict[str, list[str]]:
    """Clocks and fresh generators that are asked in a call, by the names of what is called."""
    found: dict[str, set[str]] = {"clock": set(), "random": set()}

    def look(frame: Any, event: str, argument: Any) -> None:
        if event not in ("c_call", "call"):
            return
        if event == "c_call":
            name, module = getattr(argument, "__name__", ""), getattr(argument, "__module__", "") or ""
        else:
            name, module = frame.f_code.co_name, frame.f_globals.get("__name__", "")
        if name in _CLOCKS and module in ("time", "datetime", "None", ""):
            found["clock"].add(f"{module}.{name}".lstrip("."))
        if name in _SEEDS or module in ("secrets", "uuid"):
            found["random"].add(f"{module}.{name}")

    true_rng = np.random.default_rng

    def default_rng(seed: Any = None) -> Any:
        if seed is None:
            found["random"].add("numpy.random.default_rng()")
        return true_rng(seed)

    before = sys.getprofile()
    np.random.default_rng = default_rng
    sys.setprofile(look)
    try:
        call(copy(call.rows))
    finally:
        sys.setprofile(before)
        np.random.default_rng = true_rng
    return {kind: sorted(names) for kind, names in found.items()}


# Pure


def _pure(call: Call, out: Array) -> Iterator[Finding]:
    rows = copy(call.rows)
    first = call(rows)
    written = float(per_row(differences(rows, call.rows)).max(initial=0.0)) > 0
    kept = copy(first)
    second = call(moved(call.rows, np.ones(numbers(call.rows).shape), 0.25))
    overwritten = bool(differences(first, kept).max(initial=0.0) > 0)
    place = call.places[0]
    if written:
        j = int(np.argmax(per_row(differences(rows, call.rows)) > 0))
        text = "After the call its input had other values."
        yield Finding(
            Fault.ALIASING, call.places[j], text, **call.severity(call.copies), numbers={"how": "writes to its input"}
        )
    elif overwritten or shares_memory(first, second):
        text = "The result of one call was overwritten by the next: both are one buffer."
        yield Finding(Fault.ALIASING, place, text, **call.severity(call.copies), numbers={"how": "returns one buffer"})
    elif shares_memory(first, rows) and not _the_same(first, rows):
        text = "Its result is a view of its input: who writes to one changes the other."
        yield Finding(Fault.ALIASING, place, text, **call.severity(call.copies), numbers={"how": "returns a view"})


def _the_same(out: Array, rows: Array) -> bool:
    """Whether a step handed its argument through, as one that does nothing may."""
    return out is rows or (tuple(out.shape) == tuple(rows.shape) and not differences(out, rows).any())


def _strides(call: Call, out: Array) -> Iterator[Finding]:
    if call.rows.ndim < 2 or not call.rows.size:
        return
    found = call(strided(call.rows))
    d, small = per_row(differences(found, out)), tolerance(call, call.rows, out) if len(out) == len(call.rows) else 0
    if (d > small).any():
        j = int(np.argmax(d > small))
        text = f"With the same values in memory with other strides its result differs by {digits(d[j])}."
        yield Finding(Fault.ALIASING, call.places[j], text, numbers={"how": "depends on strides", "error": float(d[j])})


# Row by row


def company(call: Call, out: Array, draws: bool = False) -> Iterator[Finding]:
    """Rows one by one and with other neighbours, against all at once; a step that ``draws`` not one by one."""
    if len(call.rows) < 2 or len(out) != len(call.rows):
        return
    small = tolerance(call, call.rows, out)
    call.held.restore()
    chosen = sample(len(call.rows))
    d, refused = dict.fromkeys(chosen, 0.0), None
    try:
        if not draws:
            alone = {j: _by_itself(call, j) for j in chosen}
            d = {j: float(differences(alone[j], out[j : j + 1]).max(initial=0.0)) for j in chosen}
    except Raised as raised:
        refused = raised
    few = chosen if len(chosen) <= 4 else [chosen[0], chosen[len(chosen) // 2], chosen[-1]]
    seen, how = _with_others(call, out, few)
    bad = [j for j in chosen if max(d[j], seen.get(j, 0.0)) > small[j]]
    if bad:
        j = bad[0]
        if j not in seen:
            seen, how = _with_others(call, out, [j])
        yield _dependent(call, j, d[j], seen[j], how[j], float(small[j]), refused)
        return
    if refused is not None and call.independent:  # else a batch may have to be as large as it is
        raise refused
    most = max(d.values())
    if most > 0 and call.promises:
        j = max(d, key=lambda j: d[j])
        text = f"Alone it gives another result than among {len(out)} slices, by {digits(most)}, which is rounding."
        yield Finding(Fault.BROKEN_PROMISE, call.places[j], text, numbers={"error": most})


def _by_itself(call: Call, j: int) -> Array:
    call.held.restore()  # a memory that shows after many calls is no dependence on other rows
    return copy(call.single(j, copy(call.rows[j : j + 1])))


def _dependent(
    call: Call, j: int, alone: float, others: float, how: str, small: float, refused: Raised | None
) -> Finding:
    n, place = len(call.rows), call.places[j]
    if others > small:
        by_itself = f"by {digits(alone)} when it is computed alone"
        if refused is not None:
            by_itself = f"alone it raises {type(refused.error).__name__} ({str(refused)[:200]})"
        text = (
            f"Its result changes by {digits(others)} when {how}, and {by_itself}, among {n}; rounding would be at most "
            f"{digits(small)}."
        )
        found = {"others": others, "alone": alone, "rounding": small}
        return Finding(Fault.BATCH_NEIGHBOURS, place, text, **call.severity(not call.independent), numbers=found)
    used = _point_used(call, j, small)
    text = (
        f"Among {n} slices its result differs by {digits(alone)} from that of the same step by itself (rounding: "
        f"{digits(small)}), whatever states the other slices have: "
    )
    numbers_: dict[str, Any] = {"alone": alone, "rounding": small, "point_used": used}
    if used is None:
        text += "it depends on how many they are, or on what else belongs to them."
        return Finding(Fault.BATCH_NEIGHBOURS, place, text, **call.severity(not call.independent), numbers=numbers_)
    text += f"it is that of the step from point {used}; asked for was point {call.points[j]}."
    return Finding(Fault.OFF_BY_ONE, place, text, numbers=numbers_)


def _point_used(call: Call, j: int, small: float) -> int | None:
    """The other point whose step the call took for row ``j``, if it is that of one."""
    if call.step_at is None:
        return None
    own, row = call.points[j], call.rows[j : j + 1]
    call.held.restore()
    out = call(copy(call.rows))[j : j + 1]
    nearest = sorted(range(max(call.points) + 3), key=lambda p: abs(p - own))
    for point in nearest[1:MOST_POINTS]:
        try:
            found = guarded(call.step_at, call.places[j], point, copy(row))
        except Raised:
            continue
        if differences(found, out).max(initial=0.0) <= small:
            return point
    return None


def _with_others(call: Call, out: Array, chosen: list[int]) -> tuple[dict[int, float], dict[int, str]]:
    """How much each row changes when all others hold something else."""
    most, how = dict.fromkeys(chosen, 0.0), dict.fromkeys(chosen, "")
    x = numbers(call.rows)
    spread = max(float(np.abs(x[np.isfinite(x)]).max(initial=0.0)), 1e-3)
    noise = np.random.default_rng(1).standard_normal(x.shape) * spread
    changes = {
        "the others hold other numbers": x + 0.5 * noise,
        "the others hold larger numbers": 3 * x + spread,
        "the others hold a tenth": 0.1 * x,
    }
    for j in chosen:
        for name, values in changes.items():
            given = values.copy()
            given[j] = x[j]
            call.held.restore()
            found = call(like(given, call.rows))
            d = float(differences(found[j : j + 1], out[j : j + 1]).max(initial=0.0))
            if d > most[j]:
                most[j], how[j] = d, name
    call.held.restore()
    return most, how


def sample(count: int, most: int = 9) -> list[int]:
    """At most so many of ``range(count)``, the ends among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def place_of_block(i: int, name: str, part: int | None = None) -> Place:
    return Place(part, i, name)
