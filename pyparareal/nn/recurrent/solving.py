# SPDX-License-Identifier: BSD-3-Clause
"""A recurrence solved by :func:`pyparareal.solve`: which method, in which chunks, and what to do when it fails."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...errors import ConvergenceError
from ...mgrit import MGRIT
from ...propagators import require_like
from ...solution import Solution, Status
from ...solver import solve
from ...time_grid import TimeGrid
from .report import SequenceReport
from .settings import Settings


def solve_sequence(
    step: Any,
    u0: Tensor,
    length: int,
    settings: Settings,
    *,
    coarse: Any = None,
    parameters: Iterable[Tensor] | None = None,
) -> tuple[Tensor, SequenceReport]:
    """``u[i+1] = step(u[i])`` for ``length`` steps: ``u [length + 1, batch, features...]``, and how it went.

    Differentiable, as the loop would be.

    Parameters
    ----------
    step : Propagator
        On ``TimeGrid(0, length, length)``; a ``serial(u0, length)`` of its own, that returns all states, is used for
        the serial solution.
    u0 : tensor ``[batch, features...]``
    length : int
        At least 1.
    coarse, parameters : as in :func:`pyparareal.solve`
        Without ``coarse`` and ``step.rediscretise`` nothing is carried from chunk to chunk but where they end: "mgrit"
        is then the block Jacobi iteration, right for recurrences that forget.

    Raises
    ------
    TypeError, ValueError
        For a wrong argument.
    ConvergenceError
        If the method fails and ``settings.on_failure`` is "raise".
    """
    method, chunk = _resolve(settings, length)
    if method == "serial":
        return _serial(step, u0, length, settings)
    solution = solve(
        step,
        u0,
        TimeGrid(0, length, length),
        m=chunk,
        tol=settings.tolerance(u0.dtype),
        coarse=_coarse(step, coarse, settings),
        method=_method(settings),
        max_iterations=settings.max_iterations,
        norm=None if isinstance(settings.method, MGRIT) else "inf",
        save="all",
        on_failure="return",
        parameters=parameters,
        adjoint=settings.backward,
    )
    report = _report(solution, method, chunk, settings, u0)
    if solution.status.ok:
        return solution.u, report
    return _failed(step, u0, settings, solution, report)


def _resolve(settings: Settings, length: int) -> tuple[str, int]:
    """The method, and how many steps a chunk has."""
    method = "mgrit" if isinstance(settings.method, MGRIT) else settings.method
    if method == "auto":
        method = "serial"
    if length < 4 or method == "serial":
        return "serial", length
    return method, min(settings.chunk or chunk_of(length), length)


def chunk_of(length: int) -> int:
    """Near the square root of the length, and such that few steps are left over, which are taken one by one.

    A pass over chunks of ``m`` steps takes ``m`` steps one after the other, and what joins them ``length / m``: the
    sum is smallest at the square root.
    """
    root = math.isqrt(length)
    near = range(max(2, root - root // 4), root + root // 4 + 1)
    return min(near, key=lambda m: (length % m, abs(m - root))) if near else max(2, root)


def _method(settings: Settings) -> Any:
    if isinstance(settings.method, MGRIT):
        return settings.method
    # Measured at the end, the residual is that of the states returned.
    return MGRIT(
        levels=settings.levels, nu=settings.nu, measure="end", relative="state", temporal_norm="inf", stagnation=None
    )


def _coarse(step: Any, coarse: Any, settings: Settings) -> Any:
    if coarse is not None or hasattr(step, "rediscretise"):
        return coarse
    levels = settings.method.levels if isinstance(settings.method, MGRIT) else settings.levels
    return [Forgetful()] * ((levels or 2) - 1)


class Forgetful:
    """The coarse step that carries nothing on: what a chunk ends in is then what the relaxation found."""

    batch_invariant = True

    def step(self, u: Tensor, points: slice) -> Tensor:
        return u * 0  # with a graph, for the adjoint


def _serial(step: Any, u0: Tensor, length: int, settings: Settings) -> tuple[Tensor, SequenceReport]:
    states = serial_states(step, u0, length)
    status = Status.SERIAL if bool(torch.isfinite(states.detach()[-1]).all()) else Status.NON_FINITE
    return states, SequenceReport("serial", length, length, status, settings=settings)


def serial_states(step: Any, u0: Tensor, length: int) -> Tensor:
    """``[length + 1, ...]``, one step after the other; autograd follows."""
    if hasattr(step, "serial"):
        return step.serial(u0, length)
    u, states = u0[None], [u0[None]]
    for i in range(length):
        u = require_like(step.step(u, slice(i, i + 1, 1)), u, step)
        states.append(u)
    return torch.cat(states)


def _report(solution: Solution, method: str, chunk: int, settings: Settings, u0: Tensor) -> SequenceReport:
    length = solution.grid.steps
    return SequenceReport(
        method,
        chunk,
        length,
        solution.status,
        solution.iterations,
        solution.residuals,
        settings.tolerance(u0.dtype),
        solution.stats.fine_steps / length,
        settings=settings,
        backward=solution.adjoint if solution.adjoint is not None else [],
    )


def _failed(
    step: Any, u0: Tensor, settings: Settings, solution: Solution, report: SequenceReport
) -> tuple[Tensor, SequenceReport]:
    """What ``on_failure`` says: the serial states or those found, with a warning, or an error."""
    what = f"recurrence: {report.method} failed after {report.iterations} iterations: {solution.status.value}"
    if settings.on_failure == "raise":
        raise ConvergenceError(f'{what}. on_failure="serial" falls back.', solution)
    failure = solution.status
    if settings.on_failure == "return":
        warnings.warn(f"{what}; the states are used as they are", RuntimeWarning, stacklevel=3)
        return solution.u, dataclasses.replace(report, failure=failure)
    warnings.warn(f"{what}; solved serially instead", RuntimeWarning, stacklevel=3)
    states = serial_states(step, u0, report.length)
    finite = bool(torch.isfinite(states.detach()[-1]).all())
    status = Status.SERIAL_FALLBACK if finite else Status.NON_FINITE
    return states, dataclasses.replace(report, status=status, failure=failure, backward=[])
