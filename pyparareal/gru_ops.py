# SPDX-License-Identifier: BSD-3-Clause
"""The gated recurrent unit as a relaxation: all steps of every slice in one call, their transpose, and Newton's method.

Names of :mod:`pyparareal.ops` too, where the other arguments and the errors are described; ``m``, ``f``, ``g``,
``every``, ``target``, ``norms``, ``norm`` and ``out`` are those of :mod:`pyparareal.relax_ops`. With one slice it is
the ordinary serial recurrence, fused.

The arrays have the layout of ``torch.nn.GRU``: of its ``x [T, batch, input]``, ``gates [T, batch, 3 hidden]`` is
``x @ weight_ih.T + bias_ih``, with the first two thirds of ``bias_hh`` added to the first two thirds; ``weight`` is
``weight_hh``, ``bias`` the last third of ``bias_hh``. A view ``[slices, m, batch, 3 hidden]`` of it cuts it into
slices.

``precision`` says how the products with ``weight`` are formed; anything but ``"exact"`` is of float32 on CUDA alone,
and refused elsewhere. With ``u = 2**-24``, ``S = sum_k |W_k| |h_k|`` of a product, and up to the rounding of the gates
(a few ``u``):

- ``"exact"``: fused multiply-adds in the order of the index; the CPU's bits. Error at most ``hidden u S``.
- ``"tf32x3"``: tensor cores. Every factor is split into two numbers of 11 bits, of whose four products three are kept
  (Ootomo and Yokota 2022): ``8 u S``. Blocks of 16 terms are summed by the tensor cores, which round towards zero,
  ``36 u S`` at most, and the ``hidden / 16`` blocks by ordinary additions: at most ``(hidden / 16 + 48) u S`` in all.
  A state or weight that is infinite, or that rounds to infinity, gives NaN.
- ``"tf32"``: tensor cores, factors rounded to 11 bits: ``2**-10 S`` from the factors, ``2**-22 hidden S`` at most
  from the sums.

Both are deterministic: the order of their sums is fixed, and the bits of a row depend on that row alone, not on how
many others there are.
"""

from __future__ import annotations

from typing import Any

from pyparareal import _core
from pyparareal._outputs import new, norm_code, precision_code
from pyparareal.arrays import Array


