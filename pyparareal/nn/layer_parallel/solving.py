# SPDX-License-Identifier: BSD-3-Clause
"""The layers as a chain, solved as :func:`pyparareal.solve` does it, and what to do when that fails."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import arrays
from ...adjoint import Adjoint, BackwardPass
from ...errors import ConvergenceError
from ...mgrit import MGRIT
from ...runtime import LocalRuntime
from ...runtime.group import Group
from ...solution import Solution, Status
from ...solver import serial_solve, solve
from ...stopping import spatial_norms, temporal_norm
from ...time_grid import TimeGrid
from .report import Direction, of_pass
from .settings import Settings


def solved(
    step: Any,
    u: Tensor,
    m: int | Sequence[int],
    forward: Settings,
    backward: Settings,
    on_failure: str,
    *,
    every: bool,
    accept: Callable[[Direction], bool] | None = None,
    runtime: Any = None,
) -> tuple[Solution, Direction]:
    """``u [batch, features...]`` through all layers of ``step``, differentiable, and how that went.

    Parameters
    ----------
    step : Propagator
        With ``parameters``; if it has its own ``parameter_gradients`` these are all there are.
    m, on_failure : as in :class:`.LayerParallel`
    every : bool
        Return the states of all layers, and not only the first and the last.
    accept : callable, optional
        Asked about each direction, once it is iterated on; if it says no, layers are taken one after the other instead.
    runtime : DistributedRuntime, optional
        Who iterates together; what is serial instead every rank does for itself.

    Raises
    ------
    ConvergenceError
        If the iteration fails and ``on_failure`` is "raise".
    """
    slices = step.steps // first_factor(m)
    forward, backward = forward.limited(slices), backward.limited(slices)
    floor, exact = _floor(u, step.steps), backward.exact_after(slices)

    def accepted(went: BackwardPass) -> bool:
        return accept is None or accept(of_pass(went, backward.stopping, exact, floor))

    group, sizes = Group(runtime), _Sizes()
    solution = solve(
        step,
        u,
        TimeGrid(0, step.steps, step.steps),
        m=m,
        tol=forward.tol,
        method=forward.method(),
        max_iterations=forward.iterations or (1 if forward.tol is None else None),
        initial=_initial(u, forward, slices),
        save="all" if every else "end",
        on_failure="return",
        parameters=_parameters(step),
        adjoint=_adjoint(backward, on_failure, accepted),
        callback=sizes,
        runtime=runtime,
    )
    size = sizes.whole(group)
    if solution.status.ok:
        direction = _direction(solution, forward, slices, None, size)
        if accept is None or not direction.iterations or accept(direction):
            return solution, direction
        instead = dataclasses.replace(direction, status=Status.SERIAL_FALLBACK, iterations=0, failure=Status.DIVERGED)
        return _serially(step, u, m), instead
    failure = solution.status
    if on_failure == "raise":
        text = f"layer-parallel: {failure.value} after {solution.iterations} iterations"
        raise ConvergenceError(f'{text}; on_failure="serial" falls back', solution)
    what = "used as it is"
    if on_failure == "serial":
        solution, what = _serially(step, u, m), "one layer after the other instead"
    warnings.warn(f"layer-parallel: forward failed: {failure.value}; {what}", RuntimeWarning, stacklevel=2)
    return solution, _direction(solution, forward, slices, failure, size)


def _serially(step: Any, u: Tensor, m: int | Sequence[int]) -> Solution:
    """The same layers one after the other, with the same masks; whether the states are finite or not."""
    return solve(
        step,
        u,
        TimeGrid(0, step.steps, step.steps),
        m=first_factor(m),
        tol=None,
        method=MGRIT(levels=1),
        max_iterations=1,
        save="all",
        on_failure="return",
        parameters=_parameters(step),
        adjoint="serial",
    )


def one_by_one(step: Any, u: Tensor) -> Tensor:
    """The end of the chain from ``u``, one layer after the other, differentiable likewise."""
    graph = torch.is_grad_enabled() and (u.requires_grad or bool(step.parameters))
    grid, save = TimeGrid(0, step.steps, step.steps), "all" if graph else "coarse"
    found = serial_solve(step, u, grid, m=step.steps, save=save, on_failure="return", parameters=_parameters(step))
    return found.u[-1].clone()


def _parameters(step: Any) -> list[Tensor] | None:
    """What to differentiate in. Blocks may use tensors from elsewhere too, which ``solve`` looks for if None."""
    return step.parameters if hasattr(step, "parameter_gradients") else None


def _adjoint(settings: Settings, on_failure: str, accept: Callable[[BackwardPass], bool]) -> Adjoint:
    if settings.serial:
        return Adjoint("serial")
    return Adjoint(
        settings.method(),
        tol=settings.tol,
        max_iterations=settings.iterations,
        on_failure=on_failure,
        fixed=settings.tol is None,
        accept=accept,
    )


class _Sizes:
    """What :func:`pyparareal.solve` calls back: the norms of the C-points of this process, as they are in the end."""

    def __init__(self) -> None:
        self._norms: list[float] = []

    def __call__(self, k: int, c: Tensor, residual: float) -> bool:
        self._norms = arrays.to_numpy(spatial_norms("l2", c[1:])).tolist()
        return False

    def whole(self, group: Group) -> float:
        """The 2-norm of the states at all C-points, on all ranks."""
        norms = [norm for one in group.told(self._norms, "telling the sizes of the states") for norm in one]
        return temporal_norm("l2", np.array(norms), LocalRuntime())


def _direction(solution: Solution, settings: Settings, slices: int, failure: Status | None, size: float) -> Direction:
    """How the forward pass went; residuals relative to the ``size`` of the states at the C-points."""
    if solution.stats.levels == 1:
        status = Status.SERIAL_FALLBACK if failure else solution.status
        return Direction(status, failure=failure, floor=_floor(solution.u, solution.grid.steps))
    return Direction(
        solution.status,
        solution.iterations,
        tuple(r / size if size else r for r in solution.residuals),
        settings.stopping,
        settings.exact_after(slices),
        failure,
        _floor(solution.u, solution.grid.steps),
    )


def _floor(u: Tensor, layers: int) -> float:
    """What rounding makes of a relative change: 10 units in the last place per layer, of signs at random."""
    kind = u.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else u.dtype
    return 10 * torch.finfo(dtype).eps * math.sqrt(layers)


def _initial(u: Tensor, settings: Settings, slices: int) -> Tensor | None:
    """The starting guess at the C-points, if there is one."""
    if settings.guess == "coarse" or settings.serial:
        return None
    start = u.detach()[None]
    if settings.guess == "zero":
        start = torch.zeros_like(start)
    return start.expand(slices + 1, *u.shape).contiguous()


def first_factor(m: int | Sequence[int]) -> int:
    """The coarsening factor of the finest level."""
    return m if isinstance(m, int) else m[0]
