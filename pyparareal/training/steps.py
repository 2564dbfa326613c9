# SPDX-License-Identifier: BSD-3-Clause
"""One training step of all slices as a propagator: a gradient per slice, then the optimiser's update.

``Phi_i(w, moments) = update(w, moments, grad loss(module_w(x_i), y_i))``, Schroder (2017), eqs. (1) and (9).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from .data import Examples
from .learning_rates import Rate, largest
from .optimisers import SGD, Adam
from .rules import Rules
from .weights import Weights

Loss = Callable[[Any, Tensor], Tensor]


class OptimiserStep:
    """Training steps of any torch module as a :class:`pyparareal.Propagator`; all slices in one batched computation.

    A state is ``[1, s]``: the ``s`` weights, then the optimiser's moments, ``s`` numbers each. Slices are
    ``[slices, 1, s (1 + moments)]``.

    Parameters
    ----------
    module : torch module
    loss : callable
        ``loss(module(x), y)`` is a scalar.
    base : float, or float64 tensor [steps]
        Learning rate of the finest level, or that of each of its steps; those of this level follow from ``rules``.
    level : int
        Of this propagator; 0 is the finest.
    stride : int
        Fine steps per step.
    offset : int
        Fine step at point 0.
    slices_per_call : int, optional
        At most so many gradients at a time, to bound the memory of their activations.
    """

    batch_invariant = False  # batched matrix products round differently in other company

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        examples: Examples,
        *,
        weights: Weights,
        optimiser: SGD | Adam,
        base: Rate,
        rules: Rules,
        level: int = 0,
        stride: int = 1,
        offset: int = 0,
        slices_per_call: int | None = None,
    ) -> None:
        self.module, self.loss, self.examples, self.weights = module, loss, examples, weights
        self.optimiser, self.base, self.rules = optimiser, base, rules
        self.level, self.stride, self.offset = level, stride, offset
        self.slices_per_call = slices_per_call

    def start(self) -> Tensor:
        """The module's weights with moments of zero, ``[1, s (1 + moments)]``."""
        own = self.weights.flat(self.module)
        return torch.cat([own, *[torch.zeros_like(own) for _ in self.optimiser.moments]])[None]

    def step(self, u: Tensor, points: slice) -> Tensor:
        """``[slices, 1, s (1 + moments)]`` after one update each."""
        w, *moments = u[:, 0].split(self.weights.size, dim=-1)
        steps = torch.arange(points.start, points.stop, points.step, device=u.device) + 1
        count = (self.offset + self.stride * steps)[:, None].to(u.dtype)
        g = self.gradient(w, points)
        alpha, q = (
            rate.to(u.device)[:, None] if isinstance(rate, Tensor) else rate
            for rate in self.rates_at(torch.arange(points.start, points.stop, points.step))
        )
        updated = self.optimiser.update(w, moments, g, alpha, q, count)
        return torch.cat(updated, dim=-1)[:, None]

    def rates_at(self, points: Tensor) -> tuple[Rate, Rate]:
        """``alpha`` and ``q = alpha / alpha_0`` of the steps from ``points`` (int64, on the host), like it in shape.

        Numbers where all steps have the same.
        """
        base = self.base
        if isinstance(base, Tensor):
            # The blocks of `deterministic` are padded with points behind the last.
            base = base[(self.offset + self.stride * points).clamp(max=len(base) - 1)]
        alpha = self.rules.alpha(base, self.level, self.stride)
        if self.level == 0:
            return alpha, 1.0
        if isinstance(base, Tensor):
            return alpha, torch.where(base > 0, alpha / base, self.rules.scale(self.level, self.stride))
        return alpha, alpha / base

    def largest_alpha(self, steps: int) -> float:
        """Of the first ``steps`` fine steps from the offset."""
        base = largest(self.base, slice(self.offset, self.offset + steps))
        return float(self.rules.alpha(base, self.level, self.stride))

    def gradient(self, w: Tensor, points: slice) -> Tensor:
        """The gradient of every slice at its own weights ``w [slices, s]`` and batch."""
        numbers = range(points.start, points.stop, points.step)
        size = self.slices_per_call or max(len(w), 1)
        # Each part chooses its own examples: those of all slices at once may be many times the data.
        parts = [self._gradient(w[i : i + size], numbers[i : i + size]) for i in range(0, max(len(w), 1), size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _gradient(self, w: Tensor, numbers: range) -> Tensor:
        x, y, own = self.examples.batch(self.rules, self.level, numbers, self.stride, self.offset)
        axis = 0 if own else None
        found = vmap(grad(self._loss), in_dims=(0, axis, axis))(w, x, y)
        assert isinstance(found, Tensor)
        return found

    def _loss(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        named = self.weights.named(w)
        shared = {name: named[original] for name, original in self.weights.shared.items()}
        # torch's own way with shared weights leaves a module that has two names broken behind.
        return self.loss(functional_call(self.module, {**named, **shared}, (x,), tie_weights=False), y)

    def unused(self) -> list[str]:
        """Parameters that the loss of the first batch does not depend on, at the module's own weights."""
        x, y, own = self.examples.batch(self.rules, self.level, range(1), self.stride, self.offset)
        flat = self.start()[0, : self.weights.size]
        named = {name: part.clone().requires_grad_(True) for name, part in self.weights.named(flat).items()}
        shared = {name: named[original] for name, original in self.weights.shared.items()}
        with torch.enable_grad():
            prediction = functional_call(self.module, {**named, **shared}, (x[0] if own else x,), tie_weights=False)
            value = self.loss(prediction, y[0] if own else y)
            if not value.requires_grad:
                return list(named)
            found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        return [name for name, g in zip(named, found, strict=True) if g is None]

    def curvature(self, w: Tensor, iterations: int = 20) -> float:
        """The largest curvature ``mu`` of the loss of the first batch at ``w [s]``, by power iteration.

        Gradient descent with a learning rate above ``2 / mu`` climbs. NaN where the gradient has no derivative.
        """
        x, y, own = self.examples.batch(self.rules, self.level, range(1), self.stride, self.offset)
        if own:
            x, y = x[0], y[0]

        def product(v: Tensor) -> Tensor:  # of the Hessian matrix
            return grad(lambda weights: (grad(self._loss)(weights, x, y) * v).sum())(w)

        v = torch.randn(w.shape, generator=torch.Generator().manual_seed(0), dtype=w.dtype).to(w.device)
        size = v.norm()
        try:
            for _ in range(iterations):
                v = product(v / size)
                size = v.norm()
        except RuntimeError:  # torch's, for a layer that can be differentiated once only
            return math.nan
        return float(size)

    def rediscretise(self, m: int) -> OptimiserStep:
        """The next level's step, by the rules."""
        return self.moved(level=self.level + 1, stride=self.stride * m)

    def moved(self, **changes: Any) -> OptimiserStep:
        """The same with another ``level``, ``stride``, ``offset`` or ``slices_per_call``."""
        now = {name: getattr(self, name) for name in ("level", "stride", "offset", "slices_per_call")}
        return type(self)(
            self.module, self.loss, self.examples, weights=self.weights, optimiser=self.optimiser, base=self.base,
            rules=self.rules, **{**now, **changes},
        )  # fmt: skip
