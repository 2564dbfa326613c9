# SPDX-License-Identifier: BSD-3-Clause
"""Plain Python values as JSON and back, the same to the last bit; anything else is refused by its place."""

from __future__ import annotations

from collections import Counter
from typing import Any

_SCALARS = (bool, int, float, str)
_PAIRS = {"$dict": dict, "$counter": Counter}  # their keys need not be texts


def encode(value: Any, where: str) -> Any:
    """``value`` out of None, numbers, texts, lists, tuples, dicts and Counters of these, as JSON.

    Raises
    ------
    TypeError
        For any other value; the message begins with its place, ``where``.
    """
    if value is None or type(value) in _SCALARS:
        return value
    if type(value) in (list, tuple):
        items = [encode(one, f"{where}[{i}]") for i, one in enumerate(value)]
        return items if type(value) is list else {"$tuple": items}
    if type(value) is dict and all(type(key) is str and not key.startswith("$") for key in value):
        return {key: encode(one, f"{where}[{key!r}]") for key, one in value.items()}
    for name, kind in _PAIRS.items():
        if type(value) is kind:
            return {name: [[encode(k, where), encode(one, f"{where}[{k!r}]")] for k, one in value.items()]}
    raise TypeError(f"{where}: got {type(value).__name__}, expected numbers, texts, and lists, tuples or dicts of them")


def decode(value: Any) -> Any:
    """What :func:`encode` made JSON of.

    Raises
    ------
    ValueError, TypeError
        It made no such JSON.
    """
    if isinstance(value, list):
        return [decode(one) for one in value]
    if not isinstance(value, dict):
        return value
    special = [key for key in value if key.startswith("$")]
    if not special:
        return {key: decode(one) for key, one in value.items()}
    if len(value) != 1 or special[0] not in ("$tuple", *_PAIRS) or not isinstance(value[special[0]], list):
        raise ValueError(f"unknown kind of value: {special[0]!r}")
    if special[0] == "$tuple":
        return tuple(decode(one) for one in value["$tuple"])
    return _PAIRS[special[0]]({decode(key): decode(one) for key, one in value[special[0]]})
