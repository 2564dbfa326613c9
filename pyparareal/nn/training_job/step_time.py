# SPDX-License-Identifier: BSD-3-Clause
"""Seconds per training step: measured on this machine, and predicted for 1..N devices from its pieces.

A step on ``P`` devices is predicted to take ::

    max over devices (preprocessing + fine nets, forward) + coarse chain forward + head and loss
    + coarse chain backward + max over devices (fine nets + preprocessing, backward) + update

where the parts go to the devices in contiguous groups, those whose largest time, forward and backward, is
smallest, and all times are scaled so that the prediction for one device is the measured step. Assumptions,
all but the last in favour of more devices: each device is as fast as this machine is with one
piece alone; sending interface states costs nothing; nothing waits for anything else; the update of the
parameters is charged undivided.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._timing import Call, Samples, interleave
from ..balance import balanced_sizes
from ..paired_call import call_pair
from ..parareal_network import PararealNetwork
from .device import autocast

Pair = tuple[float, float]


class Bar(NamedTuple):
    """One piece of a step on one device; seconds from the step's beginning."""

    device: int  # from 0
    piece: str  # "preprocess", "fine", "coarse", "head" or "update"
    number: int  # of part or interface, from 1
    backward: bool
    start: float
    seconds: float
    critical: bool  # on the path that decides how long the step takes

    @property
    def end(self) -> float:
        return self.start + self.seconds


@dataclass(frozen=True)
class StepTimes:
    """Median seconds of a whole step and of its pieces; pairs are (forward, backward)."""

    step: float
    preprocess: tuple[Pair, ...]  # C^j
    fine: tuple[Pair, ...]  # g^j
    coarse: tuple[Pair, ...]  # F^j
    head: Pair
    update: float

    @property
    def parts(self) -> tuple[Pair, ...]:
        """``C^j`` and ``g^j`` together."""
        return tuple((c[0] + g[0], c[1] + g[1]) for c, g in zip(self.preprocess, self.fine, strict=True))

    def predicted_step(self, devices: int) -> float:
        """Seconds per step on ``devices`` equal devices; the measured step for one. Assumptions: head of this file."""
        return self.step * _end(self.schedule(devices)) / _end(self.schedule(1))

    def schedule(self, devices: int) -> list[Bar]:
        """The pieces as measured, in the order assumed for ``devices`` devices; not scaled to the measured step."""
        if not 1 <= devices <= len(self.fine):
            raise ValueError(f"devices: got {devices}, expected 1 to {len(self.fine)}, the number of parts")
        groups = self._groups(devices)
        owner = {part: device for device, group in enumerate(groups) for part in group}
        last = len(self.fine)
        bars = self._side_by_side(groups, 0.0, backward=False)
        serial: list[tuple[str, int, bool, int]] = [("coarse", j, False, owner[j]) for j in range(1, last)]
        serial += [("head", last, False, devices - 1), ("head", last, True, devices - 1)]
        serial += [("coarse", j, True, owner[j]) for j in reversed(range(1, last))]
        for piece, number, backward, device in serial:
            pair = self.head if piece == "head" else self.coarse[number - 1]
            bars.append(Bar(device, piece, number, backward, _end(bars), pair[backward], True))
        bars += self._side_by_side(groups, _end(bars), backward=True)
        end = _end(bars)
        return bars + [Bar(device, "update", 1, False, end, self.update, True) for device in range(devices)]

    def _groups(self, devices: int) -> list[range]:
        nanoseconds = [round(1e9 * sum(pair)) for pair in self.parts]
        return [range(a, b) for a, b in pairwise(accumulate(balanced_sizes(nanoseconds, devices), initial=0))]

    def _side_by_side(self, groups: list[range], start: float, *, backward: bool) -> list[Bar]:
        rows = []
        for device, group in enumerate(groups):
            pieces = [(name, part) for part in group for name in ("preprocess", "fine")]
            at, row = start, []
            for name, part in reversed(pieces) if backward else pieces:
                pair: Pair = getattr(self, name)[part]
                row.append(Bar(device, name, part + 1, backward, at, pair[backward], False))
                at = row[-1].end
            rows.append(row)
        slowest = max(rows, key=_end)
        return [bar._replace(critical=row is slowest) for row in rows for bar in row]


def _end(bars: list[Bar]) -> float:
    return max(bar.end for bar in bars)


