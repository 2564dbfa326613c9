# SPDX-License-Identifier: BSD-3-Clause
"""Checks of the models' arguments."""

from __future__ import annotations


def require_positive(**values: object) -> None:
    """Refuse what is no positive int, by name."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}, expected a positive int")
