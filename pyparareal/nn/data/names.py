# SPDX-License-Identifier: BSD-3-Clause
"""What there is to choose from, without torch: the command line reads it."""

from __future__ import annotations

# As He et al. (2015), section 4.2: four pixels of zeros around the image, a random crop of the old size, half of the
# images mirrored. Not for digits: a mirrored 2 is no digit. "folder" may hold writing, so nothing is mirrored unasked.
# Curves end at the border, and both ways of moving them would thicken or cut them there.
DEFAULT_AUGMENTATION: dict[str, str] = {
    "digits": "shift",
    "cluttered_digits": "shift",
    "cifar10": "crop_flip",
    "cifar100": "crop_flip",
    "cifar100_coarse": "crop_flip",
    "mnist": "shift",
    "fashion_mnist": "crop_flip",
    "svhn": "shift",
    "connected_curves": "none",
    "folder": "shift",
}
NAMES = tuple(DEFAULT_AUGMENTATION)
AUGMENTATIONS = ("none", "shift", "crop_flip")
WITHOUT_FILES = ("digits", "cluttered_digits", "connected_curves")  # made in memory, digits from scikit-learn's
