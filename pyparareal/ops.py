# SPDX-License-Identifier: BSD-3-Clause
"""The kernels on any array: NumPy, torch and CuPy arrays, and any object with ``__dlpack__``.

Each op has the name and meaning of its plain reference in :mod:`pyparareal.reference` and gives the
same bits. States are ``[slices, batch, features...]`` of float64, float32, float16 or bfloat16, time
axis first; norms are float64 ``[slices]``. All arrays of a call have one dtype and one device.
The relaxations, ``relax_*``, are described in :mod:`pyparareal.relax_ops`, :mod:`pyparareal.mlp_ops`,
:mod:`pyparareal.gru_ops` and :mod:`pyparareal.dense_ops`, the scans in :mod:`pyparareal.scan_ops`.

Common arguments
----------------
out : array, optional
    Written in place and returned. May be the same view as an input; any other overlap is refused.
    Allocated if absent.
stream : optional
    CUDA only: ``None`` is the caller's current stream, else an object with ``__cuda_stream__`` or a
    non-negative int. The call is asynchronous with respect to the host.
threads : int
    CPU only: 0 follows ``torch.get_num_threads()`` where torch is loaded, else the OpenMP default.
    A forked child process runs on one thread, because the OpenMP team does not survive a fork.

The bits depend on none of these. They do depend on the calling thread's rounding of subnormal numbers
(``torch.set_flush_denormal``), as those of every other CPU library do.

Raises
------
TypeError
    Wrong kind of argument or dtype. The message names the argument, what it got and what was expected.
ValueError
    Wrong shape, device, stream or value, a tensor that requires grad (use ``torch.ops.pyparareal``),
    an output that is read-only, repeats elements or overlaps an input partially. Nothing is written.
CudaError
    A kernel could not be launched.
"""

from __future__ import annotations

import operator
from typing import Any

from pyparareal import _core, _outputs
from pyparareal.arrays import Array
from pyparareal.dense_ops import relax_dense as relax_dense
from pyparareal.dense_ops import relax_dense_adjoint as relax_dense_adjoint
from pyparareal.gru_ops import newton_gru as newton_gru
from pyparareal.gru_ops import relax_gru as relax_gru
from pyparareal.gru_ops import relax_gru_adjoint as relax_gru_adjoint
from pyparareal.mlp_ops import relax_mlp_sgd as relax_mlp_sgd
from pyparareal.relax_ops import relax_diagonal as relax_diagonal
from pyparareal.relax_ops import relax_rk as relax_rk
from pyparareal.relax_ops import relax_stencil as relax_stencil
from pyparareal.relax_ops import relax_tridiagonal as relax_tridiagonal
from pyparareal.scan_ops import scan_block as scan_block
from pyparareal.scan_ops import scan_diag as scan_diag


def parareal_update(
    f_old: Array,
    g_new: Array,
    g_old: Array,
    u_old: Array | None = None,
    *,
    norm: str = "sum_squares",
    out: Array | None = None,
    jump: Array | None = None,
    stream: Any = None,
    threads: int = 0,
) -> Any:
    """``u = f_old + (g_new - g_old)``: the parareal correction, bracket first.

    The bracket is exactly zero once the state left of a slice has converged, so ``u`` is then bitwise
    the fine solution, but for the sign of a zero (Lions, Maday, Turinici 2001). The pair step of FAS,
    ``F_i + (Phi_c(u[i-1]) - G_i)``, is the same op.

    Parameters
    ----------
    f_old : array [slices, batch, features...]
        Fine propagation of the *old* states.
    g_new, g_old : array, like ``f_old``
        Coarse propagation of the *new* and of the *old* states.
    u_old : array, like ``f_old``, optional
        Old states. If given, the norm of the jump ``u - u_old`` is computed in the same pass.
    norm : {"sum_squares", "sum_abs", "max_abs"}
        What ``jump`` holds per slice.
    jump : array float64 [slices], optional
        Written in place; only with ``u_old``. Allocated if absent.
    out, stream, threads : see the module.

    Returns
    -------
    u : array, like ``f_old``
    jump : array float64 [slices]
        Only if ``u_old`` is given: then the result is the pair ``(u, jump)``.
    """
    kind = _outputs.norm_code(norm)
    if out is None:
        out = _outputs.new("f_old", f_old)
    if u_old is None:
        _core.parareal_update(out, f_old, g_new, g_old, None, jump, 0, stream, threads)
        return out
    if jump is None:
        jump = _outputs.new_norms("f_old", f_old)
    _core.parareal_update(out, f_old, g_new, g_old, u_old, jump, kind, stream, threads)
    return out, jump


