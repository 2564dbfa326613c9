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

By default it is what takes the least time by a model (:func:`.model.cheapest`): with enough units, ``chain``. Trailing
steps, and the points between for ``save="all"``, are taken after the iteration by every rank for itself, as are serial
solves.

A backward pass goes the other way, over blocks of the same kind (:mod:`pyparareal.adjoint_blocks`): a rank recomputes
the states of its own block, takes the adjoint through it and differentiates its own steps. The gradients are those of
one process, bit for bit for ``u0`` and ``rhs``. Those of parameters are sums over all steps, added up per rank and then
from rank 0 on: with another number of ranks they differ by the rounding of a sum in another order, and with
``deterministic=True``, where they are added up by slices on a fixed tree, not at all.

In one V-cycle a rank sends ``nu_l + 2`` states on every level ``l`` that is relaxed in blocks, one more if that is not
the finest; in an iteration of parareal two, and no more whatever the number of slices. Beyond that

* ``chain``: one state on the coarsest level;
* ``redundant``: ``R - 1`` messages, with two states for each unit of all blocks but the right neighbour's, or three if
  what is solved is more than a serial chain; those of the first block come with one state more;
* ``gathered``: one message, with as much for its own units, to the first rank, which sends each rank a state for each
  of its units.

An equation that brings its residual needs one state where this pair needs two, or none where there is no right-hand
side; so does the first cycle, if it only goes up.

Before the first state is sent the ranks compare what they were asked; afterwards an error on one is raised on all
(:mod:`.ranks`), which ends this runtime. States of torch on a GPU go through pinned host memory or by NCCL
(:mod:`.wires`). Not verified: these, and processes on several machines.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from .. import arrays
from ..errors import RankError
from . import wires
from .local import LocalRuntime
from .model import COARSE, RankCosts
from .protocol import Link
from .ranks import Ranks
from .split_scan import Carry, Piece, chunked, walk

Array = Any


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
        Seconds of a message and of a step, to choose by; measure them on your machine.

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
    chosen = wires.choose(wire, group)
    members = dist.get_process_group_ranks(group)
    made = _MADE[tuple(members)] = _MADE.get(tuple(members), 0) + 1
    store = dist.PrefixStore(f"pyparareal/{members}/{made}", group.get_group_store())
    ranks = Ranks(store, dist.get_rank(group), len(members), timeout, chosen)
    return DistributedRuntime(
        ranks, slices_per_call=slices_per_call, group=group, coarse=coarse, costs=costs or RankCosts()
    )


class DistributedRuntime(LocalRuntime):
    """Made by :func:`distributed`. Outside the iterations of a solve every rank works for itself, as in one process.

    It holds connections: a copy is the same runtime, and a pickle has None in its place, with which a module works in
    its process alone.

    Attributes
    ----------
    group : ProcessGroup
        The caller's, for what torch does itself with the same ranks.
    coarse, costs : see :func:`distributed`
    """

    def __init__(
        self,
        ranks: Ranks,
        *,
        slices_per_call: int | None = None,
        group: Any = None,
        coarse: str | None = None,
        costs: RankCosts | None = None,
    ) -> None:
        super().__init__(slices_per_call=slices_per_call)
        self.group, self.coarse, self.costs = group, coarse, costs or RankCosts()
        self._ranks = ranks
        self._asked: dict[str, Any] = {}
        self._agreed = True
        self._what = ""

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

    @contextmanager
    def together(self, what: str = "comparing the arguments") -> Iterator[None]:
        """Around what all ranks do: an error before :meth:`agree` is told to the others there, and nothing is lost."""
        self._ranks.require_open()
        self._asked, self._agreed, self._what = {}, False, what
        try:
            yield
        except Exception as error:
            if not self._agreed:
                self._agreed = True
                self._tell(error)
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

    @contextmanager
    def failing(self) -> Iterator[Ranks]:
        """Around what only works if no rank fails: an error here is one of all, and the end of this runtime."""
        try:
            yield self._ranks
        except BaseException as error:
            self._ranks.fail(error)
            raise


