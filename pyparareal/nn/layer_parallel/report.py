# SPDX-License-Identifier: BSD-3-Clause
"""What one forward pass through the layers did, and the backward passes through it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...adjoint import BackwardPass
from ...solution import Status
from .estimate import contraction, gradient_error, iteration_error
from .settings import ended


@dataclass(frozen=True)
class Direction:
    """One solve, forward or backward.

    Attributes
    ----------
    status : Status
    iterations : int
        0 for layers taken one after the other.
    residuals : tuple of float
        After each iteration what was measured, relative to the size of the states: NaN where an iteration had nothing
        to measure. There may be some with ``iterations=0``: of those that were not used.
    measured : {"jump", "residual"}
    exact_after : int, optional
        The iterations that make all layers exact.
    failure : Status, optional
        Why the iteration failed, if the states are the serial ones instead.
    floor : float
        What rounding makes of a jump, of the dtype that layers are computed in.
    size, path : float
        Backward: see :class:`pyparareal.adjoint.BackwardPass`.
    """

    status: Status
    iterations: int = 0
    residuals: tuple[float, ...] = ()
    measured: str = "jump"
    exact_after: int | None = None
    failure: Status | None = None
    floor: float = 0.0
    size: float = math.nan
    path: float = math.nan

    @property
    def exact(self) -> bool:
        """Whether all layers are exact: taken one after the other, or by as many iterations as that takes."""
        return not self.iterations or (self.exact_after is not None and self.iterations >= self.exact_after)

    @property
    def rho(self) -> float:
        """Contraction: the last residual over the one before."""
        return contraction(self.residuals)

    @property
    def error(self) -> float:
        """Estimate of the relative error of the states (:mod:`.estimate`); NaN where nothing tells."""
        if self.exact:
            return 0.0
        return iteration_error(self.residuals, self.floor) if self.measured == "jump" else math.nan

    @property
    def moves(self) -> bool:
        """Whether the last iteration changed more than rounding does, so that its contraction means something."""
        return bool(self.residuals) and not self.exact and not self.residuals[-1] <= self.floor

    def __str__(self) -> str:
        if not self.iterations:
            return ended(self.status, self.failure)
        last = f", last {self.measured} {self.residuals[-1]:.2g}" if self.residuals else ""
        rho = "" if math.isnan(self.rho) else f", rho {self.rho:.2g}"
        return f"{self.iterations} iterations{last}{rho}: {ended(self.status, self.failure)}"


SERIAL = Direction(Status.SERIAL)


def of_pass(went: BackwardPass, measured: str, exact_after: int | None, floor: float) -> Direction:
    """A backward pass as a :class:`Direction`."""
    relative = tuple(r / went.size if went.size else r for r in went.residuals)
    return Direction(
        went.status, went.iterations, relative, measured, exact_after, went.failure, floor, went.size, went.path
    )


@dataclass(frozen=True)
class DepthReport:
    """How one forward pass went, and the backward passes through it.

    Attributes
    ----------
    layers : int
        Of the part that is solved in parallel, without buffer layers.
    m : int
        Layers per slice.
    levels : int
        Levels that were used forward; 1 for layers one after the other.
    forward : Direction
    passes : list of BackwardPass
        As torch's backward passes come by.
    events : tuple of str
        What the policy has decided so far, with the batches.
    batch : int
        The number of this training batch, as the adaptive policy counts; 0 without one.
    measured_backward : {"jump", "residual"}
    backward_exact_after : int, optional
        Iterations that make the adjoint exact.
    serial : bool
        Whether layers follow each other in both directions; ``passes`` stays empty then.
    """

    layers: int
    m: int
    levels: int
    forward: Direction
    passes: Sequence[BackwardPass] = field(default_factory=list)
    events: Sequence[str] = ()
    batch: int = 0
    measured_backward: str = "jump"
    backward_exact_after: int | None = None
    serial: bool = False

    @property
    def backward(self) -> list[Direction]:
        """One for each backward pass so far."""
        return [self._backward(went) for went in self.passes]

    def _backward(self, went: BackwardPass) -> Direction:
        return of_pass(went, self.measured_backward, self.backward_exact_after, self.forward.floor)

    @property
    def gradient_error(self) -> float:
        """Estimate of the relative error of the last gradient (:mod:`.estimate`); NaN where nothing tells.

        0 where all is exact to rounding, infinite where the iteration does not contract.
        """
        if not self.passes:
            return 0.0 if self.serial else math.nan
        last = self._backward(self.passes[-1])
        return gradient_error(self.forward.error, last.error, last.path)

    def __str__(self) -> str:
        lines = [f"{self.layers} layers, m = {self.m}, {self.levels} levels", f"forward: {self.forward}"]
        lines += [f"backward: {went}" for went in self.backward]
        if self.passes and not math.isnan(self.gradient_error):
            lines.append(f"gradient: estimated relative error {self.gradient_error:.2g}")
        return "\n".join([*lines, *self.events])
