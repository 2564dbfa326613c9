# SPDX-License-Identifier: BSD-3-Clause
"""Small fully connected networks trained by plain gradient descent: all steps of all slices in one kernel.

Used in place of :class:`pyparareal.training.OptimiserStep` where the module is a ``Sequential`` of ``Linear`` layers
with one kind of activation between them, the loss is :class:`pyparareal.training.HalfSquaredError` and the optimiser
plain SGD.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .data import Examples
from .losses import HalfSquaredError
from .optimisers import SGD
from .steps import Loss, OptimiserStep
from .weights import Weights

KINDS: dict[type[nn.Module], str] = {nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.ReLU: "relu", nn.Identity: "identity"}


@dataclass(frozen=True)
class Shape:
    """Sizes of the layers, the inputs first; activations behind all but the last layer, and behind the last."""

    sizes: tuple[int, ...]
    hidden: str
    last: str
    bias: bool


class MlpStep(OptimiserStep):
    """The same step by ``ops.relax_mlp_sgd``: ``m`` of them in one call, with the weights held where they are used."""

    batch_invariant = True
    fused = True
    shape: Shape

    def step(self, u: Tensor, points: slice) -> Tensor:
        out = torch.empty_like(u)
        self.relax(u, points, 1, out)
        return out

    def relax(self, u: Tensor, points: slice, m: int, out: Tensor | None, **more: Any) -> None:
        """See :class:`pyparareal.propagators.FusedPropagator`."""
        shape, examples = self.shape, self.examples
        first, count = self._ranges(points, m)
        ops.relax_mlp_sgd(
            u, shape.sizes, examples.x, examples.y, self.alpha, m, first=first, count=count, hidden=shape.hidden,
            last=shape.last, bias=shape.bias, out=out, **more,
        )  # fmt: skip

    def _ranges(self, points: slice, m: int) -> tuple[Tensor | None, int | None]:
        """The first example of every step ``[slices, m]``, and how many follow one another; None for all of them."""
        order = self.examples.order
        if order is None:
            return None, None
        own = torch.arange(points.start, points.stop, points.step)[:, None] + torch.arange(m)
        serial, batch = self.rules.data == "serial", order.shape[1]
        index = own + self.offset // self.stride if serial else self.offset + self.stride * own
        return ((index % len(order)) * batch).to(self.examples.x.device), batch

    def moved(self, **changes: Any) -> MlpStep:
        moved = super().moved(**changes)
        assert isinstance(moved, MlpStep)
        moved.shape = self.shape
        return moved


def make_step(
    module: nn.Module, loss: Loss, examples: Examples, fused: bool | None, **more: Any
) -> tuple[OptimiserStep, str]:
    """The step of ``module``, fused where it can be; and why it is not, empty if it is."""
    if fused not in (None, True, False):
        raise TypeError(f"fused: got {fused!r}, expected True, False or None")
    shape = "fused=False" if fused is False else _shape(module, loss, examples, **more)
    if isinstance(shape, str):
        if fused:
            raise ValueError(f"fused: got True, but {shape}")
        return OptimiserStep(module, loss, examples, **more), shape
    step = MlpStep(module, loss, examples, **more)
    step.shape = shape
    return step, ""


def _shape(module: nn.Module, loss: Loss, examples: Examples, **more: Any) -> Shape | str:
    """The network's shape, or why the kernel cannot train it."""
    weights: Weights = more["weights"]
    if type(loss) is not HalfSquaredError:
        return f"the loss is {type(loss).__name__}, not HalfSquaredError"
    if more["optimiser"] != SGD():
        return f"the optimiser is {more['optimiser']}, not plain SGD"
    data = more["rules"].data
    if callable(data) or data == "averaged":
        return f"the data rule is {getattr(data, '__name__', data)!r}, whose batches are no ranges of examples"
    order = examples.order
    if order is not None and not torch.equal(order.reshape(-1), torch.arange(order.numel())):
        return "the batches are no ranges of examples"
    if any(part.ndim != 2 or part.dtype != weights.dtype for part in (examples.x, examples.y)):
        return f"inputs and targets are not both [examples, features] of {str(weights.dtype).removeprefix('torch.')}"
    return _layers(module, weights)


def _layers(module: nn.Module, weights: Weights) -> Shape | str:
    if type(module) is not nn.Sequential:
        return f"the module is {type(module).__name__}, not Sequential"
    linear = [layer for layer in module if type(layer) is nn.Linear]
    kinds = [type(layer) for layer in module]
    # Behind every Linear one activation, behind the last perhaps none.
    if kinds[::2] != [nn.Linear] * len(linear) or any(kind not in KINDS for kind in kinds[1::2]) or not linear:
        return "the module is not Linear layers with one activation behind each"
    names = [KINDS[kind] for kind in kinds[1::2]] + ["identity"] * (len(kinds) % 2)
    hidden, last = names[:-1], names[-1]
    if len(set(hidden)) > 1:
        return f"the hidden layers have different activations: {', '.join(hidden)}"
    biases = {layer.bias is not None for layer in linear}
    if len(biases) > 1:
        return "some layers have a bias and some have none"
    if len(weights.shapes) != sum(1 + (layer.bias is not None) for layer in linear):
        return "some parameters are shared or not trained"
    sizes = (linear[0].in_features, *(layer.out_features for layer in linear))
    return Shape(sizes, hidden[0] if hidden else last, last, biases.pop())
