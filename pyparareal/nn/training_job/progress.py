# SPDX-License-Identifier: BSD-3-Clause
"""A line on standard error while a network is trained: loss, accuracy, images per second, time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ..._progress import Live, bar, seconds_words
from .loop import Progress


class _Line:
    def __init__(self, live: Live, run: Any, epochs: int, total: int) -> None:
        self.live, self.run, self.epochs, self.total = live, run, epochs, total
        self.done = len(run.state.step_seconds)  # a run that is continued
        self.steps, self.images, self.seconds = 0, 0, 0.0

    def step(self, loss: float, accuracy: float, images: int, seconds: float) -> None:
        self.steps += 1
        self.images += images
        self.seconds += seconds
        at = self.done + self.steps
        left = self.seconds / self.steps * (self.total - at)
        spent = f"{seconds_words(self.seconds)} + {seconds_words(left)} left"
        self.live.status(
            f"{self.run.name:8} {at / self.total:4.0%} {bar(at / self.total)} {spent}, "
            f"epoch {self.run.state.epoch + 1}/{self.epochs}, loss {loss:.3f}, "
            f"accuracy {accuracy:.1%}, {self.images / self.seconds:.0f} images/s"
        )


def progress_line(epochs: int, *, quiet: bool) -> Callable[[Any, int], AbstractContextManager[Progress]] | None:
    """A line per network, or None if nobody is looking: ``quiet``, or standard error is not a terminal."""
    live = Live(False if quiet else None)
    if not live.active:
        return None

    @contextmanager
    def line(run: Any, total: int) -> Iterator[Progress]:
        with live:
            yield _Line(live, run, epochs, total)

    return line
