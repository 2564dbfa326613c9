# SPDX-License-Identifier: BSD-3-Clause
"""Training steps to be watched: of the latest run of ``pyparareal train``, or of a fresh network like its own."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..._progress import Live
from ...errors import CheckpointError
from ..chain import chain_of
from ..critical_path import ForwardCost, forward_costs
from ..data import Images, Split, batches
from ..parareal_network import PararealNetwork
from . import checkpoint, device, job
from .build import build
from .loop import State, Trainer, make_optimiser
from .settings import Settings
from .step_time import StepTimes, measure

if TYPE_CHECKING:
    from ...profiling.events import Record

RUNS = Path("runs")
CHECKPOINT = "parareal.checkpoint"


@dataclass
class WatchedTraining:
    """A network, and its steps on the images it was trained on."""

    title: str
    net: PararealNetwork
    serial: nn.Module
    settings: Settings
    data: Split
    trainer: Trainer
    todo: Iterator[Images]
    seconds: list[float] = field(default_factory=list)

    def steps(self, number: int, live: Live) -> None:
        """So many; :attr:`seconds` is of these."""
        self.seconds = []
        with device.reproducible(self.settings):
            for k in range(number):
                self.trainer.step(next(self.todo), self.settings.lr / 10, self)
                live.status(f"training step {k + 1} of {number}, loss {self.loss:.3f}")

    def step(self, loss: float, accuracy: float, images: int, seconds: float) -> None:
        """What the trainer tells of every step."""
        self.loss = loss
        self.seconds.append(seconds)

    loss: float = float("nan")

    def network(self, record: Record) -> dict[str, Any]:
        """What the analysis prices: the pieces of a step, measured alone; FLOPs and layers of the critical path.

        Launches of the pieces in ``record`` are told their FLOPs: products of matrices and convolutions alone.
        """
        batch = self.data.train.take(torch.arange(min(self.settings.batch_size, len(self.data.train))))
        chain = chain_of(self.serial)
        one = PararealNetwork(chain.blocks, 1, preprocess=[chain.stem], coarse=[], head=chain.head)
        with device.reproducible(self.settings):
            nets = {"parareal": self.net, "serial": one}
            times = measure(nets, batch.x, batch.y, repeats=7, precision=self.settings.precision)
        flops, layers = forward_costs(self.net, batch.x)
        _tell(record, flops)
        mine = times["parareal"]
        return {
            "parts": self.net.parts,
            "steps": len(self.seconds),
            "step_seconds": statistics.median(self.seconds),
            "serial_step_seconds": times["serial"].step,
            "predicted_seconds": {str(p): mine.predicted_step(p) for p in job.device_counts(self.net.parts)},
            "coarse_seconds": {str(p): _coarse(mine, p) for p in job.device_counts(self.net.parts)},
            "pieces": dataclasses.asdict(mine),
            "flops": _as_dict(flops),
            "layers": _as_dict(layers),
        }


def watched_training(folder: str | None) -> WatchedTraining:
    """Of the run in ``folder``, by default the latest in ``runs/``, with its weights; a fresh one where there is none.

    Raises
    ------
    ValueError
        There is no run in ``folder``.
    CheckpointError
        Its checkpoint is not whole.
    """
    file = _latest(RUNS) if folder is None else Path(folder) / CHECKPOINT
    if folder is not None and file is not None and not file.is_file():
        raise ValueError(f"run: got {folder!r}, but there is no {CHECKPOINT} in it")
    settings = Settings() if file is None else checkpoint.read_settings(file)
    recorded = None if file is None else checkpoint.read_identity(file)["partition"]
    data = device.moved(job.load_images(settings), settings.device)
    with device.reproducible(settings):
        net, identity = build("parareal", settings, data, recorded)
        serial, _ = build("serial", settings, data, recorded)
        optimiser, state = make_optimiser(net, settings), State()
        if file is not None:
            state.update(checkpoint.load(file, net, optimiser, identity))
    if not isinstance(net, PararealNetwork):
        raise CheckpointError(f"{file}: got a {type(net).__name__}, expected a parareal network")
    where = "fresh weights" if file is None else f"weights of {file.parent}"
    title = f"training {settings.model} in {net.parts} parts on {settings.data}, {where}"
    return WatchedTraining(
        title, net, serial, settings, data, Trainer(net, optimiser, settings, State()), _endless(settings, data)
    )


def _endless(settings: Settings, data: Split) -> Iterator[Images]:
    for epoch in count():
        yield from batches(
            data.train, settings.batch_size, seed=settings.seed, epoch=epoch, start=0, augment=settings.augment
        )


def _latest(folder: Path) -> Path | None:
    found = list(folder.glob(f"*/{CHECKPOINT}"))
    return max(found, key=lambda file: file.stat().st_mtime, default=None)


def _coarse(times: StepTimes, devices: int) -> float:
    """Seconds of the coarse chain in the step predicted for so many devices."""
    bars = times.schedule(devices)
    whole = max(bar.end for bar in bars)
    return times.predicted_step(devices) * sum(bar.seconds for bar in bars if bar.piece == "coarse") / whole


def _tell(record: Record, flops: ForwardCost) -> None:
    """A launch is called ``fine[0]``, or ``fine[0, 2]`` if it is of several parts."""
    for event in record.events:
        name, _, numbers = event.name.rstrip("]").partition("[")
        if event.kind == "launch" and name in ("preprocess", "fine", "coarse") and numbers:
            event.facts["flops"] = sum(getattr(flops, name)[int(j)] for j in numbers.split(","))
        elif event.kind == "launch" and name == "head":
            event.facts["flops"] = flops.head


def _as_dict(cost: ForwardCost) -> dict[str, float]:
    return {
        "serial_network": cost.serial_network,
        "total": cost.total,
        "critical_path": cost.critical_path,
        "coarse": sum(cost.coarse),
        "coarse_over_fine": cost.coarse_over_fine,
    }
