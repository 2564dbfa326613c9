# SPDX-License-Identifier: BSD-3-Clause
"""Residual dense layers as a relaxation: all steps of every slice in one call, and the transposed chain.

Names of :mod:`pyparareal.ops` too, where the other arguments and the errors are described; ``m``, ``f``, ``g``,
``every``, ``target``, ``norms``, ``norm`` and ``out`` are those of :mod:`pyparareal.relax_ops`. With one slice it is
the ordinary serial network, fused.

Weights have the layout of ``torch.nn.Linear``, one matrix after the other: of a stack ``[layers, d, d]`` the view
``stack.view(slices, m, d, d)`` gives layer ``n m + j`` to step ``j`` of slice ``n``, and a strided view
``stack[::m].view(1, slices, d, d)`` is a coarse chain. The gradients of the weights are one batched product outside:
with ``p = slopes * v`` of every layer, ``v`` the gradient of the state after it and ``u`` the state before it,
``p^T u`` and the sum of ``p``.

``precision`` says how the products with ``weight`` are formed; anything but ``"exact"`` is of float32 on CUDA alone,
and refused elsewhere. A product is a sum of ``d`` terms, ``W u`` of ``relax_dense`` and ``W^T p`` of its adjoint, ``p =
slopes * v`` rounded to float32. With ``U = 2**-24`` and ``S`` the sum of the sizes of the terms (and for ``"exact"``
that of the bias), its error is at most

- ``"exact"``: ``(d + 1) U S``, fused multiply-adds in the order of the index; the CPU's bits.
- ``"tf32x3"``: ``(d / 16 + 48) U S``, tensor cores, every factor split in two numbers of 11 bits. A state or weight
  that is infinite, or that rounds to infinity, gives NaN.
- ``"tf32"``: ``(2**-10 + 2**-22 d) S``, tensor cores, factors rounded to 11 bits.

See :mod:`pyparareal.gru_ops` for where these come from. In the last two the bias is added to the sum, and activations
are correct to a few ``U`` of their values, not to the bits of the CPU. Both are deterministic, and the bits of a row
depend on that row alone, not on how many others or slices there are.
"""

from __future__ import annotations

from typing import Any

from pyparareal import _core
from pyparareal._outputs import new, norm_code, precision_code
from pyparareal.arrays import Array

_ACTIVATIONS = {"tanh": 0, "relu": 1, "smooth_relu": 2, "sigmoid": 3, "silu": 4}


def relax_dense(
    u: Array,
    weight: Array,
    bias: Array | None,
    h: float,
    m: int,
    *,
    activation: str = "tanh",
    slopes: Array | None = None,
    f: Array | None = None,
    g: Array | None = None,
    every: Array | None = None,
    target: Array | None = None,
    norms: Array | None = None,
    norm: str = "sum_squares",
    out: Array | None = None,
    stream: Any = None,
    threads: int | None = None,
    precision: str = "exact",
) -> Array:
    """All ``m`` steps ``u <- u + h act(W u + b)`` of every slice.

    A step is a layer of the residual networks of Guenther et al. 2020. The bits of a row do not depend on the others,
    on slices, threads or, with ``precision="exact"``, the device: there every sum starts at the bias and goes on in the
    order of the inputs, one fused multiply-add a term.

    Parameters
    ----------
    u : array [slices, batch..., d]
        Start states, of 2 to 7 axes, float64 or float32.
    weight : array [slices, m, d, d]
        ``W`` of every step, ``[out, in]``. Any strides; a contiguous last axis, or last but one, is the fast path.
    bias : array [slices, m, d], optional
        None: zeros.
    h : float
        Step size, rounded to the dtype.
    activation : str
        ``tanh``, ``relu``, ``sigmoid``, ``silu``, or ``smooth_relu``: ``z^2 / 0.4 + z / 2 + 0.025`` for ``|z| < 0.1``,
        else ``relu``.
    slopes : array [slices, m, batch..., d], optional
        Receives ``h act'(W u + b)`` of every step, which the adjoint takes. Shares no element with any other array.
    m, f, g, every, target, norms, norm, out : see :mod:`pyparareal.relax_ops`.
    threads : int, optional
        See :mod:`pyparareal.ops`; None is 0. Threads share the rows: slices times batch.
    precision : str
        See :mod:`pyparareal.dense_ops`.
    """
    try:
        kind = _ACTIVATIONS[activation]
    except (KeyError, TypeError):
        raise ValueError(f"activation: got {activation!r}, expected one of {', '.join(_ACTIVATIONS)}") from None
    if out is None and every is None:
        out = new("u", u)
    given = (slopes, f, g, every, target, norms, norm_code(norm), stream, 0 if threads is None else threads)
    _core.relax_dense(out, u, weight, bias, h, kind, m, *given, precision_code(precision))
    return every if out is None else out


def relax_dense_adjoint(
    v: Array,
    weight: Array,
    slopes: Array,
    m: int,
    *,
    scale: float = 1.0,
    f: Array | None = None,
    g: Array | None = None,
    every: Array | None = None,
    target: Array | None = None,
    norms: Array | None = None,
    norm: str = "sum_squares",
    out: Array | None = None,
    stream: Any = None,
    threads: int | None = None,
    precision: str = "exact",
) -> Array:
    """All ``m`` steps ``v <- v + scale W^T (slopes * v)`` of every slice: the transpose of :func:`relax_dense`.

    Linear in ``v``, and a chain that runs from the last layer to the first: step ``j`` of slice ``n`` takes
    ``weight[slices - 1 - n, m - 1 - j]`` and ``slopes`` likewise, so that both are given as :func:`relax_dense` took
    and wrote them. Without right-hand sides, one slice of all ``m`` layers is the backward pass of the serial network.

    Parameters
    ----------
    v : array [slices, batch..., d]
        Gradients of the states the slices end with, of 2 to 7 axes, float64 or float32; the last slice of the network
        first.
    weight : array [slices, m, d, d]
        As of :func:`relax_dense`.
    slopes : array [slices, m, batch..., d]
        What :func:`relax_dense` wrote.
    scale : float
        Of the step, rounded to the dtype; a coarse level of every k-th layer has ``k``.
    m, f, g, every, target, norms, norm, out : see :mod:`pyparareal.relax_ops`.
    threads : int, optional
        See :mod:`pyparareal.ops`; None is 0.
    precision : str
        See :mod:`pyparareal.dense_ops`; of the products with ``weight``, not of the slopes, which are what they are.
    """
    if out is None and every is None:
        out = new("v", v)
    given = (f, g, every, target, norms, norm_code(norm), stream, 0 if threads is None else threads)
    _core.relax_dense_adjoint(out, v, weight, slopes, scale, m, *given, precision_code(precision))
    return every if out is None else out
