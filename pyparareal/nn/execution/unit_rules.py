# SPDX-License-Identifier: BSD-3-Clause
"""How the units of :mod:`pyparareal.nn.models` are fused: their own ``forward``, on fused layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..models.preact_resnet import PreActBottleneck
from ..residual_unit import ResidualUnit
from .fused import Fused, Members, call, rule


@rule(ResidualUnit)
def _residual_unit(members: Members, u: Fused) -> Fused:
    m = members[0]
    y = _relu(_layer(members, "bn1", _layer(members, "conv1", u)))
    y = _layer(members, "bn2", _layer(members, "conv2", y))
    value = y.channels() + _shortcut(m, u)
    return Fused(F.relu(value) if m.final_activation else value, "channels", u.count)


def _shortcut(m: ResidualUnit, u: Fused) -> Tensor:
    x = u.channels()
    if m.stride > 1:
        x = x[:, :, :: m.stride, :: m.stride]
    if m.new_channels:
        before = m.new_channels // 2
        each = x.unflatten(1, (u.count, -1))  # [batch, G, C, H, W]: every network gets its own zeros
        x = F.pad(each, (0, 0, 0, 0, before, m.new_channels - before)).flatten(1, 2)
    return x


@rule(PreActBottleneck)
def _bottleneck(members: Members, u: Fused) -> Fused:
    y = _relu(_layer(members, "bn1", u))
    shortcut = u if members[0].downsample is None else _layer(members, "downsample", y)
    y = _layer(members, "conv2", _relu(_layer(members, "bn2", _layer(members, "conv1", y))))
    y = _layer(members, "conv3", _relu(_layer(members, "bn3", y)))
    return Fused(shortcut.channels() + y.channels(), "channels", u.count)


def _layer(members: Members, name: str, u: Fused) -> Fused:
    return call([getattr(m, name) for m in members], u)


def _relu(u: Fused) -> Fused:
    return u.same(F.relu(u.value))
