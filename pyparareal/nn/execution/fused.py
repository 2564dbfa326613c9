# SPDX-License-Identifier: BSD-3-Clause
"""Congruent modules as one wider module, by rules for the usual layers; the rest through :mod:`.stacked`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..part import Part
from .congruence import uncompiled
from .stacked import run_stacked

Members = Sequence[Any]


class Fused:
    """The states of ``G`` congruent networks in one tensor, in the layout the last layer left it.

    ============  ============================  ===========================================
    ``shared``    ``[batch, C, ...]``           one state for all: nothing has been done yet
    ``channels``  ``[batch, G * C, ...]``       what convolutions and batch norm want
    ``stacked``   ``[G, batch, C, ...]``        what products of matrices and ``vmap`` want
    ============  ============================  ===========================================
    """

    def __init__(self, value: Tensor, layout: str, count: int) -> None:
        self.value, self.layout, self.count = value, layout, count

    @classmethod
    def of(cls, states: Sequence[Tensor]) -> Fused:
        """``G`` states ``[batch, C, ...]``; the same object ``G`` times is shared."""
        if all(u is states[0] for u in states):
            return cls(states[0], "shared", len(states))
        if states[0].ndim < 2:
            return cls(torch.stack(list(states)), "stacked", len(states))
        return cls(torch.cat(list(states), 1), "channels", len(states))

    def channels(self) -> Tensor:
        if self.layout == "channels":
            return self.value
        if self.layout == "shared":
            return self.value.repeat(1, self.count, *[1] * (self.value.ndim - 2))
        return self.value.transpose(0, 1).flatten(1, 2)

    def stacked(self) -> Tensor:
        if self.layout == "stacked":
            return self.value
        if self.layout == "shared":
            return self.value.expand(self.count, *self.value.shape)
        return self.value.unflatten(1, (self.count, -1)).transpose(0, 1)

    def states(self) -> list[Tensor]:
        return list(self.stacked().unbind(0))

    def same(self, value: Tensor) -> Fused:
        return Fused(value, self.layout, self.count)


Rule = Callable[[Members, Fused], Fused]
RULES: dict[type, Rule] = {}


def run_fused(members: Members, inputs: Sequence[Tensor]) -> list[Tensor]:
    """``[m(u) for m, u in zip(members, inputs)]`` of congruent modules, as one network."""
    from . import unit_rules  # noqa: F401 - registers rules; models are above this layer, hence not at import

    return call(members, Fused.of(inputs)).states()


def call(members: Members, u: Fused) -> Fused:
    """One congruent module of each network on their states."""
    members = [uncompiled(m) for m in members]
    found = _rule_of(members[0])
    return found(members, u) if found else Fused(run_stacked(members, u.stacked()), "stacked", u.count)


def rule(*types: type) -> Callable[[Rule], Rule]:
    """Register how modules of exactly these types are fused."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(types, function))
        return function

    return register


def _rule_of(m: nn.Module) -> Rule | None:
    if "forward" in vars(m) or (isinstance(m, _BatchNorm) and m.momentum is None):
        return None
    if isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward:
        return _sequential
    return RULES.get(type(m))


@rule(Part)
def _sequential(members: Members, u: Fused) -> Fused:
    for layers in zip(*members, strict=True):
        u = call(layers, u)
    return u


@rule(
    *(nn.Identity, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Tanhshrink),
)
def _elementwise(members: Members, u: Fused) -> Fused:
    if getattr(members[0], "inplace", False) and u.layout == "shared":
        return Fused(members[0](u.stacked().clone()), "stacked", u.count)  # the raw input stays the caller's
    return u.same(members[0](u.value))


@rule(nn.Dropout, nn.AlphaDropout)
def _dropout(members: Members, u: Fused) -> Fused:
    if u.layout == "shared":  # a shared state must not share its mask
        u = Fused(u.stacked().clone(), "stacked", u.count)
    return u.same(members[0](u.value))


@rule(
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad2d),
)
def _channelwise(members: Members, u: Fused) -> Fused:
    if u.layout == "shared":
        return u.same(members[0](u.value))
    return Fused(members[0](u.channels()), "channels", u.count)


