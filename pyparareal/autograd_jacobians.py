# SPDX-License-Identifier: BSD-3-Clause
"""Jacobians of torch steps by autograd: one backward pass for each feature of a state, all slices at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .propagators import Propagator, require_like
from .time_grid import shift_points
from .vjp import detached_step, vjp


def by_autograd(phi: Propagator, u: Tensor, points: slice, kind: str, size: int) -> tuple[Tensor, Tensor]:
    """The step from ``u``, and its Jacobian ``[slices, groups, size, size]`` or its diagonal, like ``u``.

    ``size`` numbers of the state depend on one another. Row ``i`` is ``J^T e_i``, a backward pass for all groups of all
    slices; the diagonal takes as many passes as the full Jacobian, and only its memory is smaller.
    """
    groups = math.prod(u.shape[1:]) // size
    with torch.enable_grad():
        x = u.detach().requires_grad_()
        # A copy: a step may work in place, and must not change a leaf of the graph.
        u_next = require_like(phi.step(x.clone(), points), x, phi)
        rows = u_next.reshape(len(u), groups, size).unbind(-1)
    shape = (len(u), groups, size) if kind == "diagonal" else (len(u), groups, size, size)
    jacobian = u.new_empty(shape)
    for i, row in enumerate(rows):
        gradient = None
        if row.requires_grad:
            (gradient,) = torch.autograd.grad(
                row, x, torch.ones_like(row), retain_graph=i + 1 < size, allow_unused=True
            )
        if gradient is None:
            raise detached_step(phi)
        gradient = gradient.reshape(len(u), groups, size)
        if kind == "diagonal":
            jacobian[..., i] = gradient[..., i]
        else:
            jacobian[..., i, :] = gradient
    return u_next.detach(), jacobian.reshape(u.shape) if kind == "diagonal" else jacobian


def independent(phi: Propagator, u: Tensor) -> bool:
    """Whether one step from ``u [1, batch, features...]`` leaves the states of a batch independent of one another.

    Raises
    ------
    ValueError
        If the step has no graph that leads to ``u``.
    """
    one = (slice(None), slice(0, 1)) if u.ndim > 2 else (slice(None),)
    w = torch.zeros_like(u)
    w[one] = torch.cos(torch.arange(w[one].numel(), device=u.device)).reshape(w[one].shape).to(u.dtype)
    gradient = vjp(phi, u, slice(0, 1, 1), w)
    return u.ndim < 3 or not bool(gradient[:, 1:].any())


def growth_of_a_tangent(phi: Propagator, u: Tensor, points: slice, m: int) -> Tensor:
    """``log |J^T w| / |w|`` of the slices of ``m`` steps from ``u``, float64 ``[slices]``, for one ``w`` each.

    A lower bound of ``log |J|``, and seldom far below where one direction grows most.
    """
    states = [u]
    with torch.no_grad():
        for j in range(m - 1):
            states.append(phi.step(states[-1].clone(), shift_points(points, j)))
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(u.shape, generator=generator, dtype=torch.float64).to(u)
    total = torch.zeros(len(u), dtype=torch.float64, device=u.device)
    for j in reversed(range(m)):
        w = w / _sizes(w).to(w.dtype).reshape(-1, *[1] * (u.ndim - 1))
        w = vjp(phi, states[j], shift_points(points, j), w)
        total += torch.log(_sizes(w))
    return total


def _sizes(w: Tensor) -> Tensor:
    return torch.linalg.vector_norm(w.reshape(len(w), -1).double(), dim=1)
