# SPDX-License-Identifier: BSD-3-Clause
"""Explicit Runge-Kutta schemes as data.

Sources: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I" (Euler, midpoint, Heun,
classic RK4); Cooper and Verner, SIAM J. Numer. Anal. 9 (1972), pp. 389-405 (order 8, 11 stages).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Tableau:
    """Butcher's ``a`` (rows below the diagonal), ``b``, ``c`` of an explicit scheme of order ``order``."""

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.a) == len(self.b) == len(self.c):
            raise ValueError(f"a, b, c: got {len(self.a)}, {len(self.b)}, {len(self.c)} stages, expected equal numbers")
        if any(len(row) != i for i, row in enumerate(self.a)):
            raise ValueError("a: expected row i to hold the i coefficients left of the diagonal")

    @cached_property
    def stages(self) -> tuple[tuple[float, tuple[tuple[float, int], ...]], ...]:
        """``(c_i, ((a_ij, j), ...))`` per stage, zero coefficients left out."""
        return tuple((c, _nonzero(row)) for c, row in zip(self.c, self.a, strict=True))

    @cached_property
    def weights(self) -> tuple[tuple[float, int], ...]:
        """``((b_j, j), ...)``, zero weights left out."""
        return _nonzero(self.b)


def _nonzero(row: tuple[float, ...]) -> tuple[tuple[float, int], ...]:
    return tuple((value, j) for j, value in enumerate(row) if value != 0)


def _cooper_verner_8() -> Tableau:
    s = math.sqrt(21)
    return Tableau(
        name="Cooper-Verner 8",
        order=8,
        a=(
            (),
            (1 / 2,),
            (1 / 4, 1 / 4),
            (1 / 7, (-7 - 3 * s) / 98, (21 + 5 * s) / 49),
            ((11 + s) / 84, 0, (18 + 4 * s) / 63, (21 - s) / 252),
            ((5 + s) / 48, 0, (9 + s) / 36, (-231 + 14 * s) / 360, (63 - 7 * s) / 80),
            ((10 - s) / 42, 0, (-432 + 92 * s) / 315, (633 - 145 * s) / 90, (-504 + 115 * s) / 70, (63 - 13 * s) / 35),
            (1 / 14, 0, 0, 0, (14 - 3 * s) / 126, (13 - 3 * s) / 63, 1 / 9),
            (1 / 32, 0, 0, 0, (91 - 21 * s) / 576, 11 / 72, (-385 - 75 * s) / 1152, (63 + 13 * s) / 128),
            (
                1 / 14,
                0,
                0,
                0,
                1 / 9,
                (-733 - 147 * s) / 2205,
                (515 + 111 * s) / 504,
                (-51 - 11 * s) / 56,
                (132 + 28 * s) / 245,
            ),
            (
                0,
                0,
                0,
                0,
                (-42 + 7 * s) / 18,
                (-18 + 28 * s) / 45,
                (-273 - 53 * s) / 72,
                (301 + 53 * s) / 72,
                (28 - 28 * s) / 45,
                (49 - 7 * s) / 18,
            ),
        ),
        b=(1 / 20, 0, 0, 0, 0, 0, 0, 49 / 180, 16 / 45, 49 / 180, 1 / 20),
        c=(0, 1 / 2, 1 / 2, (7 + s) / 14, (7 + s) / 14, 1 / 2, (7 - s) / 14, (7 - s) / 14, 1 / 2, (7 + s) / 14, 1),
    )


EULER = Tableau("Euler", 1, ((),), (1.0,), (0.0,))
MIDPOINT = Tableau("midpoint", 2, ((), (1 / 2,)), (0.0, 1.0), (0.0, 1 / 2))
HEUN = Tableau("Heun", 2, ((), (1.0,)), (1 / 2, 1 / 2), (0.0, 1.0))
RK4 = Tableau(
    "classic RK4",
    4,
    ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
    (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    (0.0, 1 / 2, 1 / 2, 1.0),
)
COOPER_VERNER_8 = _cooper_verner_8()
