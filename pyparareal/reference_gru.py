# SPDX-License-Identifier: BSD-3-Clause
"""``relax_gru``, its adjoint and ``newton_gru`` in plain NumPy: what the kernels compute, bit for bit.

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
from pyparareal.reference_scan import scan_diag_before

Array = Any


def gru_step(h: Array, gates: Array, weight: Array, bias: Array | None = None) -> Array:
    """``h_t`` of ``h = h_(t-1) [..., hidden]``. Where ``z`` is 1 that is ``h`` bit for bit, whatever ``n`` is."""
    _, z, _, n = _gates(h, gates, weight, bias)
    return _next(h, z, n)


def newton_gru(
    u: Array, products: Array, gates: Array, diagonal: Array, bias: Array | None = None, factor: float = 1.0
) -> tuple[Array, Array, Array, Array]:
    """One iteration of Newton's method with the diagonals of the Jacobians: ``u_new[1:]``, the diagonals, two norms.

    ``u [steps + 1, batch..., hidden]`` has the start and a guess of all states that follow, ``products = u[:-1] @
    weight.T``, ``diagonal [3, hidden]`` the diagonals of ``W_r, W_z, W_n``. With ``F`` the step and ``J`` its diagonal
    times ``factor``, ``d[i+1] = J[i] d[i] + (F[i] - u[i+1])`` from ``d[0] = 0`` by ``scan_diag``, and ``u_new[i+1] =
    F[i] + J[i] d[i]`` with the product that ``d[i+1]`` has: exactly ``F[i]`` where the state before no longer changes.
    The norms, float64 ``[steps]``, are the largest ``|F[i] - u[i+1]|`` and ``|d[i+1]|``.
    """
    with np.errstate(all="ignore"):
        f, jacobians = _linearised(u[:-1], products, gates, diagonal, bias)
        a, r = jacobians * f.dtype.type(factor), f - u[1:]
        a[:1] = 0  # the start is exact
        d, before = scan_diag_before(a, r)  # f + 0 * -0 is f, with the sign of its zeros
        return f + a * before, jacobians, _largest(r), _largest(d)


def _linearised(h: Array, products: Array, gates: Array, diagonal: Array, bias: Array | None) -> tuple[Array, Array]:
    """The step from ``h``, and the diagonal of its Jacobian."""
    r, z, s, n = _gates_of(gates, products, bias)
    into_n = (1 - z) * (1 - n * n)
    jacobians = fma((h - n) * (z * (1 - z)), diagonal[1], z)
    jacobians = fma(into_n * s * (r * (1 - r)), diagonal[0], jacobians)
    jacobians = fma(into_n * r, diagonal[2], jacobians)
    return _next(h, z, n), np.where(z == 1, z, jacobians)


def _next(h: Array, z: Array, n: Array) -> Array:
    return np.where(z == 1, h, fma(z, h - n, n))


def _largest(u: Array) -> Array:
    """Of the magnitudes of every row, float64; a NaN if there is one."""
    return np.abs(u.reshape(len(u), -1).astype(np.float64)).max(axis=1, initial=0.0)


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
    return _gates_of(gates, _times(h, weight.T), bias)


def _gates_of(gates: Array, products: Array, bias: Array | None) -> tuple[Array, ...]:
    in_r, in_z, in_n = np.split(gates, 3, -1)
    of_r, of_z, of_n = np.split(products, 3, -1)
    r, z = sigmoid(in_r + of_r), sigmoid(in_z + of_z)
    s = of_n + (0 if bias is None else bias)
    return r, z, s, tanh(in_n + r * s)


def _times(a: Array, b: Array) -> Array:
    """``a b`` of rows ``a [..., k]`` and a matrix ``b [k, j]``."""
    return product(a[..., None, :], b)[..., 0, :]
