# SPDX-License-Identifier: BSD-3-Clause
"""What a solve returns: the states, how it ended, and what it cost."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .time_grid import TimeGrid

Array = Any


class Status(enum.Enum):
    """How a solve ended; the value is the message for the user."""

    CONVERGED = "converged: what the method measures is below the tolerance, or exact"
    FIXED = "as many iterations as were asked for; nothing was compared with a tolerance"
    SERIAL = "solved serially, one step after the other"
    SERIAL_FALLBACK = "the iteration failed; this is the serial solution, computed instead"
    MAX_ITERATIONS = "the iteration limit was reached before every slice had converged"
    DIVERGED = "the residual grew far beyond its first value; the coarse propagator may be unstable"
    STAGNATED = "the residual no longer falls"
    ROUND_OFF = "the residual no longer falls: it is at the rounding of the dtype, and the tolerance is below that"
    NON_FINITE_GUESS = "the starting guess holds NaN or infinity; the coarse step may be unstable"
    NON_FINITE = "a fine or coarse step produced NaN or infinity"
    STOPPED = "the callback asked to stop before every slice had converged"

    @property
    def ok(self) -> bool:
        """Whether the states are what was asked for: the solution, or with ``tol=None`` some iterations towards it."""
        return self in (Status.CONVERGED, Status.FIXED, Status.SERIAL, Status.SERIAL_FALLBACK)


@dataclass(frozen=True)
class Loss:
    """Processes were lost in a solve, and what they held was re-created (:mod:`pyparareal.survivors`).

    Attributes
    ----------
    iteration : int
        In which it happened, counted from 1.
    ranks : tuple of int
        Those that were lost, by the numbers they had then.
    recreated : tuple of (int, int)
        First slice, and the one after the last, of every block that the coarse chain made anew.
    left : int
        How many ranks went on.
    """

    iteration: int
    ranks: tuple[int, ...]
    recreated: tuple[tuple[int, int], ...]
    left: int

    def __str__(self) -> str:
        ranks = f"rank{'s' * (len(self.ranks) > 1)} {', '.join(map(str, self.ranks))}"
        blocks = ", ".join(f"{first} to {end - 1}" for first, end in self.recreated) or "none"
        left = f"{self.left} rank{'s' * (self.left > 1)} left"
        return f"iteration {self.iteration}: {ranks} lost; slices re-created: {blocks}; {left}"


@dataclass(frozen=True)
class Stats:
    """The cost of a solve, counted and timed.

    Attributes
    ----------
    slices, m : int
        Number of slices ``P`` and fine steps per slice.
    fine_steps, coarse_steps : int
        Steps taken, each state of a batch counted.
    critical_fine_steps, critical_coarse_steps : int
        Steps that had to wait for one another: the cost with one processor per slice.
    serial_steps : int
        Fine steps of the serial solution.
    converged_slices : tuple of int
        Length of the converged prefix after each iteration.
    seconds : dict
        Host seconds per phase. On a GPU the work is asynchronous and these are launch times.
    failure : Status, optional
        Why the method failed, if the serial solution was returned instead.
    levels : int
        Levels of the hierarchy, the finest included.
    steps_per_level, critical_steps_per_level : tuple of int
        MGRIT: steps taken on each level, and those of them that had to wait for one another.
    final_residual : float, optional
        Of the states returned, where it was asked for.
    mode : str
        "eager": every kernel started by itself. "graph: ..." : so many cycles as one (:class:`.GraphRuntime`). Where
        that was asked for and not done, "eager: ..." says why.
    jacobian : str, optional
        Newton: which Jacobians were used.
    exponent : float, optional
        Newton: the largest growth of a slice per step, ``log |J| / m`` in the 2-norm, of the last Jacobians, where they
        are finite; with diagonal ones it is that of the diagonal. One slice that grows says little of the chain.
    worst_slice : int, optional
        The slice that has it.
    chain_exponent : float, optional
        ``log |J_{S-1} ... J_0| / (S m)``, or as far as all J are finite: positive for a chaotic or unstable chain, and
        for a long one its largest Lyapunov exponent.
    losses : tuple of Loss
        Processes that were lost on the way; steps taken before the last of them are not counted.
    """

    slices: int
    m: int
    fine_steps: int
    coarse_steps: int
    critical_fine_steps: int
    critical_coarse_steps: int
    serial_steps: int
    converged_slices: tuple[int, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    failure: Status | None = None
    levels: int = 2
    steps_per_level: tuple[int, ...] = ()
    critical_steps_per_level: tuple[int, ...] = ()
    final_residual: float | None = None
    mode: str = "eager"
    jacobian: str | None = None
    exponent: float | None = None
    worst_slice: int | None = None
    chain_exponent: float | None = None
    losses: tuple[Loss, ...] = ()

    @property
    def cost_ratio(self) -> float:
        """``a``: seconds of one coarse step over seconds of the ``m`` fine steps of one slice, as measured here.

        The fine seconds are those of the batch divided by its size; NaN if a phase did not run.
        """
        coarse = self.seconds.get("parareal.guess", 0.0) + self.seconds.get("parareal.coarse", 0.0)
        fine = self.seconds.get("parareal.fine", 0.0)
        if not (self.coarse_steps and fine):
            return float("nan")
        return (coarse / self.coarse_steps) / (fine * self.m / self.fine_steps)


def predicted_speedup(iterations: int, slices: int, cost_ratio: float) -> float:
    """``S = 1 / ((1 + K/P) a + K/P)``: *predicted* speed-up over the serial solution on ``P`` processors.

    ``K`` iterations, ``P`` slices with a processor each, ``a`` the cost of a coarse step over that of a
    fine slice; communication is free, so this is an upper bound. ``S <= min(P/K, 1/a)``: parareal
    does not help if it needs as many iterations as there are slices, or a coarse step costs as much as a fine slice.
    """
    if iterations < 0 or slices < 1 or not cost_ratio >= 0:
        raise ValueError(
            f"iterations, slices, cost_ratio: got {iterations}, {slices}, {cost_ratio}, expected at least 0, 1 and 0"
        )
    per_slice = iterations / slices
    work = (1 + per_slice) * cost_ratio + per_slice
    return 1 / work if work else float("inf")


@dataclass(frozen=True)
class Solution:
    """States at some points of the grid.

    Attributes
    ----------
    u : array ``[points, batch, features...]``
        ``u[0]`` is the initial value and ``u[-1]`` the state at ``t1``.
    points : int64 array ``[points]``
        Which points of ``grid``: every one (``save="all"``), the C-points and the end of the grid, or only 0 and the
        end (``save="end"``).
    status : Status
    iterations : int
        ``K``.
    residuals : tuple of float
        After each iteration the largest jump ``|U_k - U_{k-1}|`` of a slice that was not yet known to be exact; Newton:
        the largest residual ``|F(U_{k-1}[n]) - U_{k-1}[n+1]|`` that was not frozen, before the iteration's update.
    adjoint : list of BackwardPass, optional
        If ``u`` is differentiable: how each backward pass through it went (:mod:`pyparareal.adjoint`).
    """

    u: Array
    points: np.ndarray[Any, np.dtype[np.int64]]
    grid: TimeGrid
    status: Status
    iterations: int
    residuals: tuple[float, ...]
    stats: Stats
    adjoint: list[Any] | None = None

    @property
    def t(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The times of ``u``."""
        return self.grid.times()[self.points]

    @property
    def predicted_speedup(self) -> float:
        """:func:`predicted_speedup` with this solution's iterations, slices and measured cost ratio."""
        ratio = self.stats.cost_ratio
        return predicted_speedup(self.iterations, self.stats.slices, ratio) if ratio >= 0 else float("nan")
