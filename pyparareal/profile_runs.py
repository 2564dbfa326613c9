# SPDX-License-Identifier: BSD-3-Clause
"""Programs under a timeline: a script in this process, or the same command in several."""

from __future__ import annotations

import argparse
import contextlib
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ._progress import Live
from .profiling import merging, module_costs
from .profiling.events import Record
from .profiling.timeline import Timeline

INTERRUPTED = 130
MOST_EVENTS = 400_000  # of a thread: some hundred MB, and a page that opens in seconds
GRACE = 5.0  # seconds for the other ranks to end by themselves once one has failed
SAVING = 10.0  # seconds for those that were interrupted to write their timelines
TOLD = 12  # last lines of what a failed rank said


def script_of(what: str) -> Path | None:
    """The script that is meant; ValueError if there is no such file."""
    if not what.endswith(".py"):
        return None
    path = Path(what)
    if not path.is_file():
        raise ValueError(f"SCRIPT: got {what!r}, but there is no such file")
    return path


def watched_script(script: Path, arguments: Sequence[str], repeat: bool) -> tuple[Record, int]:
    """Its record and its exit status; what it prints and raises is shown as Python would show it."""
    if repeat and (status := _run(script, arguments, None)[0]):
        print("pyparareal profile: the first run failed; the report is of a second one", file=sys.stderr)
        del status
    timeline = Timeline(script.name, most=MOST_EVENTS)
    status, why = _run(script, arguments, timeline)
    record = timeline.record
    record.about["command"] = " ".join(["python", str(script), *arguments])
    if why is not None:
        record.about["failed"] = why
    return record, status


def _run(script: Path, arguments: Sequence[str], timeline: Timeline | None) -> tuple[int, str | None]:
    """Exit status, and in words why it is not 0."""
    before = list(sys.argv), list(sys.path)
    sys.argv, sys.path[0] = [str(script), *arguments], str(script.resolve().parent)
    try:
        with timeline or contextlib.nullcontext():
            names = runpy.run_path(str(script), run_name="__main__")
        if timeline is not None:
            module_costs.tell(timeline.record)  # while its modules live
        del names
    except SystemExit as exit_:
        return _status_of(exit_)
    except KeyboardInterrupt:
        return INTERRUPTED, "it was interrupted"
    except BaseException as error:
        traceback.print_exception(error.with_traceback(_inside(error, script)))
        return 1, f"{type(error).__name__}: {error}"
    finally:
        sys.argv, sys.path[:] = before
    return 0, None


def _status_of(exit_: SystemExit) -> tuple[int, str | None]:
    """As Python itself: None is 0, a text is shown and 1."""
    if exit_.code is None or exit_.code == 0:
        return 0, None
    if isinstance(exit_.code, int):
        return exit_.code & 0xFF, f"it ended with status {exit_.code}"
    print(exit_.code, file=sys.stderr)
    return 1, str(exit_.code)


def _inside(error: BaseException, script: Path) -> Any:
    """Its traceback from the script on: how it was started is no concern of its author."""
    at = error.__traceback__
    while at is not None and Path(at.tb_frame.f_code.co_filename) != script:
        at = at.tb_next
    return at or error.__traceback__


def save_rank(record: Record, path: Path) -> None:
    """For the process that started this rank."""
    Timeline.of(record).save(path)


