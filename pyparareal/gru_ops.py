# SPDX-License-Identifier: BSD-3-Clause
"""The gated recurrent unit as a relaxation: all steps of every slice in one call, and their transpose.

Names of :mod:`pyparareal.ops` too, where the other arguments and the errors are described; ``m``, ``f``, ``g``,
``every``, ``target``, ``norms``, ``norm`` and ``out`` are those of :mod:`pyparareal.relax_ops`. With one slice it is
the ordinary serial recurrence, fused.

The arrays have the layout of ``torch.nn.GRU``: of its ``x [T, batch, input]``, ``gates [T, batch, 3 hidden]`` is
``x @ weight_ih.T + bias_ih``, with the first two thirds of ``bias_hh`` added to the first two thirds; ``weight`` is
``weight_hh``, ``bias`` the last third of ``bias_hh``. A view ``[slices, m, batch, 3 hidden]`` of it cuts it into
slices.
"""

from __future__ import annotations

from typing import Any

from pyparareal import _core
from pyparareal._outputs import new, norm_code
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
) -> Array:
    """All ``m`` steps ``h <- n + z (h - n)`` of every slice, with the gates of ``torch.nn.GRU``.

    ``r = s(gates_r + W_r h)``, ``z = s(gates_z + W_z h)``, ``n = tanh(gates_n + r (W_n h + bias))``, ``s`` the sigmoid
    (Cho et al. 2014, equations 5 to 8, with the reset gate after the product). Where ``z`` is 1, as for ``gates_z`` of
    infinity, a step keeps the state bit for bit. The bits of a row do not depend on the others, on threads or on the
    device.

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
    """
    if out is None and every is None:
        out = new("u", u)
    given = (f, g, every, target, norms, norm_code(norm), stream, 0 if threads is None else threads)
    _core.relax_gru(out, u, gates, weight, bias, m, *given)
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
    _core.relax_gru_adjoint(out, d_gates, d_hidden, u, gates, weight, bias, d_end, d_every, stream, threads)
    return out if only_start else (out, d_gates, d_hidden)
