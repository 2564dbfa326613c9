# SPDX-License-Identifier: BSD-3-Clause
"""The linear chain of :mod:`pyparareal.newton`, ``d[i] = J[i] d[i-1] + r[i]``, by the affine scans.

``J`` is like the states (diagonal), or ``[slices, groups, d, d]`` for states of ``groups * d`` numbers.
"""

from __future__ import annotations

import math
from typing import Any

from . import arrays, ops

Array = Any


def solve(jacobians: Array, r: Array, *, diagonal: bool) -> Array:
    """``d[i] = J[i] d[i-1] + r[i]`` with ``d[0] = r[0]``, like ``r`` in the dtype of ``J``."""
    r = _like_dtype(r, jacobians)
    if diagonal:
        rows = (len(r), -1)  # the scans take 2 axes or more
        return ops.scan_diag(jacobians.reshape(rows), r.reshape(rows)).reshape(r.shape)
    return ops.scan_block(jacobians, r.reshape(jacobians.shape[:-1])).reshape(r.shape)


def restrict(d: Array, f: Array, trust: float) -> None:
    """Scale every ``d [slices, batch, features...]`` to at most ``trust max |f|``, and to 0 where it is not finite."""
    if not math.prod(d.shape):
        return
    xp = arrays.namespace(d)
    states = d.reshape(*(d.shape[:2] if d.ndim > 2 else (len(d), 1)), -1)  # a view
    scale = trust * xp.amax(xp.abs(f)) / xp.amax(xp.abs(states), -1)
    states *= _like_dtype(xp.where(scale < 1, scale, xp.ones_like(scale)), d)[..., None]
    states[~xp.isfinite(states)] = 0


def add_product(f: Array, jacobians: Array, d: Array, *, out: Array, diagonal: bool) -> None:
    """``out = f + J d``, exactly ``f`` where ``d`` is zero and ``J`` finite."""
    product = jacobians * d if diagonal else (jacobians @ d.reshape(*jacobians.shape[:-1], 1)).reshape(d.shape)
    out[...] = f + _like_dtype(product, f)


def _like_dtype(u: Array, like: Array) -> Array:
    if u.dtype == like.dtype:
        return u
    return u.to(like.dtype) if arrays.is_torch(u) else u.astype(like.dtype)
