# SPDX-License-Identifier: BSD-3-Clause
"""Batches in a reproducible order, augmented as they are drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .images import Images


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
