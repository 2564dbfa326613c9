# SPDX-License-Identifier: BSD-3-Clause
"""Training as a relaxation: all steps of gradient descent of every slice in one call.

A name of :mod:`pyparareal.ops` too, where the other arguments and the errors are described; ``m``, ``f``, ``g``,
``every``, ``target``, ``norms``, ``norm`` and ``out`` are those of :mod:`pyparareal.relax_ops`.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from pyparareal import _core
from pyparareal._outputs import new, norm_code
from pyparareal.arrays import Array

_ACTIVATIONS = {"identity": 0, "relu": 1, "sigmoid": 2, "tanh": 3}


def relax_mlp_sgd(
    u: Array,
    sizes: Sequence[int],
    x: Array,
    y: Array,
    alpha: Any,
    m: int,
    *,
    first: Array | None = None,
    count: int | None = None,
    hidden: str = "sigmoid",
    last: str = "sigmoid",
    bias: bool = False,
    f: Array | None = None,
    g: Array | None = None,
    every: Array | None = None,
    target: Array | None = None,
    norms: Array | None = None,
    norm: str = "sum_squares",
    out: Array | None = None,
    stream: Any = None,
    threads: int | None = None,
) -> Array:
    """All ``m`` steps ``w <- w - alpha dE/dw`` of every slice; ``E``: half the summed squared error over a batch.

    The propagator of Schroder 2017, section 2.5: ``syn += alpha l.T @ delta``. Weights stay in registers, caches or
    shared memory from step to step. The bits of a slice do not depend on the others, on threads or on the device.
    ``sigmoid`` and ``tanh`` are within 2.5 units in the last place; a sigmoid is never below ``exp(-708)`` (float32:
    ``exp(-87)``).

    Parameters
    ----------
    u : array [slices, batch..., s]
        Start states, of 2 to 7 axes, float64 or float32: all weights, layer by layer, each matrix ``[out, in]`` and
        then its biases. It is the order of ``torch.nn.utils.parameters_to_vector`` for ``torch.nn.Linear`` layers.
    sizes : sequence of int
        Neurons ``d_0, ..., d_L`` of a fully connected network of up to 8 layers; ``s`` weights.
    x, y : array [K, d_0], array [K, d_L]
        Examples for all slices, like ``u`` of dtype and device. Any strides.
    alpha : float, or array float64 [slices, m]
        Learning rate, or that of every step; finite (on a device not checked).
    m, f, g, every, target, norms, norm, out : see :mod:`pyparareal.relax_ops`.
    first : array int64 [slices, m], optional
        The example every step begins with, from 0 to ``K - 1``; on a device not checked, but taken modulo ``K``.
        Default: every step takes all examples.
    count : int, optional
        Examples of a step: ``first, first + 1, ...`` modulo ``K``. Default: 1 with ``first``.
    hidden, last : {"sigmoid", "tanh", "relu", "identity"}
        Activation of the layers before the last, and of the last.
    bias : bool
        Whether every layer has biases.
    threads : int, optional
        See :mod:`pyparareal.ops`; None is 0.
    """
    for name, kind in (("hidden", hidden), ("last", last)):
        if kind not in _ACTIVATIONS:
            raise ValueError(f"{name}: got {kind!r}, expected one of {', '.join(_ACTIVATIONS)}")
    if isinstance(alpha, numbers.Real):
        alpha = float(alpha)
    if count is None:
        count = 1 if first is not None else _rows(x)
    if out is None and every is None:
        out = new("u", u)
    kinds = _ACTIVATIONS[hidden], _ACTIVATIONS[last]
    threads = 0 if threads is None else threads
    given = (f, g, every, target, norms, norm_code(norm), stream, threads)
    _core.relax_mlp_sgd(out, u, sizes, x, y, alpha, first, count, *kinds, bias, m, *given)
    return every if out is None else out


def _rows(x: Array) -> int:
    shape: Any = getattr(x, "shape", ())
    return int(shape[0]) if len(shape) else 0
