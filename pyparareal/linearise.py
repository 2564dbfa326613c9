# SPDX-License-Identifier: BSD-3-Clause
"""Jacobians of steps: a propagator's own, by torch's autograd, or those of linear steps and of known equations.

``linearise(u, points, kind) -> (u_next, J)`` of a propagator returns what ``step`` does, bit for bit, and

    kind "full"       J[s, b, i, j] = d u_next[s, b, i] / d u[s, b, j]      [slices, batch, F, F], features flattened
    kind "diagonal"   J[s, b, i]    = d u_next[s, b, i] / d u[s, b, i]      [slices, batch, features...], like u
    kind "block"      the diagonal blocks of ``block`` neighbouring features [slices, batch, F / block, block, block]

for all slices at once. ``jacobians`` names the kinds it has; without it: "full" and "diagonal". A state without a batch
axis, ``u [slices, features]``, has a J without one. ``linear = True`` promises a J that does not depend on ``u``.

Here a J is kept as ``[slices, groups, d, d]``, which covers full (``d = F``) and block Jacobians, or like ``u``.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import arrays
from .compiled import CompiledRhs
from .forcing import Forced
from .implicit import DiagonallyImplicit
from .propagators import Blocked, Propagator, RungeKutta, column, require_like
from .time_grid import count_points, shift_points

Array = Any
Step = Callable[[Array, slice, str], tuple[Array, Array]]

KINDS = ("full", "block", "diagonal", "none")
# A full Jacobian of d x d costs a scan about 2 d^3 operations per step, and autograd d backward passes of the step. At
# 16 that is still of the order of the step of a cell with 16 x 48 weights, taken some ten times.
FULL_UP_TO = 16


@dataclass(frozen=True)
class Source:
    """Where the Jacobians of a propagator's steps come from.

    Attributes
    ----------
    kinds : those it has
    size : int
        Numbers in a state that depend on one another, the rows of a full Jacobian.
    block : int
        Rows of a block, 0 if it has none.
    step : ``(u, points, kind) -> (u_next, J)``
    cheap : those that cost no more than a few steps, whatever the size
    linear : bool
        Whether J is the same for every ``u``.
    """

    kinds: tuple[str, ...]
    size: int
    block: int
    step: Step
    cheap: tuple[str, ...] = ()
    linear: bool = False

    def rows(self, kind: str) -> int:
        """``d`` of a J ``[slices, groups, d, d]``, 0 for one like ``u``."""
        return {"full": self.size, "block": self.block}.get(kind, 0)


def source_of(phi: Propagator, u: Array) -> Source | None:
    """The source for ``phi`` on states like ``u [1, batch, features...]``; None: there is no way to a Jacobian."""
    if isinstance(own := getattr(phi, "source", None), Source):
        return own
    if hasattr(phi, "linearise"):
        kinds = tuple(getattr(phi, "jacobians", ("full", "diagonal")))
        linear = getattr(phi, "linear", False)
        return Source(kinds, _features(u), getattr(phi, "block", 0), phi.linearise, kinds, linear)
    if isinstance(phi, Blocked | Forced):
        return _around(phi, source_of(phi.phi, u))
    if arrays.is_torch(u) and _autograd_works():
        from .autograd_jacobians import by_autograd, independent

        size = _features(u) if independent(phi, u) else math.prod(u.shape[1:])
        return Source(("full", "diagonal"), size, 0, lambda v, points, kind: by_autograd(phi, v, points, kind, size))
    if isinstance(phi, DiagonallyImplicit):
        size = math.prod(phi.operator.shape)
        return Source(("full",), size, 0, lambda v, points, kind: _of_linear(phi, v, points, size), linear=True)
    if isinstance(phi, RungeKutta) and isinstance(phi.rhs, CompiledRhs) and not arrays.is_torch(u):
        return Source(("full",), phi.rhs.components, 0, lambda v, points, kind: _by_complex_step(phi, v, points))
    return None


def choose_kind(kind: str, phi: Propagator, source: Source | None) -> str:
    """``kind``, and for "auto" the one that pays: full up to ``FULL_UP_TO`` features, then block, diagonal, none.

    Raises
    ------
    TypeError, ValueError
        If there is no such Jacobian of ``phi``.
    """
    if source is None or source.size == 0:
        if kind in ("auto", "none"):
            return "none"
        raise TypeError(
            f"jacobian: got {kind!r} for a {type(phi).__name__} that has no linearise(u, points, kind), expected one, "
            "torch tensors outside of inference mode (whose steps are differentiated), or 'none'"
        )
    if kind == "auto":
        if "full" in source.kinds and source.size <= FULL_UP_TO:
            return "full"
        return next((one for one in ("block", "diagonal") if one in source.cheap), "none")
    if kind != "none" and kind not in source.kinds:
        has = ", ".join(map(repr, (*source.kinds, "none")))
        raise ValueError(f"jacobian: got {kind!r}, expected one that {type(_inner(phi)).__name__} has: {has}")
    if kind == "block" and not (source.block > 0 and source.size % source.block == 0):
        raise ValueError(f"jacobian: got 'block' with block = {source.block}, expected a divisor of {source.size}")
    return kind


class Linearised:
    """``m`` steps and the product of their Jacobians, ``J_{m-1} ... J_0``, for a runtime's ``map``."""

    batch_invariant = True
    fused = True

    def __init__(self, phi: Propagator, source: Source, kind: str) -> None:
        self.phi, self.source, self.kind = phi, source, kind

    def step(self, u: Array, points: slice) -> Array:
        return self.phi.step(u, points)

    def empty_jacobians(self, u: Array) -> Array:
        """Uninitialised, for states ``u [slices, ...]``; 16-bit states get 32 bits, which the scans need."""
        d = self.source.rows(self.kind)
        shape = (len(u), math.prod(u.shape[1:]) // d, d, d) if d else tuple(u.shape)
        return arrays.empty(u, shape, "float32" if u.dtype.itemsize == 2 else None)

    def relax(self, u: Array, points: slice, m: int, out: Array, *, jacobians: Array) -> None:
        """``out[n]`` the end of slice ``n``, ``jacobians[n]`` its J, from ``u[n]`` at ``points[n]``."""
        v = arrays.copy(u)
        for j in range(m):
            v, step = self._require_pair(self.source.step(v, shift_points(points, j), self.kind))
            require_like(v, u, self.phi)
            step = self._require_shape(step, u, jacobians)
            if j == 0:
                jacobians[...] = step
            elif self.kind == "diagonal":
                jacobians *= step
            else:
                jacobians[...] = step @ jacobians
        out[...] = v

    def _require_pair(self, returned: Any) -> tuple[Array, Array]:
        pair = isinstance(returned, tuple | list) and len(returned) == 2
        if pair and all(hasattr(one, "shape") and "complex" not in str(one.dtype) for one in returned):
            return returned[0], returned[1]
        got = ", ".join(str(getattr(one, "dtype", type(one).__name__)) for one in (returned if pair else [returned]))
        raise TypeError(
            f"{type(_inner(self.phi)).__name__}.linearise: returned {got}, expected (u_next, J), real arrays"
        )

    def _require_shape(self, jacobian: Array, u: Array, like: Array) -> Array:
        d, shape = self.source.rows(self.kind), tuple(jacobian.shape)
        if math.prod(shape) != math.prod(like.shape) or shape[-2:] != tuple(like.shape[-2:]):
            expected = (*u.shape[:2], d, d) if d == self.source.size else tuple(like.shape)
            raise ValueError(
                f"{type(_inner(self.phi)).__name__}.linearise: returned a {self.kind} Jacobian of shape {shape} for "
                f"states of shape {tuple(u.shape)}, expected {expected}"
            )
        jacobian = jacobian.reshape(like.shape)
        if jacobian.dtype == like.dtype:
            return jacobian
        return jacobian.to(like.dtype) if arrays.is_torch(jacobian) else jacobian.astype(like.dtype)


def _autograd_works() -> bool:
    return not sys.modules["torch"].is_inference_mode_enabled()


def _inner(phi: Any) -> Any:
    while isinstance(phi, Blocked | Forced):
        phi = phi.phi
    return phi


def _features(u: Array) -> int:
    return math.prod(u.shape[2:] if len(u.shape) > 2 else u.shape[1:])


def _around(phi: Blocked | Forced, inner: Source | None) -> Source | None:
    """What ``phi`` adds to the step of the propagator it wraps leaves J as it is."""
    if inner is None:
        return None

    def step(u: Array, points: slice, kind: str) -> tuple[Array, Array]:
        u_next, jacobian = inner.step(u, points, kind)
        if isinstance(phi, Forced):
            return require_like(u_next, u, phi.phi) + phi.rhs[points], jacobian
        return phi.step(u, points), jacobian

    return dataclasses.replace(inner, step=step)


def _of_linear(phi: DiagonallyImplicit, u: Array, points: slice, size: int) -> tuple[Array, Array]:
    """Column ``j`` of J is a step from the unit vector ``e_j``, less one from zero, which has what a source adds."""
    count, once = count_points(points), phi.grid.uniform and phi.source is None
    here = slice(points.start, points.start + 1, 1) if once else points
    states = np.concatenate([np.eye(size), np.zeros((1, size))])
    units = arrays.empty(u, (1 if once else count, size + 1, *phi.operator.shape))
    units[...] = arrays.float64_like(states.reshape(size + 1, *phi.operator.shape), u)
    ends = phi.step(units, here).reshape(len(units), size + 1, size)
    columns = (ends[:, :-1] - ends[:, -1:]).swapaxes(-1, -2)
    full = arrays.empty(u, (count, math.prod(u.shape[1:]) // size, size, size))
    full[...] = columns[:, None]
    return phi.step(u, points), full


def _by_complex_step(phi: RungeKutta, u: Array, points: slice) -> tuple[Array, Array]:
    """Column ``j`` is ``Im Phi(u + i h e_j) / h`` with a tiny ``h``: exact, for no difference is taken.

    W. Squire, G. Trapp, SIAM Rev. 40 (1998), 110-112. The equations of the package are rational functions and roots.
    """
    h, size = 1e-30, u.shape[-1]
    xp, complex_u = arrays.namespace(u), u.astype("complex128")
    t = column(phi.grid.times(points), u)
    columns = []
    for j in range(size):
        v = complex_u.copy()
        v[..., j] += 1j * h
        columns.append(phi._step(t, v, points).imag / h)
    full = xp.stack(columns, -1).astype(u.dtype)
    return phi.step(u, points), full.reshape(len(u), -1, size, size)
