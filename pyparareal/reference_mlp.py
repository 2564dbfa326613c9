# SPDX-License-Identifier: BSD-3-Clause
"""``relax_mlp_sgd`` in plain NumPy: what the kernels compute, bit for bit.

Every sum, over inputs, neurons or examples, starts at zero and goes on in the order of its index, one fused
multiply-add a term: ``s = fma(a[k], b[k], s)``. A bias is the weight of one more input, the last, which is one.
NumPy has no fused multiply-add, so it is built from exact parts here. ``exp`` is the polynomial below, not a library's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

Array = Any

# expm1(r) = r + r^2 q(r) for |r| <= ln(2)/2: q by Chebyshev interpolation, to 0.004 units in the last place.
_POLYNOMIAL = {
    "float64": "0x1.0p-1 0x1.5555555555557p-3 0x1.5555555555556p-5 0x1.11111111100cep-7 0x1.6c16c16c162ccp-10 "
    "0x1.a01a01abef415p-13 0x1.a01a01a6dcaffp-16 0x1.71de021a90822p-19 0x1.27e4db57442fbp-22 0x1.af4e196027428p-26 "
    "0x1.1f731ea5352cap-29",
    "float32": "0x1.0p-1 0x1.555556p-3 0x1.5554e8p-5 0x1.1110e0p-7 0x1.6d4362p-10 0x1.a12528p-13",
}
# log2(e), ln(2) in two parts, the number that rounds to integers when added, the lowest argument (of a normal result).
_REDUCTION = {
    "float64": ("0x1.71547652b82fep+0", "0x1.62e42fefa39efp-1", "0x1.abc9e3b39803fp-56", 1.5 * 2.0**52, -708.0),
    "float32": ("0x1.715476p+0", "0x1.62e43p-1", "-0x1.05c61p-29", 1.5 * 2.0**23, -87.0),
}


def sgd_step(
    u: Array, sizes: Sequence[int], x: Array, y: Array, rate: Array, start: Array, count: int, hidden: str, last: str,
    bias: bool,
) -> Array:  # fmt: skip
    """``u`` after a step: slice ``n`` takes ``count`` examples from ``start[n]`` on, modulo all, at ``rate[n]``."""
    rows = (start[:, None] + np.arange(count)) % len(x)
    w = u.reshape(len(u), -1, u.shape[-1])
    gradient = descent(w, sizes, x[rows][:, None], y[rows][:, None], hidden, last, bias)
    return fma(rate.astype(u.dtype).reshape(-1, 1, 1), gradient, w).reshape(u.shape)


def descent(w: Array, sizes: Sequence[int], x: Array, y: Array, hidden: str, last: str, bias: bool) -> Array:
    """``-dE/dw`` ``[..., s]`` for weights ``w [..., s]`` and examples ``x, y [..., count, d]``."""
    layers = matrices(w, sizes, bias)
    kinds = [hidden] * (len(layers) - 1) + [last]
    states = [with_one(x) if bias else x]
    for matrix, kind in zip(layers, kinds, strict=True):
        state = ACTIVATIONS[kind][0](product(states[-1], np.swapaxes(matrix, -1, -2)))
        states.append(with_one(state) if bias else state)
    parts, error = [], y - state
    for matrix, kind, before, after in zip(layers[::-1], kinds[::-1], states[-2::-1], states[:0:-1], strict=True):
        delta = ACTIVATIONS[kind][1](after[..., : error.shape[-1]], error)
        own = product(np.swapaxes(delta, -1, -2), before)
        inputs = matrix.shape[-1] - bias
        if bias:
            parts.append(own[..., inputs])
        parts.append(own[..., :inputs].reshape(*own.shape[:-2], -1))
        error = product(delta, matrix[..., :inputs])
    return np.concatenate(parts[::-1], -1)


def matrices(w: Array, sizes: Sequence[int], bias: bool) -> list[Array]:
    """The matrices ``[..., out, in]`` of a state, each with its bias as the last column."""
    found, at = [], 0
    for inputs, outputs in itertools.pairwise(sizes):
        matrix = w[..., at : at + outputs * inputs].reshape(*w.shape[:-1], outputs, inputs)
        at += outputs * inputs
        if bias:
            matrix = np.concatenate([matrix, w[..., at : at + outputs, None]], -1)
            at += outputs
        found.append(matrix)
    return found


def with_one(state: Array) -> Array:
    return np.concatenate([state, np.ones_like(state[..., :1])], -1)


def product(a: Array, b: Array) -> Array:
    """``sum_k a[..., i, k] b[..., k, j]``, from zero in the order of ``k``, each term by :func:`fma`."""
    total = np.zeros(np.broadcast_shapes((*a.shape[:-1], 1), (*b.shape[:-2], 1, b.shape[-1])), a.dtype)
    for k in range(a.shape[-1]):
        total = fma(a[..., :, k, None], b[..., k, None, :], total)
    return total


def fma(a: Array, b: Array, c: Array) -> Array:
    """``a b + c``, rounded once.

    Of float32 the product is exact in float64. Of float64 it is two numbers, and the sum of three is rounded to odd
    before the last addition: Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums".
    """
    a, b, c = np.broadcast_arrays(a, b, c)
    with np.errstate(all="ignore"):
        if a.dtype == np.float32:
            return _to_odd(a.astype(np.float64) * b, c.astype(np.float64)).astype(np.float32)
        high, low = _exact_product(a, b)
        top, rest = _exact_sum(c, low)
        value, small = _exact_sum(high, top)
        result = np.asarray(value + _to_odd(rest, small))
        plain = a * b + c  # of infinities, NaN, and zeros with their signs
        result = np.asarray(np.where(np.isfinite(result) & (result != 0), result, plain))
        tiny = (np.abs(high) < 2.0**-900) & (a != 0) & (b != 0) & np.isfinite(plain)  # `low` may have underflowed
    for at in np.argwhere(tiny):
        i = tuple(at)
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        result[i] = np.copysign(float(exact), -1.0 if exact < 0 else 1.0)
    return result


def _exact_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """``a + b`` rounded, and the error of that (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _exact_product(a: Array, b: Array) -> tuple[Array, Array]:
    """``a b`` rounded, and the error of that (Dekker, Veltkamp)."""
    halves = []
    for x in (a, b):
        wide = x * (2.0**27 + 1)
        high = wide - (wide - x)
        halves += [high, x - high]
    high_a, low_a, high_b, low_b = halves
    value = a * b
    return value, low_a * low_b - (((value - high_a * high_b) - low_a * high_b) - high_a * low_b)


def _to_odd(a: Array, b: Array) -> Array:
    """``a + b``, or that of its two neighbours in float64 whose last bit is one."""
    total, error = _exact_sum(a, b)
    even = (np.asarray(total).view(np.int64) & 1) == 0
    return np.where((error != 0) & even & np.isfinite(total), np.nextafter(total, np.copysign(np.inf, error)), total)


def expm1_parts(z: Array) -> tuple[Array, Array]:
    """``(expm1(r), 2^n)`` of ``z = n ln 2 + r``, ``z <= 0``; below -708 (float32: -87) as there."""
    dtype = z.dtype.type
    log2e, ln2, ln2_rest, shift, lowest = (
        dtype(float.fromhex(c) if isinstance(c, str) else c) for c in _REDUCTION[z.dtype.name]
    )
    z = np.where(z < lowest, lowest, z)
    shifted = fma(z, log2e, shift)
    n = shifted - shift
    r = fma(n, -ln2_rest, fma(n, -ln2, z))
    *others, q = (dtype(float.fromhex(c)) for c in _POLYNOMIAL[z.dtype.name].split())
    for c in others[::-1]:
        q = fma(q, r, c)
    power = np.ldexp(dtype(1), np.where(np.isnan(n), 0, n).astype(np.int64))
    return fma(r * r, q, r), power


def sigmoid(z: Array) -> Array:
    """``1 / (1 + exp(-z))``, of ``exp(-|z|)``: nothing overflows."""
    p, power = expm1_parts(np.where(z < 0, z, -z))
    e = fma(power, p, power)
    return np.where(z < 0, e, z.dtype.type(1)) / (1 + e)


def tanh(z: Array) -> Array:
    """``tanh(z)``, of ``expm1(-2 |z|)``: nothing cancels."""
    p, power = expm1_parts(np.where(z < 0, z, -z) * 2)
    e = fma(power, p, power - 1)
    t = (0 - e) / (2 + e)
    return np.where(z < 0, -t, t)


# name: activation of z, and the error times its derivative as a function of its value.
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array, Array], Array]]] = {
    "identity": (lambda z: z, lambda a, error: error),
    "relu": (lambda z: np.where(z <= 0, z.dtype.type(0), z), lambda a, error: np.where(a <= 0, a.dtype.type(0), error)),
    "sigmoid": (sigmoid, lambda a, error: error * (a * (1 - a))),
    "tanh": (tanh, lambda a, error: error * (1 - a * a)),
}