def relax_gru(
    u: Array,
    gates: Array,
    weight: Array,
    bias: Array | None,
    m: int,
    *,
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
    """All ``m`` steps ``h <- n + z (h - n)`` of every slice, with the gates of ``torch.nn.GRU``.

    ``r = s(gates_r + W_r h)``, ``z = s(gates_z + W_z h)``, ``n = tanh(gates_n + r (W_n h + bias))``, ``s`` the sigmoid
    (Cho et al. 2014, equations 5 to 8, with the reset gate after the product). Where ``z`` is 1, as for ``gates_z`` of
    infinity, a step keeps the state bit for bit. The bits of a row do not depend on the others, on threads or, with
    ``precision="exact"``, on the device.

    Parameters
    ----------
    u : array [slices, batch..., hidden]
        Start states, of 2 to 7 axes, float64 or float32.
    gates : array [slices, m, batch..., 3 hidden]
        The input sides of ``r``, ``z`` and ``n``. Any strides.
    weight : array [3 hidden, hidden]
        ``W_r``, ``W_z`` and ``W_n``, one below the other.
    bias : array [hidden], optional
        None: zeros.
    m, f, g, every, target, norms, norm, out : see :mod:`pyparareal.relax_ops`.
    threads : int, optional
        See :mod:`pyparareal.ops`; None is 0. Threads share the rows: slices times batch.
    precision : str
        See :mod:`pyparareal.gru_ops`.
    """
    if out is None and every is None:
        out = new("u", u)
    given = (f, g, every, target, norms, norm_code(norm), stream, 0 if threads is None else threads)
    _core.relax_gru(out, u, gates, weight, bias, m, *given, precision_code(precision))
    return every if out is None else out


def relax_gru_adjoint(
    u: Array,
    gates: Array,
    weight: Array,
    bias: Array | None,
    d_end: Array,
    *,
    d_every: Array | None = None,
    only_start: bool = False,
    d_gates: Array | None = None,
    d_hidden: Array | None = None,
    out: Array | None = None,
    stream: Any = None,
    threads: int | None = None,
    precision: str = "exact",
) -> Any:
    """Gradients of the start states, of ``gates`` and of ``W_n h + bias``: the transpose of :func:`relax_gru`.

    Linear in ``d_end`` and ``d_every``. Gates are computed once more, not stored. The gradients of ``weight`` and
    ``bias`` are one product outside: with ``d [rows, 3 hidden]`` of the first two thirds of ``d_gates`` and
    ``d_hidden``, they are ``d.T @ u`` and the sum of ``d_hidden`` over all rows.

    Parameters
    ----------
    u : array [slices, m, batch..., hidden]
        The states the steps started from: of a chain, the start states and what ``every`` received but for the last.
    gates, weight, bias : as of :func:`relax_gru`.
    d_end : array [slices, batch..., hidden]
        Gradient of the end states.
    d_every : array, like ``u``, optional
        Gradient of the state after every step, which is added.
    only_start : bool
        Return the first result alone; the others are not written.
    d_gates : array, like ``gates``, optional
        Written in place; may be the same view as ``gates``. Allocated if absent.
    d_hidden : array, like ``u``, optional
        Written in place; may be the same view as ``u``. Allocated if absent.
    out : array, like ``d_end``, optional
        Receives the gradient of the start states; may be the same view as ``d_end``. Allocated if absent.
    stream, threads : see :mod:`pyparareal.ops`; None is 0.
    precision : see :mod:`pyparareal.gru_ops`. With that of the forward call the gates are those of the forward call.

    Returns
    -------
    d_start : array, like ``d_end``
    d_gates : array, like ``gates``
    d_hidden : array, like ``u``
        Of ``W_n h + bias``.
    """
    if only_start and (d_gates is not None or d_hidden is not None):
        name = "d_gates" if d_gates is not None else "d_hidden"
        raise ValueError(f"{name}: got an array with only_start, expected none")
    out = new("d_end", d_end) if out is None else out
    if not only_start:
        d_gates = new("gates", gates) if d_gates is None else d_gates
        d_hidden = new("u", u) if d_hidden is None else d_hidden
    threads = 0 if threads is None else threads
    given = (u, gates, weight, bias, d_end, d_every, stream, threads, precision_code(precision))
    _core.relax_gru_adjoint(out, d_gates, d_hidden, *given)
    return out if only_start else (out, d_gates, d_hidden)


def newton_gru(
    u: Array,
    products: Array,
    gates: Array,
    diagonal: Array,
    bias: Array | None = None,
    *,
    factor: float = 1.0,
    jacobians: Array | None = None,
    residuals: Array | None = None,
    updates: Array | None = None,
    out: Array | None = None,
    stream: Any = None,
    threads: int | None = None,
) -> Array:
    """``u_new[i+1] = F(u[i]) + J[i] (u_new[i] - u[i])``: an iteration of Newton's method on a chain of these units.

    ``F`` is the step of :func:`relax_gru` and ``J`` the diagonal of its Jacobian times ``factor``; ``d = u_new - u`` is
    the solution of ``d[i+1] = J[i] d[i] + (F(u[i]) - u[i+1])``, ``d[0] = 0``, in the order of
    :func:`pyparareal.ops.scan_diag` (quasi-DEER: X. Gonzalez et al., NeurIPS 2024, arXiv:2407.19115). Steps, Jacobians
    and ``d`` are nowhere stored: every operand passes through memory once, or where threads share the steps of a few
    lanes, twice. The bits depend on neither threads nor device. Where states are final, ``d`` is zero and they stay as
    they are, bit for bit.

    The products with the weights are the caller's, by one large matrix product (``torch.mm``, cuBLAS), which no fusion
    improves; their bits are those of that library, and so are those of ``F``.

    Parameters
    ----------
    u : array [steps + 1, batch..., hidden]
        The start, and a guess of the states that follow, of 2 to 7 axes, float64 or float32.
    products : array [steps, batch..., 3 hidden]
        ``u[:-1] @ weight.T``. Any strides; those of the last axis are best 1.
    gates : array, like ``products``
        The input sides of ``r``, ``z`` and ``n``.
    diagonal : array [3, hidden]
        The diagonals of ``W_r``, ``W_z`` and ``W_n``.
    bias : array [hidden], optional
        As of :func:`relax_gru`.
    factor : float
        Damping of ``J``: 1 is none, 0 the Jacobi iteration.
    jacobians : array [steps, batch..., hidden], optional
        Receives the diagonals, without ``factor``.
    residuals, updates : array float64 [steps], optional
        Receive the largest ``|F(u[i]) - u[i+1]|`` and ``|d[i+1]|`` of every step, in the dtype of ``u``.
    out : array [steps, batch..., hidden], optional
        ``u_new[1:]``. Like all outputs it has no element in common with another operand. Allocated if absent.
    stream, threads : see :mod:`pyparareal.ops`; None is 0.
    """
    if out is None:
        steps = tuple(getattr(u, "shape", ()))[:1]
        out = new("u", u, max(0, steps[0] - 1) if steps else None)
    given = (stream, 0 if threads is None else threads)
    _core.newton_gru(out, jacobians, residuals, updates, u, products, gates, diagonal, bias, factor, *given)
    return out
