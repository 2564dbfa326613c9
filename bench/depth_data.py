# SPDX-License-Identifier: BSD-3-Clause
"""What the trainings of deep networks are trained on: level sets of a function, digits, and a text made by a script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Data:
    """``batches``: from a generator to batches ``(x, y)`` without end; ``validation``: one that is never among them."""

    batches: Callable[[np.random.Generator], Iterator[Batch]]
    validation: Batch


def peaks(examples: int, batch: int, *, validation: int = 200) -> Data:
    """Points of ``[-3, 3]^2`` and in which of five level sets of :func:`height` they lie; as many of each.

    The problem of S. Guenther et al., SIAM J. Math. Data Sci. 2 (2020), section 4.1; the points are ours.
    """
    rng = np.random.default_rng(2020)
    drawn = rng.uniform(-3, 3, (40 * (examples + validation), 2))
    z = height(*drawn.T)
    level = np.minimum((5 * (z - z.min()) / (z.max() - z.min())).astype(int), 4)
    each = (examples + validation) // 5
    chosen = rng.permutation(np.concatenate([np.flatnonzero(level == k)[:each] for k in range(5)]))
    x, y = torch.tensor(drawn[chosen], dtype=torch.float32), torch.tensor(level[chosen])
    return _in_memory(x, y, batch, validation)


def height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A surface with three hills and two dips, known from MATLAB as peaks."""
    hills: np.ndarray = (
        3 * (1 - x) ** 2 * np.exp(-(x**2) - (y + 1) ** 2)
        - 10 * (x / 5 - x**3 - y**5) * np.exp(-(x**2) - y**2)
        - np.exp(-((x + 1) ** 2) - y**2) / 3
    )
    return hills


def digits(batch: int, *, validation: int = 355) -> Data:
    """The digits of scikit-learn, 64 pixels from -1 to 1."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = torch.tensor(data.data[order] / 8.0 - 1.0, dtype=torch.float32)
    return _in_memory(x, torch.tensor(data.target[order]), batch, validation)


def _in_memory(x: Tensor, y: Tensor, batch: int, validation: int) -> Data:
    train = len(x) - validation

    def batches(rng: np.random.Generator) -> Iterator[Batch]:
        while True:
            order = torch.from_numpy(rng.permutation(train))
            for first in range(0, train - batch + 1, batch):
                chosen = order[first : first + batch]
                yield x[chosen], y[chosen]

    return Data(batches, (x[train:], y[train:]))


NAMES = ["ann", "bob", "carla", "dmitri", "eve", "farid", "grace", "hugo"]
THINGS = ["plum", "pear", "fig", "lemon", "melon", "apple", "cherry", "date"]
TAIL = 8192  # characters of the text that validate


def story(lines: int) -> str:
    """Lines such as ``ann has 12 figs, gives 5 to bob and keeps 7.``; the same at every call.

    To predict one needs the names and the thing seen before, and a subtraction.
    """
    rng = np.random.default_rng(7)
    told = []
    for _ in range(lines):
        giver, taker = rng.choice(NAMES, 2, replace=False)
        thing = rng.choice(THINGS)
        has = int(rng.integers(2, 20))
        gives = int(rng.integers(1, has))
        kept = has - gives
        told.append(f"{giver} has {has} {thing}s, gives {gives} to {taker} and keeps {kept} {thing}{'s' * (kept > 1)}.")
    return "\n".join(told).replace("cherrys", "cherries") + "\n"


def text(batch: int, length: int, *, lines: int = 4000) -> tuple[Data, int]:
    """Windows of ``length`` characters of :func:`story` and the characters that follow; the number of characters."""
    written = story(lines)
    alphabet = sorted(set(written))
    code = torch.tensor([alphabet.index(c) for c in written])
    train = len(code) - TAIL

    def batches(rng: np.random.Generator) -> Iterator[Batch]:
        while True:
            first = torch.from_numpy(rng.integers(0, train - length - 1, batch))
            windows = first[:, None] + torch.arange(length + 1)
            yield code[windows[:, :-1]], code[windows[:, 1:]]

    windows = code[train : train + (TAIL - 1) // length * length + 1]
    return Data(batches, (windows[:-1].view(-1, length), windows[1:].view(-1, length))), len(alphabet)
