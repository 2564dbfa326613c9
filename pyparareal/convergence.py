# SPDX-License-Identifier: BSD-3-Clause
"""How fast MGRIT converges on a linear chain: ``|e_k| <= |E|^k |e_0|``, and ``|E|`` from eigenvalues.

The chain is ``u[i+1] = Phi_0 u[i] + g[i+1]`` with one matrix ``Phi_0`` for all steps; level ``l`` has a matrix
``Phi_l``. If all of them have the same eigenvectors, each eigenvector ("mode") converges by itself and only its
eigenvalues ``lambda_l``, which may be complex, matter. One cycle multiplies the errors ``e`` at the C-points by ``E``.
Norms of ``E`` are 2-norms in time; in space the 2-norm if the eigenvectors are orthonormal, else that of the
coefficients of the eigenvectors. The factor of the whole is the largest one of its modes.

Two levels: with ``D = lambda_0^m - lambda_1``, the shift ``L`` by one C-point, and ``nu`` extra FC-relaxations (0 is
F-, 1 FCF-, 2 FCFCF-relaxation), ``E = D lambda_0^(m nu) (I - lambda_1 L)^-1 L^(nu+1)``, a lower triangular Toeplitz
matrix. Such matrices commute, so the residuals at the C-points, taken before the relaxation, are multiplied by the
same ``E``.

Sizes: ``n_0 = steps``, ``n_{l+1} = floor(n_l / m_l)`` are the points of a level without the initial one, whose value
is known. The papers count that one, too. Their formulas are used here with ``N_l = n_l``, which is the matrix of the
method as it runs; with ``N_l = n_l + 1`` they bound it as well, a little less sharply. ``E^k = 0`` for two levels once
``k (nu + 1) >= n_1``: no bound shows that, so late cycles are better than bounds say.

Sources: [H] A. Hessenthaler, B. S. Southworth, D. Nordsletten, O. Roehrle, R. D. Falgout, J. B. Schroder, "Multilevel
convergence analysis of multigrid-reduction-in-time", SIAM J. Sci. Comput. 42 (2020), doi 10.1137/19M1238812;
[S] B. S. Southworth, "Necessary conditions and tight two-level convergence bounds for parareal and multigrid reduction
in time", SIAM J. Matrix Anal. Appl. 40 (2019); [D] V. A. Dobrev, T. Kolev, N. A. Petersson, J. B. Schroder, "Two-level
convergence theory for multigrid reduction in time (MGRIT)", SIAM J. Sci. Comput. 39 (2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .checks import choose
from .error_propagation import CYCLES, factors, mode_arrays, sizes_of, sweeps
from .error_propagation import error_propagator as error_propagator
from .error_propagation import matrix_error_propagator as matrix_error_propagator
from .spectra import Spectrum as Spectrum
from .spectra import level_matrices as level_matrices
from .spectra import spectrum as spectrum

Array = Any

TWO_LEVEL = (
    *("exact", "sqrt_1_inf", "asymptotic"),
    *("tight_upper", "tight_lower", "quadratic_upper", "quadratic_lower"),
)
MULTILEVEL = ("exact", "sqrt_1_inf", "submultiplicative")
_ROUNDING = 1e-10  # eigenvalues of a conserved quantity are 1 to the rounding of an eigenvalue solver and of the steps
_ENTRIES = 2**22  # of the matrices E that are held at once: 64 MiB of complex numbers


def two_level_bound(
    lam0: Array, lam1: Array, m: int, steps: int, nu: int = 0, kind: str = "sqrt_1_inf"
) -> np.ndarray[Any, Any]:
    """``|D| |lambda_0|^(m nu) |(I - lambda_1 L)^-1|`` on ``p = floor(steps / m) - 1 - nu`` points, or bounds of it.

    With ``a = |lambda_1|`` the last factor is, or is bounded by,

    ===================  =================================================  ===============================
    kind                 formula                                            source
    ===================  =================================================  ===============================
    ``exact``            ``(1 + a^2 - 2 a cos t)^(-1/2)``, ``t`` the least  singular values of a bidiagonal
                         positive root of ``sin (p+1)t = a sin pt``         matrix, by bisection
    ``sqrt_1_inf``       ``(1 - a^p) / (1 - a)``, root of 1-norm times      [H]; for ``nu`` = 0, 1 also [D]
                         inf-norm; an upper bound
    ``asymptotic``       ``1 / (1 - a)``: all the others for ``steps`` to   [S] Theorem 13
                         infinity; an upper bound
    ``tight_upper``      ``(1 + a^2 + 2 a cos(p pi / (p + 1/2)))^(-1/2)``   [S]
    ``tight_lower``      ``(1 + a^2 + 2 a cos(p pi / (p + 1)))^(-1/2)``     [S]
    ``quadratic_upper``  ``((1 - a)^2 + a pi^2 / (6 (p + 1)^2))^(-1/2)``    [S] eq. (63)
    ``quadratic_lower``  ``((1 - a)^2 + a pi^2 / (p + 1)^2)^(-1/2)``        [S] eq. (63)
    ===================  =================================================  ===============================

    and all but ``asymptotic`` are 0 if ``p`` is. ``tight_upper`` is met in ``a = 1``, both tight ones are in ``a = 0``.
    [S] has the number of C-points for ``p`` in these two. That is an upper bound, too, but from below ``p`` must be the
    size of the matrix that is inverted: ``p = 1``, ``a = 1/2`` gives 1, the formula with 2 for ``p`` gives 1.15.

    Parameters
    ----------
    lam0, lam1 : float or complex arrays, broadcastable
        Eigenvalues of ``Phi_0`` and ``Phi_1`` of the same modes. The papers suppose ``|lambda| < 1``; ``sqrt_1_inf``
        holds for any, ``asymptotic`` is infinite for ``a >= 1``, the others need ``a <= 1``, to which
        ``1 + 1e-10`` is rounded. A mode that both propagators conserve to ``1e-10`` has ``asymptotic`` 0.
    m, steps, nu : int
        Coarsening factor, fine steps, extra FC-relaxations.

    Returns
    -------
    float64 array
        For the errors at the C-points; those at all points are at most :func:`interpolation_norm` times larger than
        the errors at the C-points of the same cycle.
    """
    choose("kind", kind, TWO_LEVEL)
    lams = mode_arrays((lam0, lam1), levels=2)
    (n,), (nu,) = sizes_of(factors(m, 1), steps)[1:], sweeps(nu, 1)
    a, p = np.abs(lams[1]), max(n - 1 - nu, 0)
    if kind not in ("sqrt_1_inf", "asymptotic"):
        if a.size and a.max() > 1 + _ROUNDING:
            raise ValueError(f"lam1: got |lam1| = {a.max()}, expected at most 1 for {kind!r}; sqrt_1_inf holds for any")
        a = np.minimum(a, 1)
    defect = np.abs(lams[0] ** m - lams[1])
    if kind == "asymptotic":
        defect = np.where((a > 1 - _ROUNDING) & (defect < _ROUNDING), 0.0, defect)
    scale = defect * np.abs(lams[0]) ** (m * nu)
    return _times(scale, _bidiagonal_inverse(a, p, kind))


def interpolation_norm(lam0: Array, m: int) -> np.ndarray[Any, Any]:
    """``sqrt((1 - |lambda_0|^(2m)) / (1 - |lambda_0|^2))``: F-relaxation makes F-errors from C-errors, at most so many.

    The 2-norm of ideal interpolation from the C-points to all points of the finest level ([S]).
    """
    (lam,), (m,) = mode_arrays((lam0,), levels=1), factors(m, 1)
    return np.sqrt(_geometric(np.abs(lam) ** 2, m))


def multilevel_bound(
    lams: Sequence[Array],
    m: int | Sequence[int],
    steps: int,
    nu: int | Sequence[int] = 0,
    *,
    cycle: str = "V",
    kind: str = "sqrt_1_inf",
) -> np.ndarray[Any, Any]:
    """``|E|`` of a multilevel cycle, or an upper bound of it; for two levels those of :func:`two_level_bound`.

    Parameters
    ----------
    lams : sequence of arrays, one per level
        Eigenvalues of ``Phi_l``, broadcastable.
    m, nu : int or sequence
        Coarsening factors and extra FC-relaxations, per level but the coarsest, or one for all.
    cycle : {"V", "F", "W"}
        Visits of a level from the one above: one; an F- and then a V-cycle; two.
    kind : {"exact", "sqrt_1_inf", "submultiplicative"}
        The largest singular value of :func:`error_propagator`; ``sqrt(|E|_1 |E|_inf)`` of it, which [H] write out for
        three and four levels and F- and FCF-relaxation; or a bound of that in closed form for any sizes: with ``t_l``
        the two-level factor of level ``l`` for norm ``x``, ``P_l`` ideal interpolation, ``k`` the visits::

            |M_l|_x <= t_l + |P_{l+1}|_x |M_{l+1}|_x^k (|lambda_l|^(m_l nu_l) + t_l),   E = M_0

        because ``M_l = (T_l + P_{l+1} M_{l+1}^k R_{l+1} (I - T_l)) S_l`` with ``T_l`` the two-level matrix for exact
        coarse solves and ``S_l`` the relaxation. The first two take ``n_1^2`` numbers per mode.
    """
    choose("kind", kind, MULTILEVEL)
    choose("cycle", cycle, CYCLES)
    values = mode_arrays(lams)
    ms, nus = factors(m, len(values) - 1), sweeps(nu, len(values) - 1)
    sizes = sizes_of(ms, steps)
    if kind == "submultiplicative":
        return np.sqrt(
            _recursive(values, ms, sizes, nus, cycle, 1) * _recursive(values, ms, sizes, nus, cycle, math.inf)
        )
    shape, flat = values[0].shape, np.stack([v.ravel() for v in values])
    found, chunk = np.empty(flat.shape[1]), max(1, _ENTRIES // sizes[1] ** 2)
    for first in range(0, flat.shape[1], chunk):
        part = slice(first, first + chunk)
        found[part] = _norm(error_propagator(list(flat[:, part]), ms, steps, nus, cycle=cycle), kind)
    return found.reshape(shape)


def multilevel_rate(lams: Sequence[Array], m: int | Sequence[int], steps: int, nu: int = 0) -> np.ndarray[Any, Any]:
    """Approximate ``sqrt(|E|_1 |E|_inf)`` of V-cycles with F- (``nu = 0``) or FCF-relaxation (1); it is no bound.

    With ``D_k = |lambda_k - lambda_0^(m_0) prod_{0<j<k} lambda_j^(m_j - 1)|``, ``g_k(q) = (1 - a_k^q) / (1 - a_k)``,
    ``a_k = |lambda_k|``, ``G = g_c(n_c - 1 - nu)`` for the coarsest level ``c``, sums over ``k = 1 .. c``, F-relaxation
    has::

        |E|_1   ~ sum_k D_k prod_{0<j<=k} g_j(m_j - 1) + |lambda_c|^(n_c - 1) D_c        the last term from 3 levels
        |E|_inf ~ sum_k D_k prod_{k<=j} g_j(m_j),                                       g_c = G in both

    as in [H]; and FCF-relaxation, with products over ``0 < j < c`` unless said otherwise, and ``g_j = g_j(m_j)``::

        |E|_1   ~ a_0^(m_0) (D_1 g_1 + sum_{1<k<c} D_k g_k prod_{j<k} a_j g_j / c
                             + G prod_j a_j g_j sum_{1<k} D_k / c + G D_1 prod_j a_j^(m_j - 1) g_j / c)
        |E|_inf ~ a_0^(m_0) G sum_k D_k prod_{j<k} a_j prod_{j>=k} g_j

    ([H], Approximation 2), where two levels have the last term of ``|E|_1`` alone. [H] have ``N_c - 1`` and ``N_c`` in
    place of ``n_c - 1 - nu``; this way two levels give ``sqrt_1_inf`` of :func:`two_level_bound`. Needs
    ``|lambda_l| < 1``.
    """
    values = mode_arrays(lams)
    ms, (nu,) = factors(m, len(values) - 1), sweeps(nu, 1)
    if nu > 1:
        raise ValueError(f"nu: got {nu}, expected 0 or 1: the approximation is known for F- and FCF-relaxation")
    if max(float(np.abs(v).max(initial=0.0)) for v in values) >= 1:
        raise ValueError("lams: got an eigenvalue of modulus 1 or more, expected |lambda| < 1 on every level")
    sizes = sizes_of(ms, steps)
    last = max(sizes[-1] - 1 - nu, 0)
    columns, rows = (_fcf_sums if nu else _f_sums)(values, ms, last)
    return np.sqrt(columns * rows)


# Formulas


def _bidiagonal_inverse(a: Array, p: int, kind: str) -> Array:
    """``|(I - a L)^-1|`` on ``p`` points, or bounds of it; see :func:`two_level_bound`."""
    if kind == "asymptotic":
        return np.where(a < 1, 1 / np.where(a < 1, 1 - a, 1.0), np.inf)
    if p == 0:
        return np.zeros_like(a)
    if kind == "sqrt_1_inf":
        return _geometric(a, p)
    if kind.startswith("quadratic"):
        c = 6 if kind == "quadratic_upper" else 1
        return 1 / np.sqrt((1 - a) ** 2 + a * math.pi**2 / (c * (p + 1) ** 2))
    # The least eigenvalue of (I - aL)^T (I - aL) is 1 + a^2 - 2 a cos t, with t between the angles for a = 1 and a = 0.
    low, high = np.full_like(a, math.pi / (2 * p + 1)), np.full_like(a, math.pi / (p + 1))
    if kind == "exact":
        for _ in range(60):  # halvings: below the spacing of doubles
            middle = (low + high) / 2
            left = np.sin((p + 1) * middle) > a * np.sin(p * middle)
            low, high = np.where(left, middle, low), np.where(left, high, middle)
    angle = high if kind == "tight_lower" else low
    return 1 / np.sqrt((1 - a) ** 2 + 4 * a * np.sin(angle / 2) ** 2)


def _recursive(
    values: Sequence[Array], ms: Sequence[int], n: Sequence[int], nus: Sequence[int], cycle: str, x: float
) -> Array:
    """The bound ``submultiplicative`` of :func:`multilevel_bound` in the norm ``x``, 1 or infinity."""
    bound: dict[str, Array] = {}
    for level in range(len(ms) - 1, -1, -1):
        below = np.abs(values[level + 1])
        relaxed = np.abs(values[level]) ** (ms[level] * nus[level])
        t = (
            np.abs(values[level] ** ms[level] - values[level + 1])
            * relaxed
            * _geometric(below, max(n[level + 1] - 1 - nus[level], 0))
        )
        if level == len(ms) - 1:
            bound = dict.fromkeys(CYCLES, t)
            continue
        visits = {"V": bound["V"], "F": bound["F"] * bound["V"], "W": bound["W"] ** 2}
        p = _geometric(below, ms[level + 1]) if x == 1 else np.maximum(1, below ** (ms[level + 1] - 1))
        bound = {kind: t + p * visits[kind] * (relaxed + t) for kind in CYCLES}
    return bound[cycle]


def _defects(values: Sequence[Array], ms: Sequence[int]) -> list[Array]:
    """``D_k`` for ``k = 1 .. c`` (index 0 is not used): what level ``k`` misses if relaxation carries all others."""
    ideal, found = values[0] ** ms[0], [np.zeros(0)]
    for k in range(1, len(values)):
        found.append(np.abs(values[k] - ideal))
        if k < len(ms):
            ideal = ideal * values[k] ** (ms[k] - 1)
    return found


def _f_sums(values: Sequence[Array], ms: Sequence[int], last: int) -> tuple[Array, Array]:
    """Column and row sum of :func:`multilevel_rate` for F-relaxation."""
    c, a, d = len(ms), [np.abs(v) for v in values], _defects(values, ms)
    end = _geometric(a[c], last)
    columns = sum(
        d[k] * _product(_geometric(a[j], ms[j] - 1) if j < c else end for j in range(1, k + 1)) for k in range(1, c + 1)
    )
    rows = sum(
        d[k] * _product(_geometric(a[j], ms[j]) if j < c else end for j in range(k, c + 1)) for k in range(1, c + 1)
    )
    return columns + (a[c] ** last * d[c] if c > 1 else 0.0), rows


def _fcf_sums(values: Sequence[Array], ms: Sequence[int], last: int) -> tuple[Array, Array]:
    """Column and row sum of :func:`multilevel_rate` for FCF-relaxation."""
    c, a, d = len(ms), [np.abs(v) for v in values], _defects(values, ms)
    g = [_geometric(a[j], ms[j]) for j in range(c)]
    end, inner = _geometric(a[c], last), range(1, c)
    columns = end * d[1] * _product(a[j] ** (ms[j] - 1) * g[j] for j in inner) / c
    if c > 1:
        columns = columns + d[1] * g[1] + end * _product(a[j] * g[j] for j in inner) * sum(d[2:]) / c
        columns = columns + sum(d[k] * g[k] * _product(a[j] * g[j] for j in range(1, k)) for k in range(2, c)) / c
    rows = end * sum(d[k] * _product(a[1:k]) * _product(g[k:]) for k in range(1, c + 1))
    return a[0] ** ms[0] * columns, a[0] ** ms[0] * rows


def _geometric(a: Array, terms: int) -> Array:
    """``1 + a + ... + a^(terms - 1)``, without cancellation near 1."""
    if terms == 0:
        return np.zeros_like(a)
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(a == 1, float(terms), np.expm1(terms * np.log(a)) / np.where(a == 1, 1.0, a - 1))


def _product(factors: Iterable[Array]) -> Array:
    return math.prod(factors, start=np.ones(()))


def _norm(e: Array, kind: str) -> Array:
    if kind == "exact":
        return np.linalg.norm(e, 2, axis=(-2, -1))
    return np.sqrt(np.abs(e).sum(-2).max(-1) * np.abs(e).sum(-1).max(-1))


def _times(scale: Array, factor: Array) -> Array:
    """The product where a scale of 0 wins: a coarse propagator without defect converges whatever else."""
    return np.where(scale == 0, 0.0, scale * np.where(scale == 0, 0.0, factor))