class BlockRuntime(LocalRuntime):
    """The verbs on one rank's block of slices, of which there is at least one.

    Parameters
    ----------
    counts : sequence of int
        Slices of every rank that has any, in the order of the chain.
    seconds : dict
        Where :meth:`mark` adds up.
    room : int, optional
        The most numbers that are gathered at once; default :func:`room_for`.
    mirrored : bool
        The chain runs from the last of these ranks to rank 0, as an adjoint does.

    Attributes
    ----------
    chained : int
        Links of chains that were taken here.
    """

    def __init__(
        self,
        ranks: Ranks,
        counts: Sequence[int],
        seconds: dict[str, float],
        slices_per_call: int | None,
        room: int | None = None,
        *,
        mirrored: bool = False,
    ) -> None:
        super().__init__(slices_per_call=slices_per_call)
        self.seconds = seconds
        self._ranks, self._counts = ranks, list(counts)
        self._room = room_for(counts) if room is None else room
        self._place, self._mirrored = len(counts) - 1 - ranks.rank if mirrored else ranks.rank, mirrored
        self._first = sum(counts[: self._place])
        self._region, self.chained = "start", 0

    def in_all(self, slices: int) -> int:
        return sum(self._counts)

    def left_of(self, n: int, slices: int) -> int:
        return min(max(n - self._first, 0), slices)

    def shift(self, u: Array) -> Array:
        what = self._what("shift")
        self._send_end(u, what)
        self._receive_start(u, what)
        return u[:-1]

    def chain(self, link: Link, u: Array, first: int, *, whole: Any = None) -> None:
        what = self._what("chain")
        self._receive_start(u, what)
        super().chain(link, u, first, whole=whole)
        self._send_end(u, what)
        self.chained += len(u) - 1 - first

    def scan(self, a: Array, b: Array, first: int, u: Array) -> None:
        u[:1] = 0
        if not len(b):
            return
        what, position = self._what("scan"), max(self._first, first) - first
        if a.ndim == b.ndim:
            a, b, u = a[..., None, None], b[..., None], u[..., None]
        if not chunked(a):
            if position:
                self._receive_start(u, what)
            u[1:] = walk(a, b, u[0] if position else None)
            self._send_end(u, what)
            return
        piece, carry = Piece(a, b, position), Carry()
        if position:
            row = Carry().packed(a, b)
            self._receive_start(row, what)
            carry = Carry.unpacked(row, a, b, position)
        carry = piece.pass_on(carry)
        self._send_end(carry.packed(a, b), what)
        u[1:] = piece.rows()
        if piece.first is not None:
            u[0] = piece.first

    def largest(self, u: Array) -> Array:
        (found,) = self.gather(super().largest(u)[None])
        u = arrays.empty(u, ())
        u[...] = float(found.max())
        return u

    def reduce(self, values: Array, combine: Any = np.add) -> float:
        return super().reduce(self.gather(values)[0], combine)

    def gather(self, *values: Array) -> list[np.ndarray[Any, Any]]:
        mine = [arrays.to_numpy(one).astype(np.float64) for one in values]
        return self._ranks.numbers(mine, self._room, self._what("gather"), mirrored=self._mirrored)

    def collect(self, u: Array) -> Array | None:
        """The C-points of all blocks, one after the other, on rank 0; None on the others, which send theirs."""
        what, ends = self._what("collect"), np.cumsum(self._counts).tolist()
        if self._ranks.rank:
            self._ranks.send(u[1:], what, to=0)
            return None
        whole = arrays.empty_like(u, slices=ends[-1] + 1)
        whole[: len(u)] = u
        for rank, (first, end) in enumerate(itertools.pairwise(ends), start=1):
            self._ranks.receive(whole[first + 1 : end + 1], what, source=rank)
        return whole

    @property
    def place(self) -> int:
        """Which of the blocks this is, in the order of the chain."""
        return self._place

    def join(self, mine: Array, rows: Sequence[int], *, everywhere: bool) -> list[Array] | None:
        """What every block has, of ``rows[n]`` rows like ``mine``: on all ranks, or on the first, and None elsewhere.

        Everywhere: along a ring, so that each rank sends what all but its right neighbour had.
        """
        what, blocks, place = self._what("join"), len(rows), self._place
        found = [mine if n == place else arrays.empty_like(mine, slices=rows[n]) for n in range(blocks)]
        if everywhere:
            for k in range(blocks - 1):
                sent, room = found[(place - k) % blocks], found[(place - k - 1) % blocks]
                if place % 2:  # a wire that waits for the other side must find it receiving
                    self._ranks.receive(room, what, source=self._at(place - 1))
                self._ranks.send(sent, what, to=self._at(place + 1))
                if not place % 2:
                    self._ranks.receive(room, what, source=self._at(place - 1))
            return found
        if place:
            self._ranks.send(mine, what, to=self._at(0))
            return None
        for n in range(1, blocks):
            self._ranks.receive(found[n], what, source=self._at(n))
        return found

    def spread(self, parts: Sequence[Array] | None, mine: Array) -> None:
        """``mine`` gets its part of those that the first rank has."""
        what = self._what("spread")
        if parts is None:
            self._ranks.receive(mine, what, source=self._at(0))
            return
        for n in range(1, len(parts)):
            self._ranks.send(parts[n], what, to=self._at(n))
        mine[...] = parts[0]

    def _at(self, place: int) -> int:
        """The rank that has a block, counted around."""
        place %= len(self._counts)
        return len(self._counts) - 1 - place if self._mirrored else place

    def mark(self, name: str) -> AbstractContextManager[None]:
        self._region = name
        return super().mark(name)

    def finish(self) -> None:
        """All that was sent has left, and ranks without slices know that it is over."""
        self._ranks.flush(self._what("finish"))
        if len(self._counts) < self._ranks.size:
            self._ranks.end(self._room, self._what("finish"))

    def _send_end(self, u: Array, what: str) -> None:
        if self._place + 1 < len(self._counts):
            self._ranks.send(u[-1:], what, to=self._ranks.rank + (-1 if self._mirrored else 1))

    def _receive_start(self, u: Array, what: str) -> None:
        if self._place > 0:
            self._ranks.receive(u[:1], what, source=self._ranks.rank + (1 if self._mirrored else -1))

    def _what(self, verb: str) -> str:
        last = self._first + self._counts[self._place] - 1
        backward = "backward: " if self._mirrored else ""
        return f"{backward}{verb} in {self._region}, slices {self._first} to {last}"


def _none() -> None:
    """What a runtime is elsewhere."""


def room_for(counts: Sequence[int], each: int = 1) -> int:
    """The most numbers that a rank has to say at once: ``each`` per slice, and two moves of parareal."""
    return each * max(counts) + 2
