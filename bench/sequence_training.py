# SPDX-License-Identifier: BSD-3-Clause
"""Trainings of recurrent networks whose every forward and backward pass is solved in parallel over the sequence.

Each task is trained from several seeds, serially and in parallel, on the same batches from the same weights; a record
keeps the loss of every step, and of the parallel ones how many iterations the first layer took and the exponent it
grew with.
"""

from __future__ import annotations

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

SEEDS = (0, 1, 2)

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """One training.

    Attributes
    ----------
    batches : from a generator to batches ``(x [T, batch, inputs], y)`` without end
    loss : of the outputs ``[batch, outputs]`` of the last state and ``y``
    memory : if given, the update gates start near ``1 - 1 / tau``, ``tau`` up to this many steps
    cell : makes a cell of (inputs, hidden) for :class:`pyparareal.nn.Recurrence`; without it the layer is a GRU
    parallel : settings that solve the sequence in parallel
    control : whether to train serially by torch's own GRU too, which differs from ours in rounding alone
    """

    name: str
    length: int
    inputs: int
    hidden: int
    outputs: int
    steps: int
    rate: float
    batches: Callable[[np.random.Generator], Iterator[Batch]]
    loss: Callable[[Tensor, Tensor], Tensor]
    memory: int | None = None
    cell: Callable[[int, int], nn.Module] | None = None
    parallel: dict[str, Any] = field(default_factory=dict)
    control: bool = False

    @property
    def modes(self) -> tuple[str, ...]:
        """Ways it is trained in."""
        return ("serial", "parallel", "torch") if self.control else ("serial", "parallel")


@dataclass
class Record:
    """What one training left."""

    task: str
    mode: str
    seed: int
    loss: list[float] = field(default_factory=list)
    iterations: list[int] = field(default_factory=list)
    exponent: list[float | None] = field(default_factory=list)
    fallbacks: int = 0


class LastState(nn.Module):
    """A linear map of the last state of one recurrent layer ``[T, batch, inputs]``."""

    def __init__(self, rnn: nn.Module, hidden: int, outputs: int) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        found: Tensor = self.head(states[-1])
        return found


def train(task: Task, mode: str, seed: int) -> Record:
    """``task.steps`` steps of Adam, ``mode`` "serial", "parallel", or "torch": serially by torch's own GRU."""
    *_, record = islice(training(task, mode, seed), task.steps)
    return record


