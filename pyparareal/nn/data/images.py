# SPDX-License-Identifier: BSD-3-Clause
"""Labelled images in memory, and their fixed split into three sets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
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
