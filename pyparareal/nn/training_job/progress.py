# SPDX-License-Identifier: BSD-3-Clause
"""A progress bar on standard error: loss, accuracy, images per second, time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from .loop import Progress


class _Bar:
    def __init__(self, bar: Any, epochs: int, epoch_of: Callable[[], int]) -> None:
        self.bar, self.epochs, self.epoch_of = bar, epochs, epoch_of
        self.images, self.seconds = 0, 0.0

    def step(self, loss: float, accuracy: float, images: int, seconds: float) -> None:
        self.images += images
        self.seconds += seconds
        speed = self.images / self.seconds
        self.bar.set_postfix_str(
            f"epoch {self.epoch_of() + 1}/{self.epochs}, "
            f"loss {loss:.3f}, accuracy {accuracy:.1%}, {speed:.0f} images/s",
            refresh=False,
        )
        self.bar.update()


def progress_bar(epochs: int, *, quiet: bool) -> Callable[[Any, int], AbstractContextManager[Progress]] | None:
    """A bar per network, or None if nobody is looking: ``quiet``, or standard error is not a terminal."""
    if quiet or not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError('the progress bar needs tqdm: pip install "pyparareal[train]", or use --quiet') from error

    @contextmanager
    def bar(run: Any, total: int) -> Iterator[Progress]:
        done = len(run.state.step_seconds)
        shape = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed} + {remaining} left{postfix}"
        with tqdm(total=total, initial=done, desc=f"{run.name:8}", bar_format=shape, file=sys.stderr) as inner:
            yield _Bar(inner, epochs, lambda: run.state.epoch)

    return bar
