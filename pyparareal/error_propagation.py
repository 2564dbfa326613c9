# SPDX-License-Identifier: BSD-3-Clause
"""The matrix ``E`` by which one MGRIT cycle multiplies the errors of a linear chain: what bounds are held against."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .checks import choose

Array = Any

CYCLES = ("V", "F", "W")


def error_propagator(
    lams: Sequence[Array],
    m: int | Sequence[int],
    steps: int,
    nu: int | Sequence[int] = 0,
    *,
    cycle: str = "V",
    omega: float | Sequence[float] = 1.0,
) -> np.ndarray[Any, Any]:
    """``E [..., n_1, n_1]``: what one cycle makes of the errors at the C-points ``1 .. n_1``, for each mode.

    The cycle itself, applied to unit errors: relaxation, injection of the residual, the same one level below with
    guess zero, correction of the C-points, F-relaxation. MGRIT in pair form (full approximation scheme) does the same
    if the propagators are linear. [H], Lemma 3.3, write ``E`` as a product of matrices.

    Parameters
    ----------
    lams, m, steps, nu, cycle : see :func:`pyparareal.convergence.multilevel_bound`
    omega : float or sequence
        Weight of the C-relaxation, per level but the coarsest, or one for all.
    """
    values = mode_arrays(lams)
    ms = factors(m, len(values) - 1)
    steppers = [_times_number(v) for v in values]
    n, shape = sizes_of(ms, steps)[1], values[0].shape
    e = np.zeros((n + 1, *shape, n), dtype=np.result_type(*values))
    e[1 + np.arange(n), ..., np.arange(n)] = 1
    cycles = _Cycle(steppers, _times_number(values[0] ** ms[0]), ms, sweeps(nu, len(ms)), _weights(omega, len(ms)))
    choose("cycle", cycle, CYCLES)
    return np.moveaxis(cycles.run(e, cycle)[1:], 0, -2)


def matrix_error_propagator(
    matrices: Sequence[Array],
    m: int | Sequence[int],
    steps: int,
    nu: int | Sequence[int] = 0,
    *,
    cycle: str = "V",
    omega: float | Sequence[float] = 1.0,
) -> np.ndarray[Any, Any]:
    """``E [n_1 d, n_1 d]`` for matrices ``Phi_l [d, d]`` that need not commute, C-points outermost; dense.

    Its norm holds whatever the eigenvectors are. Other parameters as in :func:`error_propagator`.
    """
    phis = [np.asarray(phi) for phi in matrices]
    if len(phis) < 2 or any(phi.ndim != 2 or phi.shape != (len(phis[0]),) * 2 for phi in phis):
        got = ", ".join(str(phi.shape) for phi in phis)
        raise ValueError(f"matrices: got shapes {got}, expected at least two square matrices of one size")
    mode_arrays([phi.ravel() for phi in phis], name="Phi")
    ms, d = factors(m, len(phis) - 1), len(phis[0])
    n = sizes_of(ms, steps)[1]
    e = np.zeros((n + 1, d, n * d), dtype=np.result_type(float, *phis))
    e[1:] = np.eye(n * d).reshape(n, d, n * d)
    steppers = [_times_matrix(phi) for phi in phis]
    top = _times_matrix(np.linalg.matrix_power(phis[0], ms[0]))
    choose("cycle", cycle, CYCLES)
    e = _Cycle(steppers, top, ms, sweeps(nu, len(ms)), _weights(omega, len(ms))).run(e, cycle)
    return e[1:].reshape(n * d, n * d)


@dataclass(frozen=True)
class _Cycle:
    """One cycle on arrays ``[points, ...]`` with the initial point, always 0, in front."""

    step: Sequence[Callable[[Array], Array]]  # Phi_l, for all leading points at once
    top: Callable[[Array], Array]  # Phi_0^m_0: the finest level is seen at its C-points only
    m: Sequence[int]
    nu: Sequence[int]
    omega: Sequence[float]

    def run(self, e: Array, kind: str) -> Array:
        for _ in range(self.nu[0]):
            e[1:] = self.omega[0] * self.top(e[:-1]) + (1 - self.omega[0]) * e[1:]
        r = np.zeros_like(e)
        r[1:] = self.top(e[:-1]) - e[1:]
        return e + self._solve(1, r, kind)

    def _solve(self, level: int, r: Array, kind: str) -> Array:
        """``d[i+1] - Phi_l d[i] = r[i+1]``, from ``d = 0``."""
        d = np.zeros_like(r)
        if level + 1 == len(self.step):
            for i in range(1, len(d)):
                d[i] = self.step[level](d[i - 1]) + r[i]
            return d
        self._visit(level, d, r, kind)
        if kind != "V":
            self._visit(level, d, r, "V" if kind == "F" else kind)
        return d

    def _visit(self, level: int, d: Array, r: Array, kind: str) -> None:
        m, omega, phi = self.m[level], self.omega[level], self.step[level]
        c, left = slice(m, None, m), slice(m - 1, -1, m)
        self._relax_f(level, d, r)
        for _ in range(self.nu[level]):
            d[c] = omega * (phi(d[left]) + r[c]) + (1 - omega) * d[c]
            self._relax_f(level, d, r)
        below = np.zeros_like(d[::m])
        below[1:] = phi(d[left]) + r[c] - d[c]
        d[::m] += self._solve(level + 1, below, kind)
        self._relax_f(level, d, r)

    def _relax_f(self, level: int, d: Array, r: Array) -> None:
        m = self.m[level]
        for j in range(1, m):
            here = d[j::m]
            here[...] = self.step[level](d[j - 1 :: m][: len(here)]) + r[j::m]


def _times_number(lam: Array) -> Callable[[Array], Array]:
    return lambda x: lam[..., None] * x


def _times_matrix(phi: Array) -> Callable[[Array], Array]:
    return lambda x: phi @ x


# Arguments


def mode_arrays(lams: Sequence[Array], levels: int | None = None, *, name: str = "lam") -> list[Array]:
    """Finite float or complex arrays of one shape."""
    values = [np.asarray(lam) for lam in lams]
    if levels is None and len(values) < 2:
        raise ValueError(f"lams: got {len(values)} levels, expected one array of eigenvalues per level, two at least")
    for level, v in enumerate(values):
        if v.dtype.kind not in "fciu":
            raise TypeError(f"{name}{level}: got dtype {v.dtype}, expected float or complex numbers")
        if not np.isfinite(v).all():
            raise ValueError(f"{name}{level}: got NaN or infinity, expected finite numbers")
    try:
        return list(np.broadcast_arrays(*(v.astype(np.result_type(v, np.float64)) for v in values)))
    except ValueError:
        shapes = ", ".join(str(v.shape) for v in values)
        raise ValueError(
            f"lams: got shapes {shapes}, expected shapes that broadcast: one eigenvalue per mode"
        ) from None


def factors(m: Any, count: int) -> list[int]:
    return [_integer("m", value, 1) for value in _per_level("m", m, count)]


def sweeps(nu: Any, count: int) -> list[int]:
    return [_integer("nu", value, 0) for value in _per_level("nu", nu, count)]


def _weights(omega: Any, count: int) -> list[float]:
    weights = _per_level("omega", omega, count)
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, (int, float, np.floating)) or not math.isfinite(weight):
            raise ValueError(f"omega: got {weight!r}, expected a finite number")
    return [float(weight) for weight in weights]


def _per_level(name: str, value: Any, count: int) -> list[Any]:
    values = list(value) if isinstance(value, (Sequence, np.ndarray)) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name}: got {len(values)} values, expected {count}: one per level but the coarsest")
    return values


def sizes_of(ms: Sequence[int], steps: Any) -> list[int]:
    """Points of every level but the initial one."""
    sizes = [_integer("steps", steps, 1)]
    for level, m in enumerate(ms):
        if m > sizes[-1]:
            raise ValueError(f"m: got {m} on level {level}, expected at most its {sizes[-1]} steps")
        sizes.append(sizes[-1] // m)
    return sizes


def _integer(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: got {value!r}, expected an integer") from None
    if isinstance(value, bool) or number < least:
        raise ValueError(f"{name}: got {value!r}, expected an integer of at least {least}")
    return number
