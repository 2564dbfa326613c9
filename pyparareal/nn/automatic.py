# SPDX-License-Identifier: BSD-3-Clause
"""A parareal network of any network: coarse nets and preprocessing maps follow from the interface shapes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .cheap_maps import Candidate, candidates
from .costs import count_flops
from .parareal_network import PararealNetwork
from .partitioning import Partition, aligned, partition
from .serial_names import serial_names
from .shapes import meta_output, require_same_kind

KEEPS_SIGN = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool2d, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d)
STEM_COPY = "copy of the stem, "
SIGNALS = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.MaxPool1d)


@dataclass(frozen=True)
class MapCost:
    """One map, what it is and what it costs."""

    name: str  # C^j or F^j, as in the paper, from 1
    what: str
    source: tuple[int, ...]
    target: tuple[int, ...]
    parameters: int
    flops: int
    relative: float | None  # to the mean part; None where nothing in the parts is counted


@dataclass(frozen=True)
class AutomaticMaps:
    """``C^1 .. C^N`` and ``F^1 .. F^{N-1}`` of a partition. ``print`` it to see what they are and cost."""

    preprocess: tuple[nn.Module, ...]
    coarse: tuple[nn.Module, ...]
    costs: tuple[MapCost, ...]
    budget: float

    def __str__(self) -> str:
        header = ["map", "is", "from", "to", "parameters", "MFLOP", "of a part"]
        rows = []
        for cost in self.costs:
            shapes = ["x".join(map(str, shape)) or "1" for shape in (cost.source, cost.target)]
            relative = "-" if cost.relative is None else f"{cost.relative:.1%}"
            over = " (over budget)" if _is_over(cost, self.budget) else ""
            row = [cost.name, cost.what + over, *shapes, f"{cost.parameters:,}", f"{cost.flops / 1e6:,.3f}", relative]
            rows.append(row)
        chain = [cost.relative for cost in self.costs if cost.name.startswith("F") and cost.relative is not None]
        note = (
            f"budget {self.budget:.1%} of the mean part each; the serial coarse chain costs {sum(chain):.1%} of a part"
        )
        return "\n".join([*aligned([header, *rows]), note])


def automatic_maps(
    cut: Partition,
    *,
    budget: float = 0.1,
    preprocess: Sequence[nn.Module | None] | None = None,
    coarse: Sequence[nn.Module | None] | None = None,
    recorded: Sequence[Mapping[str, Any]] | None = None,
) -> AutomaticMaps:
    """The richest map of :func:`.cheap_maps.candidates` within the budget, for every place of ``cut``.

    A preprocessing map goes from the raw input. Where the kinds differ (token numbers or images into
    sequences), it is a copy of the stem, with parameters of its own, followed by a map from ``X_0``.

    Parameters
    ----------
    budget : FLOPs of a map relative to those of the mean part, forward. Where no map is that cheap the
        cheapest is taken, and the table says so.
    preprocess, coarse : N and N - 1 modules, optional
        Taken instead of an automatic one where not None; ``preprocess[0]`` is the stem by default.
    recorded : ``network.construction["maps"]``, optional
        The kinds of map named there are made again, whatever they cost.

    Raises
    ------
    TypeError, ValueError
        Wrong number of maps; a supplied one with another output than the interface; an interface that is no
        floating-point tensor, or cannot be reached from the input; a recorded map that is supplied, or unknown.
    """
    if not 0 < budget < float("inf"):
        raise ValueError(f"budget: got {budget}, expected a positive share of a part, such as 0.1")
    supplied_c = _supplied("preprocess", preprocess, cut.parts)
    supplied_f = _supplied("coarse", coarse, cut.parts - 1)
    build = _Builder(cut, budget, recorded)
    chosen = [
        build.preprocess(j, module) if j or module is not None else build.stem() for j, module in enumerate(supplied_c)
    ]
    nets = [build.coarse(j, module) for j, module in enumerate(supplied_f, start=1)]
    return AutomaticMaps(tuple(chosen), tuple(nets), tuple(build.costs), budget)


def build_parareal(
    module: nn.Module | Iterable[nn.Module] | Partition,
    parts: int | None = None,
    *,
    example: Tensor | None = None,
    balance: str | Sequence[int] = "flops",
    body: str | Sequence[str] | None = None,
    split_spec: Mapping[str, Any] | None = None,
    preprocess: Sequence[nn.Module | None] | None = None,
    coarse: Sequence[nn.Module | None] | None = None,
    coarse_budget: float = 0.1,
    recorded: Sequence[Mapping[str, Any]] | None = None,
    correction: str = "residual",
    execution: str = "serial",
) -> PararealNetwork:
    """The parareal network of ``module``, sharing its parameters, with new coarse nets and preprocessing maps.

    ``network.construction`` records partition, maps, budget, correction and, for a network from :func:`.models.build`,
    its name and arguments, as JSON values; :mod:`.saving` writes it with the parameters and makes the same network
    again. A trained ``module`` gives its trained blocks; :func:`.warm_start.fit_maps` fits the new maps to them.

    Parameters
    ----------
    module : a network, as for :func:`.partitioning.partition` with the arguments of that name, or a partition
    preprocess, coarse, coarse_budget, recorded : as for :func:`automatic_maps`
    correction, execution : as for :class:`.PararealNetwork`
    """
    if isinstance(module, Partition):
        if parts is not None or body is not None or split_spec is not None or balance != "flops":
            raise ValueError("module: got a Partition, expected no parts, balance, body or split_spec beside it")
        cut = module
    elif example is None:
        raise TypeError("example: got None, expected a tensor [batch, features...]")
    else:
        cut = partition(module, parts, balance, example=example, body=body, split_spec=split_spec)
    maps = automatic_maps(cut, budget=coarse_budget, preprocess=preprocess, coarse=coarse, recorded=recorded)
    network = PararealNetwork(
        cut.chain.blocks,
        cut.sizes,
        preprocess=maps.preprocess,
        coarse=maps.coarse,
        head=cut.chain.head,
        correction=correction,
        execution=execution,
    )
    # As JSON would give it back: lists, no tuples.
    network.construction = {
        "partition": cut.to_config(),
        "maps": [{**asdict(c), "source": list(c.source), "target": list(c.target)} for c in maps.costs],
        "budget": coarse_budget,
        "correction": correction,
        "model": getattr(cut.module, "model_arguments", None),
    }
    network.serial_names = serial_names(cut.module, network)
    return network


class _Builder:
    """Chooses the maps of one partition and writes down what they cost."""

    def __init__(self, cut: Partition, budget: float, recorded: Sequence[Mapping[str, Any]] | None) -> None:
        self.cut, self.budget = cut, budget
        self.recorded = None if recorded is None else {entry["name"]: entry["what"] for entry in recorded}
        self.mean = sum(cut.part_flops) / cut.parts
        self.costs: list[MapCost] = []
        self.shapes = [shape[1:] for shape in cut.interfaces]
        ends = [0, *(b for _, b in cut.ranges())]
        self.dtypes = [getattr(torch, cut.dtypes[b]) for b in ends]
        self.groups = cut.groups
        self.raw = torch.empty(cut.input_shape, dtype=getattr(torch, cut.input_dtype), device="meta")
        first = next((p for _, m, _ in cut.chain.pieces() for p in m.parameters()), None)
        self.device = torch.device("cpu") if first is None or first.is_meta else first.device
        self.channels_first = any(isinstance(m, SIGNALS) for _, piece, _ in cut.chain.pieces() for m in piece.modules())

    def stem(self) -> nn.Module:
        stem = self.cut.chain.stem
        self._note("C^1", "the network's own", self.raw.shape[1:], self.shapes[0], stem, self.cut.stem_flops)
        return stem

    def preprocess(self, j: int, module: nn.Module | None) -> nn.Module:
        """``C^{j+1}``, which guesses the output of part ``j`` (or the stem's)."""
        name, target = f"C^{j + 1}", self._state(j)
        if module is not None:
            return self._supplied(name, module, self.raw, target)
        relu = never_negative(self.groups[j - 1][-1])
        first = self._state(0)
        raw_is_of_its_kind = self.raw.is_floating_point() and self.raw.dim() == target.dim()
        if not raw_is_of_its_kind and (first.dim() == target.dim() or not self.raw.is_floating_point()):
            return self._through_stem(name, first, target, relu)
        return self._choose(name, self.raw, target, signed=False, relu=relu)

    def coarse(self, j: int, module: nn.Module | None) -> nn.Module:
        """``F^j``, from the output of part ``j`` to that of part ``j + 1``."""
        name, source, target = f"F^{j}", self._state(j), self._state(j + 1)
        if module is not None:
            return self._supplied(name, module, source, target)
        return self._choose(name, source, target, signed=True, relu=False)

    def _state(self, j: int) -> Tensor:
        return torch.empty(self.cut.interfaces[j], dtype=self.dtypes[j], device="meta")

    def _through_stem(self, name: str, first: Tensor, target: Tensor, relu: bool) -> nn.Module:
        if not first.is_floating_point():
            raise ValueError(
                f"{name}: got states of {first.dtype} before the first part, expected floating-point ones; "
                "make the embedding part of the stem, or supply preprocess"
            )
        stem = copy.deepcopy(self.cut.chain.stem)
        behind = self._choose(name, first, target, signed=False, relu=relu, before=stem)
        return nn.Sequential(stem, behind)

    def _choose(
        self, name: str, x: Tensor, target: Tensor, *, signed: bool, relu: bool, before: nn.Module | None = None
    ) -> nn.Module:
        if not (x.is_floating_point() and target.is_floating_point()):
            raise ValueError(
                f"{name}: got dtypes {x.dtype} and {target.dtype}, expected floating-point; supply this map"
            )
        extra = self.cut.stem_flops if before is not None else 0
        source, goal = tuple(x.shape[1:]), tuple(target.shape[1:])
        options = candidates(source, goal, channels_first=self.channels_first, signed=signed, relu=relu)
        (what, make), flops = self._pick(name, options, x, extra)
        module = make().to(device=self.device, dtype=target.dtype)
        if before is not None:
            what, source = f"{STEM_COPY}{what}", tuple(self.raw.shape[1:])
        self._note(name, what, source, goal, nn.ModuleList([module, *[before] * (before is not None)]), flops)  # type: ignore[list-item]
        return module

    def _pick(self, name: str, options: Iterable[Candidate], x: Tensor, extra: int) -> tuple[Candidate, int]:
        wanted = None if self.recorded is None else self.recorded.get(name, "nothing").removeprefix(STEM_COPY)
        for option in options:  # the cheapest is the last
            if wanted not in (None, option[0]):
                continue
            with torch.device("meta"):  # no memory, no random numbers
                module = option[1]().to(x.dtype)
            flops = extra + count_flops(module, x)
            if flops <= self.budget * self.mean or wanted is not None:
                break
        else:
            if wanted is not None:
                known = "expected it to be supplied" if wanted == "supplied" else "which is no kind of map known here"
                raise ValueError(f"{name}: got the record of {wanted!r}, {known}")
        return option, flops

    def _supplied(self, name: str, module: nn.Module, x: Tensor, target: Tensor) -> nn.Module:
        require_same_kind(meta_output(module, x, name), target, f"{name}: output of the supplied map", "the interface")
        self._note(name, "supplied", x.shape[1:], target.shape[1:], module, count_flops(module, x))
        return module

    def _note(
        self, name: str, what: str, source: Sequence[int], target: Sequence[int], module: nn.Module, flops: int
    ) -> None:
        count = sum(p.numel() for p in module.parameters())
        relative = flops / self.mean if self.mean else None
        self.costs.append(MapCost(name, what, tuple(source), tuple(target), count, flops, relative))


def _is_over(cost: MapCost, budget: float) -> bool:
    return cost.name != "C^1" and cost.what != "supplied" and cost.relative is not None and cost.relative > budget


def never_negative(block: nn.Module) -> bool:
    """Does the block end with ReLU, as far as its modules tell?"""
    if isinstance(block, nn.Sequential):
        last = next((m for m in reversed(list(block)) if not isinstance(m, KEEPS_SIGN)), None)
        return last is not None and never_negative(last)
    return isinstance(block, nn.ReLU | nn.ReLU6) or getattr(block, "final_activation", False) is True


def _supplied(name: str, modules: Sequence[nn.Module | None] | None, count: int) -> list[nn.Module | None]:
    if modules is None:
        return [None] * count
    found = list(modules)
    if len(found) != count:
        raise ValueError(f"{name}: got {len(found)} maps, expected {count}, None where one is to be made")
    for i, module in enumerate(found):
        if module is not None and not isinstance(module, nn.Module):
            raise TypeError(f"{name}[{i}]: got {type(module).__name__}, expected a torch.nn.Module or None")
    return found
