# SPDX-License-Identifier: BSD-3-Clause
"""Residual dense layers ``u <- u + h act(W u + b)`` as a propagator with kernels for itself and for its adjoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import arrays, ops
from ...propagators import relax_by_steps
from ...time_grid import count_points
from .frozen import Frozen
from .stack import Stack

MOST_FEATURES, MOST_AXES = 2**14, 6  # of the kernels, which have axes for slices and steps too
ETA = 0.1  # half the width of the quadratic part of "smooth_relu" (Guenther et al. 2020)


def smooth_relu(z: Tensor) -> Tensor:
    """``max(z, 0)``, but ``z^2 / (4 eta) + z / 2 + eta / 4`` for ``|z| < eta = 0.1``."""
    return torch.where(z.abs() < ETA, z * z / (4 * ETA) + z / 2 + ETA / 4, F.relu(z))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "smooth_relu": smooth_relu,
}


class DenseStep:
    """``u[i+1] = u[i] + h act(W[i] u[i] + b[i])`` for states ``[slices, batch..., features]``.

    Parameters
    ----------
    weight : tensor ``[layers, features, features]``
    bias : tensor ``[layers, features]``, optional
    h : float
        Step size.
    activation : {"tanh", "relu", "smooth_relu", "sigmoid", "silu"}

    Attributes
    ----------
    fused, compares, batch_invariant : see :class:`pyparareal.propagators.FusedPropagator`
    kernel_devices : tuple of str
        Where the kernels are used: on the CPU; on GPUs they are unmeasured.
    precision : {"exact", "tf32x3", "tf32"}
        Of the kernels for float32 on CUDA (:mod:`pyparareal.dense_ops`), both ways; elsewhere they are exact.
    """

    kernel_devices: tuple[str, ...] = ("cpu",)
    precision = "exact"
    fused, compares, batch_invariant = True, True, True
    per_step = ("weight", "bias")

    def __init__(self, weight: Tensor, bias: Tensor | None, h: float, activation: str = "tanh") -> None:
        self.weight, self.bias, self.h, self.activation = weight, bias, h, activation
        self.steps = len(weight)
        self._slopes: tuple[Tensor, int, Tensor] | None = None
        # Until parameter_gradients has used them; where nobody asks for it they, and the states, would stay.
        self._keeps = any(t.requires_grad for t in self.parameters)

    @classmethod
    def takes(cls, u: Tensor) -> bool:
        """Whether there are kernels for states like ``u [batch..., features]``."""
        fits = 1 < u.ndim <= MOST_AXES and u.shape[-1] <= MOST_FEATURES
        return fits and u.device.type in cls.kernel_devices and u.dtype in (torch.float32, torch.float64)

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors a step depends on, besides the state."""
        return [self.weight, *([] if self.bias is None else [self.bias])]

    @property
    def fixed_tensors(self) -> list[Tensor]:
        """Those of :attr:`parameters` that do not require grad; nobody may write to them before the backward pass."""
        return [t for t in self.parameters if not t.requires_grad]

    def step(self, u: Tensor, points: slice) -> Tensor:
        if torch.is_grad_enabled() and any(t.requires_grad for t in (u, *self.parameters)):
            return self._formula(u, points)
        return self._relax(u, points, 1)

    def relax(self, u: Tensor, points: slice, m: int, out: Tensor | None, **more: Any) -> None:
        """``m`` steps of every slice in one kernel."""
        self._relax(u, points, m, out=out, **more)

    def rediscretise(self, m: int) -> DenseStep:
        """Every ``m``-th layer with a step ``m`` times as long."""
        keep = slice(0, self.steps // m * m, m)
        bias = None if self.bias is None else self.bias[keep]
        coarse = DenseStep(self.weight[keep], bias, self.h * m, self.activation)
        coarse._keeps = False
        return coarse

    def adjoint(self, u: Tensor, last: int, w: Tensor | None) -> DenseAdjoint:
        """See :class:`pyparareal.adjoint_step.OwnAdjoint`."""
        return DenseAdjoint(self, u, last, w)

    def parameter_gradients(self, u: Tensor, w: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        """``dW[i] = sum over rows of (slope * w) u^T`` and ``db[i]`` that of ``slope * w``, for all layers at once."""
        rows = (len(u), -1, u.shape[-1])
        of_z = (self.slopes(u) * w).reshape(rows)
        self._slopes = None
        found: list[Tensor | None] = []
        for tensor in parameters:
            if tensor is self.weight:
                found.append(torch.bmm(of_z.mT, u.reshape(rows)))
            else:
                found.append(of_z.sum(1) if tensor is self.bias else None)
        return found

    def part(self, first: int, last: int) -> DensePart:
        """The layers ``first .. last - 1``, see :class:`pyparareal.adjoint_step.OwnAdjoint`."""
        return DensePart(self, first, last)

    def slopes(self, u: Tensor) -> Tensor:
        """``h act'(W[i] u[i] + b[i])`` for ``u [layers, batch..., features]``: the first layers, if there are more.

        They are kept for the next call with the same states, if there may be one.
        """
        if (known := self._known(u)) is not None:
            return known
        slopes = torch.empty_like(u, memory_format=torch.contiguous_format)
        if len(u):
            self._relax(u, slice(0, len(u), 1), 1, slopes=slopes[:, None])
        if self._keeps:
            self._slopes = (u, u._version, slopes)
        return slopes

    def _known(self, u: Tensor) -> Tensor | None:
        if self._slopes is None:
            return None
        of, version, slopes = self._slopes  # of is held, so that its memory is no one else's
        same = of.data_ptr() == u.data_ptr() and of.stride() == u.stride() and of.shape[1:] == u.shape[1:]
        return slopes[: len(u)] if same and of._version == version and len(of) >= len(u) else None

    def _relax(self, u: Tensor, points: slice, m: int, **more: Any) -> Tensor:
        weight = arrays.windows(self.weight.detach(), points, m)
        bias = None if self.bias is None else arrays.windows(self.bias.detach(), points, m)
        more |= self.kernel_options(u)
        return ops.relax_dense(u.detach(), weight, bias, self.h, m, activation=self.activation, **more)

    @classmethod
    def kernel_options(cls, u: Tensor) -> dict[str, Any]:
        """What the kernels are asked for states like ``u``, besides their defaults."""
        chosen = cls.precision != "exact" and u.is_cuda and u.dtype == torch.float32
        return {"precision": cls.precision} if chosen else {}

    def _formula(self, u: Tensor, points: slice) -> Tensor:
        rows = u.reshape(len(u), -1, u.shape[-1])
        z = torch.bmm(rows, self.weight[points].mT)
        if self.bias is not None:
            z = z + self.bias[points][:, None]
        return u + self.h * ACTIVATIONS[self.activation](z).reshape(u.shape)


class DensePart(DenseStep):
    """Some of the layers; ``parameters`` and their gradients are those of ``whole``, zero for all other layers."""

    def __init__(self, whole: DenseStep, first: int, last: int) -> None:
        self.whole, self.layers = whole, slice(first, last)
        bias = None if whole.bias is None else whole.bias.detach()[self.layers]
        super().__init__(whole.weight.detach()[self.layers], bias, whole.h, whole.activation)
        self._keeps = whole._keeps

    def parameter_gradients(self, u: Tensor, w: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        of_whole = [self.whole.weight, self.whole.bias]
        mine = [next((own for own, t in zip((self.weight, self.bias), of_whole, strict=True) if t is tensor), None)
                for tensor in parameters]  # fmt: skip
        found = super().parameter_gradients(u, w, [self.weight if one is None else one for one in mine])
        whole: list[Tensor | None] = []
        for tensor, own, gradient in zip(parameters, mine, found, strict=True):
            embedded = None
            if own is not None and gradient is not None:
                embedded = torch.zeros_like(tensor)
                embedded[self.layers][: len(gradient)] = gradient
            whole.append(embedded)
        return whole


class DenseAdjoint:
    """``lambda[i] = lambda[i+1] + W[i]^T (slope[i] * lambda[i+1]) + w[i]`` on the reversed grid, in one kernel.

    The points are those of :class:`pyparareal.adjoint_step.AdjointStep`, whose arguments these are. The steps right of
    the end of ``u`` have slopes of zero, which keep ``lambda`` (but for the sign of a zero).
    """

    fused, compares, batch_invariant, stays = True, True, True, True

    def __init__(self, phi: DenseStep, u: Tensor, last: int, w: Tensor | None) -> None:
        kept, self.steps = last - (len(u) - 1), last
        slopes, weight = phi.slopes(u[:-1]), phi.weight.detach()[: len(u) - 1]
        self.slopes = torch.cat([slopes, slopes.new_zeros(kept, *slopes.shape[1:])]) if kept else slopes
        self.weight = torch.cat([weight, weight.new_zeros(kept, *weight.shape[1:])]) if kept else weight
        self.w: Tensor | None = None
        if w is not None and bool(w[:-1].any()):
            self.w = torch.cat([w.new_zeros(kept + 1, *w.shape[1:]), w[:-1].flip(0)])

    def step(self, v: Tensor, points: slice) -> Tensor:
        out = torch.empty_like(v, memory_format=torch.contiguous_format)
        self.relax(v, points, 1, out)
        return out

    def relax(self, v: Tensor, points: slice, m: int, out: Tensor | None, *, f: Any = None, **more: Any) -> None:
        """``m`` steps of every slice in one kernel; one by one where ``f`` is given besides ``w``."""
        if self.w is not None:
            if f is not None:
                relax_by_steps(self, v, points, m, out, f=f, **more)
                return
            f = arrays.windows(self.w, points, m, shift=1)
        slices = count_points(points)
        first = self.steps - points.start - (slices - 1) * points.step - m
        here = slice(first, first + (slices - 1) * points.step + 1, points.step)
        slopes, weight = arrays.windows(self.slopes, here, m), arrays.windows(self.weight, here, m)
        ops.relax_dense_adjoint(v, weight, slopes, m, f=f, out=out, **more, **DenseStep.kernel_options(v))


def dense_step(frozen: Frozen, u: Tensor) -> DenseStep | None:
    """The layers of ``frozen`` for states like ``u [batch, features]``; None if there are no kernels for them."""
    theta, h = frozen.stacked, frozen.h
    if theta is None or h is None or type(u) is not Tensor or not DenseStep.takes(u):
        return None
    activation = dense_activation(frozen.template, u.shape[-1])
    mixed = torch.is_autocast_enabled(u.device.type)
    if activation is None or mixed or any(t.dtype != u.dtype for t in theta.values()):
        return None
    return DenseStep(theta["0.weight"], theta.get("0.bias"), h, activation)


def may_be_dense(stack: Stack, u: Tensor) -> bool:
    """Whether it is worth asking :func:`dense_step`."""
    if not isinstance(u, Tensor) or not DenseStep.takes(u):
        return False
    pieces = {type(piece): dense_activation(piece, u.shape[-1]) for piece in stack.stacked}
    return stack.h is not None and not stack.blocks and None not in pieces.values()


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def dense_activation(template: Any, features: int) -> str | None:
    """The activation, if ``template`` is ``Sequential(Linear(features, features), activation)``; None if not."""
    if type(template) is not torch.nn.Sequential or len(template) != 2:
        return None
    linear, act = template
    names = {
        torch.nn.Tanh: "tanh",
        torch.nn.ReLU: "relu",
        torch.nn.Sigmoid: "sigmoid",
        torch.nn.SiLU: "silu",
        SmoothReLU: "smooth_relu",
    }
    if type(linear) is not torch.nn.Linear or not linear.in_features == linear.out_features == features:
        return None
    hooked = any(getattr(part, hooks) for part in template.modules() for hooks in _HOOKS)
    return None if hooked else names.get(type(act))


class SmoothReLU(torch.nn.Module):
    """:func:`smooth_relu` as a module."""

    def forward(self, z: Tensor) -> Tensor:
        """``smooth_relu(z)``."""
        return smooth_relu(z)
