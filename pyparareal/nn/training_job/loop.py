# SPDX-License-Identifier: BSD-3-Clause
"""The training loop: stochastic gradient descent that can stop after any step and continue bit for bit."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import PararealError
from ..data import Images, Split, batches, steps_per_epoch
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


def learning_rate(step: int, total: int, peak: float) -> float:
    """Linear warm-up to ``peak`` over the first tenth of all steps, then half a cosine towards zero."""
    warm_up = max(1, total // 10)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))


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
    while state.epoch < settings.epochs:
        todo = batches(
            data.train,
            settings.batch_size,
            seed=settings.seed,
            epoch=state.epoch,
            start=state.step,
            augment=settings.augment,
        )
        for batch in todo:
            if interrupted():
                save()
                return False
            rate = learning_rate(state.epoch * per_epoch + state.step, settings.epochs * per_epoch, settings.lr)
            _train_step(net, optimiser, batch, rate, state, progress)
        state.history.append(_epoch_row(net, data, state))
        state.epoch, state.step, state.loss_sum, state.correct, state.seen = state.epoch + 1, 0, 0.0, 0, 0
        save()
    return True


def _train_step(
    net: nn.Module, optimiser: torch.optim.Optimizer, batch: Images, rate: float, state: State, progress: Progress
) -> None:
    started = time.perf_counter()
    net.train()
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    logits = net(batch.x)
    loss = F.cross_entropy(logits, batch.y)
    loss.backward()
    optimiser.step()
    value = loss.item()
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
    state.step_seconds.append(seconds)
    progress.step(state.loss_sum / state.seen, state.correct / state.seen, len(batch), seconds)


def _epoch_row(net: nn.Module, data: Split, state: State) -> dict[str, float]:
    loss, accuracy = evaluate(net, data.validation)
    return {
        "epoch": state.epoch + 1,
        "train_loss": state.loss_sum / state.seen,
        "train_accuracy": state.correct / state.seen,
        "validation_loss": loss,
        "validation_accuracy": accuracy,
    }


@torch.no_grad()
def evaluate(net: nn.Module, images: Images, batch_size: int = 256) -> tuple[float, float]:
    """Mean cross-entropy and accuracy over ``images``, in evaluation mode."""
    net.eval()
    loss, correct = 0.0, 0
    for start in range(0, len(images), batch_size):
        part = images.take(torch.arange(start, min(start + batch_size, len(images))))
        logits = net(part.x)
        loss += F.cross_entropy(logits, part.y, reduction="sum").item()
        correct += int((logits.argmax(1) == part.y).sum())
    return loss / len(images), correct / len(images)
