# SPDX-License-Identifier: BSD-3-Clause
"""Networks by name. ``build(name, ...)`` makes the serial one, ``build_parareal(net, ...)`` its parareal version."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from ..interface_maps import InterfaceMap as InterfaceMap
from .parareal_version import build_parareal as build_parareal
from .preact_resnet import PreActResNet as PreActResNet
from .resnet import ResNet as ResNet
from .vgg import VGG as VGG

__all__ = ["MODELS", "VGG", "InterfaceMap", "PreActResNet", "ResNet", "build", "build_parareal"]

# Depth 6n + 2 of the CIFAR family (He et al. 2015, section 4.2). 8 and 14 are ours, for small images.
MODELS: dict[str, Callable[..., nn.Module]] = {f"resnet{6 * n + 2}": partial(ResNet, n) for n in (1, 2, 3, 5, 7, 9, 18)}
# Depth 9n + 2 with pre-activation bottlenecks (He et al. 2016). 164 and 1001 are the paper's, which writes them without
# "preact"; ResNet-110 is here a network of the first kind.
MODELS |= {f"preact_resnet{9 * n + 2}": partial(PreActResNet, n) for n in (1, 2, 3, 6, 12, 18, 111)}
MODELS |= {f"resnet{9 * n + 2}": partial(PreActResNet, n) for n in (18, 111)}
MODELS |= {
    f"vgg16{suffix}": partial(VGG, batch_norm=bool(norm), head=head)
    for norm in ("", "_bn")
    for head, suffix in (("cifar", norm), ("imagenet", f"{norm}_imagenet"))
}


def build(name: str, *, channels: int, classes: int, width: int | None = None) -> nn.Module:
    """The serial network called ``name``, for images ``[batch, channels, height, width]``.

    ``width`` is the number of channels of the first stage; default the model's own (16, VGG 64). The arguments are
    kept as ``net.model_arguments``.
    """
    if name not in MODELS:
        raise ValueError(f"model: got {name!r}, expected one of {', '.join(MODELS)}")
    own = {} if width is None else {"width": width}
    net = MODELS[name](channels=channels, classes=classes, **own)
    net.model_arguments = {"name": name, "channels": channels, "classes": classes, "width": width}  # type: ignore[assignment]
    return net
