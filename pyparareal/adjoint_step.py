# SPDX-License-Identifier: BSD-3-Clause
"""One step of the adjoint chain (:mod:`pyparareal.adjoint`) as a propagator: by autograd, or the forward step's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .cuts import From
from .linearise import Source
from .propagators import Propagator
from .time_grid import count_points
from .vjp import vjp


class OwnAdjoint(Protocol):
    """A propagator of torch tensors that brings its derivatives along, where autograd would take longer.

    Its ``step`` need not be differentiable then. Its coarse propagators need the same for MGRIT. With a third method,
    ``part(first, last)``, the propagator of the steps ``first .. last - 1`` alone with the same two methods (whose
    gradients are those of the whole ``parameters``), a rank computes no more than its own block; without it, each is
    given the states of all points, those of other ranks' zero.
    """

    def adjoint(self, u: Tensor, last: int, w: Tensor | None) -> Propagator:
        """:class:`AdjointStep` of the same arguments, computed otherwise; fused, it is one call per relaxation."""
        ...

    def parameter_gradients(self, u: Tensor, w: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """``sum_i (dPhi_i/dtheta)(u[i])^T w[i]`` for each of ``parameters``, ``u`` and ``w`` ``[steps, ...]``.

        None for a tensor that the steps do not depend on.
        """
        ...


def adjoint_step(
    phi: Propagator, u: Tensor, last: int, w: Tensor | None = None, jacobians: Source | None = None
) -> Propagator:
    """The propagator's own (:class:`OwnAdjoint`) if nobody asks for Jacobians, else :class:`AdjointStep`."""
    own = getattr(phi, "adjoint", None)
    if own is not None and jacobians is None:
        return own(u, last, w)
    return AdjointStep(phi, u, last, w, jacobians)


class Parts:
    """Of the chains of all levels the part of one rank, each made once: it may keep what it needs again."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, int]] = {}

    def adjoint_step(
        self, phi: Any, u: Tensor, first: int, steps: int, last: int, w: Tensor | None, jacobians: Source | None
    ) -> Propagator:
        """:func:`adjoint_step` of a chain of ``steps`` steps, of which ``u`` and ``w`` have the rows from ``first`` on.

        Only the steps between these rows can be taken.
        """
        if first == 0 and len(u) == steps + 1:
            return adjoint_step(phi, u, last, w, jacobians)
        if jacobians is not None or not hasattr(phi, "adjoint"):
            rows = None if w is None else Rows(w, first, steps + 1)
            return AdjointStep(phi, Rows(u, first, steps + 1), last, rows, jacobians)
        if not hasattr(phi, "part"):
            whole = None if w is None else embedded(w, first, steps + 1)
            return phi.adjoint(embedded(u, first, steps + 1), last, whole)
        to_the_end = first + len(u) == steps + 1
        count = last - first if to_the_end else len(u) - 1
        return From(self._part(phi, first, len(u) - 1).adjoint(u, count, w), first + count - last)

    def parameter_gradients(
        self, phi: Any, u: Tensor, w: Tensor, first: int, steps: int, parameters: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """:meth:`OwnAdjoint.parameter_gradients` of the steps from ``first`` on, as many as there are rows."""
        if len(u) == steps:
            return phi.parameter_gradients(u, w, parameters)
        if hasattr(phi, "part"):
            return self._part(phi, first, len(u)).parameter_gradients(u, w, parameters)
        return phi.parameter_gradients(embedded(u, first, steps), embedded(w, first, steps), parameters)

    def _part(self, phi: Any, first: int, count: int) -> Any:
        """That with at least ``count`` steps from ``first`` on."""
        part, known = self._made.get(id(phi), (None, 0))
        if known < count:
            part = phi.part(first, first + count)
            self._made[id(phi)] = part, count
        return part


class Rows:
    """The rows ``first, first + 1, ...`` of an array of ``count``, which nobody else needs.

    Rows that are not there are those nearest to them: where a step is padded, and its result not used.
    """

    def __init__(self, own: Tensor, first: int, count: int) -> None:
        self._own, self._first, self._count = own, first, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, points: slice) -> Tensor:
        here = range(points.start - self._first, points.stop - self._first, points.step)
        if not len(here) or (here[0] >= 0 and here[-1] < len(self._own)):
            return self._own[max(here.start, 0) : max(here.stop, 0) : here.step]
        return self._own[[min(max(n, 0), len(self._own) - 1) for n in here]]


def embedded(own: Tensor, first: int, count: int) -> Tensor:
    """``own`` as the rows from ``first`` on of an array of ``count``, the others zero."""
    whole = own.new_zeros((count, *own.shape[1:]))
    whole[first : first + len(own)] = own
    return whole


class AdjointStep:
    """``lambda[i] = J_i^T lambda[i+1] + w[i]`` as a propagator on the reversed grid.

    Point ``j`` of that grid is point ``last - j`` of the chain. Steps right of the end of ``u`` keep ``lambda``.

    Parameters
    ----------
    phi : Propagator
    u : tensor ``[steps + 1, batch, features...]``
        The states to linearise at.
    last : int
        ``steps``, or more.
    w : tensor like ``u``, optional
    jacobians : Source, optional
        Those of ``phi``; :attr:`source` has their transposes.
    """

    batch_invariant, stays = False, True

    def __init__(
        self,
        phi: Propagator,
        u: Tensor | Rows,
        last: int,
        w: Tensor | Rows | None = None,
        jacobians: Source | None = None,
    ) -> None:
        self.phi, self.u, self.last, self.w = phi, u, last, w
        self.steps = last
        if jacobians is not None:
            self._jacobians = jacobians
            self.source = dataclasses.replace(jacobians, step=self._linearised, linear=True)

    def step(self, v: Tensor, points: slice) -> Tensor:
        first, stride, count = self.last - 1 - points.start, points.step, count_points(points)
        kept = min(count, max(0, -((len(self.u) - 2 - first) // stride)))
        if kept == count:
            return v
        here = slice(first - (count - 1) * stride, first - kept * stride + 1, stride)
        v_next = vjp(self.phi, self.u[here], here, v[kept:].flip(0))
        if self.w is not None:
            v_next = v_next + self.w[here]
        return torch.cat([v[:kept], v_next.flip(0)]) if kept else v_next.flip(0)

    def _linearised(self, v: Tensor, points: slice, kind: str) -> tuple[Tensor, Tensor]:
        """The step, and ``J_i^T``; for a grid without steps that keep ``lambda``."""
        first, stride, count = self.last - 1 - points.start, points.step, count_points(points)
        here = slice(first - (count - 1) * stride, first + 1, stride)
        jacobian = self._jacobians.step(self.u[here], here, kind)[1].detach().flip(0)
        return self.step(v, points), jacobian if kind == "diagonal" else jacobian.mT
