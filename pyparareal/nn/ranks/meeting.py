# SPDX-License-Identifier: BSD-3-Clause
"""Every rank says what it is about to do before it does it: so none waits for what no one will send.

One exchange of six numbers per forward and per backward pass. What they do not tell, that an input is of another kind
than those before, that a rank refuses it, is then told in words.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch

from ...errors import RankError
from ...runtime import DistributedRuntime
from .chance import consume, peek

OPERATIONS = (
    "forward pass",
    "backward pass",
    "full_state_dict",
    "load_full_state_dict",
    "clip_grad_norm_",
    "communication",
)
_NETWORKS: WeakKeyDictionary[DistributedRuntime, int] = WeakKeyDictionary()  # how many there are on the same ranks
FINE, NEW, LATE, REFUSED = range(4)  # what a rank says of its input


class Meeting:
    """What the ranks of one network have agreed on.

    Attributes
    ----------
    network : int
        Which of the networks on these ranks, counted from 1.
    passes : int
        Forward passes so far.
    late : bool
        A part drew random numbers that had not done so before.
    unfinished : str or None
        The backward pass that began here and did not come to its end.
    """

    def __init__(self, runtime: DistributedRuntime) -> None:
        self.runtime = runtime
        self.network, self.passes, self.late = 0, 0, False
        self.unfinished: str | None = None

    def count(self) -> None:
        """Take the next number of a network, as the other ranks do, too."""
        self.network = _NETWORKS[self.runtime] = _NETWORKS.get(self.runtime, 0) + 1

    def __deepcopy__(self, memo: dict[int, Any]) -> Meeting:
        return self  # copies of a network are on the same ranks

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a network over ranks cannot be pickled, as it has the parts of one rank only: save its state_dict(), "
            "full_state_dict(), or all with ShardedCheckpoint"
        )

    def come(self, operation: str, number: int = 0, digest: int = 0, says: int = FINE, seed: int = 0) -> list[Any]:
        """Wait for all ranks at ``operation``; if one is at another, it is an error on all and the end."""
        with self.runtime.failing() as ranks:
            ranks.require_open()
            if self.unfinished is not None:
                raise RankError(f"rank {ranks.rank} failed in the {self.unfinished}, which did not come to its end")
            what = f"{operation} {number}" if number else operation
            told = ranks.meet([OPERATIONS.index(operation), number, digest, says, seed, self.network], what)
            for rank, (op, count, *_, network) in enumerate(told):
                there = f"{OPERATIONS[int(op)]} {int(count)}" if count else OPERATIONS[int(op)]
                if network != self.network:
                    raise RankError(
                        f"rank {ranks.rank} is at {what} of network {self.network}, rank {rank} at {there} of network "
                        f"{int(network)}"
                    )
                if there != what:
                    raise RankError(f"rank {ranks.rank} is at {what}, rank {rank} at {there}")
        return told

    def same(self, operation: str, asked: dict[str, Any], error: Exception | None = None) -> list[dict[str, Any]]:
        """Come to ``operation`` and compare what was asked; nothing is lost if that differs or a rank refuses."""
        self.come(operation)
        return self.compare(operation, asked, error)

    def compare(self, what: str, asked: dict[str, Any], error: Exception | None, **more: Any) -> list[dict[str, Any]]:
        """The messages of all ranks; ValueError on all for the first difference, RankError for a rank's error."""
        with self.runtime.failing() as ranks:
            message = {"asked": asked, **more} if error is None else {"error": f"{type(error).__name__}: {error}"}
            told = ranks.texts(message, f"comparing the arguments of {what}")
        if error is not None:
            raise error
        for rank, theirs in enumerate(told):
            if "error" in theirs:
                raise RankError(f"rank {ranks.rank}: {what}: rank {rank} failed: {theirs['error']}")
        for field in dict.fromkeys(name for theirs in told for name in theirs["asked"]):
            for rank, theirs in enumerate(told):
                ours, other = told[0]["asked"].get(field), theirs["asked"].get(field)
                if json.dumps(ours) != json.dumps(other):
                    raise ValueError(f"{field}: rank {rank} has {other}, rank 0 has {ours}")
        return told

    def forward(self, fields: dict[str, Any] | None, known: int | None, error: Exception | None) -> tuple[bool, int]:
        """Agree on an input: whether all know the same kind of it, and the seed of this pass, which is rank 0's.

        ``known`` is the pass in which this rank met that kind.
        """
        says = REFUSED if error else LATE if self.late else NEW if known is None else FINE
        told = self.come("forward pass", self.passes + 1, digest_of([fields, known]), says, peek())
        if all(says == FINE and digest == told[0][2] for _, _, digest, says, *_ in told):
            self.passes += 1
            return True, int(told[0][4])
        self.late = False
        if any(says == LATE for _, _, _, says, *_ in told):
            consume()  # as all do after a pass that is known to draw
        said = self.compare(f"forward pass {self.passes + 1}", fields or {}, error, seed=peek())
        self.passes += 1
        return False, int(said[0]["seed"])


def digest_of(fields: Any) -> int:
    """52 bits: float64 holds them."""
    return int.from_bytes(hashlib.sha256(json.dumps(fields).encode()).digest()[:8], "big") >> 12


def require_outside_backward() -> None:
    """Refuse a forward pass within a backward pass, where the ranks are not at the same place."""
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "a network over ranks has no forward pass within a backward pass: put torch.utils.checkpoint around the "
            "blocks of its parts, not around the network"
        )
