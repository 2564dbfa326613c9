# SPDX-License-Identifier: BSD-3-Clause
"""Paired, repeated cross-validation of serial and parareal networks that survives being stopped.

In every repetition and fold all networks start from one initial body and see the same batches in the same order,
with the same augmentation. Each finished training is one line of a JSON-lines file; what is there is not trained again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench import machine

if TYPE_CHECKING:
    from torch import nn

    from pyparareal.nn.data import Images, Split
    from pyparareal.nn.training_job.settings import Settings

FOLDS, REPETITIONS = 5, 3
FIRST_STEPS = 5  # of each training: their mean loss is kept, so that a record can be checked in a second
# What decides a training, apart from network and seed: the defaults of ``pyparareal train``, spelled out, so that
# records stay valid when other settings appear. Chosen before, on another split, by the serial network (``Settings``).
RECIPE: dict[str, Any] = {
    "model": "resnet20",
    "width": 16,
    "correction": "residual",
    "coarse_units": 0,
    "preprocess_units": 1,
    "epochs": 30,
    "batch_size": 64,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "augment": "shift",
}


@dataclass(frozen=True)
class Study:
    """What is compared on which images. ``split(repetition, fold)`` gives training and held-out images."""

    name: str
    images: int
    networks: tuple[str, ...]  # the first is what the others are compared with
    split: Callable[[int, int], Split]
    labels: NDArray[np.int64]
    recipe: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(RECIPE))
    folds: int = FOLDS
    repetitions: int = REPETITIONS

    def settings(self, network: str, repetition: int, fold: int) -> Settings:
        """The recipe; seeds differ between repetitions and folds, and are the same for all networks."""
        from pyparareal.nn.training_job.settings import Settings

        parts = {"parts": int(network.rsplit("-", 1)[1])} if "-" in network else {}
        return dataclasses.replace(Settings(), **self.recipe, **parts, seed=repetition * self.folds + fold)

    def test_indices(self, repetition: int, fold: int) -> NDArray[np.int64]:
        """Numbers of the held-out images."""
        return np.flatnonzero(fold_of(self.labels, self.folds, repetition) == fold)

    def key(self, network: str, repetition: int, fold: int) -> str:
        """Equal for two trainings that give the same network."""
        text = json.dumps([self.name, network, repetition, fold, self.folds, self.recipe], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def trainings(self) -> Iterator[tuple[str, int, int]]:
        """``(network, repetition, fold)``, all networks of a fold before the next fold."""
        for repetition in range(self.repetitions):
            for fold in range(self.folds):
                for network in self.networks:
                    yield network, repetition, fold


def fold_of(labels: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Fold of each image: classes spread evenly, sizes equal to within one, other folds for other seeds."""
    rng = np.random.RandomState(seed)  # a frozen stream, unlike Generator's
    order = np.concatenate([rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)])
    found = np.empty(len(labels), dtype=np.int64)
    found[order] = np.arange(len(labels)) % folds
    return found


def build(network: str, settings: Settings, data: Split) -> nn.Module:
    """The untrained network called ``network``; equal seeds give equal initial bodies.

    ``serial``: the settings' model. ``parareal-N``: its parareal version; ``unit_coarse-N``: that with one residual
    unit more in each coarse net. ``uncorrected-N``: ``parareal-N`` without coarse chain, output ``h(y_N)``; as nothing
    else reaches that output or gets a gradient, ``h . g^N . C^N`` alone is run. ``linear``: one linear layer. Any
    other name: that model of :data:`pyparareal.nn.models.MODELS`, after ``wide_`` of twice the width.
    """
    import torch
    from torch import nn

    from pyparareal.nn import models

    torch.manual_seed(settings.seed)
    if network == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(data.image_shape), data.classes))
    kind, _, parts = network.partition("-")
    name = settings.model if parts or network == "serial" else network.removeprefix("wide_")
    width = 2 * settings.width if network.startswith("wide_") else settings.width
    net = models.build(name, channels=data.image_shape[0], classes=data.classes, width=width)
    if not parts:
        return net
    parareal = models.build_parareal(
        net,
        data.image_shape,
        int(parts),
        correction=settings.correction,
        coarse_units=settings.coarse_units + (kind == "unit_coarse"),
        preprocess_units=settings.preprocess_units,
    )
    if kind in ("parareal", "unit_coarse"):
        return parareal
    if kind != "uncorrected":
        raise ValueError(f"network: got {network!r}, expected 'parareal-N', 'unit_coarse-N' or 'uncorrected-N'")
    return nn.Sequential(parareal.preprocess[-1], parareal.fine[-1], parareal.head)


class _Watch:
    """Running mean loss after the first steps; says when ``stop_after`` steps are done."""

    def __init__(self, stop_after: int | None) -> None:
        self.steps, self.stop_after, self.first_loss = 0, stop_after, float("nan")

    def step(self, loss: float, accuracy: float, images: int, seconds: float) -> None:
        self.steps += 1
        if self.steps == FIRST_STEPS:
            self.first_loss = loss

    def interrupted(self) -> bool:
        return self.stop_after is not None and self.steps >= self.stop_after


