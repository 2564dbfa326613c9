# SPDX-License-Identifier: BSD-3-Clause
"""Trainings of deep networks whose every forward and backward pass is solved in parallel over the layers.

Each task is trained from several seeds, as a plain serial network and as :class:`pyparareal.nn.LayerParallel`, on the
same batches from the same weights; a record keeps the loss of every step and the validation score at the end, and of
the parallel ones how many iterations were done, the residuals' factor per iteration, and what the policy did.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import sequence_training
from bench.depth_data import Data
from bench.sequence_training import SEEDS

Make = Callable[[], tuple[list[nn.Module], nn.Module, nn.Module]]


@dataclass(frozen=True)
class Task:
    """One training.

    Attributes
    ----------
    make : the blocks, the opening and the closing layers, with weights from torch's generator
    h : step size: a layer is ``u + h block(u)``
    steps, rate : of Adam
    parallel : settings of :class:`pyparareal.nn.LayerParallel` for every parallel mode, by its name; callables make
        the setting, anew for every network
    """

    name: str
    make: Make
    h: float
    steps: int
    rate: float
    data: Data
    loss: Callable[[Tensor, Tensor], Tensor]
    parallel: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Record:
    """What one training left.

    Attributes
    ----------
    score : validation loss at the end, of the network evaluated layer by layer
    iterations, backward : of every step, forward and backward; 0 is serial
    estimate : the estimated relative error of every gradient (None: unknown)
    events : what the policy did
    """

    task: str
    mode: str
    seed: int
    loss: list[float] = field(default_factory=list)
    score: float = math.nan
    iterations: list[int] = field(default_factory=list)
    backward: list[int] = field(default_factory=list)
    estimate: list[float | None] = field(default_factory=list)
    events: list[str] = field(default_factory=list)


class Residual(nn.Module):
    """``closing(u[L])`` with ``u[0] = opening(x)``, ``u[i+1] = u[i] + h block_i(u[i])``: plain modules, one by one."""

    def __init__(self, blocks: list[nn.Module], h: float, opening: nn.Module, closing: nn.Module) -> None:
        super().__init__()
        self.blocks, self.h = nn.ModuleList(blocks), h
        self.opening, self.closing = opening, closing

    def forward(self, x: Tensor) -> Tensor:
        u = self.opening(x)
        for block in self.blocks:
            u = u + self.h * block(u)
        found: Tensor = self.closing(u)
        return found


def build(task: Task, mode: str, seed: int) -> nn.Module:
    """The network in ``mode``; the same weights for every mode."""
    torch.manual_seed(seed)
    blocks, opening, closing = task.make()
    if mode == "serial":
        return Residual(blocks, task.h, opening, closing)
    from pyparareal.nn import LayerParallel

    options = {name: value() if callable(value) else value for name, value in task.parallel[mode].items()}
    return LayerParallel(blocks, h=task.h, opening=opening, closing=closing, **options)


def train(task: Task, mode: str, seed: int) -> Record:
    """``task.steps`` steps of Adam, ``mode`` "serial" or one of ``task.parallel``."""
    model = build(task, mode, seed)
    *_, record = islice(training(task, model, mode, seed), task.steps)
    record.score = score(task, model)
    return record


def training(task: Task, model: Any, mode: str, seed: int) -> Iterator[Record]:
    """The record after every step, one that grows, without end."""
    optimiser = torch.optim.Adam(model.parameters(), lr=task.rate)
    record = Record(task.name, mode, seed)
    for x, y in task.data.batches(np.random.default_rng(seed)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of what the policy did, which the record keeps
            loss = task.loss(model(x), y)
            optimiser.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        record.loss.append(_rounded(float(loss.detach()), 8))  # more than float32 has
        if mode != "serial":
            _note(record, model.report)
        yield record


def _note(record: Record, report: Any) -> None:
    record.iterations.append(report.forward.iterations)
    record.backward.append(report.backward[-1].iterations if report.backward else 0)
    error = report.gradient_error
    record.estimate.append(_rounded(error, 3) if math.isfinite(error) else None)
    record.events = list(report.events)


def score(task: Task, model: Any) -> float:
    """Validation loss, layer by layer whatever the mode."""
    plain = model.serial() if hasattr(model, "serial") else model
    plain.eval()
    with torch.no_grad():
        return _rounded(float(task.loss(plain(task.data.validation[0]), task.data.validation[1])), 8)


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


# Records


def load(path: Path) -> list[Record]:
    """The records of a file with one per line; none if it does not exist."""
    if not path.exists():
        return []
    return [Record(**json.loads(line)) for line in path.read_text().splitlines()]


def complete(task: Task, path: Path, modes: tuple[str, ...] | None = None) -> list[Record]:
    """The records of ``task``: those in the file, and the missing ones, trained now and written there one by one."""
    known = {(r.mode, r.seed): r for r in load(path) if r.task == task.name and len(r.loss) == task.steps}
    for seed in SEEDS:
        for mode in modes or ("serial", *task.parallel):
            if (mode, seed) not in known:
                known[mode, seed] = train(task, mode, seed)
                with path.open("a") as file:
                    file.write(json.dumps(vars(known[mode, seed])) + "\n")
    return list(known.values())


def largest_gap(records: list[Record], mode: str, window: int = 20) -> float:
    """:func:`bench.sequence_training.largest_gap` of the trainings in ``mode``."""
    chosen = [dataclasses.replace(r, mode="parallel") for r in records if r.mode == mode]
    return sequence_training.largest_gap([*chosen, *(r for r in records if r.mode == "serial")], window)  # type: ignore[list-item]


# Layers


class Attention(nn.Module):
    """Causal self-attention of several heads, ``[batch, length, width]``, without dropout."""

    mask: Tensor

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.of_input, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("mask", torch.full((length, length), -math.inf).triu(1), persistent=False)

    def forward(self, u: Tensor) -> Tensor:
        batch, length, width = u.shape
        q, k, v = self.of_input(u).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # Not scaled_dot_product_attention: its kernel for the CPU is evaluated layer by layer under vmap.
        scores = q @ k.mT / math.sqrt(width // self.heads) + self.mask[:length, :length]
        seen = torch.softmax(scores, -1) @ v
        found: Tensor = self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return found


class PreNorm(nn.Module):
    """``phi1(u) + phi2(u + phi1(u))``, ``phi1`` attention and ``phi2`` a perceptron, each after a layer norm.

    The Euler form of a transformer's block: S. Jiang et al., arXiv 2601.09026, section 2.
    """

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.attend = nn.Sequential(nn.LayerNorm(width), Attention(width, heads, length))
        self.think = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, u: Tensor) -> Tensor:
        seen = self.attend(u)
        found: Tensor = seen + self.think(u + seen)
        return found


class Embedding(nn.Module):
    """Of characters and their places: ``[batch, length]`` to ``[batch, length, width]``."""

    def __init__(self, characters: int, length: int, width: int) -> None:
        super().__init__()
        self.character, self.place = nn.Embedding(characters, width), nn.Embedding(length, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.character(x) + self.place.weight[: x.shape[1]]
        return found


def of_characters(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy of the next characters."""
    return nn.functional.cross_entropy(outputs.flatten(0, 1), y.flatten())
