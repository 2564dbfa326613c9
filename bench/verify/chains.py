# SPDX-License-Identifier: BSD-3-Clause
"""Chains for ``verify``: what it is called with, and for a planted fault its name and where it is.

``place`` is what has to be found: ``{"slice": 3}``, ``{"step": 2}`` (of networks the number of the block), or
``{"words": "coarse"}``, a part of what the finding calls the place. Nothing: the fault is everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Planted:
    """One faulty chain: ``verify(*make())``, the last of ``make()`` being keyword arguments."""

    name: str
    make: Callable[[], tuple[Any, ...]]
    faults: tuple[str, ...]
    place: dict[str, Any] = field(default_factory=dict)


PLANTED: list[Planted] = []
CLEAN: dict[str, Callable[[], tuple[Any, ...]]] = {}


def planted(*faults: str, **place: Any) -> Callable[[Callable[[], tuple[Any, ...]]], Callable[[], tuple[Any, ...]]]:
    """Register a function of :data:`PLANTED`; any of ``faults`` is a right name."""

    def register(make: Callable[[], tuple[Any, ...]]) -> Callable[[], tuple[Any, ...]]:
        PLANTED.append(Planted(make.__name__, make, faults, place))
        return make

    return register


def solve_of(
    step: Any, *, steps: int = 24, m: int = 4, shape: tuple[int, ...] = (2, 5), **more: Any
) -> tuple[Any, ...]:
    """``verify(step, u0, grid=..., m=...)`` with a coarse step that does nothing much."""
    from pyparareal import TimeGrid
    from pyparareal.propagators import Map

    u0 = 0.5 + np.random.default_rng(0).random(shape)
    more.setdefault("coarse", Map(lambda u: 0.7 * u + 0.1, batch_invariant=True))
    return step, u0, {"grid": TimeGrid(0, steps, steps), "m": m, **more}


class At:
    """A propagator of two functions: ``wrong`` at some points, ``right`` at the others, both row by row."""

    batch_invariant = True

    def __init__(self, wrong: Any, *points: int, right: Any = None) -> None:
        self.wrong, self.points = wrong, points
        self.right = right or smooth

    def step(self, u: Any, points: slice) -> Any:
        v = self.right(u)
        for n, i in enumerate(range(points.start, points.stop, points.step)):
            if not self.points or i in self.points:
                v[n] = self.wrong(u[n : n + 1])[0]
        return v


def smooth(u: Any) -> Any:
    """A step with everything as it should be."""
    return u + 0.1 * np.sin(u) - 0.05 * u


def clean(make: Callable[[], tuple[Any, ...]]) -> Callable[[], tuple[Any, ...]]:
    """Register a function of :data:`CLEAN`: every alarm on what it makes is a false one."""
    CLEAN[make.__name__] = make
    return make


class Forcing:
    """``u + sin(point)``-like steps whose points are ``of(points)``."""

    batch_invariant = True

    def __init__(self, of: Callable[[slice], Any], relax: Any = None) -> None:
        self.of = of
        if relax is not None:
            self.relax = lambda u, points, m, out: relax(self, u, points, m, out)

    def step(self, u: Any, points: slice) -> Any:
        i = np.broadcast_to(
            np.asarray(self.of(points), dtype=float), len(range(points.start, points.stop, points.step))
        )
        return 0.9 * u + 0.3 * np.sin(i + 1.0).reshape(-1, 1, 1)


def right_points(points: slice) -> Any:
    return np.arange(points.start, points.stop, points.step)


def chaotic(step: Any, steps: int, m: int, tol: float) -> tuple[Any, ...]:
    from pyparareal import TimeGrid
    from pyparareal.propagators import Map

    u0 = np.array([[0.31], [0.47]])
    near = Map(lambda u: times(step, u, m) + 1e-4 * np.sin(u), batch_invariant=True)
    return Map(step, batch_invariant=True), u0, {"grid": TimeGrid(0, steps, steps), "m": m, "tol": tol, "coarse": near}


def times(step: Any, u: Any, m: int) -> Any:
    for _ in range(m):
        u = step(u)
    return u


def linear() -> Any:
    from torch import nn

    return nn.Linear(6, 6)


def dense() -> Any:
    from torch import nn

    return nn.Sequential(nn.Linear(6, 6), nn.Tanh())


def parareal_network(blocks: list[Any], **more: Any) -> Any:
    """Two parts with linear guesses and coarse nets."""
    from torch import nn

    import pyparareal.nn as pnn

    return pnn.PararealNetwork(
        blocks, 2, preprocess=[nn.Identity(), nn.Linear(6, 6)], coarse=[nn.Linear(6, 6)], head=nn.Linear(6, 3), **more
    )


def layer_parallel(blocks: list[Any], **more: Any) -> Any:
    """With so many iterations as are exact."""
    import pyparareal.nn as pnn

    return pnn.LayerParallel(blocks, m=2, forward=3, backward=3, **more).to(dtype=next(blocks[0].parameters()).dtype)
