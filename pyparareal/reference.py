# SPDX-License-Identifier: BSD-3-Clause
"""The kernels in plain NumPy: the specification, and the oracle of every kernel test.

One function per op of ``ops.h``, with the same name and the same arguments. No tricks: each body
can be checked against the paper by eye. The CPU and CUDA kernels reproduce these results bit for bit,
because the order of every sum is part of the specification:

* a slice is cut into chunks of ``CHUNK`` elements, a chunk into ``LANES`` interleaved lanes;
* a lane is summed from left to right, the lanes of a chunk by folding halves (:func:`fold`);
* the chunks of a slice, and later the slices of a grid, by the fixed binary tree of :func:`tree_sum`.

No thread count, stream count or rank count appears in that list.

Letters (fixed in ``ops.h``): ``u`` state, ``f`` fine-propagated, ``g`` coarse-propagated,
``v`` restricted state, ``omega`` C-weight, ``m`` coarsening factor, ``n`` slice.
State arrays are ``[slices, batch, features...]``, time axis first.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

LANES = 64
CHUNK = 1024

NORMS = ("sum_squares", "sum_abs", "max_abs")


def parareal_update(
    f_old: Array, g_new: Array, g_old: Array, u_old: Array | None = None, *, norm: str = "sum_squares"
) -> Any:
    """``u = f_old + (g_new - g_old)``; with ``u_old`` also the norm of the jump ``u - u_old`` per slice.

    The bracket comes first: it is exactly zero once the state left of a slice has converged, so ``u``
    is then bitwise the fine solution. The pair step of FAS, ``F_i + (Phi_c(u[i-1]) - G_i)``, is the
    same formula. Arithmetic is done in the array's dtype, in float32 for 16-bit dtypes.
    """
    dtype = compute_dtype(f_old)
    u = f_old.astype(dtype) + (g_new.astype(dtype) - g_old.astype(dtype))
    u = u.astype(f_old.dtype)
    return u if u_old is None else (u, slice_norms(u, u_old, norm=norm))


def slice_norms(u: Array, u_old: Array | None = None, *, norm: str = "sum_squares") -> Array:
    """``sum |d|^2``, ``sum |d|`` or ``max |d|`` of ``d = u - u_old`` (or ``u``) per slice, float64 ``[slices]``.

    Differences, squares and sums are float64 for every dtype. ``sum_squares`` is not rooted, so that
    partial results of several ranks combine.
    """
    d = u.astype(np.float64) if u_old is None else u.astype(np.float64) - u_old.astype(np.float64)
    d = d.reshape(len(u), math.prod(u.shape[1:]))
    terms = d * d if norm == "sum_squares" else np.abs(d)
    combine = np.maximum if norm == "max_abs" else np.add

    chunks = -(-terms.shape[1] // CHUNK)
    terms = np.pad(terms, ((0, 0), (0, chunks * CHUNK - terms.shape[1])))
    rows = terms.reshape(len(u), chunks, CHUNK // LANES, LANES)
    lanes = np.zeros((len(u), chunks, LANES))
    for row in range(CHUNK // LANES):
        lanes = combine(lanes, rows[:, :, row])
    return tree_sum(np.moveaxis(fold(lanes, combine), 1, 0), combine)


def extract(u: Array, *, start: int = 0, step: int, count: int | None = None) -> Array:
    """``v[j] = u[start + j * step]``: restriction by injection, the states at the points of a coarse grid."""
    v = u[start::step]
    return (v if count is None else v[:count]).copy()


def inject(v: Array, u: Array, *, start: int = 0, step: int) -> Array:
    """``u[start + j * step] = v[j]``, in place: the coarse states are assigned, the other points untouched."""
    u[start : start + step * len(v) : step] = v
    return u


def c_relax(phi: Array, u: Array, omega: float) -> Array:
    """``u_new = omega * phi + (1 - omega) * u``: weighted Jacobi at the C-points; exactly ``phi`` at ``omega = 1``."""
    if omega == 1.0:
        return phi.copy()
    dtype = compute_dtype(u)
    u_new = dtype(omega) * phi.astype(dtype) + dtype(1.0 - omega) * u.astype(dtype)
    return u_new.astype(u.dtype)


def tree_sum(values: Array, combine: Any = np.add) -> Array:
    """Sum over axis 0 by a fixed binary tree: neighbours ``(2i, 2i + 1)`` first, an odd one carried up.

    An aligned block of ``2^j`` values is a subtree, so ranks may exchange the sums of such blocks.
    """
    while len(values) > 1:
        if len(values) % 2:
            values = np.concatenate([values, np.zeros_like(values[:1])])
        values = combine(values[0::2], values[1::2])
    return values[0] if len(values) else np.zeros(values.shape[1:])


def fold(lanes: Array, combine: Any = np.add) -> Array:
    """Sum over the last axis (a power of two) by adding its upper half to its lower half until one is left."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = combine(lanes[..., :half], lanes[..., half:])
    return lanes[..., 0]


def compute_dtype(u: Array) -> type[np.floating[Any]]:
    """The dtype arithmetic is done in: float64 for float64, float32 for everything narrower."""
    return np.float64 if u.dtype == np.float64 else np.float32
