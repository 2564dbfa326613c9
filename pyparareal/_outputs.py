# SPDX-License-Identifier: BSD-3-Clause
"""What the ops allocate where no output is given, and the codes they pass on."""

from __future__ import annotations

from pyparareal.arrays import Array, empty, empty_like, namespace

_NORMS = {"sum_squares": 0, "sum_abs": 1, "max_abs": 2}
_PRECISIONS = {"exact": 0, "tf32x3": 1, "tf32": 2}


def norm_code(norm: str) -> int:
    """What ``_core`` calls the norm of this name."""
    try:
        return _NORMS[norm]
    except (KeyError, TypeError):
        raise ValueError(f"norm: got {norm!r}, expected one of {', '.join(_NORMS)}") from None


def precision_code(precision: str) -> int:
    """What ``_core`` calls the precision of this name."""
    try:
        return _PRECISIONS[precision]
    except (KeyError, TypeError):
        raise ValueError(f"precision: got {precision!r}, expected one of {', '.join(_PRECISIONS)}") from None


def new(argument: str, like: Array, slices: int | None = None) -> Array:
    """A state like the argument of this name, of another number of slices if given."""
    try:
        return empty_like(like, slices)
    except (AttributeError, TypeError):
        refuse_unknown(argument, like)
        raise


def new_norms(argument: str, like: Array) -> Array:
    """Norms of the slices of the argument of this name."""
    try:
        return empty(like, tuple(like.shape[:1]), "float64")
    except (AttributeError, TypeError):
        refuse_unknown(argument, like)
        raise


def refuse_unknown(argument: str, like: Array) -> None:
    """TypeError if the argument of this name is no array."""
    try:
        namespace(like)
    except TypeError as error:
        raise TypeError(f"{argument}: {error}") from None
