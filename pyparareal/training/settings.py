# SPDX-License-Identifier: BSD-3-Clause
"""The options of a parallel training run, checked once."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

from ..checks import choose, tolerance

GUESSES = ("zeros", "constant", "coarse")
ON_FAILURE = ("serial", "return", "raise")


@dataclass(frozen=True)
class Settings:
    """See :class:`pyparareal.training.TrainingRuns` for the names.

    Raises
    ------
    TypeError, ValueError
        Names the option, what it got and what was expected.
    """

    steps: int
    m: int = 2
    cycle: str = "V"
    nu: int = 1
    levels: int | None = 2
    max_coarse: int = 10
    tol: float = 0.0
    max_iterations: int = 50
    guess: str = "zeros"
    divergence: float = 1e6
    stagnation: int | None = 40
    on_failure: str = "serial"
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1), ("m", 2), ("nu", 0), ("max_coarse", 1), ("max_iterations", 1), ("levels", 1),
            ("stagnation", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None or name not in ("levels", "stagnation"):
                object.__setattr__(self, name, integer(name, value, least))
        choose("cycle", self.cycle, ("V", "F", "W"))
        choose("guess", self.guess, GUESSES)
        choose("on_failure", self.on_failure, ON_FAILURE)
        object.__setattr__(self, "tol", tolerance(self.tol))
        if isinstance(self.divergence, bool) or not isinstance(self.divergence, numbers.Real):
            raise TypeError(f"divergence: got {self.divergence!r}, expected a number above 1")
        object.__setattr__(self, "divergence", float(self.divergence))
        if not isinstance(self.deterministic, bool):
            raise TypeError(f"deterministic: got {self.deterministic!r}, expected True or False")
        if not self.divergence > 1:
            raise ValueError(f"divergence: got {self.divergence!r}, expected a number above 1")

    def levels_for(self, steps: int) -> int:
        """How many levels ``steps`` fine steps get: until one has at most ``max_coarse`` steps, at most ``levels``."""
        most, found = math.inf if self.levels is None else self.levels, 1
        while found < most and steps // self.m >= 1 and (steps > self.max_coarse or (found == 1 and most == 2)):
            steps //= self.m
            found += 1
        return found


def integer(name: str, value: object, least: int) -> int:
    """``value``, an integer of any kind of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: got {value!r}, expected an integer")
    if value < least:
        raise ValueError(f"{name}: got {value}, expected at least {least}")
    return int(value)