def training(task: Task, mode: str, seed: int) -> Iterator[Record]:
    """The record after every step, one that grows, without end."""
    from pyparareal.nn import GRU, Recurrence

    torch.manual_seed(seed)
    options = task.parallel if mode == "parallel" else {"method": "serial"}
    rnn: Any
    if mode == "torch":
        rnn = nn.GRU(task.inputs, task.hidden)
    elif task.cell is None:
        rnn = GRU(task.inputs, task.hidden, **options)
    else:
        rnn = Recurrence(task.cell(task.inputs, task.hidden), **options)
    model = LastState(rnn, task.hidden, task.outputs)
    if task.memory is not None:
        remember(rnn, task.memory)
    optimiser = torch.optim.Adam(model.parameters(), lr=task.rate)
    record = Record(task.name, mode, seed)
    for x, y in task.batches(np.random.default_rng(seed)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of fallbacks, which the record counts
            loss = task.loss(model(x), y)
            optimiser.zero_grad()
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        record.loss.append(_rounded(float(loss.detach()), 8))  # more than float32 has
        if mode == "parallel":
            report = rnn.report if isinstance(rnn, Recurrence) else rnn.report[0]
            record.iterations.append(report.iterations)
            record.exponent.append(None if math.isnan(report.exponent) else _rounded(report.exponent, 4))
            record.fallbacks += report.failure is not None
        yield record


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


class MinimalGatedUnit(nn.Module):
    """``f = s(norm(W_f [x, h]))``, ``h' = h + f (tanh(W_n [x, f h]) - h)`` after G.-B. Zhou et al., 2016.

    The norm is ours: with it, no library has the cell.
    """

    def __init__(self, inputs: int, hidden: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.gate, self.new = (nn.Linear(inputs + hidden, hidden, dtype=dtype) for _ in range(2))
        self.norm = nn.LayerNorm(hidden, dtype=dtype)

    def initial_state(self, batch: int, dtype: torch.dtype, device: Any) -> Tensor:
        return torch.zeros(batch, self.gate.out_features, dtype=dtype, device=device)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        f = torch.sigmoid(self.norm(self.gate(torch.cat([x, h], -1))))
        return h + f * (torch.tanh(self.new(torch.cat([x, f * h], -1))) - h)


def remember(rnn: nn.GRU, longest: int) -> None:
    """Biases of the update gates ``log U(1, longest)``: states that keep what they saw for so many steps.

    C. Tallec, Y. Ollivier, "Can recurrent neural networks warp time?", ICLR 2018, section 2.
    """
    hidden = rnn.hidden_size
    with torch.no_grad():
        rnn.bias_ih_l0[hidden : 2 * hidden] = torch.empty(hidden).uniform_(1, longest - 1).log()
        rnn.bias_hh_l0[hidden : 2 * hidden] = 0


# Data


def digits(batch: int, side: int = 8, *, rows_permuted: bool = False) -> Callable[[np.random.Generator], Any]:
    """The digits of scikit-learn, pixel by pixel: ``side * side`` steps, enlarged by bilinear interpolation."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images / 16.0, dtype=torch.float32)
    if side != 8:
        images = nn.functional.interpolate(images[:, None], (side, side), mode="bilinear")[:, 0]
    if rows_permuted:
        images = images[:, torch.from_numpy(np.random.default_rng(0).permutation(side))]
    x, y = images.reshape(len(images), -1, 1) - 0.5, torch.tensor(data.target)

    def batches(rng: np.random.Generator) -> Iterator[Batch]:
        while True:
            order = torch.from_numpy(rng.permutation(len(x)))
            for first in range(0, len(x) - batch + 1, batch):
                chosen = order[first : first + batch]
                yield x[chosen].transpose(0, 1).contiguous(), y[chosen]

    return batches


def adding(batch: int, length: int) -> Callable[[np.random.Generator], Any]:
    """The adding problem: numbers in (0, 1), one marked in each half of the sequence; the answer is their sum.

    S. Hochreiter, J. Schmidhuber, Neural Computation 9 (1997), pp. 1735-1780, section 5.4.
    """

    def batches(rng: np.random.Generator) -> Iterator[Batch]:
        half = length // 2
        while True:
            x = np.zeros((length, batch, 2), dtype=np.float32)
            x[..., 0] = rng.random((length, batch))
            lanes = np.arange(batch)
            marked = rng.integers(0, half, batch), rng.integers(half, length, batch)
            for rows in marked:
                x[rows, lanes, 1] = 1
            y = (x[..., 0] * x[..., 1]).sum(0)
            yield torch.from_numpy(x), torch.from_numpy(y)

    return batches


def squared(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of the one output."""
    return nn.functional.mse_loss(outputs[:, 0], y)


# Records


def load(path: Path) -> list[Record]:
    """The records of a file with one per line; none if it does not exist."""
    if not path.exists():
        return []
    return [Record(**json.loads(line)) for line in path.read_text().splitlines()]


def complete(task: Task, path: Path) -> list[Record]:
    """The records of ``task``: those in the file, and the missing ones, trained now and written there one by one."""
    known = {(r.mode, r.seed): r for r in load(path) if r.task == task.name and len(r.loss) == task.steps}
    for seed in SEEDS:
        for mode in task.modes:
            if (mode, seed) not in known:
                known[mode, seed] = train(task, mode, seed)
                with path.open("a") as file:
                    file.write(json.dumps(vars(known[mode, seed])) + "\n")
    return list(known.values())


def losses(records: list[Record], mode: str) -> np.ndarray[Any, Any]:
    """``[seeds, steps]``"""
    return np.array([r.loss for r in sorted(records, key=lambda r: r.seed) if r.mode == mode])


def largest_gap(records: list[Record], window: int = 20, mode: str = "parallel") -> float:
    """The largest difference between a training and its serial one, in units of the spread over the seeds.

    Both are running means over ``window`` steps; the spread is the standard deviation of the serial trainings' means,
    averaged over the steps.
    """
    kernel = np.ones(window) / window
    serial, parallel = (
        np.array([np.convolve(row, kernel, mode="valid") for row in losses(records, mode)]) for mode in ("serial", mode)
    )
    spread = float(serial.std(0, ddof=1).mean())
    return float(np.abs(parallel - serial).max()) / spread if spread else math.inf
