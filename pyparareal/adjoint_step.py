# SPDX-License-Identifier: BSD-3-Clause
"""One step of the adjoint chain (:mod:`pyparareal.adjoint`) as a propagator: by autograd, or the forward step's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from .linearise import Source
from .propagators import Propagator
from .time_grid import count_points
from .vjp import vjp


class OwnAdjoint(Protocol):
    """A propagator of torch tensors that brings its derivatives along, where autograd would take longer.

    Its ``step`` need not be differentiable then. Its coarse propagators need the same for MGRIT.
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

    batch_invariant = False

    def __init__(
        self, phi: Propagator, u: Tensor, last: int, w: Tensor | None = None, jacobians: Source | None = None
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
