# SPDX-License-Identifier: BSD-3-Clause
"""Networks by name. ``build(name, ...)`` makes the serial one, ``build_parareal(net, ...)`` its parareal version."""

from __future__ import annotations

from .interface_maps import InterfaceMap as InterfaceMap
from .resnet import ResNet as ResNet
from .resnet import build_parareal as build_parareal

__all__ = ["MODELS", "InterfaceMap", "ResNet", "build", "build_parareal"]

# Depth 6n + 2 of the CIFAR family (He et al. 2015, section 4.2). 8 and 14 are ours, for small images.
MODELS: dict[str, int] = {f"resnet{6 * n + 2}": n for n in (1, 2, 3, 5, 7, 9, 18)}


def build(name: str, *, channels: int, classes: int, width: int = 16) -> ResNet:
    """The serial network called ``name``, for images ``[batch, channels, height, width]``."""
    if name not in MODELS:
        raise ValueError(f"model: got {name!r}, expected one of {', '.join(MODELS)}")
    return ResNet(MODELS[name], channels=channels, classes=classes, width=width)
