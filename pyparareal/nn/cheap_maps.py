# SPDX-License-Identifier: BSD-3-Clause
"""Cheap trainable maps between any two shapes, from the richest to the cheapest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from .interface_maps import InterfaceMap
from .residual_unit import initialise

Candidate = tuple[str, Callable[[], nn.Module]]
CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
AVERAGE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def candidates(
    source: Sequence[int],
    target: Sequence[int],
    *,
    channels_first: bool = False,
    signed: bool = False,
    relu: bool = False,
) -> Iterator[Candidate]:
    """``(description, function that makes the map)`` for maps ``[batch, *source] -> [batch, *target]``.

    ==========================  ==================================================================================
    images, volumes, signals    :class:`.InterfaceMap` with 2, 1, 0 residual units; then averaging to the target's
                                resolution and a 3x3, a separable, a 1x1 and a low-rank 1x1 convolution with batch norm
    vectors                     linear map; then low-rank ones
    sequences ``[time, ...]``   the same for each token, after averaging over time where its length changes
    other pairs                 averaging of images, then a linear map of all values, later low-rank ones
    ==========================  ==================================================================================

    Parameters
    ----------
    channels_first : two axes are ``(channels, length)``, not ``(time, features)``
    signed : a coarse net. No bias in linear maps, so that a residual of zero gives no correction, and no last ReLU.
        Where the shapes allow it, :class:`Shortcut` is added.
    relu : the values to be guessed are never negative, so that a guess ends with ReLU
    """
    if signed and _carries(source, target):
        for words, make in _plain(source, target, channels_first=channels_first, signed=True, relu=False):
            yield f"shortcut + {words}", lambda make=make: Shortcut(make(), target)  # type: ignore[misc]
        return
    yield from _plain(source, target, channels_first=channels_first, signed=signed, relu=relu and not signed)


class Shortcut(nn.Module):
    """``s(r) + inner(r)``: the correction is carried on, averaged to a coarser resolution, missing channels zero.

    A batch norm alone makes every correction one of variance one, and so divides the gradient by the
    size of the residual at every link of the chain. ResNet-1001 in 18 parts (4 random images of 8x8 pixels,
    untrained): the gradient of the first part had a norm of 2e-6 without the shortcut and of 0.8 with it, that of the
    last part 5 and 3.
    """

    def __init__(self, inner: nn.Module, target: Sequence[int]) -> None:
        super().__init__()
        self.inner = inner
        self.target = tuple(target)

    def forward(self, r: Tensor) -> Tensor:
        y: Tensor = self.inner(r)
        if r.shape[2:] != y.shape[2:]:
            pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[r.dim() - 3]
            r = pool(r, self.target[1:])  # type: ignore[arg-type]
        if r.shape[1] != y.shape[1]:
            r = F.pad(r, [0, 0] * (r.dim() - 2) + [0, y.shape[1] - r.shape[1]])
        return r + y


def _carries(source: Sequence[int], target: Sequence[int]) -> bool:
    """The same shape, or images with more channels on a coarser grid."""
    grows = len(source) == len(target) >= 3 and source[0] <= target[0]
    return tuple(source) == tuple(target) or (
        grows and all(a >= b for a, b in zip(source[1:], target[1:], strict=True))
    )


def _plain(
    source: Sequence[int], target: Sequence[int], *, channels_first: bool, signed: bool, relu: bool
) -> Iterator[Candidate]:
    axes = len(source) if len(source) == len(target) else 0
    if axes in (3, 4) or (axes == 2 and channels_first):
        return _convolutions(source, target, relu=relu)
    if axes == 1:
        return _linear(source[0], target[0], bias=not signed, relu=relu)
    if axes == 2:
        return _per_token(source, target, bias=not signed, relu=relu)
    return _flattened(source, target, bias=not signed, relu=relu)


def _convolutions(source: Sequence[int], target: Sequence[int], *, relu: bool) -> Iterator[Candidate]:
    if len(source) == 3:
        for units in (2, 1, 0):
            try:
                InterfaceMap.stride(source, target)
            except ValueError:
                break  # not a whole stride
            words = f"convolution, {units} residual units" if units else "convolution"
            yield words, lambda units=units: InterfaceMap(source, target, units=units, signed=not relu)  # type: ignore[misc]
    a, b = source[0], target[0]
    conv = CONVOLUTION[len(source) - 2]

    def make(*layers: Callable[[], nn.Module]) -> nn.Module:
        pool = [] if source[1:] == target[1:] else [AVERAGE[len(source) - 2](tuple(target[1:]))]
        last: list[nn.Module] = [BATCH_NORM[len(source) - 2](b), *[nn.ReLU()] * relu]
        module = nn.Sequential(*pool, *(layer() for layer in layers), *last)
        initialise(module)
        return module

    pooled = "" if source[1:] == target[1:] else "averaging, "
    yield f"{pooled}convolution", lambda: make(lambda: conv(a, b, 3, padding=1, bias=False))
    yield (
        f"{pooled}separable convolution",
        lambda: make(lambda: conv(a, a, 3, padding=1, groups=a, bias=False), lambda: conv(a, b, 1, bias=False)),
    )
    yield f"{pooled}1x1 convolution", lambda: make(lambda: conv(a, b, 1, bias=False))
    for rank in _ranks(a, b):
        yield (
            f"{pooled}1x1 convolution, rank {rank}",
            lambda rank=rank: make(lambda: conv(a, rank, 1, bias=False), lambda: conv(rank, b, 1, bias=False)),  # type: ignore[misc]
        )


def _linear(source: int, target: int, *, bias: bool, relu: bool) -> Iterator[Candidate]:
    def make(*layers: nn.Module) -> nn.Module:
        return nn.Sequential(*layers, *[nn.ReLU()] * relu)

    yield "linear", lambda: make(nn.Linear(source, target, bias=bias))
    for rank in _ranks(source, target):
        yield (
            f"linear, rank {rank}",
            lambda rank=rank: make(nn.Linear(source, rank, bias=False), nn.Linear(rank, target, bias=bias)),  # type: ignore[misc]
        )


def _per_token(source: Sequence[int], target: Sequence[int], *, bias: bool, relu: bool) -> Iterator[Candidate]:
    for words, make in _linear(source[1], target[1], bias=bias, relu=relu):
        if source[0] == target[0]:
            yield f"{words} per token", make
        else:
            yield (
                f"averaging over time, {words} per token",
                lambda make=make: nn.Sequential(AverageTime(target[0]), make()),  # type: ignore[misc]
            )


def _flattened(source: Sequence[int], target: Sequence[int], *, bias: bool, relu: bool) -> Iterator[Candidate]:
    unflatten = [] if len(target) == 1 else [tuple(target)]
    sides = [0]
    if len(source) == 3:
        sides += [side for side in (8, 4, 2, 1) if side < min(source[1:])]
    for side in sides:  # 0: all pixels
        inputs = source[0] * side * side if side else prod(source)

        def make(inner: Callable[[], nn.Module], side: int = side) -> nn.Module:
            pool = [nn.AdaptiveAvgPool2d(side)] if side else []
            return nn.Sequential(*pool, nn.Flatten(), inner(), *(nn.Unflatten(1, shape) for shape in unflatten))

        pooled = f"averaging to {side}x{side}, " if side else ""
        for words, inner in _linear(inputs, prod(target), bias=bias, relu=relu):
            yield f"{pooled}flattening, {words}", lambda inner=inner, make=make: make(inner)  # type: ignore[misc]


def _ranks(source: int, target: int) -> list[int]:
    """Powers of two for which two factors cost less than the whole matrix, the largest first."""
    limit = source * target / (source + target)
    return [rank for rank in (1 << k for k in reversed(range(16))) if rank < limit]


class AverageTime(nn.Module):
    """``[batch, time, features] -> [batch, length, features]``: averages of equal stretches of time."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(x.transpose(1, 2), self.length).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"length={self.length}"
