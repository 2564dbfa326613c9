# SPDX-License-Identifier: BSD-3-Clause
"""The networks of a job, and the identity by which a checkpoint knows them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import nn

from .. import models
from ..chain import chain_of
from ..costs import count_flops
from ..data import Split
from ..interface_maps import InterfaceMap
from ..parareal_network import PararealNetwork
from ..partitioning import Partition, partition
from ..residual_unit import ResidualUnit
from .device import autocast, moved
from .settings import Settings


def build(
    name: str, settings: Settings, data: Split, recorded: Mapping[str, Any] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Network ``"serial"`` or ``"parareal"``, and its identity: what a checkpoint must have in common with it.

    Equal seeds give both the same initial body.

    Parameters
    ----------
    recorded : the partition an identity holds, made again without measuring anything; default a new one

    Raises
    ------
    ValueError
        No such model, unsuitable images or parts, or a recorded partition of another network.
    """
    torch.manual_seed(settings.seed)
    serial = models.build(settings.model, channels=data.image_shape[0], classes=data.classes, width=settings.width)
    cut = _partition(serial, settings, data) if recorded is None else Partition.from_config(recorded, serial)
    # Built in both cases, so that unsuitable parts are refused before the serial network is trained.
    parareal = models.build_parareal(
        serial,
        data.image_shape,
        settings.parts if cut is None else cut.sizes,
        correction=settings.correction,
        coarse_units=settings.coarse_units,
        preprocess_units=settings.preprocess_units,
        coarse_budget=settings.coarse_budget,
    )
    construction: Any = parareal.construction
    if cut is None:
        own = Partition.from_config(construction["partition"], serial)
        cut = dataclasses.replace(own, balance="blocks")
    if name == "parareal":
        parareal.execution = settings.execution
    torch.manual_seed(settings.seed)
    identity = {
        "settings": settings.as_dict(),
        "network": name,
        "data": moved(data, "cpu").fingerprint(),
        "partition": cut.to_config(),
        "maps": construction["maps"],
    }
    net: nn.Module = parareal if name == "parareal" else serial
    return net.to(settings.device), identity


def _partition(net: nn.Module, settings: Settings, data: Split) -> Partition | None:
    """None for equal numbers of blocks, which need no costs."""
    if settings.balance == "blocks" and settings.part_sizes is None:
        return None
    blocks = len(chain_of(net).blocks)
    if settings.part_sizes is not None and sum(settings.part_sizes) != blocks:
        raise ValueError(
            f"part_sizes: got {list(settings.part_sizes)}, expected the sum {blocks}, the blocks of {settings.model}"
        )
    models.build_parareal(net, data.image_shape, 1)  # refuses images that are too small for the model
    if settings.balance != "time":
        balance = settings.balance if settings.part_sizes is None else settings.part_sizes
        return partition(net, settings.parts, balance, example=torch.empty(2, *data.image_shape, device="meta"))
    device = torch.device(settings.device)
    with autocast(settings.precision, device):
        example = data.train.take(torch.arange(min(settings.batch_size, len(data.train)))).x.to(device)
        measured = partition(copy.deepcopy(net).to(device), settings.parts, "time", example=example)
    return measured


def describe(identity: Mapping[str, Any], net: PararealNetwork) -> dict[str, Any]:
    """Parts and maps of the parareal network as JSON values for a report.

    FLOPs are those of a forward pass of one image, ``flops`` of the whole serial and the whole parareal network; a
    ``relative`` cost is one of the mean part.
    """
    cut = identity["partition"]
    batch = cut["input_shape"][0]
    bounds = list(pairwise(accumulate(cut["sizes"], initial=0)))
    parts = [
        {
            "blocks": b - a,
            "first": cut["names"][a],
            "last": cut["names"][b - 1],
            "parameters": sum(cut["parameters"][a:b]),
            "flops": sum(cut["flops"][a:b]) // batch,
            "seconds": None if cut["seconds"] is None else sum(cut["seconds"][a:b]),
            "shape": list(cut["shapes"][b][1:]),
        }
        for a, b in bounds
    ]
    mean = sum(part["flops"] for part in parts) / len(parts)
    maps = [
        dict(cost, flops=round((cost["relative"] or 0) * mean), what=_words(cost["what"], module))
        for cost, module in zip(identity["maps"], [*net.preprocess, *net.coarse], strict=True)
    ]
    state = torch.empty(cut["shapes"][-1], dtype=getattr(torch, cut["dtypes"][-1]), device="meta")
    head = count_flops(net.head, state) // batch
    # F(U) and F(x) are both computed where the correction is their difference.
    calls = {"F": 2 if net.correction == "difference" else 1, "C": 1}
    flops = {
        "serial": cut["stem_flops"] // batch + sum(part["flops"] for part in parts) + head,
        "parareal": sum(calls[m["name"][0]] * m["flops"] for m in maps) + sum(part["flops"] for part in parts) + head,
    }
    shapes = {"input": list(cut["input_shape"][1:]), "stem": list(cut["shapes"][0][1:])}
    last = {"parameters": sum(p.numel() for p in net.head.parameters()), "flops": head}
    return {"balance": cut["balance"], "parts": parts, "maps": maps, "head": last, "flops": flops, "shapes": shapes}


def _words(what: str, module: nn.Module) -> str:
    if not isinstance(module, InterfaceMap):
        return what
    units = sum(isinstance(layer, ResidualUnit) for layer in module)
    return "convolution" + (f", {units} residual unit{'s' * (units != 1)}" if units else "")
