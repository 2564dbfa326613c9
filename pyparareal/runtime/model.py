# SPDX-License-Identifier: BSD-3-Clause
"""A runtime that prices instead of computing: the schedule of a method on ``P`` processors, from measured costs.

The method itself runs, on states without a single element, so that a price can never belong to another schedule than
the one it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..propagators import Propagator
from ..time_grid import part_of_points
from .local import LocalRuntime
from .protocol import Link

Array = Any


COARSE = ("chain", "redundant", "gathered")  # see :mod:`.distributed`


@dataclass(frozen=True)
class RankCosts:
    """What ranks choose by where coarse levels are solved; the defaults are round figures for processes of one machine.

    Attributes
    ----------
    latency : float
        Seconds of an empty message from one rank to another.
    bandwidth : float
        Bytes per second of a long one.
    step : float
        Seconds of one step of one slice, on any level.
    call : float
        Seconds that a call of a propagator takes besides its steps.
    """

    latency: float = 1e-4
    bandwidth: float = 1e9
    step: float = 1e-4
    call: float = 2e-5

    def __post_init__(self) -> None:
        for name, least in (("latency", 0.0), ("bandwidth", 1.0), ("step", 0.0), ("call", 0.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
                raise ValueError(f"{name}: got {value!r}, expected a finite number of at least {least:g}")

    def message(self, nbytes: float) -> float:
        """Seconds of a message."""
        return self.latency + nbytes / self.bandwidth

    def overlaps(self, nbytes: int, calls: int, padding: int) -> bool:
        """Whether hiding a message behind work is worth so many more ``calls``, and steps of slices for ``padding``."""
        return self.message(nbytes) > calls * self.call + padding * self.step


@dataclass(frozen=True)
class Relaxed:
    """A level that is relaxed: its slices of ``m`` steps, and C-relaxations."""

    slices: int
    m: int
    nu: int


def cheapest(
    costs: RankCosts, nbytes: int, levels: Sequence[Relaxed], serial: int, ranks: int, cycle: str = "V"
) -> str:
    """Which of ``COARSE`` takes the least time per cycle, the first of those that take the same.

    Parameters
    ----------
    nbytes : int
        Of a state.
    levels : sequence of Relaxed
        The finest first.
    serial : int
        Steps of the level after them, that are taken one after the other; 0 if there is none.
    """
    seconds = [cycle_seconds(costs, nbytes, levels, serial, ranks, how, cycle) for how in COARSE]
    return COARSE[seconds.index(min(seconds))]


def cycle_seconds(
    costs: RankCosts, nbytes: int, levels: Sequence[Relaxed], serial: int, ranks: int, how: str, cycle: str = "V"
) -> float:
    """Predicted seconds of one cycle on ``ranks`` ranks.

    A level in blocks costs the largest share of its ``(nu + 1) m`` relaxation steps per slice, of the one step of the
    next level, and on all but the finest of ``m - 1`` of interpolation; a level solved whole costs all of these, and a
    serial chain its steps. Messages follow one another, as many as :mod:`.distributed` says.
    """
    cut = (
        len(levels)
        if how == "chain"
        else 1 + max((n for n, one in enumerate(levels) if one.slices >= ranks), default=0)
    )
    ranks = max(1, min(ranks, levels[cut - 1].slices))
    visits = [{"V": 1, "F": n + 1, "W": 2**n}[cycle] for n in range(len(levels))]
    total = visits[-1] * serial * costs.step
    for n, level in enumerate(levels):
        each = (level.nu + 1) * level.m + 1 + (level.m - 1) * (n > 0)
        share = -(-level.slices // ranks) if n < cut else level.slices
        total += visits[n] * share * each * costs.step
        if n < cut and ranks > 1:
            total += visits[n] * (level.nu + 2 + (n > 0)) * costs.message(nbytes)
    if ranks == 1 or (cut == len(levels) and not serial):
        return total
    if how == "chain":
        return total + visits[-1] * (ranks - 1) * costs.message(nbytes)
    units = -(-levels[cut - 1].slices // ranks)
    told = costs.message(units * nbytes * (2 if cut == len(levels) else 3))
    back = costs.message(units * nbytes) if how == "gathered" else 0.0
    return total + visits[cut - 1] * (ranks - 1) * (told + back)


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step of ``n`` slices in one call: ``call + n * per_slice``.

    If ``fused``, all steps of a relaxation are one call: ``call + steps * (per_step + n * per_slice)``.
    """

    call: float
    per_slice: float
    per_step: float = 0.0
    fused: bool = False

    def seconds(self, slices: int, steps: int = 1) -> float:
        each = self.per_step + slices * self.per_slice
        return self.call + steps * each if self.fused else steps * (self.call + each)


