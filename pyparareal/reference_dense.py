# SPDX-License-Identifier: BSD-3-Clause
"""A step of ``relax_dense`` and its transpose in plain NumPy: what the kernels compute, bit for bit.

A residual dense layer is ``u <- u + h act(W u + b)``, with ``weight [slices, d, d]`` (out, in) and ``bias [slices, d]``
of one step. Every sum starts at the bias, or at zero, and goes on in the order of its index, one fused multiply-add a
term: ``z = fma(W[o, k], u[k], z)``; the last addition is one as well. ``sigmoid``, ``tanh`` and the multiply-add are
those of :mod:`pyparareal.reference_mlp`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyparareal.reference_mlp import fma, sigmoid, tanh

Array = Any

ETA = 0.1  # half the width of the parabola of smooth_relu
_LOWEST = {"float64": -708.0, "float32": -87.0}  # below, sigmoid is what it is there


def dense_step(u: Array, weight: Array, bias: Array | None, h: float, activation: str) -> tuple[Array, Array]:
    """``u + h act(W u + b)`` of ``u [slices, batch..., d]``, and ``h act'(W u + b)``."""
    step = u.dtype.type(h)
    value, slope = ACTIVATIONS[activation](_product(_rows(weight, u), u, bias))
    return fma(step, value, u), step * slope


def dense_step_adjoint(v: Array, weight: Array, slopes: Array, scale: float) -> Array:
    """``v + scale W^T (slopes * v)``"""
    back = _product(_rows(np.swapaxes(weight, -1, -2), v), slopes * v, None)
    return fma(v.dtype.type(scale), back, v)


def _rows(weight: Array, u: Array) -> Array:
    """``[slices, 1..., d, d]``, one matrix for all rows of a slice."""
    return weight.reshape(len(weight), *(1,) * (u.ndim - 2), *weight.shape[1:])


def _product(weight: Array, u: Array, bias: Array | None) -> Array:
    total = np.zeros_like(u)
    if bias is not None:
        total += bias.reshape(len(bias), *(1,) * (u.ndim - 2), -1)
    for k in range(u.shape[-1]):
        total = fma(weight[..., k], u[..., k, None], total)
    return total


def _relu(z: Array) -> tuple[Array, Array]:
    zero, one = z.dtype.type(0), z.dtype.type(1)
    return np.where(z <= 0, zero, z), np.where(z <= 0, zero, one)


def _smooth_relu(z: Array) -> tuple[Array, Array]:
    """``z^2 / (4 eta) + z / 2 + eta / 4`` for ``|z| < eta``, else the rectifier."""
    dtype = z.dtype.type
    eta, zero, one = dtype(ETA), dtype(0), dtype(1)
    value = fma(fma(z, dtype(1 / (4 * ETA)), dtype(0.5)), z, dtype(ETA / 4))
    slope = fma(z, dtype(1 / (2 * ETA)), dtype(0.5))
    value, slope = np.where(z >= eta, z, value), np.where(z >= eta, one, slope)
    return np.where(z <= -eta, zero, value), np.where(z <= -eta, zero, slope)


def _sigmoid(z: Array) -> tuple[Array, Array]:
    a = sigmoid(z)
    return a, a * (1 - a)


def _silu(z: Array) -> tuple[Array, Array]:
    """``z sigmoid(z)``, whose ``z`` stops where the sigmoid is no longer smaller: the product would grow again."""
    s, lowest = sigmoid(z), z.dtype.type(_LOWEST[z.dtype.name])
    a = np.where(z < lowest, lowest, z) * s
    return a, fma(a, 1 - s, s)


def _tanh(z: Array) -> tuple[Array, Array]:
    a = tanh(z)
    return a, 1 - a * a


# name: act(z) and act'(z).
ACTIVATIONS: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "tanh": _tanh,
    "relu": _relu,
    "smooth_relu": _smooth_relu,
    "sigmoid": _sigmoid,
    "silu": _silu,
}
