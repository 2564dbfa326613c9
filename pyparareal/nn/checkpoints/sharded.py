# SPDX-License-Identifier: BSD-3-Clause
"""Saved by the ranks together, each what it holds; found whole or not at all; read on any number of ranks.

The tensors are written and read by :mod:`torch.distributed.checkpoint` (DCP), with its safetensors storage: its default
one keeps its index as a pickle. DCP alone leaves a half-written folder where a rank dies, cannot tell a damaged file
from a whole one, changes tensors while it reads, and pickles what is no tensor: that is what is added here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...errors import CheckpointError
from ...runtime.distributed import DistributedRuntime
from .folder import NewerFormatError, StepFolders, describe, read_manifest, verify
from .plain import decode, encode
from .restore import Restoring
from .state import Share, dtype_name, share_of
from .tensors import digest, is_global, read_tensors, torch_checkpoint, write_tensors


@dataclass(frozen=True)
class Resumed:
    """What a run goes on from.

    Attributes
    ----------
    step : int
    progress : whatever :meth:`ShardedCheckpoint.save` was given
    skipped : dict
        Later steps whose checkpoints are damaged, and how.
    """

    step: int
    progress: Any
    skipped: dict[int, str] = field(default_factory=dict)


class ShardedCheckpoint:
    """The checkpoints of one run in ``folder``, which all ranks see.

    Parameters
    ----------
    folder : path
        Made if it is not there. One run at a time writes into it: until its process ends.
    runtime : DistributedRuntime, optional
        Whose ranks; default: this process alone, which reads what many have written, too.
    keep : int
        How many of the last checkpoints stay.

    Notes
    -----
    ``state`` is a dict of tensors, modules, optimisers, generators of torch or NumPy, and things with ``state_dict``
    (:mod:`.state`); a rank leaves out what it does not hold. **A name means one thing**: what two ranks both have under
    a name must be the same on both, to the bit, and is written once. DTensors (FSDP2) are global by themselves.
    Everything a run needs goes in: the generators that it draws from, its place in the data.

    Waits within DCP have the limit of the process group (``init_process_group(timeout=)``), all others the runtime's.
    """

    def __init__(
        self, folder: str | os.PathLike[str], runtime: DistributedRuntime | None = None, *, keep: int = 2
    ) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise ValueError(f"keep: got {keep!r}, expected a number of checkpoints of at least 1")
        if runtime is not None and not isinstance(runtime, DistributedRuntime):
            raise TypeError(f"runtime: got {type(runtime).__name__}, expected pyparareal.distributed() or None")
        torch_checkpoint()
        self._folders, self._keep = StepFolders(folder), keep
        self._runtime: Any = _Alone() if runtime is None else runtime

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, from the last to the first; they are not verified."""
        return self._folders.steps()

    def save(self, step: int, state: Mapping[str, Any], progress: Any = None) -> Path:
        """Write ``state`` and ``progress`` as the checkpoint of ``step``: all of it, or nothing is there.

        Parameters
        ----------
        step : int
            Greater than those of the checkpoints in the folder.
        progress : numbers, texts, and lists, tuples, dicts of them
            The same on every rank.

        Raises
        ------
        TypeError, ValueError
            For wrong arguments, on every rank; nothing was written and the runtime goes on.
        OSError
            A rank could not write; the same.
        RankError
            A rank died or did not come.
        """
        with self._runtime.together():
            if isinstance(step, bool) or not isinstance(step, int) or step < 0:
                raise ValueError(f"step: got {step!r}, expected a number of at least 0")
            if self._runtime.group is None and self._runtime.size > 1:
                raise ValueError("runtime: one that lost a rank has no process group to save with, expected a new one")
            share, said = share_of(state), encode(progress, "progress")
            asked = {"step": step, "keep": self._keep, "folder": str(self._folders.folder.absolute())}
            self._runtime.ask(asked | {"progress": said})
            self._runtime.agree()
        with self._runtime.failing() as ranks:
            wrong = self._save(ranks, step, share, said)
        if wrong:
            raise {"OSError": OSError}.get(wrong[0], ValueError)(wrong[1])
        return self._folders.path(step)

    def _save(self, ranks: Any, step: int, share: Share, said: Any) -> list[str] | None:
        """Kind and text of what is wrong, the same on all ranks."""
        began = _tried(lambda: self._folders.begin(step)) if ranks.rank == 0 else None
        everyone = ranks.texts({"wrong": began, **_described(share)}, "comparing what is saved")
        if everyone[0]["wrong"]:
            return list(everyone[0]["wrong"])
        names = _on_several(everyone) & share.tensors.keys()
        sums = ranks.texts({name: digest(share.tensors[name]) for name in sorted(names)}, "comparing tensors")
        files: dict[str, Any] = {}
        wrong = _difference(everyone, sums) or self._write(ranks, step, share, files)
        if ranks.rank == 0 and not wrong:
            content = {"step": step, "ranks": ranks.size, "pyparareal": __version__, "torch": str(torch.__version__)}
            content |= {"progress": said, **_joined(everyone), "files": files}
            wrong = _tried(lambda: self._folders.finish(content, self._keep))
        if ranks.rank == 0 and wrong:
            self._folders.give_up(step)
        return _first(ranks.texts(wrong, "ending the checkpoint"))

    def _write(self, ranks: Any, step: int, share: Share, files: dict[str, Any]) -> list[str] | None:
        """The tensors of all ranks; ``files`` gets names, sizes and sums, of which each rank reads a part."""
        folder = self._folders.partial(step)
        mine: dict[str, Any] = {}
        wrong = _tried(lambda: write_tensors(folder, share.tensors, self._runtime))
        if wrong := _first(ranks.texts(wrong, "writing the files")):
            return wrong
        wrong = _tried(lambda: mine.update(describe(sorted(folder.iterdir())[ranks.rank :: ranks.size])))
        told = ranks.texts({"wrong": wrong, "files": mine}, "reading the files")
        for one in told:
            files |= one["files"]
        return _first(one["wrong"] for one in told)

    def load(self, state: Mapping[str, Any], step: int | None = None) -> Resumed | None:
        """Put a checkpoint into ``state``: of ``step``, or the last that is whole; None if there is none at all.

        All ranks agree on the step, and every file was read and verified, before anything in ``state`` is changed. A
        rank needs memory for its share twice.

        Warns
        -----
        RuntimeWarning
            On rank 0: a later checkpoint is damaged and was skipped.

        Raises
        ------
        CheckpointError
            On every rank; nothing was changed. The checkpoint asked for is damaged or not there, or all are damaged;
            it is of something else than ``state``, or of a later version of this package.
        RankError
            A rank died or did not come.
        """
        with self._runtime.together():
            if step is not None and (isinstance(step, bool) or not isinstance(step, int)):
                raise TypeError(f"step: got {type(step).__name__}, expected an int or None")
            share_of(state)  # refuses what cannot be saved either
            self._runtime.ask({"step": step, "folder": str(self._folders.folder.absolute())})
            self._runtime.agree()
        wrong, found = None, None
        with self._runtime.failing() as ranks:
            skipped: dict[int, str] = {}
            chosen = self._choose(ranks, step, skipped)
            if chosen is not None:
                wrong, found = self._load(ranks, state, chosen)
        if chosen is None and (skipped or step is not None):
            raise CheckpointError(self._nothing(step, skipped))
        if wrong:
            raise CheckpointError(wrong)
        if chosen is None or found is None:
            return None
        if skipped and self._runtime.rank == 0:
            told = "; ".join(f"step {number} was skipped: {why}" for number, why in skipped.items())
            warnings.warn(f"{self._folders.folder}: going on from step {chosen}; {told}", RuntimeWarning, stacklevel=2)
        return Resumed(chosen, decode(found["progress"]), skipped)

    def _choose(self, ranks: Any, step: int | None, skipped: dict[int, str]) -> int | None:
        """The last step whose files all ranks find whole, each a part of them; ``skipped`` gets what is wrong."""
        for one in ranks.texts(self._folders.steps() if step is None else [step], "listing the checkpoints")[0]:
            told = ranks.texts(self._look_at(one, ranks), f"verifying the checkpoint of step {one}")
            whys = [f"rank {rank}: {their[0]}" for rank, their in enumerate(told) if their[0]]
            if not whys and any(their[1] != told[0][1] for their in told):
                whys = ["not the same on all ranks; expected a folder that all of them see"]
            if not whys:
                return int(one)
            skipped[one] = whys[0]
            if any(their[2] for their in told):
                return None
        return None

    def _look_at(self, step: int, ranks: Any) -> tuple[str | None, str | None, bool]:
        """What is wrong with a checkpoint, as far as this rank looks; its manifest's sum; whether it is too new."""
        path = self._folders.path(step)
        try:
            if not path.is_dir():
                raise CheckpointError(f"{path}: not there, or not complete")
            content, own_sum = read_manifest(path)
            verify(path, content, sorted(content["files"])[ranks.rank :: ranks.size])
        except (CheckpointError, OSError) as error:
            return str(error), None, isinstance(error, NewerFormatError)
        return None, own_sum, False

    def _load(self, ranks: Any, state: Mapping[str, Any], step: int) -> tuple[str | None, dict[str, Any] | None]:
        path = self._folders.path(step)
        restoring, content, wrong = None, None, None
        try:
            content, _ = read_manifest(path)
            restoring = Restoring(state, content)
        except (ValueError, KeyError, TypeError, OSError) as error:  # the last ones for what only a forger writes
            wrong = f"{path}: of another run, nothing was changed: {error}"
        told = ranks.texts([wrong, sorted(restoring.wanted) if restoring else []], "comparing what is loaded")
        wrong = _first(their[0] for their in told)
        if content and not wrong:
            known = {name for their in told for name in their[1]}
            unknown = sorted({*content["tensors"], *content["plain"]} - known)
            if unknown:
                wrong = f"{path}: of another run, nothing was changed: {unknown[0]!r} is unknown here"
        if wrong or restoring is None:
            return wrong, None
        try:
            read_tensors(path, restoring.targets)
            restoring.check()
        except (CheckpointError, OSError) as error:
            wrong = f"{path}: nothing was changed: {error}"
        wrong = _first(ranks.texts(wrong, "reading the files"))
        if not wrong:
            restoring.apply()
        return wrong, content

    def _nothing(self, step: int | None, skipped: dict[int, str]) -> str:
        if step is not None and step not in self._folders.steps():
            return (
                f"step: got {step}, of which {self._folders.folder} has no checkpoint; it has {self._folders.steps()}"
            )
        return "; ".join(skipped.values())


