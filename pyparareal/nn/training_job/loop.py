# SPDX-License-Identifier: BSD-3-Clause
"""The training loop: stochastic gradient descent that can stop after any step and continue bit for bit."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import _trace
from ...errors import PararealError
from ..data import Images, Split, batches, steps_per_epoch
from .device import autocast
from .settings import Settings


class Progress(Protocol):
    """Told about every step; may draw a bar."""

    def step(self, loss: float, accuracy: float, images: int, seconds: float) -> None: ...


@dataclass
class State:
    """Where a run stands. ``epoch`` and ``step`` are the next ones to do; sums are over this epoch so far."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)  # of the loss, in float16
    executed: str = "serial"  # the mode of the first batch of the last epoch

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def update(self, saved: dict[str, Any]) -> None:
        for name, value in saved.items():
            setattr(self, name, value)


class TrainingDiverged(PararealError):
    """The loss is no longer a finite number."""


def make_optimiser(net: nn.Module, settings: Settings) -> torch.optim.SGD:
    """Stochastic gradient descent with Nesterov momentum; no decay of biases and batch-norm parameters."""
    decayed = [p for p in net.parameters() if p.ndim > 1]
    other = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": other, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0)


def learning_rate(step: int, total: int, settings: Settings) -> float:
    """Linear rise to ``settings.lr`` over the share ``warm_up`` of all steps, then the schedule.

    ``"cosine"`` is half a cosine towards zero (Loshchilov and Hutter 2016, arXiv 1608.03983, equation 5 without
    restarts); ``"step"`` a tenth of the rate from each milestone on (He et al. 2015, section 4.2).
    """
    warm_up = max(1, int(total * settings.warm_up)) if settings.warm_up else 0
    if step < warm_up:
        return settings.lr * (step + 1) / warm_up
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1.0 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))
    if settings.schedule == "step":
        return settings.lr * 0.1 ** sum(step >= share * total for share in settings.milestones)
    return settings.lr


def train(
    net: nn.Module,
    optimiser: torch.optim.Optimizer,
    data: Split,
    settings: Settings,
    state: State,
    *,
    save: Callable[[], None],
    interrupted: Callable[[], bool],
    progress: Progress,
) -> bool:
    """Train until the last epoch is done (True) or ``interrupted()`` says stop (False). Saves in both cases."""
    per_epoch = steps_per_epoch(len(data.train), settings.batch_size)
    trainer = Trainer(net, optimiser, settings, state)
    while state.epoch < settings.epochs:
        todo = batches(
            data.train,
            settings.batch_size,
            seed=settings.seed,
            epoch=state.epoch,
            start=state.step,
            augment=settings.augment,
        )
        for batch in _fetched(todo):
            if interrupted():
                save()
                return False
            rate = learning_rate(state.epoch * per_epoch + state.step, settings.epochs * per_epoch, settings)
            trainer.step(batch, rate, progress)
        state.history.append(_epoch_row(net, data, state, settings.precision))
        state.epoch, state.step, state.loss_sum, state.correct, state.seen = state.epoch + 1, 0, 0.0, 0, 0
        save()
    return True


def _fetched(todo: Iterable[Images]) -> Iterator[Images]:
    """The same, with the time that each took in the trace."""
    left = iter(todo)
    while True:
        with _trace.mark("train.data"):
            batch = next(left, None)
        if batch is None:
            return
        yield batch


class Trainer:
    """One step at a time. In float16 the loss is scaled, so that small gradients do not become zero."""

    def __init__(self, net: nn.Module, optimiser: torch.optim.Optimizer, settings: Settings, state: State) -> None:
        self.net, self.optimiser, self.state, self.precision = net, optimiser, state, settings.precision
        device = settings.device.partition(":")[0]
        self.scaler = torch.amp.GradScaler(device, enabled=settings.precision == "float16")
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)

    def step(self, batch: Images, rate: float, progress: Progress) -> None:
        started = time.perf_counter()
        state = self.state
        self.net.train()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        with _trace.mark("train.forward"), autocast(self.precision, batch.x.device):
            logits = self.net(batch.x)
            loss = F.cross_entropy(logits, batch.y)
        with _trace.mark("train.backward"):
            self.scaler.scale(loss).backward()
        with _trace.mark("train.update"):
            self.scaler.step(self.optimiser)
            self.scaler.update()
            value = loss.item()
        _trace.sample("loss", value)
        seconds = time.perf_counter() - started

        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the loss became {value} in epoch {state.epoch + 1}, step {state.step + 1}; "
                "try a smaller --lr. The last checkpoint is from before that."
            )
        state.step += 1
        state.loss_sum += value * len(batch)
        state.correct += int((logits.argmax(1) == batch.y).sum())
        state.seen += len(batch)
        if state.step == 1:
            state.executed = getattr(self.net, "executed", None) or "serial"
        state.step_seconds.append(seconds)
        state.scaler = self.scaler.state_dict()
        progress.step(state.loss_sum / state.seen, state.correct / state.seen, len(batch), seconds)


def _epoch_row(net: nn.Module, data: Split, state: State, precision: str) -> dict[str, float]:
    loss, accuracy, _ = evaluate(net, data.validation, precision=precision)
    return {
        "epoch": state.epoch + 1,
        "train_loss": state.loss_sum / state.seen,
        "train_accuracy": state.correct / state.seen,
        "validation_loss": loss,
        "validation_accuracy": accuracy,
    }


class Score(NamedTuple):
    """``predicted`` classes ``[count]`` int64 on the CPU."""

    loss: float
    accuracy: float
    predicted: Tensor


@torch.no_grad()
def evaluate(net: nn.Module, images: Images, batch_size: int = 256, precision: str = "float32") -> Score:
    """Mean cross-entropy, accuracy and predictions over ``images``, in evaluation mode."""
    with _trace.mark("train.evaluation"):
        return _evaluated(net, images, batch_size, precision)


def _evaluated(net: nn.Module, images: Images, batch_size: int, precision: str) -> Score:
    net.eval()
    loss, correct, predicted = 0.0, 0, []
    for start in range(0, len(images), batch_size):
        part = images.take(torch.arange(start, min(start + batch_size, len(images))))
        with autocast(precision, part.x.device):
            logits = net(part.x)
            loss += F.cross_entropy(logits, part.y, reduction="sum").item()
        predicted.append(logits.argmax(1))
        correct += int((predicted[-1] == part.y).sum())
    return Score(loss / len(images), correct / len(images), torch.cat(predicted).cpu())