def over_ranks(args: argparse.Namespace, live: Live) -> tuple[Record | None, int]:
    """The merged record of ``args.ranks`` processes with the environment of torchrun, and the status of the first that
    failed; none of them is left running."""
    with tempfile.TemporaryDirectory(prefix="pyparareal-profile-") as name, _on_termination():
        folder = Path(name)
        statuses = _processes(args, folder, live)
        # A rank that was left alone by another is told last.
        culprits = sorted(statuses.failed, key=lambda rank: "RankError" in _said(rank, folder)[-1])
        failed = next(iter(culprits), None)
        records = [folder / f"rank{rank}.json" for rank in range(args.ranks)]
        for rank in culprits:
            _tell(rank, statuses.of[rank], folder)
        found = [path for path in records if path.exists()]
        if not found:
            print("pyparareal profile: no report: no rank left a timeline", file=sys.stderr)
            return None, INTERRUPTED if statuses.interrupted else statuses.of[failed or 0]
        try:
            record = merging.merge(found)
        except ValueError as error:
            print(f"pyparareal profile: no report: {error}", file=sys.stderr)
            return None, 1
        if statuses.interrupted:
            record.about["failed"] = "it was interrupted"
            return record, INTERRUPTED
        if failed is not None:
            last = _said(failed, folder)[-1].strip()
            record.about["failed"] = f"Rank {failed} ended with status {statuses.of[failed]}{': ' * bool(last)}{last}"
        elif len(found) < len(records):
            record.about["failed"] = f"{len(records) - len(found)} ranks left no timeline"
        return record, 0 if failed is None else statuses.of[failed]


class Ended(NamedTuple):
    """How the ranks ended: the status of each, and those that failed, the first to fail first."""

    of: list[int]
    failed: list[int]
    interrupted: bool


def _processes(args: argparse.Namespace, folder: Path, live: Live) -> Ended:
    """Started, watched and ended. Rank 0 speaks for all, the others into files."""
    command = [sys.executable, "-m", "pyparareal", "profile", args.what, *["--repeat"] * args.repeat]
    port = _free_port()
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(args.ranks):
            said = (folder / f"rank{rank}.txt").open("wb")
            with said:
                workers.append(
                    subprocess.Popen(
                        [*command, "--record", str(folder / f"rank{rank}.json"), "--", *args.rest],
                        env=_environment(rank, args.ranks, port),
                        stdout=None if rank == 0 else said,
                        stderr=said,
                        stdin=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                )
        return _ended(workers, live)
    finally:
        for worker in workers:
            _end(worker)


def _ended(workers: Sequence[subprocess.Popen[bytes]], live: Live) -> Ended:
    """Once all have; if one fails, the others have a few seconds."""
    begin, deadline = time.monotonic(), float("inf")
    failed: list[int] = []
    interrupted = False
    try:
        while time.monotonic() < deadline:
            done = [rank for rank, worker in enumerate(workers) if worker.poll() is not None]
            failed += [rank for rank in done if workers[rank].returncode and rank not in failed]
            if len(done) == len(workers):
                break
            if failed:
                deadline = min(deadline, time.monotonic() + GRACE)
            live.status(f"{len(done)} of {len(workers)} ranks done, {time.monotonic() - begin:.0f} s")
            time.sleep(0.02)
    except KeyboardInterrupt:
        interrupted = True
    _interrupt(workers)
    # What had to be ended because another failed is no failure of its own.
    return Ended([_as_status(worker.returncode or 0) for worker in workers], failed, interrupted)


def _as_status(code: int) -> int:
    """As a shell says it: 137 where signal 9 ended a process."""
    return 128 - code if code < 0 else code


def _interrupt(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Those that still run: as Ctrl-C would, so that they leave what they have seen."""
    left = [worker for worker in workers if worker.poll() is None]
    for worker in left:
        worker.send_signal(signal.SIGINT)
    deadline = time.monotonic() + SAVING
    for worker in left:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(max(0.0, deadline - time.monotonic()))


def _end(worker: subprocess.Popen[bytes]) -> None:
    """With all it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun sets; one thread each where nothing else is said, as it does."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    fixed = {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}
    return {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | dict(os.environ) | fixed


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _said(rank: int, folder: Path) -> list[str]:
    return (folder / f"rank{rank}.txt").read_text(errors="replace").rstrip().splitlines() or [""]


def _tell(rank: int, status: int, folder: Path) -> None:
    print(f"pyparareal profile: rank {rank} ended with status {status}", file=sys.stderr)
    for line in _said(rank, folder)[-TOLD:]:
        print(f"  {line}".rstrip(), file=sys.stderr)


@contextlib.contextmanager
def _on_termination() -> Iterator[None]:
    """A polite kill of this process ends the ranks too."""

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
