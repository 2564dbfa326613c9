# SPDX-License-Identifier: BSD-3-Clause
"""What there is to choose from, without torch: the command line reads it."""

from __future__ import annotations

NAMES = ("digits",)
AUGMENTATIONS = ("none", "shift")
DEFAULT_AUGMENTATION = {"digits": "shift"}
