# SPDX-License-Identifier: BSD-3-Clause
"""The relaxations: all steps ``u <- Phi(u)`` of every slice in one call, which returns the end states.

Their arrays are float64 or float32: with 16 bits every step would round. Names of :mod:`pyparareal.ops` too, where
the other arguments and the errors are described.

Common arguments
----------------
m : int
    Steps, at least 1.
f, g : array [slices, m, batch, features...], optional
    Right-hand sides of every step: ``u <- Phi(u) + f[:, j]``, and with both the pair step of FAS, bracket first,
    ``u <- f[:, j] + (Phi(u) - g[:, j])``.
every : array [slices, k, batch, features...], optional
    Receives the state after every step where ``k = m``; where ``k`` divides ``m``, after ``m / k`` steps, after
    ``2 m / k``, and so on to the last. A strided view will do. May be the same view as ``f`` or ``g``. Where it is
    given and ``out`` is not, it is returned, and the end states are ``every[:, -1]``.
target : array, like ``u``, optional
    What the end states are compared with; shares no element with ``out`` and ``every``. As ``c[1:]`` where ``u`` is
    ``c[:-1]``: the residuals at the C-points.
norms : array float64 [slices], contiguous
    With ``target``, and only then. Receives ``slice_norms(end, target, norm=norm)`` of the end states, bit for bit,
    computed while they are in cache.
norm : {"sum_squares", "sum_abs", "max_abs"}
    Of ``norms``: see :func:`pyparareal.ops.slice_norms`.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from typing import Any

from pyparareal import _core
from pyparareal._outputs import new, norm_code
from pyparareal.arrays import Array
from pyparareal.cuda_slopes import CudaSlope
from pyparareal.reference import UniformTimes
from pyparareal.slopes import SlopeFunction, length

# Code and number of parameters.
_RIGHT_HAND_SIDES = {
    "dahlquist": (0, 1),
    "lorenz": (1, 3),
    "brusselator": (2, 2),
    "fitzhugh_nagumo": (3, 3),
    "van_der_pol": (4, 1),
    "arenstorf": (5, 1),
}


def relax_diagonal(
    u: Array,
    a: Array,
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
    threads: int = 0,
) -> Array:
    """All ``m`` steps ``u <- a * u`` of every slice.

    Parameters
    ----------
    u : array [slices, batch, features...]
        Start states, of 2 to 7 axes.
    a : array, like the last axes of ``u``
    m, f, g, every, target, norms, norm, out : see the module.
    """
    if out is None and every is None:
        out = new("u", u)
    _core.relax_diagonal(out, u, a, m, f, g, every, target, norms, norm_code(norm), stream, threads)
    return every if out is None else out


def relax_tridiagonal(
    u: Array,
    ratio: Array,
    scale: Array,
    coupling: Array,
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
    threads: int = 0,
) -> Array:
    """All ``m`` implicit steps ``T u_next = u`` of every slice, ``T`` tridiagonal along the last axis.

    Elimination from both ends towards the middle, then substitution outwards: two recurrences, each of half the
    length, with the factors of :func:`pyparareal.reference.factorise_tridiagonal`; the order of operations is that of
    :func:`pyparareal.reference.solve_tridiagonal`.

    Parameters
    ----------
    u : array [slices, batch..., n]
        Start states, of 2 to 7 axes.
    ratio, scale, coupling : array [n], contiguous
    m, f, g, every, target, norms, norm, out : see the module.
    """
    if out is None and every is None:
        out = new("u", u)
    _core.relax_tridiagonal(
        out, u, ratio, scale, coupling, m, f, g, every, target, norms, norm_code(norm), stream, threads
    )
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
    target: Array | None = None,
    norms: Array | None = None,
    norm: str = "sum_squares",
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
    m, f, g, every, target, norms, norm, out : see the module.
    """
    if boundary not in ("zero", "periodic"):
        raise ValueError(f"boundary: got {boundary!r}, expected zero or periodic")
    if out is None and every is None:
        out = new("u", u)
    _core.relax_stencil(
        out, u, weights, int(boundary == "periodic"), m, f, g, every, target, norms, norm_code(norm), stream, threads
    )
    return every if out is None else out


