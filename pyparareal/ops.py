# SPDX-License-Identifier: BSD-3-Clause
"""The kernels on any array: NumPy, torch and CuPy arrays, and any object with ``__dlpack__``.

Each op has the name and meaning of its plain reference in :mod:`pyparareal.reference` and gives the
same bits. States are ``[slices, batch, features...]`` of float64, float32, float16 or bfloat16, time
axis first; norms are float64 ``[slices]``. All arrays of a call have one dtype and one device.

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

Relaxations
-----------
``relax_*`` take all steps ``u <- Phi(u)`` of every slice in one call and return the end states. Their arrays are
float64 or float32: with 16 bits every step would round.

m : int
    Steps, at least 1.
f, g : array [slices, m, batch, features...], optional
    Right-hand sides of every step: ``u <- Phi(u) + f[:, j]``, and with both the pair step of FAS, bracket first,
    ``u <- f[:, j] + (Phi(u) - g[:, j])``.
every : array [slices, m, batch, features...], optional
    Receives the state after every step; a strided view will do. May be the same view as ``f`` or ``g``. Where it is
    given and ``out`` is not, it is returned, and the end states are ``every[:, -1]``.

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

import numbers
import operator
from collections.abc import Sequence
from typing import Any

from pyparareal import _core
from pyparareal.arrays import Array, empty, empty_like, namespace

_NORMS = {"sum_squares": 0, "sum_abs": 1, "max_abs": 2}

# Code and number of parameters.
_RIGHT_HAND_SIDES = {
    "dahlquist": (0, 1),
    "lorenz": (1, 3),
    "brusselator": (2, 2),
    "fitzhugh_nagumo": (3, 3),
    "van_der_pol": (4, 1),
    "arenstorf": (5, 1),
}


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
    kind = _norm_code(norm)
    if out is None:
        out = _new("f_old", f_old)
    if u_old is None:
        _core.parareal_update(out, f_old, g_new, g_old, None, jump, 0, stream, threads)
        return out
    if jump is None:
        jump = _new_norms("f_old", f_old)
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
    kind = _norm_code(norm)
    if out is None:
        out = _new_norms("u", u)
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
        out = _new("u", u, _count_points(u, start, step, count))
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
        out = _new("phi", phi)
    _core.c_relax(out, phi, u, omega, stream, threads)
    return out


def relax_diagonal(
    u: Array,
    a: Array,
    m: int,
    *,
    f: Array | None = None,
    g: Array | None = None,
    every: Array | None = None,
    out: Array | None = None,
    stream: Any = None,
    threads: int = 0,
) -> Array:
    """All ``m`` steps ``u <- a * u`` of every slice.

    Parameters
    ----------
    u : array [slices, batch, features...]
        Start states, of 2 to 7 axes.
    a : array, like the last axes of ``u``
    m, f, g, every, out : see the module: relaxations.
    """
    out = _end_states(u, every, out)
    _core.relax_diagonal(out, u, a, m, f, g, every, stream, threads)
    return every if out is None else out


def relax_tridiagonal(
    u: Array,
    ratio: Array,
    pivot_inverse: Array,
    upper: Array,
    m: int,
    *,
    f: Array | None = None,
    g: Array | None = None,
    every: Array | None = None,
    out: Array | None = None,
    stream: Any = None,
    threads: int = 0,
) -> Array:
    """All ``m`` implicit steps ``T u_next = u`` of every slice, ``T`` tridiagonal along the last axis.

    Thomas' algorithm with the factors of :func:`pyparareal.reference.factorise_tridiagonal`:
    ``x[i] -= ratio[i] x[i-1]`` upwards, ``x[i] = (x[i] - upper[i] x[i+1]) pivot_inverse[i]`` downwards.

    Parameters
    ----------
    u : array [slices, batch..., n]
        Start states, of 2 to 7 axes.
    ratio, pivot_inverse, upper : array [n], contiguous
    m, f, g, every, out : see the module: relaxations.
    """
    out = _end_states(u, every, out)
    _core.relax_tridiagonal(out, u, ratio, pivot_inverse, upper, m, f, g, every, stream, threads)
    return every if out is None else out


def relax_stencil(
    u: Array,
    weights: Array,
    m: int,
    *,
    boundary: str = "zero",
    f: Array | None = None,
    g: Array | None = None,
    every: Array | None = None,
    out: Array | None = None,
    stream: Any = None,
    threads: int = 0,
) -> Array:
    """All ``m`` explicit steps ``u_next[i] = sum_k weights[k] u[i + k - r]`` of every slice, summed from left to right.

    Parameters
    ----------
    u : array [slices, batch..., n]
        Start states, of 2 to 7 axes.
    weights : array [2 r + 1], contiguous
        At most 9.
    boundary : {"zero", "periodic"}
        What the state is beyond the ends of the last axis.
    m, f, g, every, out : see the module: relaxations.
    """
    if boundary not in ("zero", "periodic"):
        raise ValueError(f"boundary: got {boundary!r}, expected zero or periodic")
    out = _end_states(u, every, out)
    _core.relax_stencil(out, u, weights, int(boundary == "periodic"), m, f, g, every, stream, threads)
    return every if out is None else out


def relax_rk(
    u: Array,
    rhs: str,
    parameters: Sequence[float],
    tableau: Any,
    dt: Any,
    m: int,
    *,
    substeps: int = 1,
    f: Array | None = None,
    g: Array | None = None,
    every: Array | None = None,
    out: Array | None = None,
    stream: Any = None,
    threads: int = 0,
) -> Array:
    """All ``m`` explicit Runge-Kutta steps of ``u' = rhs(u)`` of every slice; bits as of ``propagators.RungeKutta``.

    Parameters
    ----------
    u : array [slices, batch..., components]
        Start states, of 2 to 7 axes.
    rhs : {"dahlquist", "lorenz", "brusselator", "fitzhugh_nagumo", "van_der_pol", "arenstorf"}
        The equations and their parameters are in :data:`pyparareal.reference.RIGHT_HAND_SIDES`.
    parameters : sequence of float
    tableau : Tableau
        Anything with Butcher's ``a`` and ``b``, at most 11 stages; from :mod:`pyparareal.tableaux`.
    dt : float, or array float64 [slices, m]
        Step size, or that of every step. Any strides.
    substeps : int
        Parts that every step is cut into.
    m, f, g, every, out : see the module: relaxations.
    """
    if rhs not in _RIGHT_HAND_SIDES:
        raise ValueError(f"rhs: got {rhs!r}, expected one of {', '.join(_RIGHT_HAND_SIDES)}")
    code, count = _RIGHT_HAND_SIDES[rhs]
    if len(parameters) != count:
        raise ValueError(f"parameters: got {len(parameters)} numbers, expected {count} for {rhs}")
    if len(tableau.a) != len(tableau.b) or any(len(row) != i for i, row in enumerate(tableau.a)):
        raise ValueError(
            "tableau: expected as many rows of a as weights b, row i with the i numbers left of the diagonal"
        )
    if isinstance(dt, numbers.Real):
        dt = float(dt)
    out = _end_states(u, every, out)
    _core.relax_rk(out, u, code, parameters, tableau.a, tableau.b, dt, m, substeps, f, g, every, stream, threads)
    return every if out is None else out


def _end_states(u: Array, every: Array | None, out: Array | None) -> Array | None:
    """Where the end states go: to ``out``; nowhere where only ``every`` is given."""
    return _new("u", u) if out is None and every is None else out


def _norm_code(norm: str) -> int:
    try:
        return _NORMS[norm]
    except (KeyError, TypeError):
        raise ValueError(f"norm: got {norm!r}, expected one of {', '.join(_NORMS)}") from None


def _new(argument: str, like: Array, slices: int | None = None) -> Array:
    try:
        return empty_like(like, slices)
    except (AttributeError, TypeError):
        _refuse_unknown(argument, like)
        raise


def _new_norms(argument: str, like: Array) -> Array:
    try:
        return empty(like, tuple(like.shape[:1]), "float64")
    except (AttributeError, TypeError):
        _refuse_unknown(argument, like)
        raise


def _refuse_unknown(argument: str, like: Array) -> None:
    try:
        namespace(like)
    except TypeError as error:
        raise TypeError(f"{argument}: {error}") from None


def _shape(argument: str, u: Array) -> tuple[int, ...]:
    shape = tuple(getattr(u, "shape", ()))
    if not shape:
        _refuse_unknown(argument, u)
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
