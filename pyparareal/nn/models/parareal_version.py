# SPDX-License-Identifier: BSD-3-Clause
"""The parareal version of a model that can be split."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from ..automatic import build_parareal as build_any
from ..automatic import never_negative
from ..chain import chain_of
from ..interface_maps import InterfaceMap
from ..parareal_network import PararealNetwork, part_sizes
from ..partitioning import Partition, partition


def build_parareal(
    net: nn.Module,
    image_shape: Sequence[int],
    parts: int | Sequence[int],
    *,
    correction: str = "residual",
    coarse_units: int | None = 0,
    preprocess_units: int | None = 1,
    coarse_budget: float = 0.1,
) -> PararealNetwork:
    """Parareal network of ``net``'s blocks, sharing its parameters, with new coarse nets and preprocessing maps.

    ``C^1`` is ``net``'s first convolution; ``C^2 .. C^N`` and ``F^1 .. F^{N-1}`` are :class:`.InterfaceMap` of
    the interface shapes (see there which details are ours).

    Parameters
    ----------
    image_shape : ``(channels, height, width)`` of the inputs
    parts : int or sequence of int
        ``N`` parts whose numbers of blocks differ by at most one, or the number of blocks in each.
    coarse_units, preprocess_units : residual units per coarse net and per preprocessing map
        None: whatever :func:`.automatic.automatic_maps` finds within ``coarse_budget``.
    """
    if len(image_shape) != 3:
        raise ValueError(f"image_shape: got {tuple(image_shape)}, expected (channels, height, width)")
    minimum = getattr(net, "minimum_size", 1)
    if min(image_shape[1:]) < minimum:
        raise ValueError(
            f"image_shape: got {tuple(image_shape)}, expected at least {minimum}x{minimum} pixels "
            f"for {type(net).__name__}"
        )
    sizes = part_sizes(len(chain_of(net).blocks), parts)
    # Batch norm refuses a single value per channel in training mode, hence a batch of two.
    example = torch.empty(2, *image_shape, device="meta")
    cut = partition(net, None, sizes, example=example)
    guesses, coarse = interface_maps(cut, image_shape, preprocess_units=preprocess_units, coarse_units=coarse_units)
    network = build_any(cut, preprocess=guesses, coarse=coarse, coarse_budget=coarse_budget, correction=correction)
    assert network.construction is not None
    network.construction["interface_maps"] = {
        "image_shape": list(image_shape),
        "preprocess_units": preprocess_units,
        "coarse_units": coarse_units,
    }
    return network


def interface_maps(
    cut: Partition, image_shape: Sequence[int], *, preprocess_units: int | None, coarse_units: int | None
) -> tuple[list[nn.Module | None], list[nn.Module | None]]:
    """``C^1 .. C^N`` and ``F^1 .. F^{N-1}`` of a cut network of images; None where they are left to a budget."""
    shapes = [shape[1:] for shape in cut.interfaces[1:]]  # X_1 .. X_N
    guesses: list[nn.Module | None] = [None] * cut.parts
    coarse: list[nn.Module | None] = [None] * (cut.parts - 1)
    if preprocess_units is not None:
        for j, (target, group) in enumerate(zip(shapes[:-1], cut.groups, strict=False), start=1):
            guesses[j] = InterfaceMap(image_shape, target, units=preprocess_units, signed=not never_negative(group[-1]))
    if coarse_units is not None:
        coarse = [InterfaceMap(source, target, units=coarse_units, signed=True) for source, target in pairwise(shapes)]
    return guesses, coarse
