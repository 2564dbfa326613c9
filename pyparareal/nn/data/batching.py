# SPDX-License-Identifier: BSD-3-Clause
"""Batches in a reproducible order, augmented as they are drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .images import Images
from .names import AUGMENTATIONS

PADDING = 4  # pixels of zeros on each side


def batches(images: Images, size: int, *, seed: int, epoch: int, start: int, augment: str) -> Iterator[Images]:
    """Batches ``start, start + 1, ...`` of one epoch, ``pixels`` in float32, scaled.

    Order and augmentation are functions of ``(seed, epoch, batch number)`` alone, so a run resumed in
    the middle of an epoch sees what the undisturbed run saw.
    """
    if augment not in AUGMENTATIONS:
        raise ValueError(f"augment: got {augment!r}, expected one of {', '.join(AUGMENTATIONS)}")
    return _batches(images, size, seed, epoch, start, augment)


def _batches(images: Images, size: int, seed: int, epoch: int, start: int, augment: str) -> Iterator[Images]:
    order = torch.randperm(len(images), generator=generator("order", seed, epoch))
    for number in range(start, steps_per_epoch(len(images), size)):
        batch = images.take(order[number * size : (number + 1) * size])
        x = batch.x
        if augment == "shift":
            x = shifted(x, generator("shift", seed, epoch, number))
        elif augment == "crop_flip":
            x = cropped_and_flipped(x, generator("crop_flip", seed, epoch, number))
        yield Images(x, batch.y)


def steps_per_epoch(images: int, batch_size: int) -> int:
    return -(-images // batch_size)


def shifted(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel in both directions; the border repeats. ``[batch, channels, H, W]``."""
    top, left = torch.randint(0, 3, (2, len(x), 1), generator=rng)
    return _windows(F.pad(x, (1, 1, 1, 1), mode="replicate"), top, left, x.shape)


def cropped_and_flipped(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each image moved by up to 4 pixels in both directions, zeros following, and half of them mirrored left to right.

    He et al. (2015), section 4.2. Zero is the mean colour of the training images. ``[batch, channels, H, W]``.
    """
    top, left = torch.randint(0, 2 * PADDING + 1, (2, len(x), 1), generator=rng)
    mirrored = torch.randint(0, 2, (len(x),), generator=rng, dtype=torch.bool)
    moved = _windows(F.pad(x, (PADDING,) * 4), top, left, x.shape)
    return torch.where(mirrored.to(x.device)[:, None, None, None], moved.flip(3), moved)


def _windows(padded: Tensor, top: Tensor, left: Tensor, shape: torch.Size) -> Tensor:
    """From each padded image the part of ``shape [batch, channels, H, W]`` that begins at ``top, left [batch, 1]``."""
    # Drawn on the host, so that every device sees the same numbers.
    rows, columns = (top + torch.arange(shape[2])).to(padded.device), (left + torch.arange(shape[3])).to(padded.device)
    image = torch.arange(shape[0], device=padded.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def generator(purpose: str, *numbers: int) -> torch.Generator:
    """A random stream of its own for each purpose and position."""
    digest = hashlib.sha256(repr((purpose, *numbers)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