def train(network: str, settings: Settings, data: Split, *, stop_after: int | None = None) -> dict[str, Any]:
    """Train one network, with one thread; its record: curves, which held-out images it has right, seconds.

    No choice looks at held-out images: they are evaluated after every epoch for the curves, and the network of the
    last epoch counts.
    """
    import torch

    from pyparareal.nn.training_job import loop

    with _one_thread():
        net = build(network, settings, data)
        torch.manual_seed(settings.seed)
        begin, watch, state = time.perf_counter(), _Watch(stop_after), loop.State()
        optimiser = loop.make_optimiser(net, settings)
        done = loop.train(
            net, optimiser, data, settings, state, save=_nothing, interrupted=watch.interrupted, progress=watch
        )
        record = {
            "network": network,
            "seed": settings.seed,
            "first_loss": watch.first_loss,
            "parameters": sum(p.numel() for p in net.parameters()),
            "seconds": round(time.perf_counter() - begin, 2),
        }
        if not done:
            return record
        names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
        columns = {name.replace("validation", "test"): [_short(row[name]) for row in state.history] for name in names}
        return record | {"right": "".join("01"[hit] for hit in right(net, data.test)), "curves": columns}


def right(net: nn.Module, images: Images, batch_size: int = 256) -> list[bool]:
    """Whether the network has each of ``images`` right, in evaluation mode."""
    import torch

    net.eval()
    with torch.no_grad():
        found = [net(x).argmax(1) for x in images.x.split(batch_size)]
    return (torch.cat(found) == images.y).tolist()


class Records:
    """Finished trainings in one JSON-lines file; a line is written whole, a torn last one is ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, dict[str, Any]] = {}
        for line in path.read_bytes().splitlines() if path.exists() else []:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # torn by a kill or a full disk: that training is done again
            self.found[record["key"]] = record

    def add(self, record: dict[str, Any]) -> None:
        """Append, and return once it is on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with open(self.path, "a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.found[record["key"]] = record


def run(study: Study, records: Records, told: Callable[[str], None] = lambda text: None) -> int:
    """Do the trainings of ``study`` that are not in ``records``; how many those were."""
    todo = [job for job in study.trainings() if study.key(*job) not in records.found]
    stamp = {"commit": machine.commit(), "cpu": machine.cpu_model(), "versions": machine.versions()}
    for number, (network, repetition, fold) in enumerate(todo, 1):
        settings = study.settings(network, repetition, fold)
        record = train(network, settings, study.split(repetition, fold))
        place = {"key": study.key(network, repetition, fold), "repetition": repetition, "fold": fold}
        records.add(place | record | stamp)
        rate = record["curves"]["test_accuracy"][-1]
        told(
            f"{study.name} {number}/{len(todo)}: repetition {repetition}, fold {fold}, {network}: "
            f"{100 * rate:.2f} % in {record['seconds']:.1f} s"
        )
    return len(todo)


def outcomes(study: Study, records: Records, network: str) -> NDArray[np.bool_]:
    """``[repetitions, images]``: did the network that had not seen the image get it right?"""
    found = np.zeros((study.repetitions, study.images), dtype=np.int8) - 1
    for repetition in range(study.repetitions):
        for fold in range(study.folds):
            bits = records.found[study.key(network, repetition, fold)]["right"]
            index = study.test_indices(repetition, fold)
            if len(index) != len(bits):
                raise ValueError(f"{network}: got {len(bits)} outcomes in fold {fold}, expected {len(index)}")
            found[repetition, index] = np.frombuffer(bits.encode(), dtype=np.uint8) - ord("0")
    if (found < 0).any():
        raise ValueError(f"{network}: got no outcome for some images, expected one for each in every repetition")
    return found.astype(bool)


def fold_accuracies(study: Study, right_: NDArray[np.bool_]) -> list[float]:
    """Accuracy of each training, repetitions and folds in order, from ``right_ [repetitions, images]``."""
    return [
        float(right_[repetition, study.test_indices(repetition, fold)].mean())
        for repetition in range(study.repetitions)
        for fold in range(study.folds)
    ]


def curves(study: Study, records: Records, network: str, column: str) -> NDArray[np.float64]:
    """``[trainings, epochs]`` of ``train_loss``, ``train_accuracy``, ``test_loss`` or ``test_accuracy``."""
    jobs = [job for job in study.trainings() if job[0] == network]
    return np.array([records.found[study.key(*job)]["curves"][column] for job in jobs])


def repeats(study: Study, records: Records, networks: Sequence[str]) -> float:
    """Largest relative change of the first steps' mean loss when the first training of each network is begun again."""
    worst = 0.0
    for network in networks:
        again = train(network, study.settings(network, 0, 0), study.split(0, 0), stop_after=FIRST_STEPS)
        before = records.found[study.key(network, 0, 0)]["first_loss"]
        worst = max(worst, abs(again["first_loss"] / before - 1))
    return worst


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _nothing() -> None:
    pass


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
