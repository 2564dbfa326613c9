# SPDX-License-Identifier: BSD-3-Clause
"""Runge-Kutta schemes as data: explicit, diagonally implicit, and pairs of both (IMEX).

Sources: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I" (Euler, midpoint, Heun,
classic RK4); Cooper and Verner, SIAM J. Numer. Anal. 9 (1972), pp. 389-405 (order 8, 11 stages);
R. Alexander, SIAM J. Numer. Anal. 14 (1977), pp. 1006-1021 (SDIRK of order 2 and 3, L-stable);
U. M. Ascher, S. J. Ruuth, R. J. Spiteri, Appl. Numer. Math. 25 (1997), pp. 151-167 (ARS pairs).
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


@dataclass(frozen=True)
class ImplicitTableau:
    """Butcher's ``a`` (rows up to the diagonal), ``b``, ``c`` of a diagonally implicit scheme of order ``order``."""

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.a) == len(self.b) == len(self.c):
            raise ValueError(f"a, b, c: got {len(self.a)}, {len(self.b)}, {len(self.c)} stages, expected equal numbers")
        if any(len(row) != i + 1 for i, row in enumerate(self.a)):
            raise ValueError("a: expected row i to hold the i + 1 coefficients up to the diagonal")

    @cached_property
    def stages(self) -> tuple[tuple[float, tuple[tuple[float, int], ...], float], ...]:
        """``(c_i, ((a_ij, j), ...), a_ii)`` per stage, zero coefficients left of the diagonal left out."""
        return tuple((c, _nonzero(row[:-1]), row[-1]) for c, row in zip(self.c, self.a, strict=True))

    @cached_property
    def weights(self) -> tuple[tuple[float, int], ...]:
        """``((b_j, j), ...)``, zero weights left out."""
        return _nonzero(self.b)

    @property
    def stiffly_accurate(self) -> bool:
        """Whether the last stage is the new state."""
        return self.a[-1] == self.b


@dataclass(frozen=True)
class ImexTableau:
    """``implicit`` for the stiff linear part, and for the rest an explicit scheme with one stage more.

    Row ``i`` of ``explicit`` holds the weights of the explicit slopes of the states before stage ``i``, the old state
    first. The last stage is the new state, in both.
    """

    name: str
    order: int
    implicit: ImplicitTableau
    explicit: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.implicit.stiffly_accurate:
            raise ValueError(f"implicit: got {self.implicit.name}, expected a scheme whose last stage is the new state")
        if [len(row) for row in self.explicit] != list(range(1, len(self.implicit.a) + 1)):
            raise ValueError("explicit: expected row i to hold the i + 1 coefficients of the states before stage i")


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


def theta_method(theta: float) -> ImplicitTableau:
    """``u_next = u + h ((1 - theta) u' + theta u_next')``: 1 backward Euler, 1/2 Crank-Nicolson (order 2)."""
    if not 0 < theta <= 1:
        raise ValueError(f"theta: got {theta}, expected a number above 0 and at most 1")
    if theta == 1:
        return ImplicitTableau("backward Euler", 1, ((1.0,),), (1.0,), (1.0,))
    row, second = (1.0 - theta, theta), theta == 0.5
    return ImplicitTableau(
        "Crank-Nicolson" if second else f"theta {theta:g}", 1 + second, ((0.0,), row), row, (0.0, 1.0)
    )


def _sdirk_2() -> ImplicitTableau:
    g = (2 - math.sqrt(2)) / 2
    return ImplicitTableau("SDIRK 2", 2, ((g,), (1 - g, g)), (1 - g, g), (g, 1.0))


def _sdirk_3() -> ImplicitTableau:
    # The root of x^3 - 3 x^2 + 3/2 x - 1/6 near 0.4, for which the scheme is L-stable, as a trigonometric formula.
    g = 1 + math.sqrt(2) * math.cos((math.atan(1 / math.sqrt(8)) + 4 * math.pi) / 3)
    b = (-(6 * g * g - 16 * g + 1) / 4, (6 * g * g - 20 * g + 5) / 4, g)
    return ImplicitTableau("SDIRK 3", 3, ((g,), ((1 - g) / 2, g), b), b, (g, (1 + g) / 2, 1.0))


def _ars_222() -> ImexTableau:
    g = SDIRK_2.a[0][0]
    d = 1 - 1 / (2 * g)
    return ImexTableau("ARS(2,2,2)", 2, SDIRK_2, ((g,), (d, 1 - d)))


BACKWARD_EULER = theta_method(1.0)
CRANK_NICOLSON = theta_method(0.5)
SDIRK_2 = _sdirk_2()
SDIRK_3 = _sdirk_3()
IMEX_EULER = ImexTableau("IMEX Euler", 1, BACKWARD_EULER, ((1.0,),))
ARS_222 = _ars_222()
