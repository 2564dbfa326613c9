# SPDX-License-Identifier: BSD-3-Clause
"""Whether ``verify`` finds what was planted, by name and place."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np


def seeded() -> None:
    """The same networks every time."""
    import torch

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what a user's step may draw from
    torch.manual_seed(0)


def found(one: Any) -> tuple[bool, str]:
    """Whether the fault of a :class:`.chains.Planted` is named, at its place; and what was said."""
    from pyparareal import verify

    seeded()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, data, more = one.make()
        result = verify(model, data, **more)
    said = "; ".join(f"{f.fault.name} ({f.severity}) at {f.place.words}" for f in result.findings) or "nothing"
    return any(f.fault.name in one.faults and _there(f, one.place) for f in result.findings), said


def _there(finding: Any, place: dict[str, Any]) -> bool:
    own = {"slice": finding.slice, "step": finding.step}
    return all(
        str(value) in finding.place.words if name == "words" else own[name] == value for name, value in place.items()
    )


def alarm(name: str, make: Any) -> str:
    """The faults that ``verify`` sees in a chain of :data:`.chains.CLEAN`; nothing, if all is well."""
    from pyparareal import verify

    from .clean_networks import around

    seeded()
    with warnings.catch_warnings(), around(name):
        warnings.simplefilter("error")
        model, data, more = make()
        return "; ".join(map(str, verify(model, data, **more).faults))
