# SPDX-License-Identifier: BSD-3-Clause
"""CIFAR-style residual networks and their parareal version."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..parareal_network import PararealNetwork, part_sizes
from ..shapes import interface_shapes
from .interface_maps import InterfaceMap
from .residual_unit import ResidualUnit, initialise


class ResNet(nn.Module):
    """Residual network of depth ``6 n + 2``: ``[batch, channels, H, W] -> logits [batch, classes]``.

    He et al. 2015, arXiv 1512.03385, section 4.2: a 3x3 convolution, three stages of ``n`` units with ``width``,
    ``2 width`` and ``4 width`` channels (the second and third start with stride 2), global average
    pooling, one linear layer. Width 16 gives ResNet-20 with 269,722 parameters for 3 channels and 10 classes.
    Parameters have the usual names: ``conv1``, ``bn1``, ``layer1.0.conv1``, ..., ``fc``.
    """

    def __init__(self, n: int, *, channels: int = 3, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        for name, value in (("n", n), ("channels", channels), ("classes", classes), ("width", width)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected a positive int")
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


def build_parareal(
    net: ResNet,
    image_shape: Sequence[int],
    parts: int | Sequence[int],
    *,
    correction: str = "residual",
    coarse_units: int = 0,
    preprocess_units: int = 1,
) -> PararealNetwork:
    """Parareal network of ``net``'s units, sharing its parameters, with new coarse nets and preprocessing maps.

    ``C^1`` is ``net``'s first convolution; ``C^2 .. C^N`` and ``F^1 .. F^{N-1}`` are :class:`InterfaceMap` of
    the interface shapes (see there which details are ours).

    Parameters
    ----------
    image_shape : ``(channels, height, width)`` of the inputs
    parts : number of parts, or the number of units in each
    coarse_units, preprocess_units : residual units per coarse net and per preprocessing map
    """
    if len(image_shape) != 3:
        raise ValueError(f"image_shape: got {tuple(image_shape)}, expected (channels, height, width)")
    stem, body, head = net.split()
    sizes = part_sizes(len(body), parts)
    # Batch norm refuses a single value per channel in training mode, hence a batch of two.
    shapes = [shape[1:] for shape in interface_shapes([stem, *body], (2, *image_shape))[1:]]
    cuts = [shapes[sum(sizes[:j])] for j in range(1, len(sizes) + 1)]  # X_1 .. X_N
    guesses = [InterfaceMap(image_shape, cut, units=preprocess_units) for cut in cuts[:-1]]
    coarse = [InterfaceMap(source, target, units=coarse_units, signed=True) for source, target in pairwise(cuts)]
    return PararealNetwork(
        body,
        sizes,
        preprocess=[stem, *guesses],
        coarse=coarse,
        head=head,
        correction=correction,
        example=torch.empty(2, *image_shape, device="meta"),
    )


def _stage(n: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = ResidualUnit(in_channels, channels, stride)
    return nn.Sequential(first, *(ResidualUnit(channels, channels) for _ in range(n - 1)))
