# SPDX-License-Identifier: BSD-3-Clause
"""Solutions that torch can differentiate: one node of the graph for a whole solve, its backward pass the adjoint chain.

The solve itself runs without a graph. What it keeps for the backward pass are the states it returns, or with
``save="coarse"`` and "end" those at the C-points, from which the backward pass recomputes the others, all slices at
once.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from . import _trace, arrays, checks
from .adjoint import AdjointChain, BackwardPass, Stretch
from .adjoint_blocks import BackwardOverRanks, in_slices
from .method_runs import Problem
from .relaxation import every_point
from .runtime.distributed import DistributedRuntime
from .solution import Solution
from .states import Found
from .vjp import (
    constants_of,
    held_by,
    independent,
    own_graph,
    parameter_gradients,
    require_repeatable,
    sums_of_slices,
    used_by,
)


def differentiable(
    compute: Callable[[Any], tuple[Solution, Found]],
    problem: Problem,
    u0: Tensor,
    rhs: Tensor | None,
    parameters: Iterable[Tensor] | None,
    adjoint: Any,
) -> Solution:
    """``compute(chain)``, with ``u`` connected to those of ``u0``, ``rhs`` and the parameters that require grad.

    Parameters
    ----------
    compute : the solve, from ``u0`` and ``rhs`` without their graphs; told the chain of its backward passes, or None
    problem : what it solves
    parameters, adjoint : as in :func:`pyparareal.solve`

    Raises
    ------
    TypeError, ValueError
        For a wrong argument, modules in training mode whose value varies, or a step that loses its graph.
    """
    given = _given(parameters)
    chain = None if adjoint is None else _chain(problem, adjoint)
    if not torch.is_grad_enabled():
        return compute(None)[0]
    modules, tensors = held_by(problem.fine)
    known = _distinct([*tensors, *(p for module in modules for p in module.parameters() if p.requires_grad)])
    roots = u0.requires_grad or (rhs is not None and rhs.requires_grad)
    if roots or (known if given is None else given):
        require_repeatable(modules)
    if given is None:
        phi = checks.propagator("fine", problem.fine, problem.grid, deterministic=False)
        with own_graph():
            known = independent([*known, *used_by(phi, u0[None], known)])
    else:
        known = independent(given)
    if not (known or roots):
        with torch.no_grad():
            return compute(None)[0]
    require_repeatable(modules)
    chain = chain or _chain(problem, adjoint)
    with own_graph():
        chain.require_graphs(u0.detach()[None])
    backward = _Backward(problem, chain, complete=given is None)
    box: list[Solution] = []
    u = _Solve.apply(compute, backward, box, u0, rhs, *known)  # type: ignore[no-untyped-call]
    return dataclasses.replace(box[0], u=u, adjoint=backward.passes)


def _chain(problem: Problem, adjoint: Any) -> AdjointChain:
    try:
        return AdjointChain(problem, adjoint)
    except (TypeError, ValueError) as error:
        if adjoint is None:
            raise
        raise type(error)(f"adjoint: {error}") from error


def _given(parameters: Any) -> list[Tensor] | None:
    if parameters is None:
        return None
    if isinstance(parameters, Tensor | nn.Module) or not isinstance(parameters, Iterable):
        raise TypeError(
            f"parameters: got {type(parameters).__name__}, expected several tensors, as module.parameters()"
        )
    tensors = list(parameters)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"parameters: got {type(tensor).__name__}, expected tensors")
    return _distinct([tensor for tensor in tensors if tensor.requires_grad])


def _distinct(tensors: list[Tensor]) -> list[Tensor]:
    return list({id(t): t for t in tensors}.values())


class _Backward:
    """From the gradients of the states to those of what they depend on.

    Attributes
    ----------
    passes : list of BackwardPass
        One for each backward pass so far.
    fixed : list of (tensor, version)
        What steps depend on besides: ``fine.fixed_tensors``, or what ``fine`` and its modules keep.
    """

    def __init__(self, problem: Problem, chain: AdjointChain, *, complete: bool) -> None:
        self.problem, self.chain, self.complete = problem, chain, complete
        self.passes: list[BackwardPass] = []
        named = getattr(problem.fine, "fixed_tensors", None)
        self.fixed = constants_of(problem.fine) if named is None else [(t, t._version) for t in named]
        self.autocast = _autocast()
        runtime = problem.common.runtime
        self.ranks = BackwardOverRanks(problem, chain, runtime) if isinstance(runtime, DistributedRuntime) else None

    def kept(self, found: Found) -> Tensor:
        """The states from which the backward pass begins."""
        if self.ranks is not None:
            self.ranks.follow(found)
        return found.kept

    def gradients(
        self, u: Tensor, points: Any, du: Tensor, parameters: list[Tensor], needed: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        """Of ``u0``, ``rhs`` and ``parameters``, where ``needed``."""
        with _trace.mark("backward"):
            return self._gradients(u, points, du, parameters, needed)

    def _gradients(
        self, u: Tensor, points: Any, du: Tensor, parameters: list[Tensor], needed: tuple[bool, ...]
    ) -> tuple[Tensor | None, ...]:
        if self.ranks is not None:
            with self.autocast():
                return self.ranks.gradients(
                    u, points, du, parameters, needed, complete=self.complete, passes=self.passes
                )
        problem, chain, steps = self.problem, self.chain, self.problem.grid.steps
        w = du.contiguous()
        if len(points) <= steps:
            w = du.new_zeros((steps + 1, *du.shape[1:]))
            w[points.tolist()] = du
        runtime = problem.common.runtime
        with self.autocast():
            states = u if len(u) > steps else _states(problem, u)
            found = chain.along(Stretch(states, w, 0, w[-1], runtime), chain.scale(du, points), every=any(needed[1:]))
            chain.require(found)
            self.passes.append(found.went)
            of_parameters: list[Tensor | None] = []
            if any(needed[2:]):
                of_parameters = self._of_parameters(states[:-1], found.v[1:], parameters)
        v = found.v
        return v[0].clone() if needed[0] else None, v[1:] if needed[1] else None, *of_parameters

    def _of_parameters(self, u: Tensor, w: Tensor, parameters: list[Tensor]) -> list[Tensor | None]:
        phi, problem = self.chain.levels[0].phi, self.problem
        if in_slices(phi, problem):
            sums = sums_of_slices(phi, u, w, parameters, complete=self.complete, m=problem.factor)
            return sums.total()
        block = getattr(problem.common.runtime, "slices_per_call", None)
        return parameter_gradients(phi, u, w, parameters, complete=self.complete, block=block)


def _states(problem: Problem, u: Tensor) -> Tensor:
    """Every point of the grid, from the C-points that ``u`` begins with."""
    grid, m = problem.grid, problem.factor
    every = arrays.empty_like(u, slices=grid.steps + 1)
    every_point(problem.common.runtime, problem.chain, grid, m, u[: grid.slices(m) + 1], every)
    return every


def _autocast() -> Callable[[], Any]:
    """A context with the automatic mixed precision of now."""
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    if not kinds:
        return contextlib.nullcontext
    dtypes = [torch.get_autocast_dtype(kind) for kind in kinds]

    @contextlib.contextmanager
    def again() -> Any:
        with contextlib.ExitStack() as stack:
            for kind, dtype in zip(kinds, dtypes, strict=True):
                stack.enter_context(torch.autocast(kind, dtype=dtype))
            yield

    return again


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        compute: Callable[[Any], tuple[Solution, Found]],
        backward: _Backward,
        box: list[Solution],
        u0: Tensor,
        rhs: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        solution, found = compute(backward.chain)
        box.append(dataclasses.replace(solution, u=None))
        ctx.work, ctx.points, ctx.parameters = backward, solution.points, parameters
        # Saved for torch's own check that nobody has written to them since; steps may count with a tensor themselves.
        fixed = [t for t, version in backward.fixed if t._version == version]
        ctx.save_for_backward(backward.kept(found), rhs, *parameters, *fixed)
        return solution.u

    @staticmethod
    def backward(ctx: Any, du: Tensor) -> tuple[Any, ...]:
        u, _, *_ = ctx.saved_tensors
        with torch.no_grad():
            found = ctx.work.gradients(u.detach(), ctx.points, du.detach(), ctx.parameters, ctx.needs_input_grad[3:])
        missing = len(ctx.needs_input_grad) - 3 - len(found)
        found = (*found, *[None] * missing)
        if torch.is_grad_enabled():
            found = _once(found, [u, du, *ctx.parameters])
        return None, None, None, *found


class _Once(torch.autograd.Function):
    """The first ``count`` tensors, as a function of the others that has no derivative."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise NotImplementedError(
            "solve: its gradient is not differentiable again (create_graph=True); "
            "take second derivatives of the serial chain under autograd"
        )


def _once(gradients: tuple[Tensor | None, ...], inputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The same gradients, that raise when they are differentiated in what they are functions of."""
    known = [g for g in gradients if g is not None]
    again = iter(_Once.apply(len(known), *known, *inputs))  # type: ignore[no-untyped-call]
    return tuple(None if g is None else next(again) for g in gradients)
