# SPDX-License-Identifier: BSD-3-Clause
"""How a recurrence was solved, and how that went."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ...adjoint import BackwardPass
from ...solution import Status
from .settings import Settings


@dataclass(frozen=True)
class SequenceReport:
    """How one forward pass went, and the backward passes through it.

    Attributes
    ----------
    method : str
        What was used: "serial", "mgrit", "newton" or "hybrid".
    chunk : int
        Steps per chunk; the length for "serial".
    length : int
        Steps of the sequence.
    status : Status
    iterations : int
    residuals : tuple of float
        After each iteration, of the recurrence itself: how far chunks end from where the next ones start.
    tol : float, optional
        What the last residual is below, if the status is ``CONVERGED``.
    cost : float
        Fine steps taken over the length: 1 for "serial", about the number of passes else.
    failure : Status, optional
        Why the method failed, if the states are the serial ones instead, or are used nevertheless.
    exponent : float
        Estimate of the largest Lyapunov exponent: mean growth ``log |dh[i+1]| / |dh[i]|`` per step of a small
        difference; below 0 the recurrence forgets, above it is chaotic. NaN where it was not looked for.
    worst_chunk, worst_exponent : int and float, optional
        The chunk in which differences grow most, of those looked at, and how much per step.
    reason : str
        Why this method and this chunk.
    windows : int
        Solved one after the other, to save memory.
    settings : Settings
        What solves the same again without a choice to make.
    backward : list of BackwardPass
        One per backward pass so far and window; empty where autograd went through the serial loop.
    """

    method: str
    chunk: int
    length: int
    status: Status
    iterations: int = 0
    residuals: tuple[float, ...] = ()
    tol: float | None = None
    cost: float = 1.0
    failure: Status | None = None
    exponent: float = math.nan
    worst_chunk: int | None = None
    worst_exponent: float = math.nan
    reason: str = ""
    windows: int = 1
    settings: Settings | None = None
    backward: list[BackwardPass] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the states are the solution: not when a failure was returned, or the serial states overflow."""
        return self.status.ok

    @property
    def steps(self) -> Any:
        """First and last step of the worst chunk, or None."""
        if self.worst_chunk is None:
            return None
        first = self.worst_chunk * self.chunk
        return first, min(first + self.chunk, self.length) - 1

    def __str__(self) -> str:
        what = f"{self.method}, {self.length} steps"
        if self.method != "serial" or self.failure is not None:
            last = f", residual {self.residuals[-1]:.2g}" if self.residuals else ""
            what += f" in chunks of {self.chunk}, {self.iterations} iterations{last}"
        if not math.isnan(self.exponent):
            what += f", exponent {self.exponent:+.3g}"
        return f"{what}: {self.status.value}"
