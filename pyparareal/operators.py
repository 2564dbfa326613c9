# SPDX-License-Identifier: BSD-3-Clause
"""Linear right-hand sides ``u' = A u`` that can be inverted: what an implicit step needs of ``A``.

All work on ``[slices, batch..., *shape]`` of any array library, every slice by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from . import arrays, ops
from .propagators import like
from .reference import factorise_tridiagonal, solve_tridiagonal

Array = Any


@runtime_checkable
class LinearOperator(Protocol):
    """``A``. ``batch_invariant``: the bits of a slice do not depend on how many slices share the call."""

    batch_invariant: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one state."""
        ...

    def apply(self, u: Array) -> Array:
        """``A u``."""
        ...

    def solve(self, b: Array, h: float) -> Array:
        """``x`` with ``(I - h A) x = b``."""
        ...


class Tridiagonal:
    """A tridiagonal ``A``, solved by elimination from both ends, element by element and so batch-invariant.

    Parameters
    ----------
    lower, diagonal, upper : float64 arrays ``[n - 1], [n], [n - 1]``
        The solve does not pivot, so ``I - h A`` should be diagonally dominant, as it is for diffusion.
    """

    batch_invariant = True

    def __init__(self, lower: Array, diagonal: Array, upper: Array) -> None:
        self.lower, self.diagonal, self.upper = (np.asarray(d, dtype=np.float64) for d in (lower, diagonal, upper))
        n = len(self.diagonal)
        if self.lower.shape != (n - 1,) or self.upper.shape != (n - 1,):
            raise ValueError(f"lower, upper: got shapes {self.lower.shape}, {self.upper.shape}, expected ({n - 1},)")
        self._factors: dict[Any, tuple[Array, Array, Array]] = {}

    def on(self, device: str) -> Tridiagonal:
        """Itself: its factors are kept by device (:mod:`pyparareal.runtime.replicas`)."""
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return self.diagonal.shape

    def apply(self, u: Array) -> Array:
        au = u * like(self.diagonal, u)
        au[..., 1:] += like(self.lower, u) * u[..., :-1]
        au[..., :-1] += like(self.upper, u) * u[..., 1:]
        return au

    def solve(self, b: Array, h: float) -> Array:
        return self.relax(b, h, 1, None) if arrays.kernel_takes(b) and 2 <= b.ndim <= 7 else self._solve_plainly(b, h)

    def relax(self, u: Array, h: float, m: int, out: Array | None, **more: Any) -> Array:
        """``m`` times ``solve``, in one kernel: :func:`pyparareal.ops.relax_tridiagonal`, with its other arguments."""
        return ops.relax_tridiagonal(u, *self.factors(u, h), m, out=out, **more)

    def factors(self, u: Array, h: float) -> tuple[Array, Array, Array]:
        """``ratio``, ``scale``, ``coupling`` of ``I - h A``, kept, for :func:`pyparareal.ops.relax_tridiagonal`."""
        key = h, type(u), u.dtype, getattr(u, "device", None)
        if (found := self._factors.get(key)) is None:
            ratio, scale, coupling = (like(v, u) for v in self._factorised(h))
            found = self._factors[key] = ratio, scale, coupling
        return found

    def _solve_plainly(self, b: Array, h: float) -> Array:
        """The same operations one by one, for what the kernel does not take: gradients and 16-bit dtypes."""
        factors = (v.tolist() for v in self._factorised(h))
        x = solve_tridiagonal([b[..., i] for i in range(len(self.diagonal))], *factors)
        return arrays.namespace(b).stack(x, -1)

    def _factorised(self, h: float) -> tuple[Array, ...]:
        return factorise_tridiagonal(-h * self.lower, 1 - h * self.diagonal, -h * self.upper)


