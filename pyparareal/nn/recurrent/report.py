# SPDX-License-Identifier: BSD-3-Clause
"""How a recurrence was solved, and how that went."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...adjoint import BackwardPass
from ...solution import Status
from .exponent import Exponent
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
    worst_step, worst_exponent : int and float, optional
        Where in the whole sequence the chunk begins in which differences grow most, of those looked at, and how much
        per step. After a failure with NaN or infinity: the chunk of the first of them, and NaN.
    begin : int
        The step with which the window of ``worst_step`` begins; 0 for a sequence in one.
    reason : str
        Why this method and this chunk.
    windows : int
        Solved one after the other, to save memory. What is not of all of them is of the one that failed first, or in
        which differences grow most.
    settings : Settings
        What solves the same again without a choice to make.
    backward : sequence of BackwardPass
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
    worst_step: int | None = None
    worst_exponent: float = math.nan
    begin: int = 0
    reason: str = ""
    windows: int = 1
    settings: Settings | None = None
    backward: Sequence[BackwardPass] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the states are the solution: not when a failure was returned, or the serial states overflow."""
        return self.status.ok

    @property
    def worst_chunk(self) -> int | None:
        """The chunk with ``worst_step``, of its window."""
        return None if self.worst_step is None else (self.worst_step - self.begin) // self.chunk

    def with_exponent(self, found: Exponent) -> SequenceReport:
        """With what was found in the window."""
        first = None if found.first is None else self.begin + found.first
        return dataclasses.replace(self, exponent=found.mean, worst_step=first, worst_exponent=found.worst)

    def why_failed(self) -> str:
        """Which method failed how, and where differences grow most."""
        last = f", residual {self.residuals[-1]:.2g}" if self.residuals else ""
        text = f"{self.method} failed after {self.iterations} iterations{last}: {(self.failure or self.status).value}"
        if self.worst_step is None:
            return text
        where = f"chunk {self.worst_chunk} (from step {self.worst_step})"
        if self.begin:
            where = f"{where} of the window from step {self.begin}"
        if math.isnan(self.worst_exponent):
            return f"{text}; the first of them in {where}"
        return (
            f"{text}; differences grow most in {where}, "
            f"by exp({self.worst_exponent:.3g}) per step, by exp({self.exponent:.3g}) on average"
        )

    @staticmethod
    def of_windows(reports: list[SequenceReport]) -> SequenceReport:
        """One for all windows, of ``reports`` whose steps are those of the whole sequence."""
        failed = next((r for r in reports if not r.ok), next((r for r in reports if r.failure), None))
        worst = failed or max(reports, key=lambda r: _order(r.worst_exponent))
        length = sum(r.length for r in reports)
        return dataclasses.replace(
            worst,
            length=length,
            iterations=max(r.iterations for r in reports),
            cost=sum(r.cost * r.length for r in reports) / length,
            exponent=sum(r.exponent * r.length for r in reports) / length,
            windows=len(reports),
            reason=f"{worst.reason}; {len(reports)} windows of about {reports[0].length} steps, to save memory",
            backward=Joined([r.backward for r in reports]),
        )

    def __str__(self) -> str:
        what = f"{self.method}, {self.length} steps"
        if self.method != "serial" or self.failure is not None:
            last = f", residual {self.residuals[-1]:.2g}" if self.residuals else ""
            what += f" in chunks of {self.chunk}, {self.iterations} iterations{last}"
        if not math.isnan(self.exponent):
            what += f", exponent {self.exponent:+.3g}"
        return f"{what}: {self.status.value}"


class Joined(Sequence[BackwardPass]):
    """Several lists, which may still grow, as one."""

    def __init__(self, parts: Sequence[Sequence[BackwardPass]]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def __iter__(self) -> Iterator[BackwardPass]:
        return (item for part in self._parts for item in part)

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


def _order(exponent: float) -> float:
    return -math.inf if math.isnan(exponent) else exponent