@rule(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
def _channel_dropout(members: Members, u: Fused) -> Fused:
    return Fused(members[0](u.channels()), "channels", u.count)


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _convolution(members: Members, u: Fused) -> Fused:
    m = members[0]
    shared = u.layout == "shared" and m.groups == 1  # one convolution with more outputs
    x = u.value if shared else u.channels()
    padding = m.padding
    if m.padding_mode != "zeros":
        x, padding = F.pad(x, m._reversed_padding_repeated_twice, mode=m.padding_mode), 0
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(m.kernel_size)]
    groups = 1 if shared else m.groups * u.count
    y = convolve(
        x, torch.cat([each.weight for each in members]), _cat(members, "bias"), m.stride, padding, m.dilation, groups
    )
    return Fused(y, "channels", u.count)


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(members: Members, u: Fused) -> Fused:
    """Channels are independent of each other, so the statistics are those of each network."""
    m = members[0]
    mean, var = _cat(members, "running_mean"), _cat(members, "running_var")
    u = Fused(u.channels(), "channels", u.count)
    m._check_input_dim(u.value)
    weight, bias = _cat(members, "weight"), _cat(members, "bias")
    if m.training and mean is not None:
        for member in members:
            member.num_batches_tracked.add_(1)
    u.value = F.batch_norm(u.value, mean, var, weight, bias, m.training or mean is None, m.momentum, m.eps)
    if m.training and mean is not None and var is not None:
        for member, new_mean, new_var in zip(members, mean.chunk(u.count), var.chunk(u.count), strict=True):
            member.running_mean.copy_(new_mean)
            member.running_var.copy_(new_var)
    return u


@rule(nn.GroupNorm)
def _group_norm(members: Members, u: Fused) -> Fused:
    m = members[0]
    y = F.group_norm(u.channels(), m.num_groups * u.count, _cat(members, "weight"), _cat(members, "bias"), m.eps)
    return Fused(y, "channels", u.count)


@rule(nn.LayerNorm)
def _layer_norm(members: Members, u: Fused) -> Fused:
    m = members[0]
    x = u.stacked()
    y = F.layer_norm(x, m.normalized_shape, None, None, m.eps)
    for name, combine in (("weight", torch.mul), ("bias", torch.add)):
        if getattr(m, name) is not None:
            p = torch.stack([getattr(member, name) for member in members])
            # Weights may be wider than the state (autocast), as those of the layer itself: the result is not.
            y = combine(y, p.view(u.count, *[1] * (x.ndim - p.ndim), *m.normalized_shape)).to(y.dtype)
    return Fused(y, "stacked", u.count)


@rule(nn.Linear)
def _linear(members: Members, u: Fused) -> Fused:
    """``[G, rows, in] @ [G, in, out]``; a shared state needs one product with all outputs."""
    if u.layout == "shared" and u.value.ndim == 2:
        y = F.linear(u.value, torch.cat([m.weight for m in members]), _cat(members, "bias"))
        return Fused(y, "channels", u.count)
    x = u.stacked()
    weight = torch.stack([m.weight for m in members]).transpose(1, 2)
    rows = x.flatten(1, -2) if x.ndim > 3 else x if x.ndim == 3 else x.unsqueeze(1)
    if members[0].bias is None:
        y = torch.bmm(rows, weight)
    else:
        y = torch.baddbmm(torch.stack([m.bias for m in members]).unsqueeze(1), rows, weight)
    return Fused(y.view(*x.shape[:-1], -1), "stacked", u.count)


@rule(nn.Flatten)
def _flatten(members: Members, u: Fused) -> Fused:
    m = members[0]
    start, end = (d + (d >= 0) for d in (m.start_dim, m.end_dim))
    if u.layout == "shared":
        return u.same(m(u.value))
    return Fused(u.stacked().flatten(start, end), "stacked", u.count)


def _cat(members: Members, name: str) -> Tensor | None:
    """The tensors called ``name`` one after the other along their first axis; None where there are none."""
    if getattr(members[0], name) is None:
        return None
    return torch.cat([getattr(m, name) for m in members])
