# SPDX-License-Identifier: BSD-3-Clause
"""Implicit steps of ``u' = A u + f(t)``, and of ``u' = A u + N(t, u)`` with only ``A`` implicit; all slices at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import arrays, ops
from .operators import LinearOperator, Tridiagonal
from .propagators import column, is_of, like, relax_by_steps
from .tableaux import BACKWARD_EULER, IMEX_EULER, ImexTableau, ImplicitTableau
from .time_grid import TimeGrid

Array = Any


class _OnGrid:
    """What both kinds of steps share: one step size after the other where a grid has several."""

    grid: TimeGrid
    operator: LinearOperator

    def step(self, u: Array, points: slice) -> Array:
        if tuple(u.shape[-len(self.operator.shape) :]) != self.operator.shape:
            got = tuple(u.shape[-len(self.operator.shape) :])
            raise ValueError(f"u: got {got} features, expected {self.operator.shape}")
        t, h = self.grid.times(points), self.grid.dt(points)
        if isinstance(h, float):
            return self._step(t, u, h)
        u_next = arrays.empty_like(u)
        for n, size in enumerate(h):  # step sizes differ, and so do the factors
            u_next[n : n + 1] = self._step(t[n : n + 1], u[n : n + 1], float(size))
        return u_next

    def _step(self, t: Array, u: Array, h: float) -> Array:
        raise NotImplementedError


class DiagonallyImplicit(_OnGrid):
    """Diagonally implicit Runge-Kutta steps of ``u' = A u + f(t)``; batch-invariant if ``A`` is and ``source`` is.

    Stage ``i`` solves ``(I - a_ii h A) U_i = w_i + a_ii h f(t_i)`` with ``w_i = u + h sum_j a_ij k_j``; its slope is
    ``k_i = (U_i - w_i) / (a_ii h)``, so ``A`` is only applied where ``a_ii = 0``.

    Parameters
    ----------
    operator : LinearOperator
        ``A``; see :mod:`pyparareal.operators`.
    grid : TimeGrid
        The grid whose steps are taken.
    tableau : ImplicitTableau
        Backward Euler by default; Crank-Nicolson and SDIRK in :mod:`pyparareal.tableaux`.
    source : callable, optional
        ``f(t)``: float64 ``[k]`` to float64 ``[k, *operator.shape]``, each time by itself.
    """

    def __init__(
        self,
        operator: LinearOperator,
        grid: TimeGrid,
        tableau: ImplicitTableau = BACKWARD_EULER,
        *,
        source: Callable[[Array], Array] | None = None,
    ) -> None:
        _check(operator, grid)
        if not isinstance(tableau, ImplicitTableau):
            raise TypeError(f"tableau: got {type(tableau).__name__}, expected an ImplicitTableau")
        self.operator, self.grid, self.tableau, self.source = operator, grid, tableau, source
        self.batch_invariant = operator.batch_invariant
        # One kernel for all steps: backward Euler with a tridiagonal matrix, steps of one size, no source.
        plain = self.tableau == BACKWARD_EULER and source is None and grid.uniform
        ours = is_of(DiagonallyImplicit, self, "step") and is_of(DiagonallyImplicit, self, "_step")
        self.fused = plain and ours and isinstance(operator, Tridiagonal) and is_of(Tridiagonal, operator, "relax")
        self._h: Any = grid.dt()

    def rediscretise(self, m: int) -> DiagonallyImplicit:
        """The same scheme with steps ``m`` times as long."""
        return DiagonallyImplicit(self.operator, self.grid.coarsen(m), self.tableau, source=self.source)

    @property
    def compares(self) -> bool:
        """See :class:`.FusedPropagator`; a ``relax`` of a subclass need not take what it takes."""
        return is_of(DiagonallyImplicit, self, "relax")

    @property
    def capturable(self) -> bool:
        """See :class:`.GraphRuntime`."""
        return self.fused

    def relax(self, u: Array, points: slice, m: int, out: Array | None, **more: Any) -> None:
        """``m`` steps (:class:`pyparareal.propagators.FusedPropagator`)."""
        if self.fused and arrays.kernel_takes(u):
            ratio, scale, coupling = self.operator.factors(u, self._h)  # type: ignore[attr-defined]
            ops.relax_tridiagonal(u, ratio, scale, coupling, m, out=out, **more)
        else:
            relax_by_steps(self, u, points, m, out, **more)

    def _step(self, t: Array, u: Array, h: float) -> Array:
        slopes: list[Array] = []
        for i, (c, row, a) in enumerate(self.tableau.stages, start=1):
            w = u
            for b, j in row:
                w = w + (b * h) * slopes[j]
            f = self._source(t + c * h, u)
            if a == 0:
                slopes.append(self.operator.apply(w) if f is None else self.operator.apply(w) + f)
                continue
            v = self.operator.solve(w if f is None else w + (a * h) * f, a * h)
            if i == len(self.tableau.a) and self.tableau.stiffly_accurate:
                return v
            slopes.append((v - w) / (a * h))
        for b, j in self.tableau.weights:
            u = u + (b * h) * slopes[j]
        return u

    def _source(self, t: Array, u: Array) -> Array | None:
        """``f(t)`` with axes of size 1 for those of ``u`` between slices and features."""
        if self.source is None:
            return None
        f = self.source(t)
        middle = u.ndim - 1 - len(self.operator.shape)
        return like(np.asarray(f).reshape(len(t), *(1,) * middle, *self.operator.shape), u)


class ImplicitEuler(DiagonallyImplicit):
    """``(I - dt A) u[i+1] = u[i]`` for one tridiagonal ``A`` (:class:`.Tridiagonal`); batch-invariant."""

    def __init__(self, lower: Array, diagonal: Array, upper: Array, grid: TimeGrid) -> None:
        super().__init__(Tridiagonal(lower, diagonal, upper), grid)


class Imex(_OnGrid):
    """``u' = A u + N(t, u)`` with ``A`` implicit, ``N`` explicit; IMEX Euler: ``(I - h A) u_next = u + h N(t, u)``.

    Parameters
    ----------
    operator : LinearOperator
        ``A``, the stiff part.
    explicit : callable
        ``N(t, u)`` as for :class:`.RungeKutta`, not stiff.
    grid : TimeGrid
        The grid whose steps are taken.
    tableau : ImexTableau
    batch_invariant : bool
        Your promise about ``explicit``; the operator's own is added.
    """

    def __init__(
        self,
        operator: LinearOperator,
        explicit: Callable[[Array, Array], Array],
        grid: TimeGrid,
        tableau: ImexTableau = IMEX_EULER,
        *,
        batch_invariant: bool = False,
    ) -> None:
        _check(operator, grid)
        if not callable(explicit):
            raise TypeError(f"explicit: got {type(explicit).__name__}, expected a callable N(t, u)")
        self.operator, self.explicit, self.grid, self.tableau = operator, explicit, grid, tableau
        self.batch_invariant = batch_invariant and operator.batch_invariant

    def rediscretise(self, m: int) -> Imex:
        """The same scheme with steps ``m`` times as long."""
        return Imex(
            self.operator, self.explicit, self.grid.coarsen(m), self.tableau, batch_invariant=self.batch_invariant
        )

    def _step(self, t: Array, u: Array, h: float) -> Array:
        t = column(t, u)
        explicit, implicit, v = [self.explicit(t, u)], list[Array](), u
        rows = self.tableau.explicit
        for i, (c, row, a) in enumerate(self.tableau.implicit.stages):
            w = u
            for b, n in zip(rows[i], explicit, strict=True):
                w = w + (b * h) * n
            for b, j in row:
                w = w + (b * h) * implicit[j]
            v = self.operator.solve(w, a * h)
            if i + 1 < len(rows):
                implicit.append((v - w) / (a * h))
                explicit.append(self.explicit(t + c * h, v))
        return v


def _check(operator: Any, grid: Any) -> None:
    if not isinstance(operator, LinearOperator):
        raise TypeError(f"operator: got {type(operator).__name__}, expected apply(u), solve(b, h) and shape")
    if not isinstance(grid, TimeGrid):
        raise TypeError(f"grid: got {type(grid).__name__}, expected a TimeGrid")
