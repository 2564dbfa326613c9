# SPDX-License-Identifier: BSD-3-Clause
"""CIFAR-style residual networks."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from ..residual_unit import ResidualUnit, initialise
from .checks import require_positive


class ResNet(nn.Module):
    """Residual network of depth ``6 n + 2``: ``[batch, channels, H, W] -> logits [batch, classes]``.

    He et al. 2015, arXiv 1512.03385, section 4.2: a 3x3 convolution, three stages of ``n`` units with ``width``,
    ``2 width`` and ``4 width`` channels (the second and third start with stride 2), global average
    pooling, one linear layer. Width 16 gives ResNet-20 with 269,722 parameters for 3 channels and 10 classes.
    Parameters have the usual names: ``conv1``, ``bn1``, ``layer1.0.conv1``, ..., ``fc``.
    """

    def __init__(self, n: int, *, channels: int = 3, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        require_positive(n=n, channels=channels, classes=classes, width=width)
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(n, width, width, 1)
        self.layer2 = _stage(n, width, 2 * width, 2)
        self.layer3 = _stage(n, 2 * width, 4 * width, 2)
        self.fc = nn.Linear(4 * width, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def split(self) -> tuple[nn.Module, list[nn.Module], nn.Module]:
        """``(C^1, body, h)``: first layers, the list of residual units, and pooling with the classifier.

        The returned modules share this network's parameters.
        """
        stem = nn.Sequential(OrderedDict(conv1=self.conv1, bn1=self.bn1, relu=nn.ReLU()))
        head = nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=self.fc))
        return stem, [*self.layer1, *self.layer2, *self.layer3], head


def _stage(n: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = ResidualUnit(in_channels, channels, stride)
    return nn.Sequential(first, *(ResidualUnit(channels, channels) for _ in range(n - 1)))
