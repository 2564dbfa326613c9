# SPDX-License-Identifier: BSD-3-Clause
"""What the blocks of a chain cost: shapes, FLOPs, parameters, seconds, and what they share or overwrite."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain as joined

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .._timing import interleave
from .chain import Chain
from .shapes import meta_output

Output = Callable[[nn.Module, Tensor, str], Tensor]


@dataclass(frozen=True)
class Trace:
    """One forward pass without values; all tensors on the ``meta`` device, batch axis first."""

    x: Tensor  # raw input
    states: tuple[Tensor, ...]  # before the first block, after it, ..., after the last
    flops: tuple[int, ...]  # of the blocks
    stem_flops: int
    overwrites: tuple[bool, ...]  # would a part that begins with this block change its input in place?
    stem_overwrites: bool  # would the stem, or what follows it on the same memory, change the raw input?


def trace(chain: Chain, example: Tensor) -> Trace:
    """Follow ``example`` through stem and blocks, without arithmetic where every operation allows that.

    Raises
    ------
    ValueError
        Something changes the batch axis, or ``example`` is on another device than the first parameter.
    TypeError
        Something returns no tensor; ``example`` has a dtype that the network cannot take.
    """
    _require_device(chain, example)
    _require_dtype(chain, example)
    try:
        return _trace(chain, example.to("meta"), meta_output)
    except (NotImplementedError, RuntimeError) as error:
        # Torch has no common type for "this operation needs values".
        if example.is_meta or "meta" not in str(error).lower():
            raise
        with torch.random.fork_rng(devices=[example.device] if example.is_cuda else []):
            return _trace(chain, example, _real_output)


def count_flops(module: nn.Module, x: Tensor, name: str | None = None, output: Output = meta_output) -> int:
    """FLOPs of ``module(x)``, two for a multiply-add; matrix products, convolutions and attention alone count."""
    counter = FlopCounterMode(display=False)
    with counter:
        output(module, x, name or type(module).__name__)
    return int(counter.get_total_flops())


def parameters(chain: Chain) -> tuple[int, ...]:
    """Parameters of each block; a tied one belongs to the first block that has it."""
    seen: set[int] = set()
    counts = []
    for block in chain.blocks:
        mine = {id(p): p.numel() for p in block.parameters() if id(p) not in seen}
        seen |= mine.keys()
        counts.append(sum(mine.values()))
    return tuple(counts)


def ties(chain: Chain) -> Iterator[tuple[int, int, str]]:
    """``(first block, last block, "a and b")`` for tensors, parameters or buffers, that are used in two places."""
    first: dict[object, tuple[int, str]] = {}
    for piece, module, index in chain.pieces():
        for name, tensor in joined(module.named_parameters(), module.named_buffers()):
            where = f"{piece}: {name}"
            before, there = first.setdefault(_memory(tensor), (index, where))
            if before != index:
                yield before, index, f"{there!r} and {where!r}"


def _memory(tensor: Tensor) -> object:
    """Equal for two tensors that begin at the same address, also where they are different ``Parameter`` objects."""
    if tensor.is_meta or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr()


def measure_seconds(chain: Chain, example: Tensor, *, repeats: int = 7) -> tuple[float, ...]:
    """Median seconds of each block, forward and backward, in its present mode; measured on copies."""
    if example.is_meta:
        raise ValueError("example: got a tensor on the meta device, expected values for times to be measured")
    calls = {}
    with torch.random.fork_rng(devices=[example.device] if example.is_cuda else []):
        x = _real_output(chain.stem, example, "stem")
        for index, block in enumerate(chain.blocks):
            module = copy.deepcopy(block)
            calls[str(index)] = _forward_and_backward(module, x)
            x = _real_output(module, x.clone(), chain.names[index])
        device = "cuda" if x.is_cuda else "cpu"
        # Warm: in training a block runs on what its neighbour has just written.
        samples = interleave(calls, device=device, cold_cache=False, repeats=repeats)
    return tuple(samples[str(index)].median for index in range(len(chain.blocks)))


def _forward_and_backward(module: nn.Module, x: Tensor) -> Callable[[], object]:
    leaf = x.detach().clone().requires_grad_(x.is_floating_point())
    wanted = [p for p in module.parameters() if p.requires_grad] + [leaf] * leaf.requires_grad

    def call() -> object:
        y = module(leaf.clone())  # a leaf may not be changed in place
        if not y.requires_grad:
            return y
        return torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)

    return call


def _trace(chain: Chain, x: Tensor, output: Output) -> Trace:
    batch = x.shape[:1]

    def call(name: str, module: nn.Module, u: Tensor) -> tuple[Tensor, int]:
        counter = FlopCounterMode(display=False)
        with counter:
            y = output(module, u, name)
        if y.shape[:1] != batch:
            raise ValueError(
                f"{name}: got an output of shape {tuple(y.shape)} for {tuple(u.shape)}, "
                f"expected the batch axis of {tuple(batch)} to stay first"
            )
        return y, int(counter.get_total_flops())

    states, flops, changed, viewed = [], [], [], []
    raw = x.clone()
    u, stem_flops = call("stem", chain.stem, raw)
    stem_changed, stem_viewed = raw._version > 0, _is_view(u, raw)
    states.append(u.to("meta"))
    for name, block in zip(chain.names, chain.blocks, strict=True):
        u = u.detach().clone()
        y, cost = call(f"block {name}", block, u)
        changed.append(u._version > 0)
        viewed.append(_is_view(y, u))
        states.append(y.to("meta"))
        flops.append(cost)
        u = y
    overwrites = [False] * (len(chain.blocks) + 1)
    for i in reversed(range(len(chain.blocks))):
        overwrites[i] = changed[i] or (viewed[i] and overwrites[i + 1])
    stem_overwrites = stem_changed or (stem_viewed and overwrites[0])
    return Trace(x.to("meta"), tuple(states), tuple(flops), stem_flops, tuple(overwrites[:-1]), stem_overwrites)


def _is_view(y: Tensor, x: Tensor) -> bool:
    return y is x or y._base is x


def _real_output(module: nn.Module, x: Tensor, name: str) -> Tensor:
    with torch.no_grad():
        y = copy.deepcopy(module)(x)
    if not isinstance(y, Tensor):
        raise TypeError(f"{name}: got an output of type {type(y).__name__}, expected one tensor")
    return y


def _first_parameter(chain: Chain) -> tuple[str, nn.Parameter] | None:
    found = ((f"{piece}: {name}", p) for piece, module, _ in chain.pieces() for name, p in module.named_parameters())
    return next(((name, p) for name, p in found if p.is_floating_point()), None)


def _require_device(chain: Chain, example: Tensor) -> None:
    first = _first_parameter(chain)
    if first is not None and first[1].device != example.device and not (example.is_meta or first[1].is_meta):
        raise ValueError(
            f"example: got device {example.device}, expected {first[1].device} as parameter {first[0]!r}, or meta"
        )


def _require_dtype(chain: Chain, x: Tensor) -> None:
    """Not left to the operations: on the meta device they take any dtype."""
    first = _first_parameter(chain)
    if first is None or torch.is_autocast_enabled():
        return
    name, parameter = first
    words = f"example: got dtype {x.dtype}, expected {parameter.dtype} as parameter {name!r}"
    if x.is_floating_point():
        if x.dtype != parameter.dtype:
            raise TypeError(words)
        return
    if parameter.is_meta:
        return
    # Integers may be the numbers of tokens; whether they are, the first layers alone know.
    u = torch.zeros_like(x, device=parameter.device)
    for piece, module, _ in chain.pieces():
        try:
            u = _real_output(module, u, piece)
        except RuntimeError as error:
            raise TypeError(words) from error
        if u.is_floating_point():
            return