def slice_norms(
    u: Array,
    u_old: Array | None = None,
    *,
    norm: str = "sum_squares",
    out: Array | None = None,
    stream: Any = None,
    threads: int = 0,
) -> Array:
    """``sum |d|^2``, ``sum |d|`` or ``max |d|`` of ``d = u - u_old`` (or of ``u``) per slice.

    Sums are float64 over a fixed tree, so the bits depend neither on threads nor on the device.
    ``sum_squares`` is not rooted, so that partial results combine. A NaN in a slice gives NaN.

    Parameters
    ----------
    u : array [slices, batch, features...]
    u_old : array, like ``u``, optional
    norm : {"sum_squares", "sum_abs", "max_abs"}
    out : array float64 [slices], optional
    stream, threads : see the module.

    Returns
    -------
    array float64 [slices]
    """
    kind = _outputs.norm_code(norm)
    if out is None:
        out = _outputs.new_norms("u", u)
    _core.slice_norms(out, u, u_old, kind, stream, threads)
    return out


def extract(
    u: Array,
    *,
    start: int = 0,
    step: int,
    count: int | None = None,
    out: Array | None = None,
    stream: Any = None,
    threads: int = 0,
) -> Array:
    """``v[j] = u[start + j * step]``: restriction by injection, the states at the points of a coarse grid.

    ``R_I`` of Schroder 2017, Algorithm 1, step 2.

    Parameters
    ----------
    u : array [slices, batch, features...]
    start, step : int
        First point and coarsening factor ``m``, ``0 <= start``, ``step >= 1``.
    count : int, optional
        Number of points; default: all that fit.
    out : array [count, batch, features...], optional
    stream, threads : see the module.

    Returns
    -------
    v : array [count, batch, features...]
    """
    if out is None:
        out = _outputs.new("u", u, _count_points(u, start, step, count))
    elif count is not None and _shape("out", out)[0] != count:
        raise ValueError(f"count: got {count!r}, expected {out.shape[0]}, the slices of out")
    _core.extract(out, u, start, step, stream, threads)
    return out


def inject(v: Array, u: Array, *, start: int = 0, step: int, stream: Any = None, threads: int = 0) -> Array:
    """``u[start + j * step] = v[j]``, in place: coarse states are assigned, the other points of ``u`` untouched.

    Parameters
    ----------
    v : array [points, batch, features...]
    u : array [slices, batch, features...]
        Written in place and returned.
    start, step : int
        First point and coarsening factor ``m``, ``0 <= start``, ``step >= 1``.
    stream, threads : see the module.
    """
    _core.inject(u, v, start, step, stream, threads)
    return u


def c_relax(
    phi: Array, u: Array, omega: float, *, out: Array | None = None, stream: Any = None, threads: int = 0
) -> Array:
    """``u_new = omega * phi + (1 - omega) * u``: weighted Jacobi relaxation of the C-points.

    At ``omega = 1`` the result is ``phi`` itself, bit for bit, whatever ``u`` holds.

    Parameters
    ----------
    phi : array [slices, batch, features...]
        The step from the left neighbours, ``Phi(u[i-1]) + g[i]``.
    u : array, like ``phi``
        Old C-point states.
    omega : float
        Finite weight; 1 is unweighted relaxation.
    out, stream, threads : see the module.
    """
    if out is None:
        out = _outputs.new("phi", phi)
    _core.c_relax(out, phi, u, omega, stream, threads)
    return out


def _shape(argument: str, u: Array) -> tuple[int, ...]:
    shape = tuple(getattr(u, "shape", ()))
    if not shape:
        _outputs.refuse_unknown(argument, u)
        raise ValueError(f"{argument}: got 0 axes, expected 1 to 8: [slices, batch, features...]")
    return shape


def _integer(argument: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{argument}: got {type(value).__name__}, expected an int") from None


def _count_points(u: Array, start: int, step: int, count: int | None) -> int:
    slices = _shape("u", u)[0]
    start, step = _integer("start", start), _integer("step", step)
    if step < 1:
        raise ValueError(f"step: got {step}, expected 1 or more")
    if start < 0:
        raise ValueError(f"start: got {start}, expected 0 or more")
    room = len(range(start, slices, step))
    if count is None:
        return room
    if not 0 <= _integer("count", count) <= room:
        raise ValueError(f"count: got {count}, expected 0 to {room}, the points of u from {start} in steps of {step}")
    return count
