# SPDX-License-Identifier: BSD-3-Clause
"""Cheap trainable maps between two image shapes: coarse nets and preprocessing maps of a parareal network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .residual_unit import ResidualUnit, initialise


class InterfaceMap(nn.Sequential):
    """``[batch, *source] -> [batch, *target]``: one (strided) convolution, batch norm, then residual units.

    The paper's text was not at hand when this was written; that its coarse nets and preprocessing maps
    are a few strided convolutions or residual units of matching channels and resolution is known with low
    confidence only. The details are ours:

    * kernel 3 without a stride, else ``2 stride - 1``, so that every pixel is seen;
    * ``signed=False`` (preprocessing): ReLU after the norm and after each unit, because it guesses the output of
      a unit that ends with ReLU;
    * ``signed=True`` (coarse nets): neither, because it carries a correction, which may have either sign.

    Parameters
    ----------
    source, target : ``(channels, height, width)``
        ``target`` height and width must be ``ceil(source / stride)`` for one whole stride.
    units : number of residual units, at least 0
    """

    def __init__(self, source: Sequence[int], target: Sequence[int], *, units: int = 1, signed: bool = False) -> None:
        if units < 0:
            raise ValueError(f"units: got {units}, expected 0 or more")
        stride = self.stride(source, target)
        kernel = 2 * stride - 1 if stride > 1 else 3
        layers: list[nn.Module] = [
            nn.Conv2d(source[0], target[0], kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(target[0]),
        ]
        if not signed:
            layers.append(nn.ReLU())
        layers += [ResidualUnit(target[0], target[0], final_activation=not signed) for _ in range(units)]
        super().__init__(*layers)
        initialise(self)

    @staticmethod
    def stride(source: Sequence[int], target: Sequence[int]) -> int:
        """The one stride that leads from ``source`` to ``target``; ValueError where none does."""
        for name, shape in (("source", source), ("target", target)):
            if len(shape) != 3 or min(shape) < 1:
                raise ValueError(f"{name}: got {tuple(shape)}, expected (channels, height, width)")
        for stride in range(1, max(source[1:]) + 1):
            if all(-(-size // stride) == wanted for size, wanted in zip(source[1:], target[1:], strict=True)):
                return stride
        raise ValueError(
            f"target: got height and width {tuple(target[1:])} from {tuple(source[1:])}, "
            "expected ceil(source / stride) for one whole stride"
        )
