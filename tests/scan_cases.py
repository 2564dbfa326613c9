# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of the scans share: random recurrences, loops to compare with, and the error these may differ by."""

import numpy as np

from pyparareal import ops, reference

DTYPES = (np.dtype("float64"), np.dtype("float32"))
# None is scan_diag; up to 4 chunked, then in order, a whole number of unrolled rows and not.
SIZES = (None, 1, 2, 3, 4, 5, 8, 11)


def problem(rng, dtype, steps, lanes, d, *, scale=0.7, special=0.0):
    """``a, b, start``; a share ``special`` of the numbers is zero, with either sign, infinite or NaN."""
    own = () if d is None else (d,)
    shapes = ((steps, *lanes, *own, *own), (steps, *lanes, *own), (*lanes, *own))
    arrays = [rng.standard_normal(shape) for shape in shapes]
    arrays[0] *= scale / np.sqrt(d or 1)
    for array in arrays:
        array[rng.random(array.shape) < 0.1] = rng.choice([0.0, -0.0])
        if special:
            there = rng.random(array.shape) < special
            array[there] = rng.choice([0.0, np.inf, -np.inf, np.nan], there.sum())
    return [array.astype(dtype) for array in arrays]


def scan_of(d, module=ops):
    return getattr(module, "scan_diag" if d is None else "scan_block")


def expected(a, b, start, d, reverse=False):
    return scan_of(d, reference)(a, b, start, reverse=reverse)


def times(a, x, d, transposed=False):
    if d is None:
        return a * x
    return np.einsum("...qp,...q->...p" if transposed else "...pq,...q->...p", a, x)


def loop(a, b, start, d, reverse=False):
    """``u`` in extended precision, one row after the other, and the same recurrence of absolute values."""
    a, b = a.astype(np.longdouble), b.astype(np.longdouble)
    u, size = np.empty_like(b), np.empty_like(b)
    state = None if start is None else (start.astype(np.longdouble), np.abs(start).astype(np.longdouble))
    for i in range(len(b))[:: -1 if reverse else 1]:
        if state is None:
            state = b[i], np.abs(b[i])
        else:
            factor = a[i + 1] if reverse else a[i]
            state = times(factor, state[0], d, reverse) + b[i], times(np.abs(factor), state[1], d, reverse) + abs(b[i])
        u[i], size[i] = state
    return u, size


def roundings(steps, d, reverse=False):
    """Of every row: no term of ``u[i]`` is rounded more often than ``d + 1`` times a row on its way there.

    A loop rounds it ``d`` times in the product, of ``d`` terms, and once in the sum, every row. The map of ``k`` rows
    has ``k - 1`` products and is used with one more and a sum, which is no more than a loop's ``k (d + 1)``.
    """
    count = (np.arange(steps) + 1) * ((d or 1) + 1)
    return count[::-1] if reverse else count
