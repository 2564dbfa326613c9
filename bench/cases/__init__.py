# SPDX-License-Identifier: BSD-3-Clause
"""The registry: a case is a function without arguments that returns a :class:`Result`.

::

    @case("ops.parareal_update", suite="quick")
    def parareal_update() -> Result:
        return Result(metrics={"bandwidth_fraction": 0.9}, checked=True)

Modules named ``bench/cases/*_cases.py`` are found by :func:`discover`. They import what they measure
inside the case, so that ``--list`` stays quick and a missing library breaks its own cases only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SUITES = ("quick", "full", "gpu", "multi_gpu")
DEVICES = ("cpu", "cuda")


@dataclass
class Result:
    """What a case hands back.

    ``metrics`` are finite numbers; ``checked`` says that the outputs of this very run were compared
    with the reference and agreed; ``samples`` are seconds, or what ``notes`` says they are.
    """

    metrics: dict[str, float]
    checked: bool
    samples: dict[str, list[float]] = field(default_factory=dict)
    notes: str = ""


@dataclass(frozen=True)
class Case:
    """A registered case; ``suite="quick"`` runs in the full suite too, ``"gpu"`` and ``"multi_gpu"``
    only by themselves."""

    name: str
    suite: str
    device: str
    run: Callable[[], Result]


CASES: dict[str, Case] = {}
BROKEN: dict[str, Exception] = {}  # case modules that failed to import, with the reason


def case(
    name: str, *, suite: str = "quick", device: str = "cpu"
) -> Callable[[Callable[[], Result]], Callable[[], Result]]:
    """Register the decorated function as case ``name`` (unique) of ``suite`` on ``device``."""
    if suite not in SUITES:
        raise ValueError(f"case {name!r}: suite: got {suite!r}, expected one of {', '.join(SUITES)}")
    if device not in DEVICES:
        raise ValueError(f"case {name!r}: device: got {device!r}, expected one of {', '.join(DEVICES)}")

    def register(run: Callable[[], Result]) -> Callable[[], Result]:
        if name in CASES:
            raise ValueError(f"case {name!r}: registered twice, by {CASES[name].run.__module__} and {run.__module__}")
        CASES[name] = Case(name, suite, device, run)
        return run

    return register


def discover(folder: Path = Path(__file__).parent) -> dict[str, Case]:
    """Import every ``*_cases.py`` of this package; one that fails is kept in ``BROKEN``, the others still count."""
    for path in sorted(folder.glob("*_cases.py")):
        try:
            importlib.import_module(f"{__name__}.{path.stem}")
        except Exception as error:  # whatever a case module raises concerns its own cases only
            BROKEN[path.stem] = error
    return CASES


def chosen(suite: str) -> list[str]:
    """Names of the cases a suite runs, sorted."""
    return sorted(c.name for c in CASES.values() if c.suite == suite or (suite == "full" and c.suite == "quick"))
