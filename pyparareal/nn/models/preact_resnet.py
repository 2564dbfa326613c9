# SPDX-License-Identifier: BSD-3-Clause
"""Very deep residual networks of pre-activation bottleneck units."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from ..residual_unit import initialise
from .checks import require_positive

EXPANSION = 4


class PreActBottleneck(nn.Module):
    """``s + conv3(a3(conv2(a2(conv1(a1(x))))))`` with ``a = relu . bn``: He et al. 2016, arXiv 1603.05027, figure 1(b).

    ``x [batch, in_channels, H, W] -> [batch, 4 width, ceil(H / stride), ceil(W / stride)]``; the convolutions are
    1x1 (with the stride), 3x3 and 1x1. The shortcut ``s`` is ``x``, or where the number of channels changes a 1x1
    convolution of ``a1(x)``.
    """

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        channels = EXPANSION * width
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.downsample: nn.Conv2d | None = None
        if in_channels != channels:
            self.downsample = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        elif stride != 1:
            raise ValueError(f"stride: got {stride} for {channels} channels in and out, expected 1")

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv2(F.relu(self.bn2(self.conv1(y))))
        return shortcut + self.conv3(F.relu(self.bn3(y)))


class PreActResNet(nn.Module):
    """Residual network of depth ``9 n + 2``: ``[batch, channels, H, W] -> logits [batch, classes]``.

    He et al. 2016, arXiv 1603.05027: a 3x3 convolution to ``width`` channels, three stages of ``n`` bottleneck units
    with ``4 width``, ``8 width`` and ``16 width`` channels (the second and third start with stride 2), batch norm,
    ReLU, global average pooling, one linear layer. ``n = 111``, width 16 is ResNet-1001 with 10,327,706 parameters
    for 3 channels and 10 classes. Parameters are named ``conv1``, ``layer1.0.bn1``, ``layer1.0.conv1``, ...,
    ``layer1.0.downsample``, ``bn``, ``fc``.
    """

    def __init__(self, n: int, *, channels: int = 3, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        require_positive(n=n, channels=channels, classes=classes, width=width)
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.layer1 = _stage(n, width, width, 1)
        self.layer2 = _stage(n, EXPANSION * width, 2 * width, 2)
        self.layer3 = _stage(n, EXPANSION * 2 * width, 4 * width, 2)
        self.bn = nn.BatchNorm2d(EXPANSION * 4 * width)
        self.fc = nn.Linear(EXPANSION * 4 * width, classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.bn(x)), 1).flatten(1))

    def split(self) -> tuple[nn.Module, list[nn.Module], nn.Module]:
        """``(C^1, body, h)``: the first convolution, the list of units, and everything behind them."""
        head = OrderedDict(bn=self.bn, relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=self.fc)
        return self.conv1, [*self.layer1, *self.layer2, *self.layer3], nn.Sequential(head)


def _stage(n: int, in_channels: int, width: int, stride: int) -> nn.Sequential:
    first = PreActBottleneck(in_channels, width, stride)
    return nn.Sequential(first, *(PreActBottleneck(EXPANSION * width, width) for _ in range(n - 1)))
