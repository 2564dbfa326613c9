# SPDX-License-Identifier: BSD-3-Clause
"""The linear chain of :mod:`pyparareal.newton`, ``d[n+1] = J[n] d[n] + r[n]``, by the affine scans.

``J`` is like the states (diagonal), or ``[slices, groups, d, d]`` for states of ``groups * d`` numbers.
"""

from __future__ import annotations

import math
from typing import Any

from . import arrays
from .runtime import Runtime

Array = Any


def solve(runtime: Runtime, jacobians: Array, r: Array, first: int, *, diagonal: bool) -> Array:
    """``d[n+1] = J[n] d[n] + r[n]`` for the slices from number ``first`` of all, before which ``d`` is zero.

    ``d [S + 1, ...]``, from the start of the first of our ``S`` slices on, like ``r`` in the dtype of ``J``.
    """
    r = _like_dtype(r, jacobians)
    d = arrays.empty_like(r, slices=len(r) + 1)
    # The scans take 2 axes or more.
    row = (math.prod(r.shape[1:]),) if diagonal else tuple(jacobians.shape[1:-1])
    j = jacobians.reshape(len(r), *row) if diagonal else jacobians
    runtime.scan(j, r.reshape(len(r), *row), first, d.reshape(len(d), *row))
    return d


def restrict(d: Array, largest: Array, trust: float) -> None:
    """Scale every ``d [slices, batch, features...]`` to at most ``trust largest``, and to 0 where it is not finite."""
    if not math.prod(d.shape):
        return
    xp = arrays.namespace(d)
    states = d.reshape(*(d.shape[:2] if d.ndim > 2 else (len(d), 1)), -1)  # a view
    scale = trust * largest / xp.amax(xp.abs(states), -1)
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
