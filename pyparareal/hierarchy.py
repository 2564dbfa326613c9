# SPDX-License-Identifier: BSD-3-Clause
"""The levels of a multigrid method: grids, propagators, coarsening factors, transfers in space."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from . import arrays
from .equations import has_residual
from .propagators import Propagator, is_fused
from .time_grid import TimeGrid, shift_points

Array = Any


@dataclass(frozen=True)
class Transfer:
    """Between the space of one level and that of the next coarser one, batched over ``[slices, ...]``.

    Attributes
    ----------
    restrict : states and residuals to the coarse space, linear
    prolong : corrections (and, in nested iteration, states) to the fine space, linear
    capturable : see :class:`pyparareal.GraphRuntime`
    """

    restrict: Callable[[Array], Array]
    prolong: Callable[[Array], Array]
    capturable: bool = False

    def up(self, v: Array, c: Array) -> Array:
        """``prolong(v)``, which must be like ``c``."""
        e = self.prolong(v)
        for what in ("shape", "dtype"):
            if getattr(e, what, None) != getattr(c, what):
                raise ValueError(
                    f"transfer: prolong returned {what} {getattr(e, what, None)}, expected {getattr(c, what)}"
                )
        return e


@dataclass(frozen=True)
class Level:
    """``phi`` on ``grid``; every ``m``-th point is a point of the next level, to whose space ``transfer`` leads.

    ``m`` of the coarsest level is the factor its relaxation uses, if it is relaxed rather than solved.
    """

    phi: Propagator
    grid: TimeGrid
    m: int
    nu: int
    omega: float
    transfer: Transfer | None

    @cached_property
    def slices(self) -> int:
        """``floor(N / m)``."""
        return self.grid.slices(self.m)

    @cached_property
    def starts(self) -> slice:
        """The points that whole slices start from."""
        return self.grid.starts(self.m)

    @cached_property
    def last_steps(self) -> slice:
        """The points right before the C-points."""
        return shift_points(self.starts, self.m - 1)


def build_levels(
    fine: Any,
    coarse: Any,
    grid: TimeGrid,
    m: int | Sequence[int],
    *,
    levels: int | None,
    min_coarse: int,
    nu: int | Sequence[int],
    omega: float | Sequence[float],
    transfer: Transfer | Sequence[Transfer | None] | None,
    adapt: Callable[[str, Any, TimeGrid], Propagator],
) -> list[Level]:
    """Levels from the finest to the coarsest, until there are ``levels`` or the next would have too few steps.

    ``coarse`` is one propagator per coarse level, or None: each level's ``rediscretise(m)``. ``adapt(name, phi,
    grid)`` makes a propagator of what the user gave.
    """
    factors = _factors(m)
    most = _most(levels, m, coarse)
    given = _given(coarse, most)
    phi: Any = fine
    adapted, found = adapt("fine", fine, grid), []
    for depth in range(most):
        factor = _per_level(factors, depth)
        if depth == 0 and factor > grid.steps:
            raise ValueError(f"m: got {factor}, expected at most the {grid.steps} steps of the grid")
        found.append(
            Level(
                adapted,
                grid,
                min(factor, grid.steps),
                _per_level(_several("nu", nu), depth),
                _per_level(_several("omega", omega), depth),
                None if transfer is None else _per_level(_several("transfer", transfer), depth),
            )
        )
        if depth + 1 == most or grid.steps // factor < min_coarse:
            break
        rediscretised = None if given is not None else _rediscretised(phi, factor, depth)
        grid = grid.coarsen(factor)
        name = "coarse" if given is None or len(given) == 1 else f"coarse[{depth}]"
        phi = rediscretised if given is None else given[depth]
        adapted = adapt(name, phi, grid)
    return found


def coarse_rows(levels: Sequence[Level], *, relaxed: bool) -> int:
    """Rows of all the arrays that a cycle keeps on coarse levels with states like those of the finest.

    ``g`` of the pair equation, and where a level is relaxed (the coarsest is if ``relaxed``), its C-points twice.
    """
    rows = 0
    for finer, level in pairwise(levels):
        if finer.transfer is not None:
            break
        rows += 0 if has_residual(level.phi) else level.grid.steps
        rows += 2 * (level.slices + 1) if relaxed or level is not levels[-1] else 0
    return rows


def obstacle(levels: Sequence[Level], norm: Any, u: Array) -> str | None:
    """Why a cycle with states like ``u`` may be another each time, on the host; None where it is known not to be."""
    for depth, level in enumerate(levels):
        phi, where = level.phi, f"on level {depth} is not capturable"
        kernels = not is_fused(phi) or arrays.kernel_takes(u)  # of 16 bits there are none
        if not (kernels and getattr(phi, "capturable", False)):
            return f"{type(phi).__name__} {where}"
        if depth + 1 < len(levels) and level.transfer is not None and not level.transfer.capturable:
            return f"the transfer {where}"
    return None if isinstance(norm, str) or getattr(norm, "capturable", False) else "the norm is not capturable"


def only_calls(levels: Sequence[Level], norm: Any) -> bool:
    """Whether a cycle is nothing but calls of the runtime, on arrays that stay.

    Residuals and other spaces make new ones; so does interpolation step by step, which had better not keep them.
    """
    kernels = all(is_fused(level.phi) and not has_residual(level.phi) for level in levels)
    return kernels and isinstance(norm, str) and not any(level.transfer for level in levels)


def _factors(m: Any) -> list[int]:
    factors = list(m) if isinstance(m, Sequence) else [m]
    if not factors:
        raise ValueError("m: got no coarsening factor, expected one, or one per level")
    for factor in factors:
        if isinstance(factor, bool):
            raise TypeError(f"m: got {factor!r}, expected an integer")
        try:
            value = operator.index(factor)
        except TypeError:
            raise TypeError(f"m: got {factor!r}, expected an integer, or one per level") from None
        if value < 2:
            raise ValueError(f"m: got {value}, expected a coarsening factor of at least 2")
    return [int(factor) for factor in factors]


def _most(levels: int | None, m: Any, coarse: Any) -> int:
    """How many levels there are factors and propagators for, at most ``levels``."""
    bounds = [64 if levels is None else levels]  # 2^64 steps do not exist
    if isinstance(m, Sequence):
        bounds.append(len(m) + 1)
    if levels is None and isinstance(coarse, list | tuple):
        bounds.append(len(coarse) + 1)
    return min(bounds)


def _given(coarse: Any, most: int) -> list[Any] | None:
    if coarse is None:
        return None
    if isinstance(coarse, list | tuple):
        if len(coarse) < most - 1:
            raise ValueError(f"coarse: got {len(coarse)} propagators, expected {most - 1}, one per coarse level")
        return list(coarse)
    if most > 2:
        raise ValueError(f"coarse: got one propagator for up to {most} levels, expected a list of one per coarse level")
    return [coarse]


def _rediscretised(phi: Any, m: int, depth: int) -> Any:
    if not hasattr(phi, "rediscretise"):
        raise TypeError(
            "coarse: not given, and fine has no rediscretise(m) to make one"
            if depth == 0
            else f"coarse: not given, and the propagator of level {depth} has no rediscretise(m) to make one"
        )
    return phi.rediscretise(m)


def _several(name: str, values: Any) -> list[Any]:
    several = list(values) if isinstance(values, Sequence) else [values]
    if not several:
        raise ValueError(f"{name}: got nothing, expected a value, or one per level")
    return several


def _per_level(values: list[Any], depth: int) -> Any:
    return values[min(depth, len(values) - 1)]
