# SPDX-License-Identifier: BSD-3-Clause
"""Faults planted for ``verify`` to find, and chains on which it has to keep quiet: importing this registers all."""

from . import (
    clean_networks,
    clean_solves,
    planted_memory,
    planted_rules,
    planted_steps,
    unseen_clean,
    unseen_more,
    unseen_rules,
    unseen_steps,
)
from .chains import CLEAN as CLEAN
from .chains import PLANTED as PLANTED

__all__ = [
    "CLEAN", "PLANTED", "clean_networks", "clean_solves", "planted_memory", "planted_rules", "planted_steps",
    "unseen_clean", "unseen_more", "unseen_rules", "unseen_steps",
]  # fmt: skip