def relax_rk(
    u: Array,
    rhs: str | SlopeFunction | CudaSlope,
    parameters: Sequence[float],
    tableau: Any,
    dt: Any,
    m: int,
    *,
    substeps: int = 1,
    times: Any = None,
    f: Array | None = None,
    g: Array | None = None,
    every: Array | None = None,
    target: Array | None = None,
    norms: Array | None = None,
    norm: str = "sum_squares",
    out: Array | None = None,
    stream: Any = None,
    threads: int = 0,
) -> Array:
    """All ``m`` explicit Runge-Kutta steps of ``u' = rhs(t, u)`` of every slice, as ``propagators.RungeKutta`` rounds.

    Parameters
    ----------
    u : array [slices, batch..., components]
        Start states, of 2 to 7 axes.
    rhs : {"dahlquist", "lorenz", "brusselator", "fitzhugh_nagumo", "van_der_pol", "arenstorf"}, or one's own
        The equations and their parameters are in :data:`pyparareal.reference.RIGHT_HAND_SIDES`. One's own is a
        :class:`.SlopeFunction` on the CPU and a :class:`.CudaSlope` on a CUDA device, where ``threads`` is unused.
    parameters : sequence of float
        In one's own right-hand side as many as it reads, which is checked where it says how many; rounded to the dtype
        of ``u``; 64 at most on a CUDA device.
    tableau : Tableau
        Anything with Butcher's ``a``, ``b`` and, for one's own right-hand side, ``c``; at most 11 stages; from
        :mod:`pyparareal.tableaux`.
    dt : float, or array float64 [slices, m]
        Step size, or that of every step. Any strides.
    substeps : int
        Parts that every step is cut into.
    times : array float64 [slices, m], or UniformTimes, optional
        Where every step starts, for one's own right-hand side; without it ``t`` is NaN there.
    m, f, g, every, target, norms, norm, out : see the module.
    """
    code = _code_of(rhs, parameters, times)
    scheme, times = _scheme(tableau, isinstance(rhs, str)), _times(times)
    if isinstance(dt, bool):
        raise TypeError("dt: got bool, expected a float or an array")
    if isinstance(dt, numbers.Real):
        dt = float(dt)
    if out is None and every is None:
        out = new("u", u)
    given = (parameters, scheme, dt, m, substeps, times, f, g, every, target, norms, norm_code(norm), stream)
    if isinstance(rhs, CudaSlope):
        rhs.relax(out, u, *given)
    else:
        _core.relax_rk(out, u, code, *given, threads)
    return every if out is None else out


def _code_of(rhs: Any, parameters: Sequence[float], times: Any) -> Any:
    """What ``_core`` calls this right-hand side; None for one on a CUDA device."""
    given = length("parameters", parameters)
    if isinstance(rhs, CudaSlope):
        return rhs.check_parameters(given)
    if isinstance(rhs, SlopeFunction):
        rhs.check_parameters(given)
        return rhs.address, int(rhs.dtype == "float32"), rhs.lanes, rhs.components
    if not isinstance(rhs, str) or rhs not in _RIGHT_HAND_SIDES:
        expected = f"{', '.join(_RIGHT_HAND_SIDES)}, a SlopeFunction or a CudaSlope"
        raise ValueError(f"rhs: got {rhs!r}, expected one of {expected}")
    code, count = _RIGHT_HAND_SIDES[rhs]
    if given != count:
        raise ValueError(f"parameters: got {given} numbers, expected {count} for {rhs}")
    if times is not None:
        raise ValueError(f"times: got {type(times).__name__}, expected None: {rhs} does not depend on the time")
    return code


def _scheme(tableau: Any, timeless: bool) -> tuple[Any, Any, Any]:
    """Butcher's a, b and, unless the right-hand side is timeless, c."""
    a, b = getattr(tableau, "a", None), getattr(tableau, "b", None)
    try:
        uneven = len(a) != len(b) or any(len(row) != i for i, row in enumerate(a))  # type: ignore[arg-type]
    except TypeError:
        kind = type(tableau).__name__
        raise TypeError(
            f"tableau: got {kind} with a={a!r}, b={b!r}, expected Butcher's a and b, as in a Tableau"
        ) from None
    if uneven:
        raise ValueError(
            "tableau: expected as many rows of a as weights b, row i with the i numbers left of the diagonal"
        )
    if timeless:
        return a, b, None
    nodes = getattr(tableau, "c", None)
    if not hasattr(nodes, "__len__") or len(nodes) != len(b):  # type: ignore[arg-type]
        raise ValueError(f"tableau.c: got {nodes!r}, expected {len(b)} numbers for one's own right-hand side")  # type: ignore[arg-type]
    return a, b, nodes


def _times(times: Any) -> Any:
    """``times``, those of a uniform grid as the tuple that ``_core`` takes."""
    if not isinstance(times, tuple):
        return times
    if not isinstance(times, UniformTimes):
        raise TypeError(f"times: got {type(times).__name__}, expected an array or UniformTimes")
    try:
        values = float(times.t0), float(times.span), *map(operator.index, times[2:])
    except (TypeError, ValueError):
        raise TypeError(f"times: got {times}, expected t0 and span as floats and the rest as ints") from None
    if times.steps < 1:
        raise ValueError(f"times: got {times}, expected 1 step or more")
    return values
