# SPDX-License-Identifier: BSD-3-Clause
"""The chain a level solves: the propagator's own, or the FAS equation handed down by the next finer level.

Each is a propagator again, so that relaxation, interpolation and the coarsest chain are the same on every level.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard, runtime_checkable

from . import arrays, ops
from .propagators import Propagator, is_fused, require_like
from .time_grid import shift_points

Array = Any


@runtime_checkable
class ResidualPropagator(Protocol):
    """A propagator that knows its equation as a residual, ``A_i(u[i+1], u[i]) = 0``.

    With it MGRIT measures and restricts ``-A`` in place of ``Phi(u[i]) - u[i+1]``: for an implicit scheme the
    residual of the linear or non-linear system itself, without solving it. Scale it alike on all levels: a residual
    ``(I - dt L) u[i+1] - u[i]`` means less on a level with a larger ``dt``, and convergence is slower for it.
    """

    batch_invariant: bool

    def step(self, u: Array, points: slice) -> Array: ...

    def residual(self, u_next: Array, u: Array, points: slice) -> Array:
        """``A_i(u_next, u)`` ``[slices, batch, features...]`` for the steps that start at ``points``."""
        ...

    def step_with(self, u: Array, points: slice, rhs: Array) -> Array:
        """The ``u_next`` with ``A_i(u_next, u) = rhs``."""
        ...


@runtime_checkable
class GuessedPropagator(Protocol):
    """A propagator whose step solves a system by iteration and gains from a starting guess."""

    batch_invariant: bool

    def step(self, u: Array, points: slice) -> Array: ...

    def step_from(self, u: Array, points: slice, guess: Array) -> Array:
        """``Phi(u)``, searched for from ``guess``, which is like ``u``."""
        ...


def has_residual(phi: Any) -> TypeGuard[ResidualPropagator]:
    """Whether a propagator is a :class:`ResidualPropagator`; ``isinstance`` takes 30 times as long to say so."""
    return hasattr(phi, "residual") and hasattr(phi, "step_with")


class Stored:
    """``phi`` with every state it steps to kept in ``u [steps + 1, ...]``: the guess when it comes again.

    The F-points of the last relaxation are good guesses for those of the next one. ``phi`` without ``step_from`` takes
    no notice.
    """

    per_step, one_device = ("u",), True

    def __init__(self, phi: Propagator, u: Array) -> None:
        self.phi, self.u, self._guessed = phi, u, hasattr(phi, "step_from")
        self.batch_invariant = phi.batch_invariant

    def step(self, u: Array, points: slice) -> Array:
        here = shift_points(points, 1)
        phi: Any = self.phi
        u_next = phi.step_from(u, points, self.u[here]) if self._guessed else phi.step(u, points)
        self.u[here] = require_like(u_next, u, self.phi)
        return u_next


class Pair:
    """``u[i+1] = f[i] + (Phi(u[i]) - g[i])``: the FAS equation as a pair per step, bracket first.

    ``f [steps, ...]`` is what the finer level's relaxation ends in, ``g = Phi(v[i])`` the same step of this level from
    the restricted states ``v``. Where ``u[i]`` is ``v[i]`` the bracket is exactly zero and ``u[i+1]`` is the fine
    result itself; with the one right-hand side ``f - g`` it would be so to rounding only, and for a poor coarse
    propagator never.
    """

    per_step: tuple[str, ...] = ("f", "g")

    def __init__(self, phi: Propagator, f: Array, g: Array) -> None:
        self.phi, self.f, self.g = phi, f, g
        self.batch_invariant = phi.batch_invariant

    def step(self, u: Array, points: slice) -> Array:
        stepped = require_like(self.phi.step(u, points), u, self.phi)
        return ops.parareal_update(self.f[points], stepped, self.g[points])


class FusedPair(Pair):
    """The same in one kernel for all steps of all slices, where ``phi`` has one."""

    fused = True
    phi: Any

    def relax(self, u: Array, points: slice, m: int, out: Array | None, *, every: Array | None = None) -> None:
        f, g = arrays.windows(self.f, points, m), arrays.windows(self.g, points, m)
        self.phi.relax(u, points, m, out, f=f, g=g, every=every)


def pair(phi: Propagator, f: Array, g: Array) -> Pair:
    """The FAS equation of ``phi``, in the fastest form it has."""
    return (FusedPair if is_fused(phi) else Pair)(phi, f, g)


class WithResidual:
    """``A_i(u[i+1], u[i]) = rhs[i]`` for a propagator that brings its own residual; no ``rhs`` means zero."""

    per_step: tuple[str, ...] = ("rhs",)

    def __init__(self, phi: ResidualPropagator, rhs: Array | None = None) -> None:
        self.phi, self.rhs = phi, rhs
        self.batch_invariant = phi.batch_invariant

    def step(self, u: Array, points: slice) -> Array:
        if self.rhs is None:
            return self.phi.step(u, points)
        return self.phi.step_with(u, points, self.rhs[points])

    def defect(self, u_next: Array, u: Array, points: slice) -> Array:
        """``rhs[i] - A_i(u_next, u)``."""
        r = require_like(self.phi.residual(u_next, u, points), u, self.phi)
        return -r if self.rhs is None else self.rhs[points] - r
