# SPDX-License-Identifier: BSD-3-Clause
"""``relax_gru`` and its adjoint in plain NumPy: what the kernels compute, bit for bit.

The cell is that of ``torch.nn.GRU``, whose documentation has for every time step::

    r_t  = sigmoid(W_ir x_t + b_ir + W_hr h_(t-1) + b_hr)
    z_t  = sigmoid(W_iz x_t + b_iz + W_hz h_(t-1) + b_hz)
    n_t  = tanh(W_in x_t + b_in + r_t * (W_hn h_(t-1) + b_hn))
    h_t  = (1 - z_t) * n_t + z_t * h_(t-1)

What does not depend on the state is given as ``gates [..., 3 hidden]``: of ``r`` and ``z`` the products with ``x_t``
and both biases, of ``n`` the product with ``x_t`` and ``b_in``. ``weight [3 hidden, hidden]`` is ``weight_hh``,
``bias [hidden]`` is ``b_hn``. Every sum starts at zero and goes on in the order of its index, one fused multiply-add a
term;
sigmoid, tanh and the multiply-add are those of :mod:`pyparareal.reference_mlp`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyparareal.reference_mlp import fma, product, sigmoid, tanh

Array = Any


def gru_step(h: Array, gates: Array, weight: Array, bias: Array | None = None) -> Array:
    """``h_t`` of ``h = h_(t-1) [..., hidden]``. Where ``z`` is 1 that is ``h`` bit for bit, whatever ``n`` is."""
    _, z, _, n = _gates(h, gates, weight, bias)
    return np.where(z == 1, h, fma(z, h - n, n))


def relax_gru_adjoint(
    u: Array, gates: Array, weight: Array, bias: Array | None, d_end: Array, *, d_every: Array | None = None
) -> tuple[Array, Array, Array]:
    """Gradients of the start states, of ``gates``, and of ``W_hn h + b_hn``: ``relax_gru`` backward.

    ``u[:, j]`` is the state step ``j`` starts from, ``d_end`` the gradient of the end states, ``d_every[:, j]`` that of
    the state after step ``j``. The transposed step is linear in them; ``r``, ``z`` and ``n`` are computed once more.
    """
    d_gates, d_hidden, d = np.empty_like(gates), np.empty_like(u), d_end
    for j in reversed(range(u.shape[1])):
        if d_every is not None:
            d = d + d_every[:, j]
        d, d_gates[:, j], d_hidden[:, j] = gru_step_adjoint(d, u[:, j], gates[:, j], weight, bias)
    return d.copy(), d_gates, d_hidden


def gru_step_adjoint(
    d: Array, h: Array, gates: Array, weight: Array, bias: Array | None = None
) -> tuple[Array, Array, Array]:
    """Gradients of ``h``, of ``gates`` and of ``W_hn h + b_hn``, for that of ``gru_step(h, gates, weight, bias)``."""
    r, z, s, n = _gates(h, gates, weight, bias)
    d_n = d * (1 - z) * (1 - n * n)
    d_z = d * (h - n) * (z * (1 - z))
    d_r = d_n * s * (r * (1 - r))
    d_s = d_n * r
    back = _times(np.concatenate([d_r, d_z, d_s], -1), weight)
    return fma(d, z, back), np.concatenate([d_r, d_z, d_n], -1), d_s


def _gates(h: Array, gates: Array, weight: Array, bias: Array | None) -> tuple[Array, ...]:
    """``r, z, s = W_hn h + b_hn, n``"""
    in_r, in_z, in_n = np.split(gates, 3, -1)
    of_r, of_z, of_n = np.split(_times(h, weight.T), 3, -1)
    r, z = sigmoid(in_r + of_r), sigmoid(in_z + of_z)
    s = of_n + (0 if bias is None else bias)
    return r, z, s, tanh(in_n + r * s)


def _times(a: Array, b: Array) -> Array:
    """``a b`` of rows ``a [..., k]`` and a matrix ``b [k, j]``."""
    return product(a[..., None, :], b)[..., 0, :]