class _Alone:
    """A runtime and its ranks of one process, for checkpoints alone."""

    rank, size, group = 0, 1, None

    @contextmanager
    def together(self) -> Iterator[None]:
        yield

    @contextmanager
    def failing(self) -> Iterator[_Alone]:
        yield self

    def ask(self, asked: dict[str, Any]) -> None:
        pass

    def agree(self) -> None:
        pass

    def texts(self, message: Any, what: str) -> list[Any]:
        return [message]


def _tried(act: Any) -> list[str] | None:
    """Kind and text of the error of ``act()``, which leaves the ranks as they are."""
    try:
        act()
    except OSError as error:
        return ["OSError", str(error)]
    except ValueError as error:
        return ["ValueError", str(error)]
    return None


def _first(told: Any) -> Any:
    """The first that is wrong."""
    return next(filter(None, told), None)


def _described(share: Share) -> dict[str, Any]:
    tensors = {n: {"shape": list(t.shape), "dtype": dtype_name(t)} for n, t in share.tensors.items()}
    return {"tensors": tensors, "plain": share.plain, "global": [n for n, t in share.tensors.items() if is_global(t)]}


def _on_several(everyone: list[dict[str, Any]]) -> set[str]:
    """Names of tensors that more than one rank has, each the whole of it."""
    seen: set[str] = set()
    several: set[str] = set()
    for one in everyone:
        names = one["tensors"].keys() - set(one["global"])
        several |= seen & names
        seen |= names
    return several


def _difference(everyone: list[dict[str, Any]], sums: list[dict[str, str]]) -> list[str] | None:
    """The first name under which two ranks have two things."""
    for what, told in (
        ("kind", [one["tensors"] for one in everyone]),
        ("bits", sums),
        ("value", [one["plain"] for one in everyone]),
    ):
        first: dict[str, tuple[int, Any]] = {}
        for rank, theirs in enumerate(told):
            for name, value in theirs.items():
                other, before = first.setdefault(name, (rank, value))
                if repr(before) != repr(value):
                    return ["ValueError", f"state: {name!r} has another {what} on rank {rank} than on rank {other}"]
    return None


def _joined(everyone: list[dict[str, Any]]) -> dict[str, Any]:
    return {kind: {n: v for one in everyone for n, v in one[kind].items()} for kind in ("tensors", "plain")}
