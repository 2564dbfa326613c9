# SPDX-License-Identifier: BSD-3-Clause
"""Small fully connected networks trained by plain gradient descent: all steps of all slices in one kernel.

Used in place of :class:`pyparareal.training.OptimiserStep` where the module is a ``Sequential`` of ``Linear`` layers
with one kind of activation between them, the loss is :class:`pyparareal.training.HalfSquaredError` and the optimiser
plain SGD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .data import Examples
from .losses import HalfSquaredError
from .optimisers import SGD
from .rules import Rules
from .steps import Loss, OptimiserStep
from .weights import Weights

KINDS: dict[type[nn.Module], str] = {nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.ReLU: "relu", nn.Identity: "identity"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# What ops.relax_mlp_sgd takes.
MOST_LAYERS, MOST_NEURONS, MOST_WEIGHTS = 8, 1 << 20, 1 << 28


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
        own = torch.arange(points.start, points.stop, points.step)[:, None] + torch.arange(m)
        first, count = self._ranges(own)
        alpha = self.rates_at(own)[0]
        if isinstance(alpha, Tensor):
            alpha = alpha.to(u.device)
        ops.relax_mlp_sgd(
            u, shape.sizes, examples.x, examples.y, alpha, m, first=first, count=count, hidden=shape.hidden,
            last=shape.last, bias=shape.bias, out=out, **more,
        )  # fmt: skip

    def _ranges(self, own: Tensor) -> tuple[Tensor | None, int | None]:
        """The first example of every step from ``own [slices, m]``, and how many follow; None for all of them."""
        order = self.examples.order
        if order is None:
            return None, None
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
    if isinstance(shape, Shape):
        shape = _differs(module, loss, shape, **more) or shape
    if isinstance(shape, str):
        if fused:
            raise ValueError(f"fused: got True, but {shape}")
        return OptimiserStep(module, loss, examples, **more), shape
    return _fused(module, loss, examples, shape, **more), ""


def _fused(module: nn.Module, loss: Loss, examples: Examples, shape: Shape, **more: Any) -> MlpStep:
    step = MlpStep(module, loss, examples, **more)
    step.shape = shape
    return step


def _shape(module: nn.Module, loss: Loss, examples: Examples, **more: Any) -> Shape | str:
    """The network's shape, or why the kernel cannot train it."""
    weights: Weights = more["weights"]
    if torch.is_autocast_enabled(weights.device.type):
        return "autocast is on, which the kernel does not know"
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
    shape = _layers(module, loss, weights)
    if isinstance(shape, Shape) and examples.y.shape[1] != shape.sizes[-1]:
        return f"the targets have {examples.y.shape[1]} features, the last layer {shape.sizes[-1]}"
    return shape


def _layers(module: nn.Module, loss: Loss, weights: Weights) -> Shape | str:
    if type(module) is not nn.Sequential:
        return f"the module is {type(module).__name__}, not Sequential"
    named = dict(module._modules)  # with repeated layers, which named_children leaves out
    linear = {name: layer for name, layer in named.items() if type(layer) is nn.Linear}
    kinds = [type(layer) for layer in named.values()]
    # Behind every Linear one activation, behind the last perhaps none.
    if kinds[::2] != [nn.Linear] * len(linear) or any(kind not in KINDS for kind in kinds[1::2]) or not linear:
        return "the module is not Linear layers with one activation behind each"
    names = [KINDS[kind] for kind in kinds[1::2]] + ["identity"] * (len(kinds) % 2)
    hidden, last = names[:-1], names[-1]
    if len(set(hidden)) > 1:
        return f"the hidden layers have different activations: {', '.join(hidden)}"
    biases = {layer.bias is not None for layer in linear.values()}
    if len(biases) > 1:
        return "some layers have a bias and some have none"
    parts = {"the module": module, **{f"layer {name}": layer for name, layer in named.items()}, "the loss": loss}
    reason = next(filter(None, (_own(name, part) for name, part in parts.items())), "")
    first = next(iter(linear.values()))
    sizes = (first.in_features, *(layer.out_features for layer in linear.values()))
    bias = biases.pop()
    return (
        reason
        or _parameters(list(linear), sizes, bias, weights)
        or _too_large(sizes, weights)
        or Shape(sizes, hidden[0] if hidden else last, last, bias)
    )


