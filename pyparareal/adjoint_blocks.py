# SPDX-License-Identifier: BSD-3-Clause
"""A backward pass over several processes: each rank takes the adjoint chain through its own block of slices.

It keeps the C-points of that block, recomputes the points between, and has the incoming gradients of all. The adjoint
runs from the last rank to rank 0, on the bounds of the blocks seen from the other end. Rank 0 then knows the gradient
with respect to ``u0``, every rank those of its own rows of ``rhs``, and of parameters the part of its own steps; the
parts are added up in the order of the ranks, so that all have the same sum.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import arrays
from .adjoint import AdjointChain, Outcome, Stretch
from .adjoint_options import BackwardPass
from .blocks import costs, cuts_of, local_run, require_equal, take
from .coarse_blocks import joined_cycles
from .cuts import Cuts, From
from .errors import RankError
from .handshake import digest
from .method_runs import MethodRun, Problem
from .newton import Newton
from .newton_blocks import EACH
from .relaxation import every_point
from .runtime.block import BlockRuntime, room_for
from .runtime.distributed import DistributedRuntime
from .runtime.ranks import Ranks
from .solution import Solution, Stats, Status
from .states import Found
from .time_grid import TimeGrid
from .tree_sum import TreeSum, nodes_before
from .vjp import parameter_gradients, sums_of_slices

WHAT = "backward"


@dataclass(frozen=True)
class Block(Stretch):
    """The stretch of one rank.

    Attributes
    ----------
    bounds : list of int
        Points of the reversed grid between the blocks.
    deepest, how : see :func:`.blocks.coarse_of`
    whole : list
        The method for all of them, once there is one.
    """

    runtime: BlockRuntime
    ranks: Ranks = dataclasses.field(kw_only=True)
    bounds: list[int] = dataclasses.field(kw_only=True)
    deepest: int | None = dataclasses.field(kw_only=True)
    how: str = dataclasses.field(kw_only=True)
    ends: list[int] = dataclasses.field(kw_only=True)
    whole: list[Any] = dataclasses.field(default_factory=list)

    def trailing(self, steps: int, found: Any) -> Tensor:
        last = len(self.bounds) - 2
        v: Tensor = found() if self.ranks.rank == last else self.end[None].clone()
        share_trailing(self.ranks, v[-1:], steps, last)
        return v

    def states(self, depth: int, own: Tensor) -> Tensor:
        """Of a level that is solved whole, or is next to such: of all ranks, from left to right."""
        if self.deepest is None or depth != self.deepest + 1:
            return own
        sizes = [last - first for first, last in pairwise([-1, *self.ends])]  # rank 0 has the initial value, too
        mine = own if self.ranks.rank == 0 else own[1:]
        parts: Any = self.runtime.join(mine.contiguous(), sizes[::-1], everywhere=True)
        return torch.cat(parts[::-1])

    def local(self, run: MethodRun) -> MethodRun:
        self.whole.append(run)
        whole = self.whole[0]
        if self.deepest is None:
            cuts = cuts_of(whole, self.ranks.size, self.bounds)
        else:
            sweeps = bool(whole.cycles.options.coarsest_sweeps)
            cuts = Cuts(whole.levels, sweeps, self.ranks.size, bounds=self.bounds, deepest=self.deepest)
        mine: Any = local_run(whole, cuts.levels_of(cuts.ranks - 1 - self.ranks.rank), self.runtime)
        if self.deepest is not None:
            mine.cycles = joined_cycles(mine.cycles, whole.cycles, cuts, gathered=self.how == "gathered")
        return mine

    def any(self, answer: bool) -> bool:
        return bool(self.runtime.gather(np.array([float(answer)]))[0].any())


def share_trailing(ranks: Ranks, v: Tensor, steps: int, last: int) -> None:
    """``lambda`` at the last C-point, from the rank ``last`` that took the trailing ``steps``, if there are any."""
    if steps:
        ranks.broadcast(v, last, f"{WHAT}: {steps} trailing steps")


class BackwardOverRanks:
    """The backward passes of one solve, on this rank."""

    def __init__(self, problem: Problem, chain: AdjointChain, runtime: DistributedRuntime) -> None:
        self.problem, self.chain, self.runtime = problem, chain, runtime
        steps = problem.grid.steps
        self.whole = steps - steps % problem.factor
        # Those of the forward solve:
        self.bounds: list[int] = []
        self._coarse: tuple[int | None, str] = None, "chain"
        self._among = runtime.rank, runtime.size
        self._solve = 0  # which of the solves of this runtime it was

    def follow(self, found: Found) -> None:
        """The blocks are those of a solve that found this."""
        self.bounds, self._coarse, self._solve = found.bounds or [], found.coarse, self.runtime.talks
        self._among = self.runtime.rank, self.runtime.size

    @property
    def working(self) -> int:
        """How many ranks have a block."""
        return len(self.bounds) - 1

    @property
    def first(self) -> int:
        return self.bounds[min(self.runtime.rank, self.working)]

    @property
    def last(self) -> int:
        return self.bounds[min(self.runtime.rank + 1, self.working)]

    def gradients(
        self,
        kept: Tensor,
        points: Any,
        du: Tensor,
        parameters: list[Tensor],
        needed: tuple[bool, ...],
        *,
        complete: bool,
        passes: list[BackwardPass],
    ) -> tuple[Tensor | None, ...]:
        """Of ``u0``, ``rhs`` and ``parameters``, where ``needed``: the same on every rank.

        Raises
        ------
        RankError
            If a rank was lost since the forward solve, and with it the states of its block.
        """
        if (self.runtime.rank, self.runtime.size) != self._among:
            raise RankError(
                f"{WHAT}: a rank was lost since the solve, and with it the states of its block; solve again"
            )
        with self.runtime.together(f"{WHAT}: comparing the gradients"):
            scale = self.chain.scale(du, points)
            more = {"gradient.scale": repr(scale)}
            self.runtime.ask(self._asked(du, points, needed, parameters, len(passes)) | more)
            self.runtime.agree()
            with self.runtime.working() as ranks:
                at, found = self._along(ranks, kept, points, du, scale, every=any(needed[1:]))
        self.chain.require(found)
        passes.append(found.went)
        with self.runtime.working() as ranks:
            return self._collected(ranks, at, found.v, du, parameters, needed, complete)

    def _asked(
        self, du: Tensor, points: Any, needed: tuple[bool, ...], parameters: list[Tensor], passes: int
    ) -> dict[str, str]:
        """What must be the same on all ranks, by the name that an error says."""
        found = {
            "operation": WHAT,
            "solve of the gradients": f"the one that ended with exchange {self._solve}",
            "grid": repr(self.problem.grid),
            "m": str(self.problem.m),
            "pass": str(passes),
        }
        found |= {"gradient.shape": str(tuple(du.shape)), "gradient.dtype": str(du.dtype)}
        found |= {"gradient.points": digest(points)}
        found |= {"gradient": digest(arrays.to_numpy(du.contiguous().view(torch.uint8)))}
        found |= {"needed": str(needed), "parameters": str([tuple(p.shape) for p in parameters])}
        return found | self.chain.asked()

    def _along(
        self, ranks: Ranks, kept: Tensor, points: Any, du: Tensor, scale: float, *, every: bool
    ) -> tuple[Block | None, Outcome]:
        """This rank's block, if it has one, with what was found there; how it went is the same on all."""
        chain = self.chain
        mirrored = [self._lasts - bound for bound in reversed(self.bounds)]
        mirrored[0], mirrored[-1] = 0, self._lasts
        counts = [(last - first) // self.problem.factor for first, last in pairwise(mirrored)]
        room, at, told = room_for(counts, EACH if isinstance(chain.method, Newton) else 1), None, {}
        found = Outcome(BackwardPass(Status.CONVERGED), torch.zeros_like(du[:1]))
        if scale == 0 and ranks.rank >= self.working:
            return None, found
        if ranks.rank < self.working:
            at = self._block(ranks, counts, room, mirrored, kept, points, du)
            found = chain.along(at, scale, every=every)
            if scale == 0:
                return at, found
            told = {"went": _told(found.went)} | ({} if found.run is None else _costs(found.run, at.runtime))
            at.runtime.finish()
        else:
            v, trailing = du[-1:].clone(), self.problem.grid.steps - self.whole
            share_trailing(ranks, v, trailing, self.working - 1)
            ranks.listen(room, f"{WHAT}: waiting for the result, without slices")
        everyone = ranks.texts(told, f"{WHAT}: exchanging the results")[: self.working]
        require_equal(everyone, ranks, ("went",))
        went = _went(everyone[0]["went"])
        if went.status.ok or chain.on_failure != "raise":
            return at, dataclasses.replace(found, went=went)
        return at, self._failed(ranks, at, found, went, everyone, du)

    @property
    def _lasts(self) -> int:
        return self.chain.reversed_steps()[0]

    def _block(
        self,
        ranks: Ranks,
        counts: list[int],
        room: int,
        mirrored: list[int],
        kept: Tensor,
        points: Any,
        du: Tensor,
    ) -> Block:
        runtime = self.runtime
        deepest, how = self._coarse
        u, w = self._rows(kept, points, du)
        verbs = BlockRuntime(
            ranks, counts, runtime.seconds, runtime.slices_per_call, room, mirrored=True, costs=runtime.costs
        )
        ends = [] if deepest is None else self._ends(deepest + 1)
        return Block(u, w, self.first, du[-1], verbs, ranks=ranks, bounds=mirrored, deepest=deepest, how=how, ends=ends)

    def _ends(self, depth: int) -> list[int]:
        """Steps of a level before the end of each block."""
        scale = math.prod(level.m for level in self.chain.levels[:depth])
        return [*(bound // scale for bound in self.bounds[1:-1]), self.chain.levels[depth].grid.steps]

    def _rows(self, kept: Tensor, points: Any, du: Tensor) -> tuple[Tensor, Tensor]:
        """The states of this rank's block, and the gradients with respect to them."""
        first, last, m = self.first, self.last, self.problem.factor
        u = kept
        if len(kept) <= last - first:
            u = arrays.empty_like(kept, slices=last - first + 1)
            phi = From(self.problem.chain, first)
            c = kept[: (last - first) // m + 1]
            every_point(self.problem.common.runtime, phi, TimeGrid(0, 1, last - first), m, c, u)
        if len(points) > self.problem.grid.steps:
            return u, du[first : last + 1].contiguous()
        w = torch.zeros_like(u)
        here = (points >= first) & (points <= last)
        w[(points[here] - first).tolist()] = du[here.nonzero()[0].tolist()]
        return u, w

    def _failed(
        self, ranks: Ranks, at: Block | None, found: Outcome, went: BackwardPass, told: list[Any], du: Tensor
    ) -> Outcome:
        """What every rank raises the same error with: ``lambda`` at all C-points, and the report of the whole."""
        m, slices = self.problem.factor, self.whole // self.problem.factor
        c = arrays.empty_like(du, slices=slices + 1)
        bounds = [*self.bounds[:-1], self.whole]
        rows = [(last - first) // m for first, last in pairwise(bounds)]
        rows += [0] * (ranks.size - self.working)
        mine = found.v[len(found.v) - rows[ranks.rank] :].flip(0)
        c[-1:] = found.v[:1] if ranks.rank + 1 == self.working else 0
        ranks.broadcast(c[-1:], self.working - 1, f"{WHAT}: gathering what was found")
        ranks.blocks(c[:-1], rows, mine, f"{WHAT}: gathering what was found")
        text, stats = "", {}
        if ranks.rank == 0 and at is not None:
            whole = at.whole[0]
            take(whole, told)
            solution = self.chain.found(c.flip(0), whole, went)
            text, stats = whole.report(solution), dataclasses.asdict(solution.stats)
        of_first = ranks.texts([text, stats], f"{WHAT}: reporting the failure")[0]
        run: Any = _Reported(m, *of_first)
        return Outcome(went, c.flip(0), run)

    def _collected(
        self,
        ranks: Ranks,
        at: Block | None,
        v: Tensor,
        du: Tensor,
        parameters: list[Tensor],
        needed: tuple[bool, ...],
        complete: bool,
    ) -> tuple[Tensor | None, ...]:
        """The gradients, from those of every block."""
        of_u0 = of_rhs = None
        if needed[0]:
            of_u0 = v[:1].clone()
            ranks.broadcast(of_u0, 0, f"{WHAT}: the gradient of u0")
            of_u0 = of_u0[0]
        if needed[1]:
            rows = [last - first for first, last in pairwise(self.bounds)]
            rows += [0] * (ranks.size - self.working)
            of_rhs = arrays.empty_like(du, slices=self.problem.grid.steps)
            ranks.blocks(of_rhs, rows, v[1:] if at is not None else v[:0], f"{WHAT}: gathering the gradient of rhs")
        of_parameters: list[Tensor | None] = []
        if any(needed[2:]):
            sums = TreeSum()
            if at is not None:
                sums = self._of_parameters(at, v, parameters, complete)
            slices = self.first // self.problem.factor if in_slices(self.chain.levels[0].phi, self.problem) else None
            of_parameters = summed(ranks, sums, parameters, self.working, slices)
        return of_u0, of_rhs, *of_parameters

    def _of_parameters(self, at: Block, v: Tensor, parameters: list[Tensor], complete: bool) -> TreeSum:
        """Those of the steps of this rank's block."""
        phi, problem, u, w = self.chain.levels[0].phi, self.problem, at.u[:-1], v[1:]
        if in_slices(phi, problem):
            return sums_of_slices(phi, u, w, parameters, complete=complete, m=problem.factor, begin=at.first)
        if hasattr(phi, "parameter_gradients"):
            found = at.parts.parameter_gradients(phi, u, w, at.first, problem.grid.steps, parameters)
        else:
            block = self.runtime.slices_per_call
            found = parameter_gradients(phi, u, w, parameters, complete=complete, block=block, begin=at.first)
        sums = TreeSum()
        sums.add(0, 1, found)
        return sums


def in_slices(phi: Any, problem: Problem) -> bool:
    """Whether the gradients of parameters are those of every slice added up, with the same bits for all blocks."""
    return problem.common.deterministic and not hasattr(phi, "parameter_gradients")


def summed(ranks: Ranks, sums: TreeSum, like: list[Tensor], working: int, slices: int | None) -> list[Tensor | None]:
    """The sums over the first ``working`` ranks, from rank 0 on; None for what no rank has.

    With ``slices``, how many lie left of this rank's, by the tree over all of them. What is on the same device in the
    same dtype travels together.
    """
    what = f"{WHAT}: adding up the gradients of parameters"
    has = [any(node.terms[k] is not None for node in sums.nodes) for k in range(len(like))]
    uses = [any(of_all) for of_all in zip(*ranks.texts(has, what), strict=True)]
    found: list[Tensor | None] = [None] * len(like)
    for kind in {(t.dtype, t.device): None for t, used in zip(like, uses, strict=True) if used}:
        numbers = [k for k, t in enumerate(like) if uses[k] and (t.dtype, t.device) == kind]
        of_kind = [like[k] for k in numbers]
        before = nodes_before(slices) if slices is not None else [(0, 1)] * (ranks.rank > 0)
        total = _summed(ranks, sums, numbers, of_kind, working, before, what)
        for k, part in zip(numbers, total.split([t.numel() for t in of_kind]), strict=True):
            found[k] = part.reshape(like[k].shape)
    return found


def _summed(
    ranks: Ranks,
    sums: TreeSum,
    numbers: list[int],
    like: list[Tensor],
    working: int,
    before: list[tuple[int, int]],
    what: str,
) -> Tensor:
    """The terms ``numbers`` in one row, after the nodes ``before`` of the ranks before."""
    zeros = [torch.zeros_like(t).reshape(-1) for t in like]
    row = torch.cat(zeros)
    if ranks.rank < working:
        joined = TreeSum()
        if before:
            rows = row.new_empty((len(before), len(row)))
            ranks.receive(rows, what)
            for (first, size), one in zip(before, rows, strict=True):
                joined.add(first, size, [one])
        for node in sums.nodes:
            terms = [zero if (own := node.terms[k]) is None else own for k, zero in zip(numbers, zeros, strict=True)]
            joined.add(node.first, node.size, [torch.cat([term.reshape(-1) for term in terms])])
        if ranks.rank + 1 < working:
            ranks.send(torch.stack([node.terms[0] for node in joined.nodes]), what)
        else:
            (row,) = joined.total()
    ranks.broadcast(row, working - 1, what)
    return row


class _Reported:
    """What the error of all ranks needs to know of the method, as rank 0 told it."""

    def __init__(self, m: int, text: str, stats: dict[str, Any]) -> None:
        self.m, self._text, self._stats = m, text, stats

    def report(self, solution: Solution) -> str:
        return self._text

    def stats(self, filled: tuple[int, int]) -> Stats:
        known: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in self._stats.items()}
        return Stats(**known)


def _costs(run: Any, verbs: BlockRuntime) -> dict[str, Any]:
    """What :func:`.take` adds up."""
    return costs(run) | {"residuals": list(run.residuals), "chained": verbs.chained}


def _told(went: BackwardPass) -> dict[str, Any]:
    failure = None if went.failure is None else went.failure.name
    return dataclasses.asdict(went) | {"status": went.status.name, "failure": failure}


def _went(told: dict[str, Any]) -> BackwardPass:
    failure = told["failure"]
    named = {"status": Status[told["status"]], "failure": None if failure is None else Status[failure]}
    return BackwardPass(**told | named | {"residuals": tuple(told["residuals"])})
