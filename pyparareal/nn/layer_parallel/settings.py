# SPDX-License-Identifier: BSD-3-Clause
"""How one direction, forward or backward, is solved: an immutable value, checked when it is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ... import checks
from ...method_runs import check_options
from ...mgrit import MGRIT
from ...solution import Status

GUESSES = ("coarse", "zero", "input")
POLICIES = ("fixed", "tolerance", "one-shot", "adaptive")


@dataclass(frozen=True)
class Settings:
    """MGRIT over the layers, in one direction.

    Attributes
    ----------
    iterations : int, optional
        With ``tol=None`` so many, compared with nothing; with a tolerance at most so many. 0: one layer after the
        other. None: until ``tol`` is met, at most as many as make all exact.
    tol : float, optional
        Converged when an iteration changes the states at the C-points by less than ``tol`` times their size (2-norms).
    levels, min_coarse, nu, omega, cycle, nested : see :class:`pyparareal.MGRIT`
    guess : {"coarse", "zero", "input"}
        What iterations start from, in training too: nothing is kept from the batch before. "coarse": the first of them
        is only the coarse solve. It costs little, and for the linear adjoint is nearly all that one from zero would be.
        "zero" at every layer but the first. "input", forward only: the input at every layer, which makes the first a
        full iteration; it is worth that where layers change the states little.
    stopping : {"jump", "residual"}
        What is measured and compared with ``tol``: the change of the C-points in an iteration, from which errors are
        estimated, or how far a slice ends from where the next one starts, which estimates nothing.
    """

    iterations: int | None = None
    tol: float | None = None
    levels: int | None = 2
    min_coarse: int = 2
    nu: int | Sequence[int] = 1
    omega: float | Sequence[float] = 1.0
    cycle: str = "V"
    nested: bool = False
    guess: str = "coarse"
    stopping: str = "jump"

    def __post_init__(self) -> None:
        iterations = self.iterations
        if iterations is not None and (isinstance(iterations, bool) or not isinstance(iterations, int)):
            raise TypeError(f"iterations: got {iterations!r}, expected an integer or None")
        if iterations is not None and iterations < 0:
            raise ValueError(f"iterations: got {iterations}, expected at least 0")
        if self.tol is not None:
            checks.tolerance(self.tol)
        elif iterations is None:
            raise ValueError("iterations: got None with tol=None, expected how many iterations to run, or a tolerance")
        checks.choose("guess", self.guess, GUESSES)
        for name in ("nu", "omega"):
            if isinstance(getattr(self, name), Sequence) and not len(getattr(self, name)):
                raise ValueError(f"{name}: got none, expected one, or one per level")
        if not isinstance(self.nested, bool):
            raise TypeError(f"nested: got {self.nested!r}, expected True or False")
        if self.nested and self.guess != "coarse":
            raise ValueError(f"guess: got {self.guess!r} with nested=True, which makes a guess of its own")
        check_options(self.method(), guessed=False)

    @property
    def serial(self) -> bool:
        """Whether one layer follows the other."""
        return self.iterations == 0 or self.levels == 1

    @property
    def only_up(self) -> bool:
        """Whether the first iteration is only the coarse solve."""
        return self.guess == "coarse" and not self.nested

    def method(self) -> MGRIT:
        """For :func:`pyparareal.solve`."""
        return MGRIT(
            levels=1 if self.iterations == 0 else self.levels,
            min_coarse=self.min_coarse,
            nu=self.nu,
            omega=self.omega,
            cycle=self.cycle,
            nested=self.nested,
            skip_first_down=self.only_up,
            stopping=self.stopping,
            relative="state",
        )

    def exact_after(self, slices: int) -> int | None:
        """The iterations after which all ``slices`` are exact; None where weights make nothing exact."""
        weights = self.omega if isinstance(self.omega, Sequence) else [self.omega]
        if any(omega != 1 for omega in weights):
            return None
        nu = self.nu if isinstance(self.nu, int) else self.nu[0]
        return math.ceil(slices / (nu + 1)) + self.only_up

    def limited(self, slices: int) -> Settings:
        """The same without iterations that change nothing any more."""
        most = self.exact_after(slices)
        if most is None or self.tol is not None or self.iterations is None or self.iterations <= most:
            return self
        return dataclasses.replace(self, iterations=most)


def settings_of(name: str, given: Any, base: dict[str, Any], tol: float | None, default: int | None) -> Settings:
    """``forward=`` or ``backward=`` of :class:`.LayerParallel` as Settings: an int is a number of iterations."""
    if isinstance(given, Settings):
        return given
    if given is not None and (isinstance(given, bool) or not isinstance(given, int)):
        raise TypeError(f"{name}: got {type(given).__name__}, expected a number of iterations or Settings")
    iterations = default if given is None else given
    try:
        return Settings(iterations=iterations, tol=tol, **base)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def check_common(m: Any, layers: int) -> Any:
    """The coarsening factors, none larger than the number of layers."""
    factors = list(m) if isinstance(m, Sequence) and not isinstance(m, str) else [m]
    if not factors:
        raise ValueError("m: got no coarsening factor, expected one, or one per level")
    for factor in factors:
        if isinstance(factor, bool) or not isinstance(factor, int):
            raise TypeError(f"m: got {factor!r}, expected an integer, or one per level")
        if factor < 2:
            raise ValueError(f"m: got {factor}, expected a coarsening factor of at least 2")
    found = [max(2, min(factor, layers)) for factor in factors]
    return found if isinstance(m, Sequence) else found[0]


def check_buffer(buffer: Any, layers: int) -> tuple[int, int]:
    """The numbers of buffer layers, with at least one layer between them."""
    if not isinstance(buffer, tuple | list) or len(buffer) != 2:
        raise TypeError(f"buffer: got {buffer!r}, expected a pair of integers")
    for count in buffer:
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"buffer: got {buffer!r}, expected a pair of integers")
        if count < 0:
            raise ValueError(f"buffer: got {buffer!r}, expected integers of at least 0")
    if sum(buffer) >= layers:
        raise ValueError(f"buffer: got {tuple(buffer)} of {layers} layers, expected at least one left in between")
    return buffer[0], buffer[1]


def check_factors(m: Any, forward: Settings, backward: Settings) -> None:
    """Refuse several factors where a direction has no levels for them."""
    if isinstance(m, int):
        return
    for name, settings in (("forward", forward), ("backward", backward)):
        levels = 1 if settings.serial else settings.levels
        if levels is not None and len(m) > max(1, levels - 1):
            raise ValueError(f"m: got {len(m)} factors, expected one, as {name} has {levels} levels")


def ended(status: Status, failure: Status | None) -> str:
    """How a pass ended, in a few words."""
    return status.value if failure is None else f"{status.value} ({failure.value})"
