# SPDX-License-Identifier: BSD-3-Clause
"""A right-hand side of the chain: ``u[i+1] = Phi_i(u[i]) + g[i+1]`` as a propagator like any other.

Only the finest level's propagator is wrapped. Parareal takes its coarse steps in differences, and the coarse levels of
MGRIT get everything from the finer one through their pairs, so neither has to know of ``g``.
"""

from __future__ import annotations

from typing import Any

from . import arrays, checks
from .equations import GuessedPropagator, ResidualPropagator
from .propagators import Propagator, require_like
from .time_grid import TimeGrid

Array = Any


class Forced:
    """``Phi_i(u) + rhs[i]``, with ``rhs [steps, batch, features...]`` and ``rhs[i] = g[i+1]``.

    ``rediscretise``, where ``phi`` has it, is that of ``phi``: without the right-hand side.
    """

    per_step: tuple[str, ...] = ("rhs",)

    def __init__(self, phi: Propagator, rhs: Array) -> None:
        self.phi, self.rhs = phi, rhs
        self.batch_invariant = phi.batch_invariant
        if hasattr(phi, "rediscretise"):
            self.rediscretise = phi.rediscretise

    def step(self, u: Array, points: slice) -> Array:
        return require_like(self.phi.step(u, points), u, self.phi) + self.rhs[points]


class ForcedGuess(Forced):
    """The same for a propagator that starts from a guess (:class:`pyparareal.equations.GuessedPropagator`)."""

    phi: Any

    def step_from(self, u: Array, points: slice, guess: Array) -> Array:
        g = self.rhs[points]
        return require_like(self.phi.step_from(u, points, guess - g), u, self.phi) + g


class ForcedResidual(Forced):
    """The same for a propagator that knows its residual: ``A_i(u[i+1] - rhs[i], u[i]) = 0``."""

    phi: Any

    def residual(self, u_next: Array, u: Array, points: slice) -> Array:
        return self.phi.residual(u_next - self.rhs[points], u, points)

    def step_with(self, u: Array, points: slice, rhs: Array) -> Array:
        return require_like(self.phi.step_with(u, points, rhs), u, self.phi) + self.rhs[points]


def forced(fine: Any, rhs: Array | None, u0: Array, grid: TimeGrid) -> Any:
    """``fine``, with ``rhs`` added where there is one.

    Raises
    ------
    TypeError, ValueError
        If ``rhs`` is not an array ``[steps, batch, features...]`` of the library, dtype and device of ``u0``, or
        holds NaN or infinity.
    """
    if rhs is None:
        return fine
    require_right_hand_side(rhs, u0, grid)
    rhs = arrays.detached(rhs)
    phi = checks.propagator("fine", fine, grid, deterministic=False)
    if isinstance(phi, ResidualPropagator):
        return ForcedResidual(phi, rhs)
    return (ForcedGuess if isinstance(phi, GuessedPropagator) else Forced)(phi, rhs)


def require_right_hand_side(rhs: Array, u0: Array, grid: TimeGrid) -> None:
    """Refuse an ``rhs`` that does not fit, naming what it got."""
    if type(rhs) is not type(u0) and not (arrays.is_torch(rhs) and arrays.is_torch(u0)):
        raise TypeError(f"rhs: got {type(rhs).__name__}, expected an array of the library of u0, {type(u0).__name__}")
    for what, expected in (
        ("shape", (grid.steps, *u0.shape)),
        ("dtype", u0.dtype),
        ("device", getattr(u0, "device", None)),
    ):
        got = getattr(rhs, what, None)
        if (tuple(got) if what == "shape" and got is not None else got) != expected:
            raise ValueError(f"rhs: got {what} {got}, expected {expected}: rhs[i] is added by the step from point i")
    if not checks.finite(arrays.detached(rhs)):
        raise ValueError("rhs: got NaN or infinity, expected finite values")
