# SPDX-License-Identifier: BSD-3-Clause
"""What the ranks of a group say to each other, through ``torch.distributed`` with gloo; every wait has a limit.

The caller's ranks get connections of their own, so that their limit holds and their end is nobody else's. States travel
as bytes by a wire (:mod:`.wires`), for CUDA tensors maybe NCCL, and numbers as float64: nothing is rounded on its way.

A rank that fails writes why to the store and closes its connections. That wakes whoever waits for it, who reads
why, closes in turn, and raises :class:`.RankError`; a rank that dies has its connections closed for it. So an error
runs along the chain of waits within a moment, and only a rank that hangs is waited for until the limit.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np

from ..errors import RankError
from .messages import Messages, waiting
from .wires import HostWire, NcclWire, Sent, Wire, from_bytes, nccl_group, to_bytes, travels_by_nccl

Array = Any
GOING, END = 0.0, 1.0  # what a frame of numbers says first
PLACE, TEXTS = 6, -1.0  # how many numbers begin what all ranks do together, and the first of them before texts
_OPEN: weakref.WeakSet[Ranks] = weakref.WeakSet()


class Ranks:
    """The ``size`` ranks that share ``store``, which nothing else uses; this process is number ``rank``.

    ``wire`` is how states on CUDA devices travel, "host" or "nccl"; all others travel through the host.

    Attributes
    ----------
    volume : Counter
        What this rank has sent so far: ``states`` to one rank, ``broadcasts`` to all and the ``bytes`` of both,
        ``frames`` of float64 ``numbers`` to all, ``texts``.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float, wire: str = "host") -> None:
        self.torch: Any = sys.modules["torch"]
        self.rank, self.size, self.timeout, self.wire = rank, size, timeout, wire
        self.volume: Counter[str] = Counter()
        self._store = store
        # Not torch.distributed.new_group: it names groups after how many there are, and that may differ by rank.
        gloo = self.torch.distributed.ProcessGroupGloo
        self._group: Any = None
        self._wires: dict[str, Wire] = {}
        self._sending: list[tuple[Sent, int]] = []
        self._expected: dict[int, Sent] = {}
        self._talks = 0
        self._met = 0
        self._ended: str | None = None
        self._messages = Messages(store, rank)
        self._store.set(f"here/0/{rank}", "")
        self._attempt("connecting", lambda _: self._connect(gloo), "here/0/")
        _OPEN.add(self)

    def _connect(self, gloo: Any) -> None:
        self._group = gloo(self._store, self.rank, self.size, timedelta(seconds=self.timeout))
        self._wires["host"] = HostWire(self._group, self.rank)

    def _wire(self, u: Array) -> Wire:
        """What carries ``u``; the group of NCCL is made when it is first needed, as it holds memory of the device."""
        if not self._by_nccl(u):
            return self._wires["host"]
        if "nccl" not in self._wires:
            group = nccl_group(self._store, self.rank, self.size, self.timeout)
            self._wires["nccl"] = NcclWire(group, self.rank, self.timeout, lambda: self._told() is not None)
        return self._wires["nccl"]

    def _by_nccl(self, u: Array) -> bool:
        return self.wire == "nccl" and travels_by_nccl(u)

    # States, from one rank to another

    def send(self, u: Array, what: str, to: int | None = None) -> None:
        """``u`` to rank ``to``, the next one if None.

        What was sent before must have left first, so that one copy waits at most.
        """
        self.flush(what)
        to = self.rank + 1 if to is None else to
        if not u.nbytes:
            return
        at = f"{what}, sending to rank {to}"
        with self._messages.sending(to, u.nbytes, what):
            self._attempt(at, lambda _: self._sending.append((self._wire(u).send(u, to), to)))
        self.volume.update(states=1, bytes=u.nbytes)

    def receive(self, u: Array, what: str, source: int | None = None) -> None:
        """What rank ``source``, the one before if None, sent, into ``u``."""
        if not u.nbytes:
            return
        source = self.rank - 1 if source is None else source
        at = f"{what}, waiting for rank {source}"
        with waiting("message"), self._messages.receiving(source, u.nbytes, what):
            if source in self._expected:
                self._attempt(at, lambda _: self._expected.pop(source).wait())
            else:
                self._attempt(at, lambda _: self._wire(u).receive(u, source))

    def expect(self, u: Array, what: str, source: int) -> None:
        """Ask for what the next :meth:`receive` from ``source`` will wait for: it may come meanwhile, into ``u``."""
        if u.nbytes:
            self._messages.ask(source)
            ask = partial(self._wire(u).expect, u, source)
            self._attempt(f"{what}, asking rank {source}", lambda _: self._expected.update({source: ask()}))

    def broadcast(self, u: Array, source: int, what: str) -> None:
        """``u`` of rank ``source``, into that of all others."""
        self.flush(what)
        if not u.nbytes or self.size == 1:
            return
        self._attempt(f"{what}, from rank {source} to all", partial(self._broadcast_one, u, source, what))
        if self.rank == source:
            self.volume.update(broadcasts=1, bytes=u.nbytes)

    def flush(self, what: str) -> None:
        """Wait until what was sent has left."""
        if self._sending:
            to = self._sending[0][1]
            with waiting("sent"):
                self._attempt(f"{what}, sending to rank {to}", lambda _: self._sending.pop()[0].wait())

    # Numbers, texts and states, from all to all

    def numbers(
        self, values: Sequence[np.ndarray[Any, Any]], room: int, what: str, *, mirrored: bool = False
    ) -> list[np.ndarray[Any, Any]]:
        """Each of ``values`` (float64, one-dimensional) joined in the order of the ranks; at most ``room`` in sum.

        ``mirrored``: from the last rank to rank 0.
        """
        frames = self._frames(GOING, values, room, what)[:: -1 if mirrored else 1]
        return [np.concatenate([frame[i] for frame in frames]) for i in range(len(values))]

    def listen(self, room: int, what: str) -> None:
        """Take part in :meth:`numbers` without any, until :meth:`end`."""
        while self._talk(np.full(3 + room, np.nan), what)[0][0] != END:
            pass

    def end(self, room: int, what: str) -> None:
        """Tell those who :meth:`listen` that it is over."""
        self._frames(END, (), room, what)

    def _frames(
        self, kind: float, values: Sequence[np.ndarray[Any, Any]], room: int, what: str
    ) -> list[list[np.ndarray[Any, Any]]]:
        counts = [len(one) for one in values] + [0] * (2 - len(values))
        frame = np.zeros(3 + room)
        frame[:3] = kind, *counts
        frame[3 : 3 + sum(counts)] = np.concatenate([*values, np.zeros(0)])
        found = []
        for one in self._talk(frame, what):
            if np.isnan(one[0]):  # of a rank that listens
                found.append([np.zeros(0), np.zeros(0)])
            else:
                first, second = int(one[1]), int(one[2])
                found.append([one[3 : 3 + first], one[3 + first : 3 + first + second]])
        return found

    def _talk(self, frame: np.ndarray[Any, Any], what: str) -> list[np.ndarray[Any, Any]]:
        self.flush(what)
        self.volume.update(frames=1, numbers=len(frame))
        return [one.numpy() for one in self._all_gather(self.torch.from_numpy(frame), what)]

    def texts(self, message: Any, what: str) -> list[Any]:
        """What every rank said, each a thing that JSON can hold."""
        self.flush(what)
        self._talks += 1
        key = f"here/{self._talks}/"
        data = np.frombuffer(json.dumps(message).encode(), np.uint8).copy()
        self._attempt(what, lambda _: self._store.set(f"{key}{self.rank}", ""))
        lengths = [int(one[1]) for one in self._begin([TEXTS, len(data)], what, key)]
        padded = self.torch.zeros(max(lengths), dtype=self.torch.uint8)
        padded[: len(data)] = self.torch.from_numpy(data)
        self.volume.update(texts=1)
        found = self._all_gather(padded, what, name="texts")
        return [json.loads(one[:n].numpy().tobytes()) for one, n in zip(found, lengths, strict=True)]

    def blocks(self, u: Array, rows: Sequence[int], mine: Array, what: str) -> None:
        """``u`` gets the ``rows[r]`` rows of every rank ``r`` one after the other; ``mine`` are those of this one."""
        self.flush(what)
        size = max(rows) * (u.nbytes // max(len(u), 1))
        if not size:
            return
        if self._by_nccl(u):
            self._blocks_by_nccl(u, rows, mine, what)
            return
        mine = to_bytes(mine)
        padded = self.torch.zeros(size, dtype=self.torch.uint8)
        padded[: len(mine)] = mine
        first = 0
        for count, data in zip(rows, self._all_gather(padded, what, name="states"), strict=True):
            from_bytes(u[first : first + count], data[: count * (size // max(rows))])
            first += count

    def _blocks_by_nccl(self, u: Array, rows: Sequence[int], mine: Array, what: str) -> None:
        first = 0
        for rank, count in enumerate(rows):
            block = u[first : first + count]
            if rank == self.rank:
                block[...] = mine
            if count and self.size > 1:
                at = f"{what}, from rank {rank} to all"
                self._attempt(at, partial(self._broadcast_one, block, rank, what))
            first += count

    def _broadcast_one(self, u: Array, source: int, what: str, _: Any) -> None:
        with waiting("message"), self._messages.broadcast(source, u.nbytes, what):
            self._wire(u).broadcast(u, source)

    def meet(self, values: Sequence[float], what: str) -> list[list[float]]:
        """``PLACE`` numbers of every rank, the first not negative, to see whether all are at the same place.

        Names who does not come.
        """
        self._met += 1
        self._attempt(what, lambda _: self._store.set(f"met/{self.rank}", str(self._met)))
        self.volume.update(frames=1, numbers=len(values))
        return self._begin(values, what, "met/")

    def _begin(self, values: Sequence[float], what: str, key: str) -> list[list[float]]:
        """The first numbers of something: as many of all that may begin, for gloo aborts on lengths that differ."""
        frame = self.torch.zeros(PLACE, dtype=self.torch.float64)
        frame[: len(values)] = self.torch.tensor(values, dtype=self.torch.float64)
        found = [one.tolist() for one in self._all_gather(frame, what, key, "place")]
        for rank, theirs in enumerate(found):
            if (theirs[0] == TEXTS) != (values[0] == TEXTS):
                raise RankError(f"rank {self.rank} is at {what}, rank {rank} at something else")
        return found

    def _all_gather(self, data: Any, what: str, key: str | None = None, name: str = "numbers") -> list[Any]:
        found, at = (
            [self.torch.empty_like(data) for _ in range(self.size)],
            f"{what}, waiting for all {self.size} ranks",
        )
        with waiting("message"), self._messages.among_all(name, data.nbytes, what):
            self._attempt(at, lambda group: group.allgather([found], [data]).wait(), key)
        return found

    @property
    def talks(self) -> int:
        """How often the ranks have told each other texts: the same on all, so that it names a moment."""
        return self._talks

    # Failures

    def require_open(self) -> None:
        """Refuse to begin anything after a failure."""
        if self._ended is not None:
            raise RankError(f"rank {self.rank}: this runtime ended with an error ({self._ended}); make another")

    def fail(self, error: BaseException) -> None:
        """Tell the others why, if nobody did yet, and close the connections."""
        if self._ended is not None:
            return
        self._ended = _short(error)
        named = self._ended if isinstance(error, RankError) else f"rank {self.rank} failed: {self._ended}"
        with contextlib.suppress(RuntimeError):  # the store may have gone with a rank that kept it
            if not isinstance(error, RankError):
                self._store.set("raised", "")
            self._store.compare_set("failure", "", named)
        self.close()

    def close(self) -> None:
        """End the connections; whoever waits for this rank is woken."""
        self._sending.clear()
        self._expected.clear()
        for wire in self._wires.values():
            wire.close()
        self._wires.clear()
        self._group = None

    def raised(self) -> bool:
        """Whether a rank failed with an error of its own, rather than being lost."""
        try:
            return bool(self._store.check(["raised"]))
        except RuntimeError:
            return False

    def among_survivors(self) -> tuple[Ranks, list[int]]:
        """New connections of those that call this within the limit of one another, and their numbers so far.

        It takes the whole limit unless all of them come: nobody can tell a dead rank from a slow one.

        Raises
        ------
        RankError
            The store has gone with a rank that kept it, or the others went on without this one.
        """
        store = self.torch.distributed.PrefixStore("again", self._store)
        until = time.monotonic() + self.timeout
        try:
            store.set(f"came/{self.rank}", "")
            while not store.check(["members"]):
                came = [rank for rank in range(self.size) if store.check([f"came/{rank}"])]
                if len(came) == self.size or time.monotonic() > until:
                    store.compare_set("members", "", json.dumps(came))  # of the first whose time is up
                time.sleep(0.02)
            members: list[int] = json.loads(store.get("members"))
        except RuntimeError as error:
            raise RankError(f"rank {self.rank}: the store went with the rank that kept it ({error})") from error
        if self.rank not in members:
            raise RankError(f"rank {self.rank}: came too late, ranks {members} went on without it")
        return Ranks(store, members.index(self.rank), len(members), self.timeout, self.wire), members

    def _attempt(self, what: str, call: Callable[[Any], Any], key: str | None = None) -> None:
        self.require_open()
        try:
            call(self._group)
            return
        except RuntimeError as error:
            text = str(error).partition("] ")[2].partition(". This is")[0] or str(error)
            error.__traceback__ = None  # its frames hold the group, whose connections are to close
        lost, away = f"lost ({text}); the limit is {self.timeout:g} s", self._absent(key)
        if away:
            late = "timed out" in text.lower() or "timeout" in text.lower()
            lost = f"{away} did not come within {self.timeout:g} s" if late else f"{away} did not come, {lost}"
        why = self._told() or lost
        raise RankError(f"rank {self.rank}: {what}: {why}")

    def _told(self) -> str | None:
        try:
            return self._store.get("failure").decode() if self._store.check(["failure"]) else None
        except RuntimeError:
            return None

    def _absent(self, key: str | None) -> str | None:
        """Which ranks have not come to what began with ``key``."""
        try:
            away = [] if key is None else [r for r in range(self.size) if not self._came(key, r)]
        except RuntimeError:
            return None
        return ", ".join(f"rank {r}" for r in away) or None

    def _came(self, key: str, rank: int) -> bool:
        there = bool(self._store.check([f"{key}{rank}"]))
        return there and (key != "met/" or int(self._store.get(f"{key}{rank}")) >= self._met)


@atexit.register
def _close_all() -> None:
    """The threads of gloo abort the process if its connections are still there when the interpreter goes."""
    for ranks in list(_OPEN):
        ranks.close()


def _short(error: BaseException) -> str:
    text = str(error)
    return text if isinstance(error, RankError) else f"{type(error).__name__}: {text}" if text else type(error).__name__
