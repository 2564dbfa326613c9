# SPDX-License-Identifier: BSD-3-Clause
"""Modules whose training step is no function of weights and examples alone: refused by name, before any step.

The iteration takes the same step many times and on several levels. A step that draws random numbers, or that keeps
running statistics, would be another one each time, and there would be no chain to solve.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from .data import Examples
from .steps import OptimiserStep


def require_repeatable(module: nn.Module) -> None:
    """Refuse layers known to be random, or to keep statistics, in training; and parameters with hooks.

    Raises
    ------
    ValueError
        Names the layer or the parameter, and what to do.
    """
    for name, p in module.named_parameters():
        if p.requires_grad and (p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None)):
            raise ValueError(
                f"module: {name} has a hook on its gradient, which torch.func does not call; expected parameters "
                "without"
            )
    for name, layer in module.named_modules():
        where = f"{name or 'the module'} ({type(layer).__name__})"
        if not layer.training:
            continue
        if isinstance(layer, _DropoutNd) and layer.p > 0:
            raise ValueError(
                f"module: {where} draws a new mask in every step; set p=0 or call eval() on it, or let the mask come "
                "with the inputs"
            )
        if isinstance(layer, _NormBase) and layer.track_running_stats:
            raise ValueError(
                f"module: {where} keeps running statistics, which are no part of the weights; expected "
                "track_running_stats=False, eval() on it, or another normalisation such as GroupNorm"
            )
        if isinstance(layer, nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d):
            raise ValueError(f"module: {where} draws random numbers in every step; call eval() on it, or replace it")
        if isinstance(getattr(layer, "dropout", None), float) and layer.dropout > 0:
            raise ValueError(f"module: {where} has dropout={layer.dropout}, a new mask in every step; set it to 0")


def require_gradient(step: OptimiserStep, examples: Examples) -> None:
    """Take one gradient, twice: it must exist for two slices at once, be finite, repeat itself, and change no buffer.

    Raises
    ------
    ValueError
        Says which of these is not so, and what torch said.
    """
    module, u = step.module, step.start()[None].repeat(2, 1, 1)
    before = {name: b.clone() for name, b in module.named_buffers()}
    try:
        first, second = (step.gradient(u[:, 0, : step.weights.size], slice(0, 2, 1)) for _ in range(2))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if "random" in str(error) and "vmap" in str(error):
            raise ValueError(
                f"module: {type(module).__name__} draws random numbers in its forward pass, a new step every time; "
                "take them out, or let them come with the inputs"
            ) from error
        raise ValueError(
            f"module, loss, data: the gradient of loss(module(inputs), targets) for {_kind(step.weights.dtype)} "
            f"parameters, {_kind(examples.x.dtype)} inputs {list(examples.x.shape)} and {_kind(examples.y.dtype)} "
            f"targets {list(examples.y.shape)} cannot be taken for several slices at once: {error}"
        ) from error
    _require_use(step)
    changed = [name for name, b in module.named_buffers() if not torch.equal(b, before[name])]
    if changed:
        raise ValueError(f"module: its forward pass changes the buffer {changed[0]!r}, which is no part of the weights")
    _require_finite(first)
    # Atomics may round differently; random numbers, and what counts its own calls, differ more.
    if float((first - second).norm()) > math.sqrt(torch.finfo(first.dtype).eps) * float(first.norm()):
        raise ValueError(
            f"module: {type(module).__name__} gives another gradient when asked twice; it must draw no random numbers"
        )


def _require_use(step: OptimiserStep) -> None:
    """The loss depends on the parameters; with weight decay on all, as ``torch.optim`` passes over the others."""
    if torch.is_inference_mode_enabled():  # where torch records nothing that could be asked
        return
    unused = step.unused()
    if len(unused) == len(step.weights.shapes):
        raise ValueError("loss: got one that depends on no parameter of the module that requires grad")
    if unused and step.optimiser.weight_decay:
        raise ValueError(
            f"module: the loss does not depend on {unused[0]}, which torch's weight decay would pass over and this one "
            "would not; set requires_grad_(False) on it"
        )


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _require_finite(gradient: Tensor) -> None:
    if not bool(torch.isfinite(gradient).all()):
        raise ValueError("loss: its gradient at the initial weights is not finite")
