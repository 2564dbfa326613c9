# SPDX-License-Identifier: BSD-3-Clause
"""``scan_diag`` and ``scan_block`` in plain NumPy: what the kernels compute, bit for bit.

The order of operations depends on the number of steps alone. Rows are cut into chunks of ``ROWS``, chunks into groups
of ``CHUNKS``. A stretch of rows maps its start ``s`` to its end ``A s + B``; ``A`` and ``B`` are multiplied up row by
row within a chunk and chunk by chunk within a group. Then

* the first row after a group starts from ``A s + B`` of the group, group after group from ``start`` on;
* the first row after a chunk that does not end a group starts from ``A s + B`` of the chunk;
* the rows of a chunk follow its start one by one: ``u[i] = a[i] u[i-1] + b[i]``, a product and then a sum.

Where ``A s + B`` is not finite, the state that follows is the last row of the stretch, as if there were neither chunks
nor groups: a product that overflows cannot turn a finite recurrence into infinities or NaN, so a state that is zero
stays zero. Blocks of more than ``CHUNKED`` rows are not multiplied up: all their steps follow one by one.
Sums of products of a block go from the first column to the last, and ``b`` is added to the sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

ROWS = 16  # of a chunk
CHUNKS = 16  # of a group
CHUNKED = 4  # the largest blocks that are multiplied up


def scan_diag(a: Array, b: Array, start: Array | None = None, *, reverse: bool = False) -> Array:
    """``u[i] = a[i] u[i-1] + b[i]`` with ``u[-1] = start`` (absent: ``u[0] = b[0]``), elementwise.

    ``reverse``: ``u[i] = a[i+1] u[i+1] + b[i]`` from ``u[steps-1] = b[steps-1]`` down, the transposed system; without
    ``start``. ``a`` and ``b`` are ``[steps, batch, features...]``, ``start`` ``[batch, features...]``.
    """
    if reverse:
        a, b = _reversed(a, b)
    u = _scan(a[..., None, None], b[..., None], None if start is None else start[..., None])[..., 0]
    return u[::-1] if reverse else u


def scan_block(a: Array, b: Array, start: Array | None = None, *, reverse: bool = False) -> Array:
    """``u[i] = a[i] u[i-1] + b[i]`` with blocks ``a [steps, ..., d, d]`` and ``b [steps, ..., d]``.

    ``reverse``: ``u[i] = a[i+1]^T u[i+1] + b[i]``, the transposed system.
    """
    if reverse:
        a, b = _reversed(np.swapaxes(a, -1, -2), b)
    u = _scan(a, b, start)
    return u[::-1] if reverse else u


def scan_diag_before(a: Array, b: Array) -> tuple[Array, Array]:
    """``u`` of ``scan_diag(a, b)``, and of every row the state it followed from.

    That is the row before; for the first row of a chunk what ``A s + B`` gave, and -0 for the first of all.
    """
    before = np.empty_like(b[..., None])
    return _scan(a[..., None, None], b[..., None], None, before)[..., 0], before[..., 0]


def _reversed(a: Array, b: Array) -> tuple[Array, Array]:
    """The same system from the other end; ``a`` of its first row is never used."""
    return np.concatenate([a[:1], a[:0:-1]]), b[::-1]


def _product(a: Array, x: Array) -> Array:
    """``a x``, of a block and a vector, each sum from the first column to the last."""
    total = a[..., 0] * x[..., 0, None]
    for q in range(1, a.shape[-1]):
        total = total + a[..., q] * x[..., q, None]
    return total


def _scan(a: Array, b: Array, start: Array | None, before: Array | None = None) -> Array:
    u, before = np.empty_like(b), np.empty_like(b) if before is None else before
    with np.errstate(all="ignore"):
        if not u.size:
            return u
        if a.shape[-1] > CHUNKED:
            _walk(a, b, start, u, before)
            return u
        for first in range(0, len(b), ROWS * CHUNKS):
            rows = slice(first, first + ROWS * CHUNKS)
            start = _group(a[rows], b[rows], start, u[rows], before[rows])
    return u


def _walk(a: Array, b: Array, start: Array | None, u: Array, before: Array) -> Array:
    """The rows one by one into ``u``, and what they followed from into ``before``; the last of them."""
    for i in range(len(b)):
        before[i] = -0.0 if start is None else start
        u[i] = start = b[i] if start is None else _product(a[i], start) + b[i]
    return u[-1] if len(u) else u


def _group(a: Array, b: Array, start: Array | None, u: Array, before: Array) -> Array:
    """The rows of a group into ``u``, chunk by chunk; the state that the next group starts from."""
    first = slice(ROWS)
    group = _map(a[first], b[first])
    state = _end(group, start, _walk(a[first], b[first], start, u[first], before[first]))
    for row in range(ROWS, len(b), ROWS):
        rows = slice(row, row + ROWS)
        chunk = _map(a[rows], b[rows])
        state = _end(chunk, state, _walk(a[rows], b[rows], state, u[rows], before[rows]))
        group = _after(group, chunk)
    return _end(group, start, state)


def _map(a: Array, b: Array) -> tuple[Array, Array]:
    """``(A, B)`` of a chunk: its rows take ``s`` to ``A s + B``."""
    total = (a[0], b[0])
    for i in range(1, len(b)):
        total = _after(total, (a[i], b[i]))
    return total


def _after(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """The map of two stretches, one after the other."""
    columns = [_product(second[0], first[0][..., q]) for q in range(first[0].shape[-1])]
    return np.stack(columns, -1), _product(second[0], first[1]) + second[1]


def _end(stretch: tuple[Array, Array], start: Array | None, otherwise: Array) -> Array:
    """``A s + B``, or where a component of that is not finite, ``otherwise``."""
    end = stretch[1] if start is None else _product(stretch[0], start) + stretch[1]
    return np.where(np.isfinite(end).all(-1, keepdims=True), end, otherwise)
