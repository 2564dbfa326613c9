# SPDX-License-Identifier: BSD-3-Clause
"""The two-convolution residual unit of CIFAR-style residual networks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualUnit(nn.Module):
    """``relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))``, He et al. 2015, arXiv 1512.03385, figure 2.

    ``x [batch, in_channels, H, W] -> [batch, channels, ceil(H / stride), ceil(W / stride)]``. Where the shape
    changes, the shortcut is the paper's option A: every ``stride``-th pixel, missing channels zero, no parameters.

    ``final_activation=False`` leaves out the last ReLU.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1, *, final_activation: bool = True) -> None:
        super().__init__()
        if in_channels > channels:
            raise ValueError(f"channels: got {channels}, expected at least in_channels = {in_channels}")
        self.stride = stride
        self.new_channels = channels - in_channels
        self.final_activation = final_activation
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self._shortcut(x)
        return F.relu(y) if self.final_activation else y

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            x = F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))
        return x


def initialise(module: nn.Module) -> None:
    """He initialisation of every convolution (normal, fan out), in place."""
    for m in module.modules():
        if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
