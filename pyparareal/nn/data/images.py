# SPDX-License-Identifier: BSD-3-Clause
"""Labelled images in memory, and their fixed split into three sets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .files import DataError

# Share of every class, in thousandths, for validation and test; the rest is for training.
VALIDATION_SHARE, TEST_SHARE = 100, 200


@dataclass(frozen=True)
class Images:
    """``x = (pixels - mean) / deviation``, formed when it is asked for.

    Parameters
    ----------
    pixels : Tensor [count, channels, height, width]
        float32; or uint8, which keeps 60,000 images of CIFAR in 184 MB instead of 737.
    y : int64 Tensor [count]
        Classes.
    mean, deviation : float32 Tensor [channels, 1, 1], optional
        Both or none. Without them ``x`` is ``pixels`` in float32.
    """

    pixels: Tensor
    y: Tensor
    mean: Tensor | None = None
    deviation: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """Float32 ``[count, channels, height, width]``; memory of its own where ``pixels`` are not yet that."""
        x = self.pixels.to(torch.float32)
        return x if self.mean is None or self.deviation is None else (x - self.mean) / self.deviation

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> Images:
        return replace(self, pixels=self.pixels[index], y=self.y[index])


@dataclass(frozen=True)
class Split:
    """Three disjoint sets: learnt from, looked at while choosing settings, looked at once at the end."""

    train: Images
    validation: Images
    test: Images
    classes: int
    class_names: tuple[str, ...] = ()  # in the order of the labels; empty where a label is its name

    @property
    def image_shape(self) -> tuple[int, ...]:
        return tuple(self.train.pixels.shape[1:])

    def fingerprint(self) -> str:
        """Equal for equal images, labels, scaling and sets: 32 hexadecimal digits."""
        digest = hashlib.blake2b(repr((self.classes, self.class_names)).encode(), digest_size=16)
        for images in (self.train, self.validation, self.test):
            for tensor in (images.pixels, images.y, images.mean, images.deviation):
                if tensor is None:
                    continue
                digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
                digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


def split(images: Images, classes: int) -> Split:
    """Stratified and fixed: the same images in the same sets whatever the seed of the run.

    Values are scaled to zero mean and unit deviation over all channels of the training images.
    """
    train, validation, test = (images.take(index) for index in _chosen(images.y, classes, VALIDATION_SHARE, TEST_SHARE))
    mean, deviation = train.x.mean(), train.x.std()
    sets = [Images((s.x - mean) / deviation, s.y) for s in (train, validation, test)]
    return Split(sets[0], sets[1], sets[2], classes)


def complete(
    train: Images,
    validation: Images | None,
    test: Images | None,
    class_names: tuple[str, ...],
    classes: int,
    source: str,
) -> Split:
    """uint8 sets of a ``source``: what it lacks is split off its training images, stratified and fixed; then scaled.

    Raises
    ------
    DataError
        A class without training images, or too few of every class to split off what is missing.
    """
    absent = np.flatnonzero(torch.bincount(train.y, minlength=classes).numpy() == 0)
    if len(absent):
        name = class_names[absent[0]] if class_names else absent[0]
        raise DataError(f"{source}: got no training image of class {name}, expected all {classes} classes")
    shares = (VALIDATION_SHARE if validation is None else 0, TEST_SHARE if test is None else 0)
    remaining, *new = (train.take(index) for index in _chosen(train.y, classes, *shares))
    validation = new[0] if validation is None else validation
    test = new[1] if test is None else test
    if not len(validation) or not len(test):
        name, share = ("validation", shares[0]) if not len(validation) else ("test", shares[1])
        largest = int(torch.bincount(train.y).max())
        raise DataError(
            f"{source}: got at most {largest} training images of a class, expected at least {-(-1000 // share)} "
            f"to split off {share / 10:g} % of each for {name}"
        )
    return standardised(remaining, validation, test, classes, class_names)


def standardised(
    train: Images, validation: Images, test: Images, classes: int, class_names: tuple[str, ...] = ()
) -> Split:
    """The three sets with zero mean and unit deviation per channel over the training images.

    ``pixels`` of all sets are uint8. Mean and deviation come from the counts of the 256 values: exact, and no image
    is converted. A channel that is constant in training keeps deviation 1.
    """
    levels = np.arange(256, dtype=np.float64)
    means, deviations = [], []
    for channel in range(train.pixels.shape[1]):
        counts = np.zeros(256)
        for piece in train.pixels[:, channel].split(4096):  # bincount converts to int64
            counts += np.bincount(piece.numpy().ravel(), minlength=256)
        mean = float(counts @ levels / counts.sum())
        means.append(mean)
        deviations.append(float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum())) or 1.0)
    scaling = [torch.tensor(row, dtype=torch.float32)[:, None, None] for row in (means, deviations)]
    sets = [replace(s, mean=scaling[0], deviation=scaling[1]) for s in (train, validation, test)]
    return Split(sets[0], sets[1], sets[2], classes, class_names)


def _chosen(y: Tensor, classes: int, validation_share: int, test_share: int) -> list[Tensor]:
    """Indices of training, validation and test images, each rising."""
    # RandomState's stream is frozen by NumPy's compatibility policy; Generator's is not.
    rng = np.random.RandomState(1797)
    chosen: tuple[list[int], list[int], list[int]] = ([], [], [])
    for label in range(classes):
        members = rng.permutation(np.flatnonzero(y.numpy() == label)).tolist()
        test, validation = (len(members) * share // 1000 for share in (test_share, validation_share))
        chosen[2].extend(members[:test])
        chosen[1].extend(members[test : test + validation])
        chosen[0].extend(members[test + validation :])
    return [torch.tensor(sorted(index), dtype=torch.int64) for index in chosen]
