# SPDX-License-Identifier: BSD-3-Clause
"""All trained parameters of a module as one row of numbers, in the order of ``parameters_to_vector``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter


@dataclass(frozen=True)
class Weights:
    """Names and shapes of the parameters that require grad, all of one dtype and device.

    Attributes
    ----------
    size : int
        Their numbers ``s`` in all.
    shared : dict
        Names under which other modules hold the same parameters, and the names these have here.
    """

    shapes: dict[str, torch.Size]
    dtype: torch.dtype
    device: torch.device
    shared: dict[str, str]

    @property
    def size(self) -> int:
        return sum(shape.numel() for shape in self.shapes.values())

    def flat(self, module: nn.Module) -> Tensor:
        """The module's own, ``[s]``, a copy."""
        own = dict(module.named_parameters())
        return torch.cat([own[name].detach().reshape(-1) for name in self.shapes])

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of ``flat [..., s]``, each ``[..., shape...]``."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: part.reshape(*flat.shape[:-1], *shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }

    def load(self, module: nn.Module, values: Mapping[str, Tensor]) -> None:
        """Write ``values`` into the parameters of ``module``."""
        own = dict(module.named_parameters())
        with torch.no_grad():
            for name in self.shapes:
                own[name].copy_(values[name])


def weights_of(module: nn.Module) -> Weights:
    """The :class:`Weights` of ``module``.

    Raises
    ------
    TypeError, ValueError
        No module; nothing to train; dtypes or devices that differ, or are no 32 or 64 bits.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: got {type(module).__name__}, expected a torch module")
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    unknown = [name for name, p in trained.items() if isinstance(p, UninitializedParameter)]
    if unknown:
        raise ValueError(f"module: {unknown[0]} has no shape yet; call the module once with an input before")
    if not trained:
        raise ValueError(f"module: got a {type(module).__name__} without a parameter that requires grad")
    kinds = {(p.dtype, p.device) for p in trained.values()}
    if len(kinds) > 1:
        found = sorted(f"{str(dtype).removeprefix('torch.')} on {device}" for dtype, device in kinds)
        raise ValueError(f"module: got parameters of {', '.join(found)}, expected one dtype and device")
    dtype, device = next(iter(kinds))
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"module: got parameters on {device}, expected them on a CPU or a CUDA device")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"module: got {str(dtype).removeprefix('torch.')} parameters, expected float32 or float64")
    return Weights({name: p.shape for name, p in trained.items()}, dtype, device, _shared(module, trained))


def _shared(module: nn.Module, trained: dict[str, nn.Parameter]) -> dict[str, str]:
    names = {id(p): name for name, p in trained.items()}
    found = {}
    for prefix, inner in module.named_modules():  # every module once, under its first name
        for own, p in inner._parameters.items():
            name = f"{prefix}.{own}" if prefix else own
            if p is not None and id(p) in names and names[id(p)] != name:
                found[name] = names[id(p)]
    return found
