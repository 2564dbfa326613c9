# SPDX-License-Identifier: BSD-3-Clause
"""Differences of states as float64 numbers, the rounding of a dtype, and states that differ a little."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .. import arrays

Array = Any
Numbers = np.ndarray[Any, np.dtype[np.float64]]


def numbers(u: Array) -> Numbers:
    """A copy of ``u`` as float64 on the host: exact, since every dtype of a state is narrower or the same."""
    if arrays.is_torch(u):
        torch = sys.modules["torch"]
        return np.array(u.detach().to("cpu", torch.float64).numpy())
    return np.array(arrays.to_numpy(u), dtype=np.float64)


def copy(u: Array) -> Array:
    """``u`` in contiguous memory of its own, without its graph."""
    if arrays.is_torch(u):
        return u.detach().clone(memory_format=sys.modules["torch"].contiguous_format)
    return np.array(u) if isinstance(u, np.ndarray) else u.copy()


def differences(a: Array, b: Array) -> Numbers:
    """``|a - b|``, 0 where both are the same, infinite where one of them alone is NaN or infinite."""
    x, y = numbers(a), numbers(b)
    with np.errstate(all="ignore"):
        d = np.abs(x - y)
    d[(x == y) | (np.isnan(x) & np.isnan(y))] = 0.0
    d[np.isnan(d)] = np.inf
    return d


def per_row(values: Numbers) -> Numbers:
    """The largest of every row ``[rows, ...]``."""
    return values.reshape(len(values), -1).max(1, initial=0.0)


def sizes(u: Array) -> Numbers:
    """The largest finite ``|u|`` of every row."""
    x = np.abs(numbers(u))
    return per_row(np.where(np.isfinite(x), x, 0.0))


def finite_rows(u: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows hold neither NaN nor infinity."""
    return np.asarray(np.isfinite(numbers(u)).reshape(len(u), -1).all(axis=1))


def epsilon(u: Array) -> float:
    """Of the dtype of ``u``, or of what automatic mixed precision computes in, where it is on."""
    if arrays.is_torch(u):
        torch = sys.modules["torch"]
        eps = float(torch.finfo(u.dtype if u.is_floating_point() else torch.float32).eps)
        kind = u.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            return max(eps, float(torch.finfo(torch.get_autocast_dtype(kind)).eps))
        return eps
    return float(np.finfo(u.dtype).eps)


def moved(u: Array, direction: Numbers, size: float) -> Array:
    """``u (1 + size direction)`` in the dtype of ``u``; where ``u`` is 0, ``size direction`` times its largest."""
    x = numbers(u)
    scale = np.where(x == 0, max(float(np.abs(x).max(initial=0.0)), 1e-300), np.abs(x))
    return like(x + size * direction * scale, u)


def like(values: Numbers, u: Array) -> Array:
    """Numbers in the library, dtype and device of ``u``."""
    if arrays.is_torch(u):
        torch = sys.modules["torch"]
        return torch.as_tensor(values).to(u.device, u.dtype)
    if isinstance(u, np.ndarray):
        return values.astype(u.dtype)
    return arrays.namespace(u).asarray(values, dtype=u.dtype)


def shares_memory(a: Array, b: Array) -> bool:
    """Whether two arrays lie in the same piece of memory."""
    if arrays.is_torch(a) and arrays.is_torch(b):
        return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() and a.numel() > 0
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return bool(np.may_share_memory(a, b))
    return False


def strided(u: Array) -> Array:
    """The same values with other strides: every second number of memory twice as large, axes in reverse order."""
    axes = tuple(range(u.ndim))[::-1]
    if arrays.is_torch(u):
        wide = u.new_empty([*(u.shape[i] for i in axes[:-1]), 2 * u.shape[0]])
        view = wide[..., ::2].permute(axes)
        view.copy_(u.detach())
        return view
    wide = arrays.namespace(u).empty([*(u.shape[i] for i in axes[:-1]), 2 * u.shape[0]], u.dtype)
    view = wide[..., ::2].transpose(axes)
    view[...] = u
    return view


def digits(x: float) -> str:
    return f"{x:.2g}"
