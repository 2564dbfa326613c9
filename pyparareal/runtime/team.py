# SPDX-License-Identifier: BSD-3-Clause
"""CPU threads of some of torch's intra-op threads each, that compute as the thread that calls them would."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from .. import _trace

T = TypeVar("T")

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True
    _TEAMS.clear()


@dataclass(frozen=True)
class Context:
    """What torch keeps per thread and a result depends on."""

    grad: bool
    inference: bool
    autocast: tuple[tuple[str, torch.dtype], ...]
    device: torch.device | None  # of torch.set_default_device

    @classmethod
    def current(cls, who: str, instead: str) -> Context:
        """The calling thread's; refuses what cannot be carried into another thread, for ``who``."""
        modes = _get_current_function_mode_stack()
        strange = [type(m).__name__ for m in modes if not isinstance(m, DeviceContext)]
        strange += ["a TorchDispatchMode"] * (torch._C._len_torch_dispatch_stack() > 0)
        strange += ["a torch.func transform"] * (torch._C._functorch.peek_interpreter_stack() is not None)
        if strange:
            raise RuntimeError(f"{who} cannot run inside {strange[0]}, which sees one thread only; {instead}")
        autocast = tuple((d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d))
        device = modes[-1].device if modes else None
        return cls(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast, device)

    @contextmanager
    def entered(self) -> Iterator[None]:
        with ExitStack() as stack:
            enter = stack.enter_context
            enter(torch.inference_mode(self.inference))
            enter(torch.set_grad_enabled(self.grad))
            for device_type, dtype in self.autocast:
                # torch's cache of cast weights is one for all threads, and a cast belongs to one part's graph.
                enter(torch.autocast(device_type, dtype=dtype, cache_enabled=False))
            if self.device is not None:
                enter(self.device)
            yield


class Team:
    """``workers`` threads of ``intra_op`` torch threads each; :meth:`run` is called by one that waits for them."""

    def __init__(self, workers: int, intra_op: int) -> None:
        self.intra_op = intra_op
        together = threading.Barrier(workers + 1)
        total = torch.get_num_threads()

        def start() -> None:
            torch.get_num_threads()  # makes torch give this thread the common number now, not after the next line
            torch.set_num_threads(intra_op)
            _own.threads = intra_op
            together.wait()

        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pyparareal-team", initializer=start)
        for _ in range(workers):
            self._pool.submit(int)
        together.wait()
        # The call is per thread, except for the number that later new threads start with.
        torch.set_num_threads(total)

    def run(self, tasks: Sequence[Callable[[], T]], context: Context) -> list[T]:
        """Results in order. All tasks end before an exception leaves; of several, the first task's, unchanged."""

        def inside(task: Callable[[], T]) -> T:
            with context.entered():
                return task()

        if _trace.listener is not None:
            tasks = [_trace.carried(task) for task in tasks]
        futures = [self._pool.submit(inside, task) for task in tasks]
        try:
            with _trace.mark("threads", "wait"):
                wait(futures)
        except BaseException:  # an interrupt of the waiting thread: tasks not begun are dropped, the others end
            for future in futures:
                future.cancel()
            wait(futures)
            raise
        return [future.result() for future in futures]


class Alone:
    """One thread has nothing to share: the tasks run in turn in the caller's."""

    def run(self, tasks: Sequence[Callable[[], T]], context: Context) -> list[T]:
        with context.entered():
            return [task() for task in tasks]


_TEAMS: dict[tuple[int, int], Team] = {}
_starting = threading.Lock()
_own = threading.local()  # .threads: what a team's thread may use


def allowed() -> int | None:
    """The intra-op threads of a team's thread, whatever its task does to torch's number of them; None for others."""
    return getattr(_own, "threads", None)


def standing(workers: int, intra_op: int, who: str, instead: str) -> Team:
    """``workers`` threads of ``intra_op`` each, kept for later calls; refuses, for ``who``, in a forked process."""
    if _forked:
        raise RuntimeError(
            f"{who} in a forked process: the parent's threads, OpenMP's among them, are not here; "
            f"start the process with the 'spawn' method or {instead}"
        )
    with _starting:
        key = workers, intra_op
        if key not in _TEAMS:
            _TEAMS[key] = Team(*key)
        return _TEAMS[key]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
