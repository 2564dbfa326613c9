# SPDX-License-Identifier: BSD-3-Clause
"""A solve that goes on when a rank dies: its slices are re-created by the coarse chain, the others iterate on.

``solve(..., runtime=distributed(on_loss="recreate"))``. An iterative method forgets what it started from: any states
are a guess, and after as many iterations as make every slice exact the solution is that of the serial chain, to the bit
for batch-invariant propagators. So nothing of the solution is lost with a rank, only iterations.

1. Every rank keeps a copy of its C-points after each iteration.
2. A rank that dies has its connections closed; all others come to know of it within a moment, as they would to raise.
3. Those that come within the limit of the runtime make new connections. It is waited for in full, as nobody can tell a
   dead rank from a slow one; who comes later is told that the others went on.
4. The C-points that are left are gathered. The missing ones follow by the coarse chain from the state to their left.
5. The survivors share the slices anew and iterate on with that as guess; the limit of iterations counts from there.

``Solution.stats.losses`` names the iteration, the ranks and the slices. The runtime has fewer ranks afterwards.

An error that a rank raises itself is no loss, and is raised on all. A rank that is lost when the solution has reached
some of the others already, in the last exchange, is met by them in what they do next.

This is for launchers that leave the other processes alone when one dies, and a store that outlives it: a file
(``init_method="file://..."``), or a ``TCPStore`` in a process that is no rank. torchrun ends all when one dies; use
:class:`pyparareal.nn.ShardedCheckpoint` there.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from . import arrays
from .cuts import levels_of
from .errors import RankError
from .method_runs import MgritRun, PararealRun
from .newton_run import NewtonRun
from .propagators import advance
from .runtime.ranks import Ranks
from .solution import Loss
from .states import Found
from .time_grid import TimeGrid

if TYPE_CHECKING:
    from .blocks import BlockRun, OverRanks

Array = Any


class Watch:
    """What this rank knows after its last whole iteration.

    Attributes
    ----------
    first : int
        The first slice of its block.
    c : array ``[slices, ...]``, optional
        The ends of the slices of its block.
    residuals : list of float
        So far.
    """

    def __init__(self) -> None:
        self.first = 0
        self.c: Array = None
        self.residuals: list[float] = []

    def over(self, run: BlockRun, first: int) -> None:
        """Be told of every iteration of ``run``, whose block begins with slice ``first``."""
        self.first = first
        iterate: Any = run.cycles if isinstance(run, MgritRun) else run.iterate
        callback = iterate.callback

        def seen(k: int, u: Array, residual: float) -> bool:
            self.c = arrays.copy(u[1:])
            self.residuals.append(residual)
            return bool(callback is not None and callback(k, u, residual))

        iterate.callback = seen


def require_recreatable(run: BlockRun) -> None:
    """Refuse methods of which a lost block cannot be re-created.

    Raises
    ------
    ValueError
        Newton's method, or a coarse level in another space.
    """
    if isinstance(run, NewtonRun):
        raise ValueError("on_loss: got 'recreate' with method newton, expected parareal or mgrit")
    if isinstance(run, MgritRun) and run.levels[0].transfer is not None:
        raise ValueError("on_loss: got 'recreate' with a coarse level in another space, expected one in the same")


def recreating(over: OverRanks, whole: BlockRun, u: Array, guessed: bool, grid: TimeGrid, save: str) -> Found:
    """What ``whole`` finds from ``u``, by those ranks that live to the end of it."""
    before: list[float] = []
    losses: list[Loss] = []
    while True:
        over.watch = watch = Watch()
        try:
            found = over.by_those_there(whole, u, guessed, grid, save)
            break
        except RankError:
            were = over.runtime.size
            if over.runtime.raised() or len(members := over.runtime.go_on()) == were:
                raise  # of a rank's own, or of all: no rank was lost
        with over.runtime.failing() as ranks:
            u, blocks, residuals = _recreated(whole, ranks, u[:1], watch)
        before += residuals
        lost = tuple(rank for rank in range(were) if rank not in members)
        losses.append(Loss(len(before) + 1, lost, tuple(blocks), len(members)))
        guessed = True
        _as_guessed(whole)
    _prepend(whole, before)
    return found._replace(losses=tuple(losses))


def _recreated(
    whole: BlockRun, ranks: Ranks, start: Array, watch: Watch
) -> tuple[Array, list[tuple[int, int]], list[float]]:
    """The C-points that are left, and those that the coarse chain makes; which blocks these are; the history so far."""
    mine = start[:0] if watch.c is None else watch.c
    told = ranks.texts(
        {"first": watch.first, "rows": len(mine), "residuals": watch.residuals}, "gathering what is left"
    )
    rows = [one["rows"] for one in told]
    left = arrays.empty_like(start, slices=sum(rows))
    if len(left):
        ranks.blocks(left, rows, mine, "gathering what is left")
    u = arrays.empty_like(start, slices=whole.slices + 1)
    u[0] = start[0]
    missing, at = [True] * whole.slices, 0
    for first, count in ((one["first"], one["rows"]) for one in told):
        u[first + 1 : first + 1 + count] = left[at : at + count]
        missing[first : first + count] = [False] * count
        at += count
    coarse = levels_of(whole)[1].phi
    for n in (n for n, gone in enumerate(missing) if gone):
        advance(coarse, u[n : n + 1], slice(n, n + 1, 1), out=u[n + 1 : n + 2])
    residuals: list[float] = min((one["residuals"] for one in told if one["rows"]), key=len, default=[])
    return u, _runs(missing), residuals


def _runs(missing: list[bool]) -> list[tuple[int, int]]:
    """First and end of the runs of True."""
    edges = [n for n in range(len(missing) + 1) if (n < len(missing) and missing[n]) != (n > 0 and missing[n - 1])]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _as_guessed(whole: BlockRun) -> None:
    """What is iterated on from now on is a guess."""
    if isinstance(whole, MgritRun):
        options = dataclasses.replace(whole.cycles.options, nested=False, skip_first_down=False)
        whole.cycles = dataclasses.replace(whole.cycles, options=options)
    elif isinstance(whole, PararealRun):
        whole.guessed = True


def _prepend(whole: BlockRun, before: list[float]) -> None:
    """The history of the iterations before the last loss."""
    if isinstance(whole, MgritRun):
        whole.cycles.monitor.history = [*before, *whole.cycles.monitor.history]
        whole.cycles.cycles += len(before)
    elif isinstance(whole, PararealRun):
        whole.iterate.residuals = [*before, *whole.iterate.residuals]
        whole.iterate.converged = [0] * len(before) + list(whole.iterate.converged)
