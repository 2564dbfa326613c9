# SPDX-License-Identifier: BSD-3-Clause
"""Linear recurrences ``u[i] = a[i] u[i-1] + b[i]`` over the time axis, parallel in time: associative affine scans.

Names of :mod:`pyparareal.ops` too, where ``out``, ``stream``, ``threads`` and the errors are described. One Newton
iteration on a sequence is such a scan, and so is the backward pass of one (``reverse``). The order of operations is
that of :mod:`pyparareal.reference_scan`: the bits depend neither on threads nor on the device, and where the products
of many ``a`` overflow the rows are taken one by one.
"""

from __future__ import annotations

from typing import Any

from pyparareal import _core
from pyparareal._outputs import new
from pyparareal.arrays import Array


def scan_diag(
    a: Array,
    b: Array,
    start: Array | None = None,
    *,
    reverse: bool = False,
    out: Array | None = None,
    stream: Any = None,
    threads: int = 0,
) -> Array:
    """``u[i] = a[i] u[i-1] + b[i]`` with ``u[-1] = start``, elementwise; without ``start``, ``u[0] = b[0]``.

    Parameters
    ----------
    a : array [steps, batch, features...]
        Factors, float64 or float32, any strides. Without ``start`` those of row 0 are not used.
    b : array, like ``a``
        Right-hand sides.
    start : array [batch, features...], optional
        The state before row 0. Not with ``reverse``.
    reverse : bool
        ``u[i] = a[i+1] u[i+1] + b[i]`` with ``u[steps-1] = b[steps-1]``: the transposed system, the backward pass of
        the scan of ``a`` without ``start``. ``a[0]`` is not used.
    out : array, like ``b``, optional
        May be the same view as ``b``; shares no element with ``a`` and ``start``.
    stream, threads : see :mod:`pyparareal.ops`.

    Returns
    -------
    u : array [steps, batch, features...]

    Notes
    -----
    Blelloch 1990, "Prefix sums and their applications", section 1.4, in a fixed order. The error is bounded as that of
    a loop: by ``2 (i + 1)`` roundings of the same recurrence of absolute values.
    """
    if out is None:
        out = new("b", b)
    _core.scan_diag(out, a, b, start, reverse, stream, threads)
    return out


def scan_block(
    a: Array,
    b: Array,
    start: Array | None = None,
    *,
    reverse: bool = False,
    out: Array | None = None,
    stream: Any = None,
    threads: int = 0,
) -> Array:
    """``u[i] = a[i] u[i-1] + b[i]`` with square blocks ``a[i]``; without ``start``, ``u[0] = b[0]``.

    Parameters
    ----------
    a : array [steps, batch, features..., d, d]
        Blocks of any size, float64 or float32, any strides. Blocks of up to 4 rows are parallel in time; larger ones
        over ``batch`` and ``features`` alone.
    b : array [steps, batch, features..., d]
        Right-hand sides, of 2 to 7 axes.
    start : array [batch, features..., d], optional
        The state before row 0. Not with ``reverse``.
    reverse : bool
        ``u[i] = a[i+1]^T u[i+1] + b[i]`` with ``u[steps-1] = b[steps-1]``: the transposed system.
    out, stream, threads : see :func:`scan_diag`.

    Returns
    -------
    u : array [steps, batch, features..., d]
    """
    if out is None:
        out = new("b", b)
    _core.scan_block(out, a, b, start, reverse, stream, threads)
    return out