def measure(
    nets: dict[str, PararealNetwork], x: Tensor, y: Tensor, *, repeats: int = 15, precision: str = "float32"
) -> dict[str, StepTimes]:
    """Times of several networks on one batch, in turns, so that a disturbance of the machine meets all of them.

    Works on copies: parameters, statistics and gradients of ``nets`` stay as they are.
    """

    def reduced(call: Call) -> Call:
        def inside() -> object:
            with autocast(precision, x.device):
                return call()

        return inside

    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        copies = {name: copy.deepcopy(net).train() for name, net in nets.items()}
        calls: dict[str, Call] = {}
        for name, net in copies.items():
            calls |= {f"{name}/{piece}": call for piece, call in _pieces(net, x, y, reduced).items()}
        # Warm: in training, too, a piece runs on what its neighbour has just written.
        samples = interleave(calls, device="cuda" if x.is_cuda else "cpu", cold_cache=False, repeats=repeats)
    return {name: _step_times(net, samples, name) for name, net in copies.items()}


def _pieces(net: PararealNetwork, x: Tensor, y: Tensor, reduced: Callable[[Call], Call]) -> dict[str, Call]:
    """Calls named ``step``, ``update`` and ``<piece>/forward``, ``<piece>/backward``."""
    whole = copy.deepcopy(net)
    optimiser = torch.optim.SGD(whole.parameters(), lr=0.0, momentum=0.9, nesterov=True)
    with_loss: Any = reduced(lambda: F.cross_entropy(whole(x), y))

    def step() -> float:
        optimiser.zero_grad()
        loss = with_loss()
        loss.backward()
        optimiser.step()
        return float(loss.item())

    step()  # from here on every parameter has a gradient, which "update" needs
    calls: dict[str, Call] = {}
    guesses = [_output(c, x, reduced) for c in net.preprocess]
    outputs = [_output(g, guess, reduced) for g, guess in zip(net.fine, guesses, strict=True)]
    for j, (c, g) in enumerate(zip(net.preprocess, net.fine, strict=True)):
        calls |= _both_ways(f"preprocess {j}", c, x, reduced, leaf=False)
        # The gradient of a guess is needed only where it has parameters to reach.
        calls |= _both_ways(f"fine {j}", g, guesses[j], reduced, leaf=any(p.requires_grad for p in c.parameters()))
    for j, f in enumerate(net.coarse):
        residual = net.correction == "residual"
        link = f if residual else _Bracket(f, guesses[j + 1])
        u = outputs[j] - guesses[j + 1] if residual else outputs[j]
        calls |= _both_ways(f"coarse {j}", link, u, reduced, leaf=True)
    calls |= _both_ways("head", _WithLoss(net.head, y), outputs[-1], reduced, leaf=True)
    return calls | {"update": optimiser.step, "step": step}


def _output(module: nn.Module, x: Tensor, reduced: Callable[[Call], Call]) -> Tensor:
    output: Any = reduced(lambda: module(x))()
    return output.detach()


class _WithLoss(nn.Module):
    def __init__(self, head: nn.Module, y: Tensor) -> None:
        super().__init__()
        self.head, self.y = head, y

    def forward(self, u: Tensor) -> Tensor:
        return F.cross_entropy(self.head(u), self.y)


class _Bracket(nn.Module):
    """``F(u) - F(x)``: both calls count as part of the chain, where batch norm makes them one."""

    def __init__(self, coarse: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.coarse, self.x = coarse, x

    def forward(self, u: Tensor) -> Tensor:
        g_new, g_old = call_pair(self.coarse, u, self.x)
        return g_new - g_old


def _both_ways(
    name: str, module: nn.Module, x: Tensor, reduced: Callable[[Call], Call], *, leaf: bool
) -> dict[str, Call]:
    if leaf:
        x = x.clone().requires_grad_()
    # A graph that is kept must not see its module change: running statistics move with every forward call.
    kept = copy.deepcopy(module)
    v: Any = reduced(lambda: kept(x))()
    wanted: list[Any] = [p for p in kept.parameters() if p.requires_grad] + [x] * leaf
    calls: dict[str, Call] = {f"{name}/forward": reduced(lambda: module(x))}
    if wanted:
        ones = torch.ones_like(v)
        calls[f"{name}/backward"] = lambda: torch.autograd.grad(v, wanted, ones, retain_graph=True)
    return calls


def _step_times(net: PararealNetwork, samples: dict[str, Samples], name: str) -> StepTimes:
    def median(piece: str) -> float:
        return samples[f"{name}/{piece}"].median if f"{name}/{piece}" in samples else 0.0

    def pair(piece: str) -> Pair:
        return median(f"{piece}/forward"), median(f"{piece}/backward")

    return StepTimes(
        step=median("step"),
        preprocess=tuple(pair(f"preprocess {j}") for j in range(net.parts)),
        fine=tuple(pair(f"fine {j}") for j in range(net.parts)),
        coarse=tuple(pair(f"coarse {j}") for j in range(net.parts - 1)),
        head=pair("head"),
        update=median("update"),
    )
