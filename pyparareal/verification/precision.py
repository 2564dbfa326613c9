# SPDX-License-Identifier: BSD-3-Clause
"""Is a step as exact as the dtype of its state? Four ways to see that it is computed in a narrower one.

What torch does is watched operation by operation. Of any step: a result that the narrower dtype could hold exactly,
one that does not react to changes of its input that the state's dtype can well tell apart, or one that jumps wherever
one looks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import arrays
from .calls import Call, Raised
from .faults import Fault, Finding
from .measures import copy, epsilon, like, moved, numbers, per_row, sizes

Array = Any


def precision(call: Call, out: Array) -> Iterator[Finding]:
    """At most one finding: where digits are lost first."""
    eps = _own(call.rows)
    if len(out) != len(call.rows) or epsilon(call.rows) > eps or eps > 1e-4:  # mixed precision, or narrow anyway
        return
    for look in (_watched, _representable, _deaf, _stairs):
        for finding in look(call, out, eps):
            yield finding
            return


def _own(u: Array) -> float:
    if arrays.is_torch(u):
        return float(sys.modules["torch"].finfo(u.dtype).eps)
    return float(np.finfo(u.dtype).eps)


def _watched(call: Call, out: Array, eps: float) -> Iterator[Finding]:
    if not arrays.is_torch(call.rows):
        return
    seen = _conversions(lambda: call(copy(call.rows)), eps)
    if not seen:
        return
    size = np.maximum(sizes(out), 1e-300)
    noise = _noise(call, out, eps) / size.reshape(-1, *[1] * (out.ndim - 1))
    noisy = (noise > 16 * eps).reshape(len(out), -1).mean(1) >= 0.1
    worst = per_row(noise)
    for j in map(int, np.flatnonzero(noisy)):
        row = copy(call.rows[j : j + 1])
        own = _alone(call, j, row, eps) or seen
        dtype, op = own[0]
        text = (
            f"A tensor was made {dtype} by {op} within a step whose state is {_name(call.rows)}: its result has an "
            f"error of about {worst[j]:.1g} of its size, where the dtype allows {eps:.1g}."
        )
        yield Finding(Fault.NARROWED_DTYPE, call.places[j], text, numbers={"dtype": dtype, "noise": float(worst[j])})
        return


def _alone(call: Call, j: int, row: Array, eps: float) -> list[tuple[str, str]]:
    try:
        return _conversions(lambda: call.single(j, row), eps)
    except Raised:
        return []


def _noise(call: Call, out: Array, eps: float) -> Any:
    """What is not smooth in the result, by fourth differences along random directions.

    J. J. More, S. M. Wild, "Estimating computational noise", SIAM J. Sci. Comput. 33 (2011), 1292-1314.
    """
    found = np.zeros(numbers(out).shape)
    for seed, h in enumerate((2.0**-26, 2.0**-14) * 3 if eps < 1e-10 else (2.0**-14, 2.0**-10) * 3):
        signs = np.random.default_rng(30 + seed).choice([-1.0, 1.0], numbers(call.rows).shape)
        values = np.stack([numbers(call(moved(call.rows, signs, h * k))) for k in range(-3, 4)])
        fourth = np.diff(values, 4, axis=0)
        found = np.maximum(found, np.sqrt((fourth**2).mean(0) / 70))  # 70: what differences make of noise of size 1
    return np.where(np.isfinite(found), found, 0.0)


def _conversions(run: Any, eps: float) -> list[tuple[str, str]]:
    """``(dtype, operation)`` of tensors made from wider ones while ``run()`` runs."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    found: list[tuple[str, str]] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call, misc, unused-ignore]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            given = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, torch.Tensor)]
            wide = any(t.is_floating_point() and torch.finfo(t.dtype).eps <= eps for t in given)
            for t in tree_leaves(made):
                if wide and isinstance(t, torch.Tensor) and t.is_floating_point() and torch.finfo(t.dtype).eps > eps:
                    found.append((str(t.dtype).removeprefix("torch."), str(function).removeprefix("aten.")))
            return made

    with Watch():  # type: ignore[no-untyped-call]
        run()
    return found


def _representable(call: Call, out: Array, eps: float) -> Iterator[Finding]:
    noise: Any = np.random.default_rng(4).uniform(0.5, 1.0, numbers(call.rows).shape)
    found, other = [numbers(call(moved(call.rows, noise, 0.01 * k))) for k in (1, 2)]
    narrow = ("float32", "float16") if eps < 1e-10 else ("float16",)
    flat = np.where(found != other, found, 0.0).reshape(len(found), -1)  # constants are what they are
    with np.errstate(all="ignore"):
        for dtype in narrow[::-1]:
            held = (flat.astype(dtype).astype(np.float64) == flat) & (flat != np.round(flat))
            fraction = held.sum(1) / np.maximum((flat != np.round(flat)).sum(1), 1)
            count = (flat != np.round(flat)).sum(1)
            bad = (fraction >= 1.0) & (count >= 1)
            if bad.any() and (count[bad].sum() >= 4 or dtype == "float32"):
                j = int(np.argmax(bad))
                text = f"All its results are numbers that {dtype} can hold, but its state is {_name(call.rows)}."
                yield Finding(Fault.NARROWED_DTYPE, call.places[j], text, numbers={"dtype": dtype})
                return