class ModelRuntime(LocalRuntime):
    """``P`` processors, each with a contiguous share of the slices; ``seconds`` is the time of the slowest, by region.

    Parameters
    ----------
    processors : int
        ``P >= 1``. A step of ``S`` slices costs what one of ``ceil(S / P)`` does; a serial chain takes one at a time.
    message : float
        Seconds to hand a state to the right neighbour, or a norm to everyone: once per sweep and per norm if ``P > 1``.
    """

    def __init__(self, processors: int, *, message: float = 0.0) -> None:
        super().__init__()
        if isinstance(processors, bool) or not isinstance(processors, int) or processors < 1:
            raise ValueError(f"processors: got {processors!r}, expected an integer of at least 1")
        if not 0 <= message < float("inf"):
            raise ValueError(f"message: got {message!r}, expected a number of seconds of at least 0")
        self.processors = processors
        self.message = message if processors > 1 else 0.0
        self._regions = ["other"]

    def priced(self, cost: StepCost) -> Priced:
        """A propagator that does nothing for ``cost``."""
        return Priced(cost, self)

    @property
    def total(self) -> float:
        """Seconds of everything so far."""
        return sum(self.seconds.values())

    def map(
        self,
        phi: Propagator,
        u: Array,
        points: slice,
        m: int = 1,
        *,
        out: Array | None,
        shifted: Array | None = None,
        **fused: Any,
    ) -> None:
        share = -(-len(u) // self.processors)
        out = None if out is None else out[:share]
        super().map(phi, u[:share], part_of_points(points, 0, share), m, out=out, **fused)

    def shift(self, u: Array) -> Array:
        self.spend(self.message)
        return super().shift(u)

    def reduce(self, values: Array, combine: Any = np.add) -> float:
        self.spend(self.message)
        return super().reduce(values, combine)

    @contextmanager
    def mark(self, name: str) -> Iterator[None]:
        self._regions.append(name)
        try:
            yield
        finally:
            self._regions.pop()

    def spend(self, seconds: float) -> None:
        """Add to the region that is marked."""
        region = self._regions[-1]
        self.seconds[region] = self.seconds.get(region, 0.0) + seconds


class RankModel(ModelRuntime):
    """The ranks of :func:`pyparareal.distributed`, with a price for each of their messages.

    Parameters
    ----------
    ranks : int
        How many have a block.
    shares : dict
        Slices of the largest block, by how many there are in all.
    costs : RankCosts
        Of messages and calls; a :class:`Priced` propagator knows what its steps cost.
    nbytes : int
        Of a state.
    """

    def __init__(self, ranks: int, shares: dict[int, int], costs: RankCosts, nbytes: int) -> None:
        super().__init__(ranks)
        self.shares, self.costs, self.nbytes = shares, costs, nbytes
        self.alone, self._hidden = False, False

    @property
    def others(self) -> int:
        """Ranks besides one that work."""
        return 0 if self.alone else self.processors - 1

    def share(self, slices: int) -> int:
        """Slices of the largest block; of points between, of which there may be one more or less than slices."""
        if not self.others:
            return slices
        nearest = min(self.shares, key=lambda count: abs(count - slices))
        return min(slices, self.shares[nearest] + max(0, slices - nearest))

    def map(
        self,
        phi: Propagator,
        u: Array,
        points: slice,
        m: int = 1,
        *,
        out: Array | None,
        shifted: Array | None = None,
        **fused: Any,
    ) -> None:
        share, before = self.share(len(u)), self.total
        LocalRuntime.map(
            self, phi, u[:share], part_of_points(points, 0, share), m, out=None if out is None else out[:share], **fused
        )
        calls = 1 if getattr(phi, "fused", False) else m
        if shifted is not None and self.others and share > 1 and self.costs.overlaps(self.nbytes, calls, 0):
            self.spend(calls * self.costs.call)
            # The last slice is done, the message leaves, and the others take the rest of the time.
            self.spend(max(0.0, self.costs.message(self.nbytes) - (self.total - before) * (share - 1) / share))
            self._hidden = True

    def shift(self, u: Array) -> Array:
        if self.others and not self._hidden:
            self.spend(self.costs.message(self.nbytes))
        self._hidden = False
        return LocalRuntime.shift(self, u)

    def chain(self, link: Link, u: Array, first: int, *, whole: Callable[[Array], None] | None = None) -> None:
        self.spend(self.others * self.costs.message(self.nbytes))
        super().chain(link, u, first, whole=whole)

    def reduce(self, values: Array, combine: Any = np.add) -> float:
        self._exchange(len(values))
        return LocalRuntime.reduce(self, values, combine)

    def gather(self, *values: Array) -> Sequence[Any]:
        self._exchange(sum(map(len, values)))
        return super().gather(*values)

    def _exchange(self, numbers: int) -> None:
        """From each to all, along a ring."""
        self.spend(self.others * self.costs.message(8 * numbers / self.processors))

    @contextmanager
    def joined(self, units: int, kinds: int, back: bool) -> Iterator[None]:
        """Around what is solved whole from so many ``kinds`` of states of all units.

        ``back``: by one rank, which sends each its units.
        """
        messages = self.costs.message(self.nbytes * units * kinds / self.processors)
        if back:
            messages += self.costs.message(self.nbytes * units / self.processors)
        self.spend(self.others * messages)
        self.alone = True
        try:
            yield
        finally:
            self.alone = False


class Priced:
    """A step, or a fused relaxation, that costs time and changes nothing."""

    batch_invariant = True

    def __init__(self, cost: StepCost, runtime: ModelRuntime) -> None:
        self.cost, self.runtime, self.fused = cost, runtime, cost.fused
        if cost.fused:
            self.relax = self._relax

    def step(self, u: Array, points: slice) -> Array:
        self.runtime.spend(self.cost.seconds(len(u)))
        return u

    def _relax(self, u: Array, points: slice, m: int, out: Array | None, **_: Any) -> None:
        self.runtime.spend(self.cost.seconds(len(u), m))
