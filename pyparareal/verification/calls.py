# SPDX-License-Identifier: BSD-3-Clause
"""A set of steps taken in one call, as verification sees them: run, who is in which row, and what they hold."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import arrays
from .faults import NOTE, Fault, Finding, Place
from .held import Held

Array = Any


class Raised(Exception):
    """A step raised ``error``, in the call for ``place``."""

    def __init__(self, error: Exception, place: Place) -> None:
        super().__init__(str(error))
        self.error, self.place = error, place

    @property
    def by_the_package(self) -> bool:
        """Whether this package refused something, as against what the user's code raises."""
        at = self.error.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        return at is not None and str(at.tb_frame.f_globals.get("__name__")).partition(".")[0] == "pyparareal"

    def finding(self) -> Finding:
        text = f"{type(self.error).__name__}: {self.error}"
        return Finding(Fault.RAISED, self.place, f"It raised {text[:400]}.", numbers={"error": text[:400]})


@dataclass
class Call:
    """``out = run(rows)``: the steps of some slices, or one block applied to a batch, in one call.

    Attributes
    ----------
    run : callable
        Takes rows ``[rows, ...]`` and returns as many; gets memory of its own.
    rows : array
        What the serial chain hands to these steps.
    places : list of Place
        Of every row.
    alone : callable
        ``alone(j, row [1, ...])``: the step of row ``j`` by itself.
    held : Held
        What all of them hold.
    independent : bool
        Whether rows have to be independent for the parallel chain to be the serial one.
    copies : bool
        Whether the package hands out copies, so that a step may write to its input.
    random : bool
        Whether torch's own generator may be drawn from: the package fixes that, and so does every call here.
    strict_shape : bool
        Whether the result must have the shape of the rows.
    group : str
        Kind of place: findings of one kind are merged.
    promises : bool
        Whether the steps say ``batch_invariant=True``.
    points : sequence of int
        The point that each row starts from, if there are points.
    step_at : callable, optional
        ``step_at(point, row [1, ...])``: the step of another point.
    parameters : dict
        The tensors besides the rows in which the steps are differentiated, by name.
    """

    run: Callable[[Array], Array]
    rows: Array
    places: Sequence[Place]
    alone: Callable[[int, Array], Array]
    held: Held
    independent: bool = True
    copies: bool = True
    random: bool = False
    strict_shape: bool = True
    group: str = ""
    promises: bool = False
    points: Sequence[int] = ()
    step_at: Callable[[int, Array], Array] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    def __call__(self, rows: Array) -> Array:
        """``run`` on these very rows, without a graph; errors as :class:`Raised`."""
        if self.random:
            self.held.random.restore_torch()
        return guarded(self.run, self.places[0], rows)

    def single(self, j: int, row: Array) -> Array:
        return guarded(self.alone, self.places[j], j, row)

    def severity(self, harmless: bool) -> dict[str, str]:
        return {"severity": NOTE} if harmless else {}


def guarded(function: Callable[..., Array], place: Place, *args: Any) -> Array:
    """``function(*args)`` without a graph; what it raises says where."""
    torch = sys.modules.get("torch")
    try:
        if torch is not None and any(arrays.is_torch(x) for x in args):
            with torch.no_grad():
                return function(*args)
        return function(*args)
    except Raised:
        raise
    except Exception as error:
        raise Raised(error, place) from error
