# SPDX-License-Identifier: BSD-3-Clause
"""Many processes, each with a contiguous block of the slices: ``solve(..., runtime=distributed())`` under ``torchrun``.

Every rank calls ``solve`` with the same arguments and gets the same solution, the whole of it, bit for bit what one
process computes if the propagators are batch-invariant. In between a rank holds only the C-points of its own block, and
the method runs on it as on a chain of its own, numbered from 0. What is left for the runtime to do is little:

==========  =======================================================================================================
``shift``   the end state of a block becomes row 0 of the next: one state per neighbour
``chain``   a rank takes its steps when the one before has taken its own, and hands the end state on: one state
``scan``    so far, a rank passes on what the chunks and groups of the scan came to: as much as seven states, or as five
            and two blocks; the rows follow when that has left. The bits are those of one scan (:mod:`.split_scan`)
``reduce``  the numbers of all slices (not their sums) are gathered and combined by the tree, so that its shape, and
            with it every bit, depends on no number of ranks
==========  =======================================================================================================

Blocks are cut at points of one relaxed level, so a block has whole slices on it and on all finer ones: ``m_0 m_1 ...``
steps, up to that level, are the least a rank can have, and no more ranks work than there are such units. The others
wait for the result. Steps that fill no unit are the last rank's. For MGRIT there is a choice of that level:

=============  ====================================================================================================
``chain``      the coarsest that is relaxed; the chain of the one after it goes from rank to rank, as parareal's does
``redundant``  the coarsest with a unit for every rank; every rank solves all that comes after it, whole
``gathered``   the same, but the first rank solves it, and sends each rank its part
=============  ====================================================================================================

By default it is what takes the least time by a model (:func:`.model.cheapest`): with enough units, ``chain``. There
``gathered`` is never faster than ``redundant``; it moves less, and only one rank needs memory for all units.

Each rank finds the points between in its own block, for ``save="all"``, and the last takes the trailing steps; then all
get the states to return. A serial solve, also one that is fallen back to, goes from rank to rank, block by block.

A backward pass goes the other way, over the same blocks (:mod:`pyparareal.adjoint_blocks`), which therefore end where
the levels of both have points: a rank keeps the C-points of its own block, recomputes the states between, takes the
adjoint through it and differentiates its own steps. The gradients are those of one process, bit for bit for ``u0`` and
``rhs``. Those of parameters are sums over all steps, added up per rank and then from rank 0 on: with another number of
ranks a sum of ``n`` terms differs by at most ``2 n eps`` times the sum of their sizes. With ``deterministic=True`` they
are added up by slices on a fixed tree and do not differ at all; neither do those of a tensor of which each step has its
own part.

In one V-cycle a rank sends ``nu_l + 2`` states on every level ``l`` that is relaxed in blocks, one more if that is not
the finest; in an iteration of parareal two, and no more whatever the number of slices. Beyond that

* ``chain``: one state on the coarsest level;
* ``redundant``: ``R - 1`` messages, with two states for each unit of all blocks but the right neighbour's, or three if
  what is solved is more than a serial chain; those of the first block come with one state more;
* ``gathered``: one message, with as much for its own units, to the first rank, which sends each rank a state for each
  of its units.

An equation that brings its residual needs one state where this pair needs two, and one shift less on each level; a
cycle that only goes up, or starts from a level's own chain, tells no more than states.

Newton's method sends one state in an iteration, and in the scan seven for a diagonal, ``5 + 2 d`` for blocks of ``d``
rows, or one for blocks of more than 4. Its bits are those of one process where those of the Jacobians are: autograd may
round them by how many slices share a call, and then states differ by what the tolerance leaves. Where one process takes
the fused step of a propagator (:mod:`pyparareal.newton_fused`), which rounds otherwise, ranks iterate by its parts.

Where a relaxation is followed by another, a rank relaxes its last slice first, if that changes no bit and costs less
than the message (:meth:`.RankCosts.overlaps`): its end is under way while the others are computed, and what comes from
the left has been asked for before.

Before the first state is sent the ranks compare what they were asked, with the values of the right-hand side, of a
guess and of what can be seen in propagators (:mod:`pyparareal.held_values`); functions only by name. Afterwards
an error on one is raised on all (:mod:`.ranks`), which ends this runtime. States of torch on a GPU go through pinned
host memory or by NCCL (:mod:`.wires`). Not verified: these, and processes on several machines.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import RankError
from . import wires
from .local import LocalRuntime
from .model import COARSE, RankCosts
from .ranks import Ranks

Array = Any


ON_LOSS = ("raise", "recreate")
_MADE: dict[tuple[int, ...], int] = {}  # how many of the same ranks, here and on each of them


def distributed(
    mesh_or_group: Any = None,
    dim: str = "pint",
    *,
    timeout: float = 300.0,
    slices_per_call: int | None = None,
    wire: str = "auto",
    coarse: str | None = None,
    costs: RankCosts | None = None,
    on_loss: str = "raise",
) -> DistributedRuntime:
    """A runtime over the ranks of a group; all of them call this, after ``torch.distributed.init_process_group``.

    Parameters
    ----------
    mesh_or_group : DeviceMesh or ProcessGroup, optional
        Whose ranks; default: all.
    dim : str
        The dimension of a mesh along which the slices are spread.
    timeout : float
        Seconds that a rank waits for another, at most: longer than a rank's share of an iteration takes.
    slices_per_call : int, optional
        See :class:`.LocalRuntime`.
    wire : {"auto", "host", "nccl"}
        How states on CUDA devices travel (:mod:`.wires`): through host memory, or from device to device, which is not
        verified; "auto" is "nccl" where the group has NCCL for CUDA tensors. Compared between the ranks.
    coarse : {"chain", "redundant", "gathered"}, optional
        Of MGRIT, where the coarse levels are solved (see above); the bits are the same. Default: what ``costs`` say
        takes the least time.
    costs : RankCosts, optional
        Seconds of a message, of a step and of a call, to choose by; measure them on your machine.
    on_loss : {"raise", "recreate"}
        What a solve by parareal or MGRIT does when a rank dies or does not come in time: raise on all others, or let
        them go on without it (:mod:`pyparareal.survivors`).

    Raises
    ------
    TypeError, ValueError
        For a wrong argument, or if there is no process group.
    RankError
        If not all ranks come within the time.
    """
    import torch.distributed

    dist: Any = torch.distributed
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        raise ValueError(f"timeout: got {timeout!r}, expected a number of seconds above 0")
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError("mesh_or_group: there is no process group; call torch.distributed.init_process_group first")
    group = dist.group.WORLD if mesh_or_group is None else mesh_or_group
    if hasattr(mesh_or_group, "mesh_dim_names"):
        if dim not in (mesh_or_group.mesh_dim_names or ()):
            raise ValueError(f"dim: got {dim!r}, expected one of {mesh_or_group.mesh_dim_names}")
        group = mesh_or_group.get_group(dim)
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"mesh_or_group: got {type(group).__name__}, expected a DeviceMesh or a ProcessGroup")
    if coarse not in (None, *COARSE):
        raise ValueError(f"coarse: got {coarse!r}, expected one of {', '.join(map(repr, COARSE))}, or None")
    if not isinstance(costs, RankCosts | None):
        raise TypeError(f"costs: got {type(costs).__name__}, expected RankCosts or None")
    if on_loss not in ON_LOSS:
        raise ValueError(f"on_loss: got {on_loss!r}, expected one of {', '.join(map(repr, ON_LOSS))}")
    chosen = wires.choose(wire, group)
    members = dist.get_process_group_ranks(group)
    made = _MADE[tuple(members)] = _MADE.get(tuple(members), 0) + 1
    store = dist.PrefixStore(f"pyparareal/{members}/{made}", group.get_group_store())
    ranks = Ranks(store, dist.get_rank(group), len(members), timeout, chosen)
    return DistributedRuntime(
        ranks,
        slices_per_call=slices_per_call,
        group=group,
        coarse=coarse,
        costs=costs or RankCosts(),
        on_loss=on_loss,
    )


class DistributedRuntime(LocalRuntime):
    """Made by :func:`distributed`. Outside the iterations of a solve every rank works for itself, as in one process.

    It holds connections: a copy is the same runtime, and a pickle has None in its place, with which a module works in
    its process alone.

    Attributes
    ----------
    group : ProcessGroup
        The caller's, for what torch does itself with the same ranks; None once one of them was lost.
    coarse, costs, on_loss : see :func:`distributed`
    """

    def __init__(
        self,
        ranks: Ranks,
        *,
        slices_per_call: int | None = None,
        group: Any = None,
        coarse: str | None = None,
        costs: RankCosts | None = None,
        on_loss: str = "raise",
    ) -> None:
        super().__init__(slices_per_call=slices_per_call)
        self.group, self.coarse, self.costs, self.on_loss = group, coarse, costs or RankCosts(), on_loss
        self._ranks = ranks
        self._asked: dict[str, Any] = {}
        self._agreed = True
        self._what = ""
        self._busy, self._thread = False, threading.RLock()

    def __copy__(self) -> DistributedRuntime:
        return self

    def __deepcopy__(self, _: Any) -> DistributedRuntime:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _none, ()

    @property
    def rank(self) -> int:
        return self._ranks.rank

    @property
    def size(self) -> int:
        return self._ranks.size

    @property
    def volume(self) -> Counter[str]:
        """What this rank has sent so far, see :class:`.Ranks`; a copy."""
        return Counter(self._ranks.volume)

    @property
    def talks(self) -> int:
        """How often the ranks have compared or told something, the same on all."""
        return self._ranks.talks

    @contextmanager
    def together(self, what: str = "comparing the arguments") -> Iterator[None]:
        """Around what all ranks do: an error before :meth:`agree` is told to the others there, and nothing is lost.

        Raises
        ------
        ValueError
            If it is :meth:`working`, or another thread is in here.
        """
        if self._busy or not self._thread.acquire(blocking=False):
            raise ValueError(
                "runtime: got one that is at work on a solve or its gradients, expected another or none "
                "in what is called there: a propagator, a norm, a callback; or in another thread"
            )
        try:
            with self._told_of_errors(what):
                yield
        finally:
            self._thread.release()

    @contextmanager
    def _told_of_errors(self, what: str) -> Iterator[None]:
        self._ranks.require_open()
        self._asked, self._agreed, self._what = {}, False, what
        try:
            yield
        except Exception as error:
            if not self._agreed:
                self._agreed = True
                self._tell(error)
            raise
        except BaseException as error:  # the user's, who will not wait until the others come
            self._ranks.fail(error)
            raise
        if not self._agreed:
            self.agree()

    def ask(self, asked: dict[str, Any]) -> None:
        """What must be the same on every rank, by name."""
        self._asked = asked | {"wire": self._ranks.wire}

    def agree(self) -> None:
        """Compare what every rank was asked: the first difference is a ValueError on all, an error of one a RankError.

        Either leaves the runtime as it was.
        """
        self._agreed = True
        told = self._guarded_texts(self._asked, self._what)
        for rank, theirs in enumerate(told):
            if "error" in theirs:
                raise RankError(f"rank {self.rank}: rank {rank} failed: {theirs['error']}")
        for field in dict.fromkeys(name for theirs in told for name in theirs):
            for rank, theirs in enumerate(told):
                if json.dumps(theirs.get(field)) != json.dumps(told[0].get(field)):
                    raise ValueError(f"{field}: rank {rank} has {theirs.get(field)}, rank 0 has {told[0].get(field)}")

    def _tell(self, error: Exception) -> None:
        try:
            self._guarded_texts({"error": f"{type(error).__name__}: {error}"}, self._what)
        except RankError:
            return  # the caller's own error matters more

    def _guarded_texts(self, message: Any, what: str) -> list[Any]:
        try:
            return self._ranks.texts(message, what)
        except BaseException as error:
            self._ranks.fail(error)
            raise

    def raised(self) -> bool:
        """Whether what ended the last work was an error of a rank, rather than its loss."""
        return self._ranks.raised()

    def go_on(self) -> list[int]:
        """After a rank was lost: those that are left are the ranks from now on, by what numbers they had.

        Raises
        ------
        RankError
            See :meth:`.Ranks.among_survivors`.
        """
        self._ranks, members = self._ranks.among_survivors()
        self.group = None  # its connections to the others are not known to work
        return members

    @contextmanager
    def failing(self) -> Iterator[Ranks]:
        """Around what only works if no rank fails: an error here is one of all, and the end of this runtime."""
        try:
            yield self._ranks
        except BaseException as error:
            self._ranks.fail(error)
            raise

    @contextmanager
    def working(self) -> Iterator[Ranks]:
        """:meth:`failing`, while nothing else may begin on this runtime: their messages would be mixed up."""
        self._busy = True
        try:
            with self.failing() as ranks:
                yield ranks
        finally:
            self._busy = False


def _none() -> None:
    """What a runtime is elsewhere."""