def _deaf(call: Call, out: Array, eps: float) -> Iterator[Finding]:
    """Small changes and larger ones, in the same direction: the reactions must be proportional."""
    small, large, off = (2.0**-30, 2.0**-12, 0.02) if eps < 1e-10 else (2.0**-15, 2.0**-6, 0.5)
    signs = np.random.default_rng(5).choice([-1.0, 1.0], numbers(call.rows).shape)
    base = like(numbers(call.rows) * (1 + 1e-3 * np.random.default_rng(6).uniform(size=signs.shape)), call.rows)
    x0 = numbers(call(copy(base)))
    ratio = small / large
    little = numbers(call(moved(base, signs, small))) - x0
    much = numbers(call(moved(base, signs, large))) - x0
    double = numbers(call(moved(base, signs, large / 2))) - x0
    size = np.maximum(np.abs(x0), 1e-300)
    with np.errstate(all="ignore"):
        smooth = np.abs(2 * double - much) <= (0.002 if eps < 1e-10 else 0.05) * np.abs(much)
        counts = smooth & (np.abs(much) * ratio > 64 * eps * size) & np.isfinite(much)
        wrong = counts & (np.abs(little - ratio * 2 * double) > off * np.abs(ratio * much))
    heard, dead = (a.reshape(len(out), -1).sum(1) for a in (counts, wrong))
    bad = (heard >= 1) & (dead > 0.6 * heard)
    if (heard < 4).any() and bad.sum() < 0.5 * (heard >= 1).sum():
        return  # few numbers: only if all steps show it
    for j in map(int, np.flatnonzero(bad)[:1]):
        dtype = _narrower(call, base, signs, eps, j)
        text = (
            f"Of {int(heard[j])} results that react to a relative change of {large:.1g} of the input, {int(dead[j])} "
            f"do not react in proportion to one of {small:.1g}, which {_name(call.rows)} can tell from nothing: "
            f"somewhere within, digits are rounded away{dtype}."
        )
        yield Finding(Fault.NARROWED_DTYPE, call.places[j], text, numbers={"of": int(heard[j]), "deaf": int(dead[j])})


def _stairs(call: Call, out: Array, eps: float) -> Iterator[Finding]:
    """A part that is rounded jumps in every short interval; a kink bends and a branch jumps at few places."""
    if arrays.is_torch(call.rows) or eps > 1e-10:
        return  # watched, or too near to the narrow dtype
    size = np.maximum(sizes(out), 1e-300)
    noise = (_noise(call, out, eps) / size.reshape(-1, *[1] * (out.ndim - 1))).reshape(len(out), -1)
    if (noise > 1e4 * eps).mean() < 0.5:
        return
    jumps = [_jump(call, noise, size, eps, seed) for seed in (30, 32, 34)]  # along lines of _noise
    jumping = np.mean([jump > 0 for jump in jumps], axis=0) > 0.5
    if np.mean(jumping) < 0.8:
        return
    j = int(np.argmax(jumping))
    jump = float(np.median([jump[j] for jump in jumps])) / size[j]
    text = (
        f"Its result jumps by about {jump:.1g} of its size between inputs that differ by {2.0**-40:.1g}, in every "
        f"short interval that was looked at, where {_name(call.rows)} allows {eps:.1g}: within, something is rounded."
    )
    yield Finding(Fault.NARROWED_DTYPE, call.places[j], text, numbers={"jump": jump})


def _jump(call: Call, noise: Any, size: Any, eps: float, seed: int, h: float = 3 * 2.0**-14) -> Any:
    """``[rows]``: the largest jump on a line through each row, found by bisection; 0 where it is no jump."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], numbers(call.rows).shape)
    shape = (-1, *[1] * (signs.ndim - 1))
    chosen = noise.argmax(1)

    def at(t: Any) -> Any:
        values = numbers(call(moved(call.rows, signs * t.reshape(shape), 1.0))).reshape(len(noise), -1)
        return values[np.arange(len(values)), chosen]

    low, high = np.full(len(noise), -h), np.full(len(noise), h)
    f_low, f_high = at(low), at(high)
    slope = (at(low + 2.0**-40) - f_low) / 2.0**-40  # of what is not rounded
    whole = np.abs(f_high - f_low - slope * 2 * h)
    while (high - low).max() > 2.0**-40:
        middle = (low + high) / 2
        f = at(middle)
        left = np.abs(f - f_low - slope * (middle - low)) >= np.abs(f_high - f - slope * (high - middle))
        low, f_low = np.where(left, low, middle), np.where(left, f_low, f)
        high, f_high = np.where(left, middle, high), np.where(left, f, f_high)
    found = np.abs(f_high - f_low - slope * (high - low))
    real = (found > 0.1 * whole) & (found > 1e3 * eps * size) & (found > 1e3 * np.abs(slope) * (high - low))
    return np.where(real, found, 0.0)


def _narrower(call: Call, base: Array, signs: Any, eps: float, j: int) -> str:
    """In words: the dtype whose rounding would explain it."""
    x0 = numbers(call(copy(base)))[j]
    for dtype, unit in (("float32", 2.0**-23), ("float16", 2.0**-10), ("bfloat16", 2.0**-7)):
        if unit > eps and np.any(numbers(call(moved(base, signs, unit / 2)))[j] != x0):
            return f", as in {dtype}"
    return ""


def _name(u: Array) -> str:
    return str(u.dtype).removeprefix("torch.")
