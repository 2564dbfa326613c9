# SPDX-License-Identifier: BSD-3-Clause
"""The kernels in plain NumPy: the specification, and the oracle of every kernel test.

One function per op of ``ops.h``, with the same name and the same arguments. No tricks: each body
can be checked against the paper by eye. The CPU and CUDA kernels reproduce these results bit for bit,
because the order of every sum is part of the specification:

* a slice is cut into chunks of ``CHUNK`` elements, a chunk into ``LANES`` interleaved lanes;
* a lane is summed from left to right, the lanes of a chunk by folding halves (:func:`fold`);
* the chunks of a slice, and later the slices of a grid, by the fixed binary tree of :func:`tree_sum`.

The sums of ``relax_mlp_sgd``, ``relax_gru`` and ``relax_dense`` have the order of their index, see
:mod:`pyparareal.reference_mlp`, :mod:`pyparareal.reference_gru` and :mod:`pyparareal.reference_dense`.
The order of the scans is that of :mod:`pyparareal.reference_scan`.
No thread count, stream count or rank count appears in that list.

Letters (fixed in ``ops.h``): ``u`` state, ``f`` fine-propagated, ``g`` coarse-propagated,
``v`` restricted state, ``omega`` C-weight, ``m`` coarsening factor, ``n`` slice.
State arrays are ``[slices, batch, features...]``, time axis first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pyparareal.reference_dense import dense_step, dense_step_adjoint
from pyparareal.reference_gru import gru_step
from pyparareal.reference_gru import newton_gru as newton_gru
from pyparareal.reference_gru import relax_gru_adjoint as relax_gru_adjoint
from pyparareal.reference_mlp import sgd_step
from pyparareal.reference_rhs import RIGHT_HAND_SIDES as RIGHT_HAND_SIDES
from pyparareal.reference_scan import scan_block as scan_block
from pyparareal.reference_scan import scan_diag as scan_diag

Array = np.ndarray[Any, np.dtype[Any]]

LANES = 64
CHUNK = 1024

NORMS = ("sum_squares", "sum_abs", "max_abs")


def parareal_update(
    f_old: Array, g_new: Array, g_old: Array, u_old: Array | None = None, *, norm: str = "sum_squares"
) -> Any:
    """``u = f_old + (g_new - g_old)``; with ``u_old`` also the norm of the jump ``u - u_old`` per slice.

    The bracket comes first: it is exactly zero once the state left of a slice has converged, so ``u``
    is then bitwise the fine solution. The pair step of FAS, ``F_i + (Phi_c(u[i-1]) - G_i)``, is the
    same formula. Arithmetic is done in the array's dtype, in float32 for 16-bit dtypes.
    """
    dtype = compute_dtype(f_old)
    u = f_old.astype(dtype) + (g_new.astype(dtype) - g_old.astype(dtype))
    u = u.astype(f_old.dtype)
    return u if u_old is None else (u, slice_norms(u, u_old, norm=norm))


def slice_norms(u: Array, u_old: Array | None = None, *, norm: str = "sum_squares") -> Array:
    """``sum |d|^2``, ``sum |d|`` or ``max |d|`` of ``d = u - u_old`` (or ``u``) per slice, float64 ``[slices]``.

    Differences, squares and sums are float64 for every dtype. ``sum_squares`` is not rooted, so that
    partial results of several ranks combine.
    """
    d = u.astype(np.float64) if u_old is None else u.astype(np.float64) - u_old.astype(np.float64)
    d = d.reshape(len(u), math.prod(u.shape[1:]))
    terms = d * d if norm == "sum_squares" else np.abs(d)
    combine = np.maximum if norm == "max_abs" else np.add

    chunks = -(-terms.shape[1] // CHUNK)
    terms = np.pad(terms, ((0, 0), (0, chunks * CHUNK - terms.shape[1])))
    rows = terms.reshape(len(u), chunks, CHUNK // LANES, LANES)
    lanes = np.zeros((len(u), chunks, LANES))
    for row in range(CHUNK // LANES):
        lanes = combine(lanes, rows[:, :, row])
    return tree_sum(np.moveaxis(fold(lanes, combine), 1, 0), combine)


def extract(u: Array, *, start: int = 0, step: int, count: int | None = None) -> Array:
    """``v[j] = u[start + j * step]``: restriction by injection, the states at the points of a coarse grid."""
    v = u[start::step]
    return (v if count is None else v[:count]).copy()


def inject(v: Array, u: Array, *, start: int = 0, step: int) -> Array:
    """``u[start + j * step] = v[j]``, in place: the coarse states are assigned, the other points untouched."""
    u[start : start + step * len(v) : step] = v
    return u


def c_relax(phi: Array, u: Array, omega: float) -> Array:
    """``u_new = omega * phi + (1 - omega) * u``: weighted Jacobi at the C-points; exactly ``phi`` at ``omega = 1``."""
    if omega == 1.0:
        return phi.copy()
    dtype = compute_dtype(u)
    u_new = dtype(omega) * phi.astype(dtype) + dtype(1.0 - omega) * u.astype(dtype)
    return u_new.astype(u.dtype)


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
) -> Array:
    """``m`` steps ``u <- a * u`` of every slice; ``a`` has the shape of the last axes of ``u``.

    All ``relax_*`` take ``m`` steps from the states ``u`` and return the end states. With ``f [slices, m, batch,
    features...]`` step ``j`` is ``u <- Phi(u) + f[:, j]``, with ``f`` and ``g`` it is the pair step of FAS,
    ``u <- f[:, j] + (Phi(u) - g[:, j])``; ``every[:, j]`` receives the state after step ``j``, or of ``every[:, :k]``
    with ``k`` dividing ``m`` each that after ``m / k`` steps more. With
    ``target`` (like ``u``), ``norms`` receives ``slice_norms(end states, target, norm=norm)``.
    """
    return _steps(lambda v, j: a * v, u, m, f, g, every, target, norms, norm)


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
) -> Array:
    """``m`` steps ``T u_next = u`` along the last axis, ``T`` tridiagonal, by :func:`factorise_tridiagonal`."""

    def step(v: Array, j: int) -> Array:
        x = [v[..., i] for i in range(v.shape[-1])]
        return np.stack(solve_tridiagonal(x, ratio, scale, coupling), -1)

    return _steps(step, u, m, f, g, every, target, norms, norm)


def factorise_tridiagonal(lower: Array, diagonal: Array, upper: Array) -> tuple[Array, Array, Array]:
    """``ratio, scale, coupling`` of :func:`solve_tridiagonal`, float64 ``[n]``, for the matrix of these diagonals.

    ``lower`` and ``upper`` are ``[n - 1]``; no pivoting. The twisted factorisation (van der Vorst 1987, "Large
    tridiagonal and block tridiagonal linear systems on vector and parallel computers"): rows are eliminated from both
    ends towards the middle one, ``n // 2``, which comes last. ``scale`` is the inverse pivot, ``coupling`` what is left
    beside the diagonal over the pivot. The ratios of both ends are zero and unused.
    """
    lower, diagonal, upper = (np.asarray(d, dtype=np.float64) for d in (lower, diagonal, upper))
    n, middle = len(diagonal), len(diagonal) // 2
    pivot, ratio, coupling = diagonal.copy(), np.zeros_like(diagonal), np.zeros_like(diagonal)
    for i in range(1, middle):
        ratio[i] = lower[i - 1] / pivot[i - 1]
        pivot[i] = diagonal[i] - ratio[i] * upper[i - 1]
    for i in range(n - 2, middle - 1, -1):
        ratio[i] = upper[i] / pivot[i + 1]
        pivot[i] = diagonal[i] - ratio[i] * lower[i]
    if middle > 0:
        last = lower[middle - 1] / pivot[middle - 1]
        pivot[middle] = pivot[middle] - last * upper[middle - 1]
        coupling[middle] = last / pivot[middle]
    coupling[:middle] = upper[:middle] / pivot[:middle]
    coupling[middle + 1 :] = lower[middle:] / pivot[middle + 1 :]
    return ratio, 1 / pivot, coupling


def solve_tridiagonal(x: list[Any], ratio: Any, scale: Any, coupling: Any) -> list[Any]:
    """``T x = b``, given the elements of ``b`` in ``x``, which become those of the solution; of any array library.

    From both ends towards the middle, ``x[i] -= ratio[i] x[i -+ 1]``; there ``x[i] = scale[i] x[i] - coupling[i]
    x[i-1]``; and outwards, ``x[i] = scale[i] x[i] - coupling[i] x[i +- 1]``. The two halves do not wait for each other,
    nor the first product for the neighbour: of a chain of dependent operations a quarter to a half is left.
    """
    n, middle = len(x), len(x) // 2
    for i in range(1, middle):
        x[i] = x[i] - ratio[i] * x[i - 1]
    for i in range(n - 2, middle - 1, -1):
        x[i] = x[i] - ratio[i] * x[i + 1]
    x[middle] = x[middle] * scale[middle]
    if middle > 0:
        x[middle] = x[middle] - coupling[middle] * x[middle - 1]
    for i in range(middle - 1, -1, -1):
        x[i] = x[i] * scale[i] - coupling[i] * x[i + 1]
    for i in range(middle + 1, n):
        x[i] = x[i] * scale[i] - coupling[i] * x[i - 1]
    return x


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
) -> Array:
    """``m`` steps ``u_next[i] = sum_k weights[k] u[i + k - r]`` along the last axis.

    There are ``2 r + 1`` weights, and the sum goes from left to right. Beyond the ends the state is zero, or
    ``u[i mod n]`` where the boundary is periodic.
    """
    n, r = u.shape[-1], len(weights) // 2

    def step(v: Array, j: int) -> Array:
        if boundary == "periodic":
            wide = v[..., np.arange(-r, n + r) % n]
        else:
            zeros = np.zeros((*v.shape[:-1], r), v.dtype)
            wide = np.concatenate([zeros, v, zeros], -1)
        x = weights[0] * wide[..., :n]
        for k in range(1, len(weights)):
            x = x + weights[k] * wide[..., k : k + n]
        return x

    return _steps(step, u, m, f, g, every, target, norms, norm)


class UniformTimes(NamedTuple):
    """Where steps start on equidistant points ``t0 + span * (i / steps)``: step ``j`` of slice ``n`` at ``i = first +
    n * stride + j``."""

    t0: float
    span: float
    steps: int
    first: int
    stride: int

    def of(self, slices: int, m: int) -> Array:
        """``[slices, m]``, as :meth:`.TimeGrid.times` rounds."""
        i = self.first + self.stride * np.arange(slices)[:, None] + np.arange(m)
        return self.t0 + self.span * (i / self.steps)


def relax_rk(
    u: Array,
    rhs: Any,
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
) -> Array:
    """``m`` explicit Runge-Kutta steps of ``u' = rhs(t, u)``, each cut into ``substeps``.

    The order of operations is that of ``propagators.RungeKutta``.
    ``rhs`` names one of :data:`RIGHT_HAND_SIDES`, or is called as ``rhs(t, u, parameters)``. ``tableau`` has Butcher's
    ``a`` (rows left of the diagonal), ``b`` and ``c``; zeros are left out of the sums. ``dt`` is one number, or float64
    ``[slices, m]``: then coefficients times step size are products in the dtype of ``u``, else float64 products rounded
    once. ``times``, float64 ``[slices, m]`` or :class:`UniformTimes`, are where the steps start; unknown, they are NaN.
    """
    named = isinstance(rhs, str)
    begins = times.of(len(u), m) if isinstance(times, UniformTimes) else times

    def column(values: Array, j: int) -> Array:
        return values[:, j].reshape(-1, *(1,) * (u.ndim - 1)).astype(u.dtype)

    def step(v: Array, j: int) -> Array:
        h = column(dt / substeps, j) if isinstance(dt, np.ndarray) else dt / substeps
        begin = column(np.full((len(u), m), np.nan) if begins is None else begins, j)
        for s in range(substeps):
            t = begin + s * h if s else begin
            k: list[Array] = []
            for i, row in enumerate(tableau.a):
                w = _plus(v, h, row, k)
                if named:
                    k.append(RIGHT_HAND_SIDES[rhs][2](parameters, w))
                else:
                    k.append(rhs(t + tableau.c[i] * h if tableau.c[i] else t, w, parameters))
            v = _plus(v, h, tableau.b, k)
        return v

    return _steps(step, u, m, f, g, every, target, norms, norm)


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
) -> Array:
    """``m`` steps ``w <- w - alpha dE/dw`` of the weights ``w = u[n]``, ``E`` half the squared error over a batch.

    Slice ``n`` takes the examples ``first[n, j], first[n, j] + 1, ...`` (modulo all), ``count`` of them, in step ``j``;
    without ``first`` all, from 0 on. Schroder 2017, section 2.5: ``syn += alpha l.T @ delta``.
    """
    start = np.zeros((len(u), m), np.int64) if first is None else first
    rates = np.full((len(u), m), alpha) if np.ndim(alpha) == 0 else alpha
    batch = len(x) if first is None else count or 1
    net = (hidden, last, bias)
    return _steps(
        lambda v, j: sgd_step(v, sizes, x, y, rates[:, j], start[:, j], batch, *net),
        u, m, f, g, every, target, norms, norm,
    )  # fmt: skip


def relax_gru(
    u: Array, gates: Array, weight: Array, bias: Array | None, m: int, *, f: Array | None = None,
    g: Array | None = None, every: Array | None = None, target: Array | None = None, norms: Array | None = None,
    norm: str = "sum_squares",
) -> Array:  # fmt: skip
    """``m`` steps of a gated recurrent unit; step ``j`` takes ``gates[:, j]``, see :mod:`pyparareal.reference_gru`."""
    return _steps(
        lambda v, j: gru_step(v, gates[:, j], weight, bias), u, m, f, g, every, target, norms, norm
    )  # fmt: skip


def relax_dense(
    u: Array, weight: Array, bias: Array | None, h: float, m: int, *, activation: str = "tanh",
    slopes: Array | None = None, f: Array | None = None, g: Array | None = None, every: Array | None = None,
    target: Array | None = None, norms: Array | None = None, norm: str = "sum_squares",
) -> Array:  # fmt: skip
    """``m`` steps ``u <- u + h act(W u + b)`` with ``weight[:, j]`` and ``bias[:, j]``; ``slopes[:, j]`` receives
    ``h act'(W u + b)``, see :mod:`pyparareal.reference_dense`."""

    def step(v: Array, j: int) -> Array:
        v, slope = dense_step(v, weight[:, j], None if bias is None else bias[:, j], h, activation)
        if slopes is not None:
            slopes[:, j] = slope
        return v

    return _steps(step, u, m, f, g, every, target, norms, norm)


def relax_dense_adjoint(
    v: Array, weight: Array, slopes: Array, m: int, *, scale: float = 1.0, f: Array | None = None,
    g: Array | None = None, every: Array | None = None, target: Array | None = None, norms: Array | None = None,
    norm: str = "sum_squares",
) -> Array:  # fmt: skip
    """``m`` steps ``v <- v + scale W^T (slopes * v)``, with the weights and slopes of the last step of the last slice
    first."""
    w, s = weight[::-1, ::-1], slopes[::-1, ::-1]
    return _steps(
        lambda v, j: dense_step_adjoint(v, w[:, j], s[:, j], scale), v, m, f, g, every, target, norms, norm
    )  # fmt: skip


def _plus(u: Array, h: Any, coefficients: Sequence[float], k: list[Array]) -> Array:
    """``u + h sum_j c_j k_j``, from left to right, without the zeros."""
    for j, c in enumerate(coefficients):
        if c != 0:
            u = u + (c * h) * k[j]
    return u


def _steps(
    phi: Any,
    u: Array,
    m: int,
    f: Array | None,
    g: Array | None,
    every: Array | None,
    target: Array | None,
    norms: Array | None,
    norm: str,
) -> Array:
    """``m`` steps of ``phi(u, j)``, bracket first where there is a pair of right-hand sides; then the norms."""
    for j in range(m):
        u = phi(u, j)
        if f is not None:
            u = f[:, j] + (u - g[:, j]) if g is not None else u + f[:, j]
        if every is not None and (j + 1) * every.shape[1] % m == 0:
            every[:, (j + 1) * every.shape[1] // m - 1] = u
    if target is not None and norms is not None:
        norms[:] = slice_norms(u, target, norm=norm)
    return u.copy()


def tree_sum(values: Array, combine: Any = np.add) -> Array:
    """Sum over axis 0 by a fixed binary tree: neighbours ``(2i, 2i + 1)`` first, an odd one carried up.

    An aligned block of ``2^j`` values is a subtree, so ranks may exchange the sums of such blocks.
    """
    while (count := len(values)) > 1:
        paired = combine(values[0 : count - 1 : 2], values[1::2])
        values = np.concatenate([paired, values[-1:]]) if count % 2 else paired
    return values[0] if len(values) else np.zeros(values.shape[1:])


def fold(lanes: Array, combine: Any = np.add) -> Array:
    """Sum over the last axis (a power of two) by adding its upper half to its lower half until one is left."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = combine(lanes[..., :half], lanes[..., half:])
    return lanes[..., 0]


def compute_dtype(u: Array) -> type[np.floating[Any]]:
    """The dtype arithmetic is done in: float64 for float64, float32 for everything narrower."""
    return np.float64 if u.dtype == np.float64 else np.float32
