# SPDX-License-Identifier: BSD-3-Clause
"""Labelled images in memory, their fixed split, batches in a reproducible order, light augmentation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Share of every class, in thousandths, for validation and test; the rest is for training.
VALIDATION_SHARE, TEST_SHARE = 100, 200


@dataclass(frozen=True)
class Images:
    """``x [count, channels, height, width]`` float32, ``y [count]`` int64."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> Images:
        return Images(self.x[index], self.y[index])


@dataclass(frozen=True)
class Split:
    """Three disjoint sets: learnt from, looked at while choosing settings, looked at once at the end."""

    train: Images
    validation: Images
    test: Images
    classes: int

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.train.x.shape[1:])


def load(name: str) -> Split:
    """The data set called ``name``, split; values scaled to zero mean and unit deviation over the training images."""
    if name != "digits":
        raise ValueError(f"data: got {name!r}, expected 'digits'")
    return digits()


def digits() -> Split:
    """1,797 handwritten digits, 8x8 pixels, 10 classes (UCI, as bundled with scikit-learn)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('data "digits" needs scikit-learn: pip install "pyparareal[train]"') from error
    raw = load_digits()
    x = torch.from_numpy(raw.images.astype(np.float32))[:, None]
    y = torch.from_numpy(raw.target.astype(np.int64))
    return split(Images(x, y), classes=10)


def split(images: Images, classes: int) -> Split:
    """Stratified and fixed: the same images in the same sets whatever the seed of the run."""
    # RandomState's stream is frozen by NumPy's compatibility policy; Generator's is not.
    rng = np.random.RandomState(1797)
    chosen: tuple[list[int], list[int], list[int]] = ([], [], [])
    for label in range(classes):
        members = rng.permutation(np.flatnonzero(images.y.numpy() == label)).tolist()
        test, validation = (len(members) * share // 1000 for share in (TEST_SHARE, VALIDATION_SHARE))
        chosen[2].extend(members[:test])
        chosen[1].extend(members[test : test + validation])
        chosen[0].extend(members[test + validation :])
    train, validation_set, test_set = (images.take(torch.tensor(sorted(index))) for index in chosen)
    mean, deviation = train.x.mean(), train.x.std()
    sets = [Images((s.x - mean) / deviation, s.y) for s in (train, validation_set, test_set)]
    return Split(sets[0], sets[1], sets[2], classes)


def batches(images: Images, size: int, *, seed: int, epoch: int, start: int, augment: str) -> Iterator[Images]:
    """Batches ``start, start + 1, ...`` of one epoch.

    Order and augmentation are functions of ``(seed, epoch, batch number)`` alone, so a run resumed in
    the middle of an epoch sees what the undisturbed run saw.
    """
    order = torch.randperm(len(images), generator=generator("order", seed, epoch))
    for number in range(start, steps_per_epoch(len(images), size)):
        batch = images.take(order[number * size : (number + 1) * size])
        if augment == "shift":
            batch = Images(shifted(batch.x, generator("shift", seed, epoch, number)), batch.y)
        yield batch


def steps_per_epoch(images: int, batch_size: int) -> int:
    return -(-images // batch_size)


def shifted(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel in both directions; the border repeats. ``[batch, channels, H, W]``."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    dy, dx = torch.randint(0, 3, (2, len(x), 1), generator=rng)
    rows = dy + torch.arange(height)
    columns = dx + torch.arange(width)
    image = torch.arange(len(x))[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """A random stream of its own for each purpose and position."""
    digest = hashlib.sha256(repr((purpose, *numbers)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
