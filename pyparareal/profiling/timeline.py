# SPDX-License-Identifier: BSD-3-Clause
"""Everything that a part of a program did, as one record and one file."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import RankError
from . import chrome
from .columns import packed, unpacked
from .events import RankClock, Record
from .merging import merge
from .recorder import Recorder

_BOOT = Path("/proc/sys/kernel/random/boot_id")
GATHERING = "timelines of all ranks"


class Timeline:
    """Every launch, copy, wait and message of what it encloses: ``with Timeline("a solve") as timeline: solve(...)``.

    Parameters
    ----------
    title : str
        What the report is called.
    runtime : DistributedRuntime, optional
        Of :func:`pyparareal.distributed`: at the end all its ranks, which must all come, send their records to rank 0,
        which has them merged (:func:`.merge`); the others keep their own. So they do after an error, if the runtime has
        not ended with it.
    most : int, optional
        Events of a thread, after which no more are kept; ``record.about["left out"]`` says how many and how long.
        Default: as many as there are, of about a kilobyte each.

    Attributes
    ----------
    record : Record
        Once it has ended, also if with an error. A Timeline may be entered once.

    Notes
    -----
    Times are seconds since it was entered, of ``time.perf_counter``. ``record.about["clock"]`` says where on which
    machine's clock that was. What runs on a GPU is timed there, and waited for once, at the end.
    """

    def __init__(self, title: str = "", *, runtime: Any = None, most: int | None = None) -> None:
        if not isinstance(title, str):
            raise TypeError(f"title: got {type(title).__name__}, expected a text")
        if runtime is not None and not hasattr(runtime, "_ranks"):
            raise TypeError(f"runtime: got {type(runtime).__name__}, expected one of pyparareal.distributed, or None")
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise ValueError(f"most: got {most!r}, expected an integer of at least 1, or None")
        self.title, self._most = title, most
        self._runtime = runtime
        self._rank, self._ranks = _place(runtime)
        self._recorder: Recorder | None = None
        self._record: Record | None = None
        self._ended = self._gathered = False

    def __enter__(self) -> Timeline:
        if self._recorder is not None or self._record is not None:
            raise RuntimeError("this timeline was entered before; make another")
        self._date, self._command = time.strftime("%Y-%m-%d %H:%M:%S %z"), " ".join(sys.argv)
        self._recorder = Recorder(self._most)
        self._recorder.rank = self._rank
        self._recorder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._recorder is not None  # __enter__ made it
        self._recorder.__exit__(kind, error, trace)
        self._ended = True
        if self._runtime is not None and (error is None or isinstance(error, Exception)):
            # Also after an error of this rank: the others wait for its record. Of the two errors it is the one to see.
            with contextlib.nullcontext() if error is None else contextlib.suppress(RankError):
                self._record = _gathered(self.record, self._runtime)
                self._gathered = True

    @property
    def record(self) -> Record:
        if not self._ended:
            raise RuntimeError("record: the timeline has not ended yet")
        if self._record is None:  # made when it is asked for: what is timed around the timeline does not wait for it
            self._record, self._recorder = self._made(), None
        return self._record

    def _made(self) -> Record:
        recorder = self._recorder
        assert recorder is not None
        record = recorder.record()
        record.clocks = [RankClock(self._rank)]
        record.about = self._about(recorder) | record.about
        if self._rank and "device clocks" in record.about:
            record.about[chrome.device_clocks(self._rank)] = record.about.pop("device clocks")
        return record

    def save(self, path: str | Path) -> Path | None:
        """The record in a file that ``chrome://tracing`` and ``ui.perfetto.dev`` open; its path.

        ``.json`` or, compressed, ``.json.gz``; written whole or not at all. Of several ranks each writes its own,
        ``name.rank<k>.json`` (merge them with :func:`.merge`), unless their records were gathered: then rank 0 writes
        ``path`` and the others nothing, and get None.
        """
        if self._ranks > 1 and self._gathered:
            return chrome.write(self.record, path) if self._rank == 0 else None
        return chrome.write(self.record, path if self._ranks == 1 else rank_path(path, self._rank))

    @classmethod
    def load(cls, path: str | Path) -> Timeline:
        """The timeline that was saved there; its ``record`` equals the one of then.

        Raises
        ------
        ValueError
            The file is not one of :meth:`save`; names the file and the field.
        """
        return cls.of(chrome.read(path))

    @classmethod
    def of(cls, record: Record) -> Timeline:
        """The timeline of a record at hand, such as one of :func:`.merge`, to save it."""
        found = cls(str(record.about.get("title", "")))
        found._rank, found._ranks = 0, 1
        found._record, found._ended = record, True
        return found

    def _about(self, recorder: Recorder) -> dict[str, Any]:
        return {
            "title": self.title,
            "command": self._command,
            "machine": {
                "name": platform.node(),
                "system": platform.platform(),
                "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            },
            "date": self._date,
            "versions": _versions(),
            "clock": clock(recorder.start),
        }


def clock(zero_ns: int) -> dict[str, Any]:
    """Where a timeline's time 0 lies: on which start of which machine, at what ``time.perf_counter_ns``."""
    boot = None
    with contextlib.suppress(OSError):
        boot = _BOOT.read_text().strip()
    resolution = time.get_clock_info("perf_counter").resolution
    return {"boot": boot, "zero": zero_ns * 1e-9, "resolution": resolution}


def rank_path(path: str | Path, rank: int) -> Path:
    """``name.rank<k>.json`` for ``name.json``, and likewise for ``.json.gz``."""
    path = Path(path)
    for suffix in (".json.gz", ".json"):
        if path.name.endswith(suffix):
            return path.with_name(f"{path.name.removesuffix(suffix)}.rank{rank}{suffix}")
    raise ValueError(f"path: got {path.name!r}, expected a name that ends in .json or .json.gz")


def _place(runtime: Any) -> tuple[int, int]:
    """This rank and how many there are: of the runtime, of the default process group, of torchrun."""
    if runtime is not None:
        return runtime.rank, runtime.size
    dist = getattr(sys.modules.get("torch"), "distributed", None)
    if dist is not None and dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return (int(rank), int(size)) if rank.isdecimal() and size.isdecimal() else (0, 1)


def _gathered(record: Record, runtime: Any) -> Record:
    """On rank 0 that of all; elsewhere ``record``."""
    # By the channel of the runtime, which its solves use too: all of them are over when the block ends.
    texts = runtime._ranks.texts(packed(record), GATHERING)
    if runtime.rank != 0:
        return record
    return merge([record, *(unpacked(one, f"rank {rank}") for rank, one in enumerate(texts) if rank)])


def _versions() -> dict[str, str]:
    """Of what is loaded: nothing is imported to ask it."""
    found = {"python": platform.python_version()}
    for name in ("pyparareal", "numpy", "torch", "cupy"):
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            found[name] = str(version)
    return found