def _own(name: str, part: Any) -> str:
    """Why ``part`` may compute something else than its class."""
    if any(getattr(part, hooks, None) for hooks in HOOKS):
        return f"{name} ({type(part).__name__}) has hooks"
    return f"{name} ({type(part).__name__}) has a forward of its own" if "forward" in vars(part) else ""


def _parameters(names: list[str], sizes: tuple[int, ...], bias: bool, weights: Weights) -> str:
    """Why the trained parameters are not those of the layers in the kernel's order."""
    if len(weights.shapes) < len(names) * (1 + bias):
        return "some parameters are shared or not trained"
    expected: list[tuple[str, tuple[int, ...]]] = []
    for name, inputs, outputs in zip(names, sizes, sizes[1:], strict=False):
        expected += [(f"{name}.weight", (outputs, inputs))] + [(f"{name}.bias", (outputs,))] * bias
    found = [(name, tuple(shape)) for name, shape in weights.shapes.items()]
    if found == expected:
        return ""
    at = next((i for i, pair in enumerate(expected) if i >= len(found) or found[i] != pair), len(expected))
    wanted = f"{expected[at][0]} {list(expected[at][1])}" if at < len(expected) else "no more"
    return f"parameter {at} is {found[at][0]} {list(found[at][1])}, where the kernel has {wanted}"


def _too_large(sizes: tuple[int, ...], weights: Weights) -> str:
    if len(sizes) - 1 > MOST_LAYERS:
        return f"the module has {len(sizes) - 1} layers, and the kernel takes at most {MOST_LAYERS}"
    if max(sizes) > MOST_NEURONS:
        return f"a layer has {max(sizes)} neurons, and the kernel takes at most {MOST_NEURONS}"
    if weights.size > MOST_WEIGHTS:
        return f"the module has {weights.size} weights, and the kernel takes at most {MOST_WEIGHTS}"
    return ""


def _differs(module: nn.Module, loss: Loss, shape: Shape, weights: Weights, **more: Any) -> str:
    """Take one step both ways; why the kernel's is another one than the module's, if it is.

    On the host in float64, whatever precision torch has elsewhere, with weights, inputs and targets drawn so that
    neurons are of order 1: nothing saturates or cancels by the user's numbers. The learning rate, a power of two, lets
    the smallest gradient show beside the weights. The two may differ by four units in the last place of the weights,
    and by the root of the unit (1.5e-8) times the largest sum of magnitudes of the gradient's terms, one of each
    example: rounding takes some tens of units there, another function more than half of the digits.
    """
    unit, inputs, outputs = torch.finfo(torch.float64).eps, shape.sizes[0], shape.sizes[-1]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(weights.size + 4 * (inputs + outputs), generator=generator, dtype=torch.float64, device="cpu")
    w, x, y = drawn.split([weights.size, 4 * inputs, 4 * outputs])
    w = torch.cat([part.reshape(-1) / max(part.shape[-1], 1) ** 0.5 for part in weights.named(w).values()])
    x, y, scale = x.reshape(4, -1), y.reshape(4, -1), float(w.abs().max())
    more = {**more, "weights": weights, "rules": Rules(data="serial"), "base": 1.0}
    single = OptimiserStep(module, loss, Examples(x, y, torch.arange(4, device="cpu")[:, None]), **more)
    try:
        terms = single.gradient(w.repeat(4, 1), slice(0, 4, 1)).abs().sum(0)
        largest = {name: float(part.max()) for name, part in weights.named(terms).items()}
        more["base"] = 2.0 ** round(math.log2(scale / min((g for g in largest.values() if g > 0), default=scale)))
        steps = OptimiserStep(module, loss, Examples(x, y), **more), _fused(module, loss, Examples(x, y), shape, **more)
        theirs, ours = (step.step(w[None, None], slice(0, 1, 1))[0, 0] for step in steps)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        return f"a step of it cannot be compared with torch's: {error}"
    for name, part in weights.named((ours - theirs).abs() / more["base"]).items():
        if not float(part.max()) <= 4 * unit * scale / more["base"] + math.sqrt(unit) * largest[name]:
            return f"the gradient of {name} differs from torch's by {float(part.max()):.1e} of {largest[name]:.1e}"
    return ""
