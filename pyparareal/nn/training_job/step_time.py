# SPDX-License-Identifier: BSD-3-Clause
"""Seconds per training step: measured on this machine, and predicted for 1..N devices from its pieces.

A step on ``P`` devices is predicted to take ::

    max over devices (preprocessing + fine nets, forward) + coarse chain forward + head and loss
    + coarse chain backward + max over devices (fine nets + preprocessing, backward) + update

where the parts go to the devices in contiguous groups, the groups with the smallest maximum, and all times
are scaled so that the prediction for one device is the measured step. Assumptions,
all but the last in favour of more devices: each device is as fast as this machine is with one
piece alone; sending interface states costs nothing; nothing waits for anything else; the update of the
parameters is charged undivided.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..._timing import Call, Samples, interleave
from ..paired_call import call_pair
from ..parareal_network import PararealNetwork

Pair = tuple[float, float]


@dataclass(frozen=True)
class StepTimes:
    """Median seconds of a whole step and of its pieces; pairs are (forward, backward)."""

    step: float
    parts: tuple[Pair, ...]  # C^j and g^j
    chain: Pair
    head: Pair
    update: float

    def predicted_step(self, devices: int) -> float:
        """Seconds per step on ``devices`` equal devices; the measured step for one. Assumptions: head of this file."""
        if not 1 <= devices <= len(self.parts):
            raise ValueError(f"devices: got {devices}, expected 1 to {len(self.parts)}, the number of parts")
        return self.step * self._critical_path(devices) / self._critical_path(1)

    def _critical_path(self, devices: int) -> float:
        slowest = min(self._slowest(cuts) for cuts in combinations(range(1, len(self.parts)), devices - 1))
        return slowest + sum(self.chain) + sum(self.head) + self.update

    def _slowest(self, cuts: tuple[int, ...]) -> float:
        bounds = [0, *cuts, len(self.parts)]
        groups = [self.parts[a:b] for a, b in pairwise(bounds)]
        return sum(max(sum(part[way] for part in group) for group in groups) for way in (0, 1))


def measure(nets: dict[str, PararealNetwork], x: Tensor, y: Tensor, *, repeats: int = 15) -> dict[str, StepTimes]:
    """Times of several networks on one batch, in turns, so that a disturbance of the machine meets all of them.

    Works on copies: parameters, statistics and gradients of ``nets`` stay as they are.
    """
    with torch.random.fork_rng(devices=[]):
        copies = {name: copy.deepcopy(net).train() for name, net in nets.items()}
        calls: dict[str, Call] = {}
        for name, net in copies.items():
            calls |= {f"{name}/{piece}": call for piece, call in _pieces(net, x, y).items()}
        # Warm: in training, too, a piece runs on what its neighbour has just written.
        samples = interleave(calls, cold_cache=False, repeats=repeats)
    return {name: _step_times(net, samples, name) for name, net in copies.items()}


def _pieces(net: PararealNetwork, x: Tensor, y: Tensor) -> dict[str, Call]:
    """Calls named ``step``, ``update`` and ``<piece>/forward``, ``<piece>/backward``."""
    whole = copy.deepcopy(net)
    optimiser = torch.optim.SGD(whole.parameters(), lr=0.0, momentum=0.9, nesterov=True)

    def step() -> float:
        optimiser.zero_grad()
        loss = F.cross_entropy(whole(x), y)
        loss.backward()
        optimiser.step()
        return loss.item()

    step()  # from here on every parameter has a gradient, which "update" needs
    calls: dict[str, Call] = {}
    guesses = [c(x).detach() for c in net.preprocess]
    outputs = [g(guess).detach() for g, guess in zip(net.fine, guesses, strict=True)]
    for j, (c, g) in enumerate(zip(net.preprocess, net.fine, strict=True)):
        calls |= _both_ways(f"part {j}", nn.Sequential(c, g), x, leaf=False)
    for j, f in enumerate(net.coarse):
        link, u = (
            (f, outputs[j] - guesses[j + 1])
            if net.correction == "residual"
            else (_Bracket(f, guesses[j + 1]), outputs[j])
        )
        calls |= _both_ways(f"chain {j}", link, u, leaf=True)
    calls |= _both_ways("head", _WithLoss(net.head, y), outputs[-1], leaf=True)
    return calls | {"update": optimiser.step, "step": step}


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


def _both_ways(name: str, module: nn.Module, x: Tensor, *, leaf: bool) -> dict[str, Call]:
    if leaf:
        x = x.clone().requires_grad_()
    # A graph that is kept must not see its module change: running statistics move with every forward call.
    kept = copy.deepcopy(module)
    v = kept(x)
    wanted: list[Any] = [p for p in kept.parameters() if p.requires_grad] + [x] * leaf
    calls: dict[str, Call] = {f"{name}/forward": lambda: module(x)}
    if wanted:
        ones = torch.ones_like(v)
        calls[f"{name}/backward"] = lambda: torch.autograd.grad(v, wanted, ones, retain_graph=True)
    return calls


def _step_times(net: PararealNetwork, samples: dict[str, Samples], name: str) -> StepTimes:
    def median(piece: str) -> float:
        return samples[f"{name}/{piece}"].median if f"{name}/{piece}" in samples else 0.0

    def pair(piece: str) -> Pair:
        return median(f"{piece}/forward"), median(f"{piece}/backward")

    parts = [pair(f"part {j}") for j in range(net.parts)]
    chain = [pair(f"chain {j}") for j in range(net.parts - 1)]
    return StepTimes(
        step=median("step"),
        parts=tuple(parts),
        chain=(sum(f for f, _ in chain), sum(b for _, b in chain)),
        head=pair("head"),
        update=median("update"),
    )