class PeriodicUpwind:
    """``(A u)[i] = -rate (u[i] - u[i-1])`` with ``u[-1] = u[n-1]``: first-order upwind advection on a circle.

    ``rate = speed / dx > 0``. One sweep from left to right solves it up to a multiple of the powers of
    ``q = h rate / (1 + h rate)``, which closes the circle. Element by element, batch-invariant.
    """

    batch_invariant = True

    def __init__(self, points: int, rate: float) -> None:
        if points < 2 or not rate > 0:
            raise ValueError(f"points, rate: got {points}, {rate}, expected at least 2 and above 0")
        self.points, self.rate = points, rate

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.points,)

    def apply(self, u: Array) -> Array:
        left = arrays.empty_like(u)
        left[..., 1:], left[..., 0] = u[..., :-1], u[..., -1]
        return (left - u) * self.rate

    def solve(self, b: Array, h: float) -> Array:
        c = h * self.rate
        q, scale = c / (1 + c), 1 / (1 + c)
        x = [b[..., i] * scale for i in range(self.points)]
        for i in range(1, self.points):
            x[i] = x[i] + q * x[i - 1]
        last = x[-1] / (1 - q**self.points)
        for i in range(self.points - 1):
            x[i] = x[i] + q ** (i + 1) * last
        x[-1] = last
        return arrays.namespace(b).stack(x, -1)


class Rates:
    """``u' = lambda u`` for complex ``lambda``; the state ``[len(lambdas), 2]`` is real and imaginary parts."""

    batch_invariant = True

    def __init__(self, lambdas: Sequence[complex]) -> None:
        self.lambdas = np.asarray(lambdas, dtype=np.complex128)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.lambdas), 2)

    def apply(self, u: Array) -> Array:
        return _times(self.lambdas, u)

    def solve(self, b: Array, h: float) -> Array:
        return _times(1 / (1 - h * self.lambdas), b)


def _times(z: Array, u: Array) -> Array:
    """``z u`` with the last axis of ``u`` real and imaginary part."""
    re, im = like(z.real, u), like(z.imag, u)
    product = arrays.empty_like(u)
    product[..., 0] = re * u[..., 0] - im * u[..., 1]
    product[..., 1] = im * u[..., 0] + re * u[..., 1]
    return product


class Laplacian2D:
    """``scale`` times the five-point Laplacian on an ``n x n`` grid, by fast diagonalisation.

    R. E. Lynch, J. R. Rice, D. H. Thomas, Numer. Math. 6 (1964), pp. 185-199: with the eigenvectors ``Q`` and
    eigenvalues of the second difference in one direction, ``x = Q ((Q' b Q) / (1 - h (l_i + l_j))) Q'``.

    Parameters
    ----------
    n : int
        Points per direction: the inner ones of ``(0, width)`` with zero boundary values, or all of a period.
    width : float
        Side of the square.
    periodic : bool
    scale : float
        Diffusivity.

    Notes
    -----
    Not batch-invariant: it is made of matrix products.
    """

    batch_invariant = False

    def __init__(self, n: int, width: float = 1.0, *, periodic: bool = False, scale: float = 1.0) -> None:
        if n < 3:
            raise ValueError(f"n: got {n}, expected at least 3 points per direction")
        dx = width / (n if periodic else n + 1)
        self.n, (self.vectors, angles) = n, (_fourier if periodic else _sines)(n)
        # 2 - 2 cos(x) = 4 sin(x/2)^2 without cancellation
        line = -scale * 4 * np.sin(angles / 2) ** 2 / dx**2
        self.values = line[:, None] + line[None, :]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n, self.n)

    def apply(self, u: Array) -> Array:
        return self._spectral(u, self.values)

    def solve(self, b: Array, h: float) -> Array:
        return self._spectral(b, 1 / (1 - h * self.values))

    def _spectral(self, u: Array, factors: Array) -> Array:
        q = like(self.vectors, u)
        return q @ ((q.T @ u @ q) * like(factors, u)) @ q.T


def _sines(n: int) -> tuple[Array, Array]:
    """Orthonormal sine vectors, zero beyond both ends, and their angles per point."""
    angles = math.pi * np.arange(1, n + 1) / (n + 1)
    return math.sqrt(2 / (n + 1)) * np.sin(angles[None, :] * np.arange(1, n + 1)[:, None]), angles


def _fourier(n: int) -> tuple[Array, Array]:
    """Orthonormal real Fourier vectors of period ``n`` and their angles per point."""
    waves = (np.arange(n) + 1) // 2
    phase = 2 * math.pi * (np.arange(n)[:, None] * waves[None, :] % n) / n
    vectors = np.where(np.arange(n) % 2 == 1, np.cos(phase), np.sin(phase)) * math.sqrt(2 / n)
    vectors[:, 0] = math.sqrt(1 / n)
    if n % 2 == 0:
        vectors[:, -1] = math.sqrt(1 / n) * (-1.0) ** np.arange(n)
    return vectors, 2 * math.pi * waves / n
