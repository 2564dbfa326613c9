# SPDX-License-Identifier: BSD-3-Clause
"""VGG-16."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from ..residual_unit import initialise
from .checks import require_positive

# Configuration D of the paper, table 1: channels relative to the first convolution, "M" halves the resolution.
VGG16: tuple[int | str, ...] = (1, 1, "M", 2, 2, "M", 4, 4, 4, "M", 8, 8, 8, "M", 8, 8, 8, "M")
HEADS = ("cifar", "imagenet")


class VGG(nn.Module):
    """VGG-16: ``[batch, channels, H, W] -> logits [batch, classes]``, ``H`` and ``W`` at least 32.

    Simonyan and Zisserman 2014, arXiv 1409.1556: thirteen 3x3 convolutions with ReLU in five stages, each ending with
    2x2 max pooling, then the classifier. Parameters are named as in torchvision: ``features.<N>``,
    ``classifier.<N>``. With the ImageNet head, 3 channels and 1000 classes it has 138,357,544 parameters, with
    batch norm 138,365,992.

    Parameters
    ----------
    head : ``"cifar"`` or ``"imagenet"``
        One linear layer after global average pooling, or the paper's three after averaging to 7x7, with dropout.
    batch_norm : bool
        Between every convolution and its ReLU.
    width : int
        Channels of the first stage.
    """

    minimum_size = 32  # five stages halve it

    def __init__(
        self,
        *,
        channels: int = 3,
        classes: int = 10,
        width: int = 64,
        batch_norm: bool = False,
        head: str = "cifar",
    ) -> None:
        super().__init__()
        require_positive(channels=channels, classes=classes, width=width)
        if head not in HEADS:
            raise ValueError(f"head: got {head!r}, expected one of {', '.join(map(repr, HEADS))}")
        self.features = nn.Sequential(*_features(channels, width, batch_norm))
        self.avgpool = nn.AdaptiveAvgPool2d(7 if head == "imagenet" else 1)
        last = 8 * width
        if head == "imagenet":
            # 4096 hidden units at the paper's width of 64.
            dense = [nn.Linear(49 * last, 64 * width), nn.Linear(64 * width, 64 * width)]
            hidden = [m for layer in dense for m in (layer, nn.ReLU(), nn.Dropout())]
            self.classifier = nn.Sequential(*hidden, nn.Linear(64 * width, classes))
        else:
            self.classifier = nn.Sequential(nn.Linear(last, classes))
        initialise(self)
        for m in self.modules():
            if isinstance(m, nn.Conv2d) and m.bias is not None:
                nn.init.zeros_(m.bias)
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0, 0.01)  # as in the paper, section 3.1
                nn.init.zeros_(m.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))

    def split(self) -> tuple[nn.Module, list[nn.Module], nn.Module]:
        """``(C^1, body, h)``: the first convolution with its ReLU, the twelve others, pooling with the classifier.

        Max pooling belongs to the convolution before it. The returned modules share this network's parameters.
        """
        units: list[OrderedDict[str, nn.Module]] = []
        for name, layer in self.features.named_children():
            if isinstance(layer, nn.Conv2d):
                units.append(OrderedDict())
            units[-1][name] = layer
        stem, *body = [nn.Sequential(unit) for unit in units]
        head = OrderedDict(avgpool=self.avgpool, flatten=nn.Flatten(), classifier=self.classifier)
        return stem, list(body), nn.Sequential(head)


def _features(channels: int, width: int, batch_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for entry in VGG16:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(2))
            continue
        # Without an in-place ReLU, which would overwrite an interface where a part begins with it.
        layers.append(nn.Conv2d(channels, entry * width, 3, padding=1))
        layers += [nn.BatchNorm2d(entry * width)] * batch_norm + [nn.ReLU()]
        channels = entry * width
    return layers
