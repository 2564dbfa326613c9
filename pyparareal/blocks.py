# SPDX-License-Identifier: BSD-3-Clause
"""A solve over several processes: the same method on a block of the slices, and the whole solution put together.

The method knows nothing of it. Its levels get the block's grids and propagators that count from the block's first step,
its runtime the block's neighbours (:mod:`.runtime.distributed`), and what it returns is gathered.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ParamSpec, TypeVar

import numpy as np

from . import arrays, checks
from .coarse_blocks import joined_cycles
from .cuts import Cuts, From, bounds_of, chosen, levels_of
from .errors import RankError
from .handshake import asked_for, values_of
from .hierarchy import Level
from .method_runs import MethodRun, MgritRun, PararealRun, Problem
from .mgrit import MGRIT
from .newton_blocks import EACH, gather_growth, local_newton
from .newton_run import NewtonRun
from .propagators import Propagator
from .runtime.block import BlockRuntime, room_for
from .runtime.distributed import DistributedRuntime
from .runtime.ranks import Ranks
from .solution import Status
from .states import Found, filled, points_of, serial_states, settled_status
from .stopping import History, Monitor
from .survivors import Watch, recreating, require_recreatable
from .time_grid import TimeGrid

Array = Any
BlockRun = PararealRun | NewtonRun | MgritRun
BLOCKS = (PararealRun, NewtonRun, MgritRun)
P = ParamSpec("P")
T = TypeVar("T")


def together(solve: Callable[P, T]) -> Callable[P, T]:
    """``solve``, of which an error before the ranks have compared their arguments is told to all."""

    @functools.wraps(solve)
    def wrapped(*arguments: P.args, **named: P.kwargs) -> T:
        runtime = named.get("runtime")
        if not isinstance(runtime, DistributedRuntime):
            return solve(*arguments, **named)
        with runtime.together():
            return solve(*arguments, **named)

    return wrapped


def over_ranks(run: MethodRun | None, problem: Problem, u0: Array, save: str, rhs: Array | None) -> OverRanks | None:
    """What spreads ``run``, or a serial solve if there is none, over the ranks; None if the runtime has none."""
    runtime = problem.common.runtime
    if not isinstance(runtime, DistributedRuntime):
        return None
    if run is not None and not isinstance(run, BLOCKS):
        raise TypeError(f"method: got a {type(run).__name__}, which does not run over ranks")
    if arrays.namespace(u0).__name__ == "cupy":
        raise TypeError("u0: got a CuPy array, which does not travel between ranks, expected NumPy or torch")
    if runtime.on_loss == "recreate" and run is not None:
        require_recreatable(run)
    asked = asked_for(run, problem, u0, save, rhs) | {"coarse": str(runtime.coarse), "costs": repr(runtime.costs)}
    asked |= {"on_loss": runtime.on_loss}
    runtime.ask(asked)
    return OverRanks(runtime, asked, u0.nbytes)


class OverRanks:
    """A solve in blocks, one per rank; every rank ends with what one process would have, or its end.

    Each rank keeps the states of its own block for a backward pass, whose blocks these are too.
    """

    def __init__(self, runtime: DistributedRuntime, asked: dict[str, str], nbytes: int) -> None:
        self.runtime, self._asked, self._nbytes = runtime, asked, nbytes
        self._fit, self._keeps = 1, False
        self._backward: tuple[int | None, str] = None, "chain"
        self.watch: Watch | None = None

    def agree(self, adjoint: Any, guess: Array | None = None) -> None:
        """Before the first state is sent; ``adjoint`` is the chain of the backward passes, if there may be any."""
        self._keeps = adjoint is not None
        more = {"differentiable": str(self._keeps)}
        if guess is not None:
            more["initial"] = values_of(guess)
        if adjoint is not None:
            self._backward = coarse_of(adjoint.levels, adjoint.method, self.runtime, self._nbytes)
            self._fit, more = adjoint.unit(self._backward[0]), more | adjoint.asked()
        self.runtime.ask(self._asked | more)
        self.runtime.agree()

    def found(self, whole: Any, u: Array, guessed: bool, grid: TimeGrid, save: str) -> Found:
        """What ``whole`` finds from the C-points ``u``, of which only the first need be there if they are no guess."""
        if self.runtime.on_loss == "recreate":
            return recreating(self, whole, u, guessed, grid, save)
        return self.by_those_there(whole, u, guessed, grid, save)

    def by_those_there(self, whole: Any, u: Array, guessed: bool, grid: TimeGrid, save: str) -> Found:
        """The same, as long as no rank is lost; ``watch`` is told of the iterations on this rank's block."""
        cuts, how = cuts_for(whole, self.runtime, u, self._fit)
        counts = [cuts.slices(rank) for rank in range(cuts.ranks)]
        with self.runtime.working() as ranks:
            told: dict[str, Any] = {}
            block, mine, kept = None, u[:0], u[:0]
            if ranks.rank < cuts.ranks:
                block, told, mine, kept = self._run_block(whole, ranks, cuts, how, u, guessed, save)
            else:
                ranks.listen(room_of(whole, counts), "waiting for the result, without slices")
            everyone = ranks.texts(told, "exchanging the results")[: cuts.ranks]
            require_equal(everyone, ranks, ("status", "residuals"))
            found = _gathered(ranks, cuts.bounds, u[0], mine, points_of(grid, whole.m, save), "gathering the solution")
            if self._keeps and save == "coarse" and len(kept):
                kept[0] = found[cuts.bounds[ranks.rank] // whole.m]
            if isinstance(whole, NewtonRun):
                whole.growth = gather_growth(whole, block, [one["logs"] for one in everyone], found, ranks)
        take(whole, everyone)
        one, steps = everyone[0], [told["filled"] for told in everyone]
        status = Status[next((told["settled"] for told in everyone if told["settled"] != one["status"]), one["status"])]
        filled = sum(total for total, _ in steps), max(critical for _, critical in steps)
        return Found(status, found, one["final"], filled, kept, cuts.bounds, coarse=self._backward)

    def _run_block(
        self, whole: BlockRun, ranks: Ranks, cuts: Cuts, how: str, u: Array, guessed: bool, save: str
    ) -> tuple[BlockRun, dict[str, Any], Array, Array]:
        """This rank's run; what to tell the others of it; its states to return; those for a backward pass."""
        counts = [cuts.slices(rank) for rank in range(cuts.ranks)]
        first, last = sum(counts[: ranks.rank]), sum(counts[: ranks.rank + 1])
        runtime, room = self.runtime, room_of(whole, counts)
        verbs = BlockRuntime(ranks, counts, runtime.seconds, runtime.slices_per_call, room, costs=runtime.costs)
        if guessed:
            c = arrays.copy(u[first : last + 1])
        else:
            c = arrays.empty_like(u, slices=last - first + 1)
            c[0] = u[0]
        mine = local_run(whole, cuts.levels_of(ranks.rank), verbs)
        if isinstance(mine, MgritRun) and isinstance(whole, MgritRun) and how != "chain":
            mine.cycles = joined_cycles(mine.cycles, whole.cycles, cuts, gathered=how == "gathered")
        if self.watch is not None:
            self.watch.over(mine, first)
        status, c = mine.run(c, guessed)
        told: dict[str, Any] = {"status": status.name, "residuals": list(mine.residuals)}
        told["final"] = mine.final_residual(c)
        told |= costs(mine) | {"chained": verbs.chained}
        if isinstance(mine, NewtonRun):
            logs = mine.slice_logs()
            told["logs"] = None if logs is None else logs.tolist()
        states, steps = filled(mine.fine, c, mine.grid, mine.m, save, verbs)
        # Row 0 is the neighbour's, and may be an old one.
        told |= {"settled": settled_status(status, states[1:], c[1:]).name, "filled": steps}
        if self._keeps and save == "end":
            verbs.shift(c)
        verbs.finish()
        return mine, told, states, states if save == "all" else c

    def serially(self, fine: Propagator, u0: Array, grid: TimeGrid, m: int, save: str) -> Found:
        """One step after the other, from rank to rank."""
        bounds = bounds_of(grid.steps, math.lcm(m, self._fit), self.runtime.size)
        counts = [max((last - first) // m, 1) for first, last in pairwise(bounds)]
        points = points_of(grid, m, save)
        with self.runtime.working() as ranks:
            mine, finite = u0[None][:0], True
            if ranks.rank < len(counts):
                first, last = bounds[ranks.rank : ranks.rank + 2]
                verbs = BlockRuntime(ranks, counts, self.runtime.seconds, self.runtime.slices_per_call)
                part = TimeGrid(0, 1, last - first)
                mine = serial_states(From(fine, first), u0, part, m, save, verbs)
                finite = checks.finite(mine)
            everyone = ranks.texts(finite, "exchanging the results")
            found = _gathered(ranks, bounds, u0, mine, points, "gathering the serial solution")
        status = Status.SERIAL if all(everyone) else Status.NON_FINITE
        return Found(status, found, None, (0, 0), mine, bounds, coarse=self._backward)


def _gathered(
    ranks: Ranks, bounds: list[int], u0: Array, mine: Array, points: np.ndarray[Any, Any], what: str
) -> Array:
    """The states at ``points``, of which every rank has those of its block behind the one that it starts with."""
    u = arrays.empty_like(u0[None], slices=len(points))
    u[0] = u0
    if len(points) == 2:
        if ranks.rank + 2 == len(bounds):
            u[1] = mine[-1]
        ranks.broadcast(u[1:], len(bounds) - 2, what)
        return u
    ends = np.searchsorted(points, bounds, side="right")
    rows = [*np.diff(ends).tolist(), *[0] * (ranks.size + 1 - len(bounds))]
    ranks.blocks(u[1:], rows, mine[len(mine) - rows[ranks.rank] :], what)
    return u


def cuts_of(whole: BlockRun, ranks: int, bounds: list[int] | None = None, *, fit: int = 1) -> Cuts:
    """Where the blocks lie on the levels of ``whole``, see :class:`.Cuts`."""
    levels = levels_of(whole)
    relaxed_to_the_end = isinstance(whole, MgritRun) and bool(whole.cycles.options.coarsest_sweeps)
    return Cuts(levels, relaxed_to_the_end or len(levels) == 1, ranks, fit=fit, bounds=bounds)


def cuts_for(whole: BlockRun, runtime: DistributedRuntime, u: Array, fit: int) -> tuple[Cuts, str]:
    """The same for a solve from states like ``u``, and which of ``COARSE`` it is."""
    if not isinstance(whole, MgritRun):
        return cuts_of(whole, runtime.size, fit=fit), "chain"
    levels, options = whole.levels, whole.cycles.options
    how, deepest = chosen(levels, options, runtime.size, runtime.costs, u[:1].nbytes, runtime.coarse)
    return Cuts(levels, bool(options.coarsest_sweeps), runtime.size, fit=fit, deepest=deepest), how


def coarse_of(levels: list[Level], options: Any, runtime: DistributedRuntime, nbytes: int) -> tuple[int | None, str]:
    """The last level of MGRIT that is relaxed in blocks, None if all are, and which of ``COARSE`` that is.

    ``nbytes`` are those of a state.
    """
    if not isinstance(options, MGRIT) or len(levels) == 1:
        return None, "chain"
    how, deepest = chosen(levels, options, runtime.size, runtime.costs, nbytes, runtime.coarse)
    return (None if how == "chain" else deepest), how


def take(whole: BlockRun, told: list[dict[str, Any]]) -> None:
    """The history is that of every rank; their costs are added up, unless they are spent at the same time."""
    one = told[0]
    if not isinstance(whole, MgritRun):
        whole.iterate.residuals, whole.iterate.converged = one["residuals"], one["converged"]
        whole.iterate.fine_steps = sum(rank["fine"] for rank in told)
        whole.iterate.coarse_steps = sum(rank["coarse"] for rank in told)
        return
    cycles = whole.cycles
    cycles.monitor.history, cycles.cycles, cycles.mode = one["residuals"], one["cycles"], one["mode"]
    cycles.steps = [sum(steps) for steps in zip(*(rank["steps"] for rank in told), strict=True)]
    cycles.critical = list(one["critical"])
    cycles.critical[-1] += sum(rank["chained"] for rank in told[1:])  # of all that waits only the chain is shared


def room_of(whole: BlockRun, counts: list[int]) -> int:
    """See :func:`.room_for`."""
    return room_for(counts, EACH if isinstance(whole, NewtonRun) else 1)


def local_run(whole: BlockRun, levels: list[Level], block: BlockRuntime) -> BlockRun:
    """``whole`` on the ``levels`` of a block."""
    mine = copy.copy(whole)
    mine.fine, mine.grid, mine.slices = levels[0].phi, levels[0].grid, levels[0].slices
    if isinstance(mine, PararealRun):
        phis: tuple[Propagator, Propagator] = levels[0].phi, levels[1].phi
        mine.iterate = dataclasses.replace(
            mine.iterate,
            fine=phis[0],
            coarse=phis[1],
            grid=levels[0].grid,
            runtime=block,
            callback=_one_answer(mine.iterate.callback, block),
            residuals=History(),
            converged=[],
        )
        return mine
    if isinstance(mine, NewtonRun):
        mine.iterate = local_newton(mine.iterate, levels, block, _one_answer(mine.iterate.callback, block))
        return mine
    cycles, monitor = mine.cycles, mine.cycles.monitor
    mine.levels = levels
    mine.cycles = dataclasses.replace(
        cycles,
        levels=levels,
        monitor=Monitor(monitor.rule, monitor.limits, monitor.lag, monitor.keep_going, block, monitor.finish),
        runtime=block,
        callback=_one_answer(cycles.callback, block),
        steps=[],
        critical=[],
        _taken=[],
        _rooms={},
    )
    return mine


def costs(run: BlockRun) -> dict[str, Any]:
    """What a block took, in numbers."""
    if not isinstance(run, MgritRun):
        iterate: Any = run.iterate
        return {"fine": iterate.fine_steps, "coarse": iterate.coarse_steps, "converged": iterate.converged}
    cycles = run.cycles
    return {"cycles": cycles.cycles, "mode": cycles.mode, "steps": cycles.steps, "critical": cycles.critical}


def _one_answer(callback: Any, block: BlockRuntime) -> Any:
    """A callback that asks to stop on all ranks if it does on one; one with ``within`` is told whose states it gets."""
    if callback is None:
        return None
    if hasattr(callback, "within"):
        callback = callback.within(block)

    def asked(k: int, u: Array, residual: float) -> bool:
        return bool(block.gather(np.array([float(bool(callback(k, u, residual)))]))[0].any())

    return asked


def require_equal(told: list[dict[str, Any]], ranks: Ranks, names: tuple[str, ...]) -> None:
    """Refuse results that contradict one another: then a propagator does not compute the same on every rank."""
    for name in names:
        for rank, theirs in enumerate(told):
            if repr(theirs[name]) != repr(told[0][name]):
                raise RankError(f"rank {ranks.rank}: the {name} of rank {rank} are not those of rank 0")
