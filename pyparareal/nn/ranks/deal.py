# SPDX-License-Identifier: BSD-3-Clause
"""Which rank has which parts, and under which names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from ..parareal_network import PararealNetwork, part_sizes

MINIMUM = "use fewer ranks, or more parts"
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Deal:
    """``sizes[r]`` contiguous parts for every rank ``r``."""

    def __init__(self, parts: int, sizes: Sequence[int]) -> None:
        self.parts, self.sizes = parts, tuple(sizes)
        ends = list(accumulate(self.sizes))
        self.of_rank = [range(end - size, end) for size, end in zip(self.sizes, ends, strict=True)]

    def rank_of(self, part: int) -> int:
        return next(rank for rank, parts in enumerate(self.of_rank) if part in parts)

    def owner(self, name: str) -> int:
        """The rank of what is called ``name`` in the whole network: ``fine.3.0.weight``, ``coarse.2``, ``head``."""
        kind, _, rest = name.partition(".")
        if kind == "head":
            return len(self.sizes) - 1
        # The coarse net that enters a part is with it: what it maps comes from the part before.
        return self.rank_of(int(rest.partition(".")[0]) + (kind == "coarse"))


def deal(parts: int, ranks: int, parts_per_rank: Sequence[int] | None) -> Deal:
    """As many parts for every rank as for any other, to within one and the longer groups first, or as asked for."""
    if parts_per_rank is None:
        if ranks > parts:
            raise ValueError(f"runtime: got {ranks} ranks for {parts} parts, expected a part for each; {MINIMUM}")
        return Deal(parts, part_sizes(parts, ranks))
    if isinstance(parts_per_rank, str) or not isinstance(parts_per_rank, Sequence):
        raise TypeError(f"parts_per_rank: got {type(parts_per_rank).__name__}, expected a sequence of {ranks} ints")
    sizes = list(parts_per_rank)
    whole = all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    if not whole or len(sizes) != ranks or sum(sizes) != parts:
        raise ValueError(
            f"parts_per_rank: got {sizes}, expected {ranks} positive ints, one for each rank, with sum {parts}"
        )
    return Deal(parts, sizes)


def require_apart(network: PararealNetwork, dealt: Deal) -> None:
    """Refuse tensors that parts on different ranks share: each would have a copy of its own from the first step on."""
    seen: dict[int, str] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or name == "_extra_state":
            continue
        first = seen.setdefault(id(tensor), name)
        if dealt.owner(first) != dealt.owner(name):
            raise ValueError(
                f"network: got {first!r} and {name!r} as one tensor, expected none that parts on different ranks share "
                f"(ranks {dealt.owner(first)} and {dealt.owner(name)}); untie them, or choose parts_per_rank so that "
                "both are on one rank"
            )


def modules_of(network: nn.Module) -> dict[str, str]:
    """What every module of ``network`` is and says of itself, by its name; addresses, as of functions, left out."""
    return {
        f"module {name or 'network'}": _ADDRESS.sub("", f"{type(module).__name__}({module.extra_repr()})")
        for name, module in network.named_modules()
    }


def described(network: nn.Module, values: bool) -> dict[str, str]:
    """What every tensor of ``network`` is, by its name; with ``values`` also a digest of its bits."""
    found = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or name == "_extra_state":
            continue
        found[name] = f"{list(tensor.shape)} {tensor.dtype}" + " trained" * tensor.requires_grad
        if values and tensor.device.type != "meta":
            found[name] += f" with digest {_digest(tensor)}"
    return found


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()[:16]
