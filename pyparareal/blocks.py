# SPDX-License-Identifier: BSD-3-Clause
"""A solve over several processes: the same method on a block of the slices, and the whole solution put together.

The method knows nothing of it. Its levels get the block's grids and propagators that count from the block's first step,
its runtime the block's neighbours (:mod:`.runtime.distributed`), and what it returns is gathered.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from . import arrays
from .coarse_blocks import joined_cycles
from .cuts import Cuts, deepest_for, levels_of
from .errors import RankError
from .handshake import asked_for
from .hierarchy import Level
from .method_runs import MethodRun, MgritRun, PararealRun, Problem
from .newton_blocks import EACH, gather_growth, local_newton
from .newton_run import NewtonRun
from .propagators import Propagator
from .runtime.block import BlockRuntime, room_for
from .runtime.distributed import DistributedRuntime
from .runtime.model import Relaxed, cheapest
from .runtime.ranks import Ranks
from .solution import Solution, Stats, Status
from .stopping import Monitor

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


def over_ranks(run: MethodRun, problem: Problem, u0: Array, save: str) -> MethodRun:
    """``run``, spread over the ranks if the runtime has any."""
    runtime = problem.common.runtime
    if not isinstance(runtime, DistributedRuntime):
        return run
    if not isinstance(run, BLOCKS):
        raise TypeError(f"method: got a {type(run).__name__}, which does not run over ranks")
    if arrays.namespace(u0).__name__ == "cupy":
        raise TypeError("u0: got a CuPy array, which does not travel between ranks, expected NumPy or torch")
    asked = asked_for(run, problem, u0, save) | {"coarse": str(runtime.coarse), "costs": repr(runtime.costs)}
    runtime.ask(asked)
    return OverRanks(run, runtime)


class OverRanks:
    """A method that runs in blocks, one per rank; every rank ends with what one process would have."""

    def __init__(self, run: BlockRun, runtime: DistributedRuntime) -> None:
        self.whole, self.runtime = run, runtime
        self.fine, self.m = run.fine, run.m
        self._final: float | None = None
        self._block: BlockRun | None = None

    @property
    def serial(self) -> bool:
        return self.whole.serial

    @property
    def residuals(self) -> list[float]:
        return self.whole.residuals

    @property
    def iterations(self) -> int:
        return self.whole.iterations

    def final_residual(self, u: Array) -> float | None:
        return self._final

    def stats(self, filled: tuple[int, int]) -> Stats:
        return self.whole.stats(filled)

    def report(self, solution: Solution) -> str:
        return self.whole.report(solution)

    def run(self, u: Array, guessed: bool) -> tuple[Status, Array]:
        self.runtime.agree()
        cuts, how = cuts_for(self.whole, self.runtime, u)
        counts = [cuts.slices(rank) for rank in range(cuts.ranks)]
        with self.runtime.failing() as ranks:
            if ranks.rank < cuts.ranks:
                told, mine = self._run_block(ranks, cuts, how, u, guessed)
            else:
                ranks.listen(room_of(self.whole, counts), "waiting for the result, without slices")
                told, mine = {}, u[:0]
            everyone = ranks.texts(told, "exchanging the results")
            require_equal(everyone[: cuts.ranks], ranks, ("status", "residuals"))
            ranks.blocks(u[1:], counts + [0] * (ranks.size - len(counts)), mine, "gathering the solution")
            if isinstance(self.whole, NewtonRun):
                logs = [one["logs"] for one in everyone[: cuts.ranks]]
                self.whole.growth = gather_growth(self.whole, self._block, logs, u, ranks)
        self._final = everyone[0]["final"]
        take(self.whole, everyone[: cuts.ranks])
        return Status[everyone[0]["status"]], u

    def _run_block(self, ranks: Ranks, cuts: Cuts, how: str, u: Array, guessed: bool) -> tuple[dict[str, Any], Array]:
        """What to tell the others of the solve of this rank's block, and its C-points."""
        counts = [cuts.slices(rank) for rank in range(cuts.ranks)]
        first, last = sum(counts[: ranks.rank]), sum(counts[: ranks.rank + 1])
        room = room_of(self.whole, counts)
        block = BlockRuntime(ranks, counts, self.runtime.seconds, self.runtime.slices_per_call, room)
        c = arrays.copy(u[first : last + 1])
        if not guessed:
            c[0] = u[0]
        mine = local_run(self.whole, cuts.levels_of(ranks.rank), block)
        if isinstance(mine, MgritRun) and isinstance(self.whole, MgritRun) and how != "chain":
            mine.cycles = joined_cycles(mine.cycles, self.whole.cycles, cuts, gathered=how == "gathered")
        status, c = mine.run(c, guessed)
        told = {"status": status.name, "residuals": list(mine.residuals), "final": mine.final_residual(c)}
        told |= costs(mine) | {"chained": block.chained}
        if isinstance(mine, NewtonRun):
            logs = mine.slice_logs()
            told["logs"] = None if logs is None else logs.tolist()
        self._block = mine
        block.finish()
        return told, c[1:]


def cuts_of(whole: BlockRun, ranks: int, bounds: list[int] | None = None) -> Cuts:
    """Where the blocks lie on the levels of ``whole``."""
    levels = levels_of(whole)
    relaxed_to_the_end = isinstance(whole, MgritRun) and bool(whole.cycles.options.coarsest_sweeps)
    return Cuts(levels, relaxed_to_the_end or len(levels) == 1, ranks, bounds=bounds)


def cuts_for(whole: BlockRun, runtime: DistributedRuntime, u: Array) -> tuple[Cuts, str]:
    """The same for a solve from states like ``u``, and which of ``COARSE`` it is."""
    if not isinstance(whole, MgritRun):
        return cuts_of(whole, runtime.size), "chain"
    levels, options = whole.levels, whole.cycles.options
    relaxed = levels if options.coarsest_sweeps else levels[:-1]
    how = runtime.coarse
    if how is None:
        shapes = [Relaxed(level.slices, level.m, level.nu) for level in relaxed]
        serial = 0 if options.coarsest_sweeps else levels[-1].grid.steps
        how = cheapest(runtime.costs, u[:1].nbytes, shapes, serial, runtime.size, options.cycle)
    deepest = deepest_for(relaxed, runtime.size)
    if how == "chain" or deepest + 1 == len(levels):
        return cuts_of(whole, runtime.size), "chain"
    return Cuts(levels, bool(options.coarsest_sweeps), runtime.size, deepest=deepest), how


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
            residuals=[],
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
