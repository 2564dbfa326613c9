# SPDX-License-Identifier: BSD-3-Clause
"""A whole cycle as one CUDA graph: its kernels are recorded once and from then on started by a single launch.

A graph repeats the very kernels it saw, on the very arrays. What a cycle does on the host (a step's Python code, a look
at a value, a copy of host memory) happens once, when it is recorded, and never again. So only that is recorded which
says ``capturable = True`` of itself, as the propagators of this package do where one kernel takes their steps.
Everything else runs as in :class:`.LocalRuntime`, and ``Solution.stats.mode`` says why.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from .. import _trace, arrays
from ..traced_ops import placed
from .local import LocalRuntime

Array = Any
Launch = Callable[[], None]


class Recorder(Protocol):
    """What makes graphs of one array library's work."""

    def record(self, work: Callable[[], Any]) -> tuple[Any, Launch]:
        """What ``work()`` returns, its kernels not started, and how to start them all."""
        ...


class GraphRuntime(LocalRuntime):
    """Like :class:`.LocalRuntime`, with the cycles of MGRIT on a GPU as CUDA graphs.

    A cycle runs as it is the first time, when its buffers are made, and is recorded the next time: twice, where
    C-relaxation leaves the C-points in the other of two arrays. The bits are those of :class:`.LocalRuntime`.

    Parameters
    ----------
    slices_per_call : int, optional
        See :class:`.LocalRuntime`.
    recorder : Recorder, optional
        Default: the one of the library of the states; NumPy arrays and torch tensors on the CPU have none.

    Notes
    -----
    A propagator, a transfer or a norm of your own is recorded if it has ``capturable = True``: your promise that it
    starts the same kernels on the same memory whenever it is called for the same points, reads no result back and
    copies nothing from the host. One that raises when it is recorded is run as it is instead.
    """

    def __init__(self, *, slices_per_call: int | None = None, recorder: Recorder | None = None) -> None:
        super().__init__(slices_per_call=slices_per_call)
        self.recorder = recorder

    def repeat(self, u: Array, unless: Callable[[], str | None], *, fixed: bool = False) -> Repeated:
        recorder = recorder_of(u) if self.recorder is None else self.recorder
        if recorder is None:
            return Repeated(self, None, f"{arrays.namespace(u).__name__} arrays on the CPU have no graphs")
        return Repeated(self, recorder, unless())


class Repeated:
    """Work that comes again: first run, then recorded, then replayed; ``mode`` says what was done how often."""

    def __init__(self, runtime: LocalRuntime, recorder: Recorder | None, why_not: str | None) -> None:
        self.runtime, self.recorder, self.why_not = runtime, recorder, why_not
        self.passes = self.replayed = 0
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, tuple[Any, Launch]] = {}

    def __call__(self, kind: Hashable, place: Hashable, work: Callable[[], Any]) -> Any:
        self.passes += 1
        key = kind, place
        if key not in self._graphs and not (kind in self._seen and self._record(key, work)):
            self._seen.add(kind)
            return work()
        result, launch = self._graphs[key]
        with self.runtime.mark("graph"), self._traced(result):
            launch()
        self.replayed += 1
        return result

    @property
    def mode(self) -> str:
        if not self.replayed:
            return f"eager: {self.why_not or 'no cycle came twice'}"
        why = f", then eager: {self.why_not}" if self.why_not else ""
        return f"graph: {self.replayed} of {self.passes} cycles{why}"

    def _traced(self, result: Any) -> AbstractContextManager[None]:
        """One launch, where the results are."""
        if _trace.listener is None:
            return _trace.NOTHING
        return _trace.mark("graph", "launch", placed({"op": "graph"}, next(iter(found_in(result)), None)))

    def _record(self, key: Hashable, work: Callable[[], Any]) -> bool:
        if self.recorder is None or self.why_not is not None:
            return False
        try:
            with self.runtime.mark("graph.record"):
                self._graphs[key] = self.recorder.record(work)
        except Exception as error:  # what is wrong with the work itself is raised again when it runs as it is
            self.why_not = f"{type(error).__name__} when a cycle was recorded: {str(error).partition(chr(10))[0]}"
            return False
        return True


def recorder_of(u: Array) -> Recorder | None:
    """The recorder for arrays like ``u``, or None where there are no graphs."""
    if arrays.is_torch(u):
        return TorchRecorder(u.device) if u.is_cuda else None
    cupy = sys.modules.get("cupy")
    return CupyRecorder(u.device) if cupy is not None and isinstance(u, cupy.ndarray) else None


def found_in(result: Any) -> Iterator[Array]:
    """The arrays in what a piece of work returned."""
    if hasattr(result, "dtype") and hasattr(result, "shape"):
        yield result
    elif isinstance(result, list | tuple):
        for one in result:
            yield from found_in(one)


class TorchRecorder:
    """``torch.cuda.CUDAGraph``: recorded on a stream of its own, from memory that only these graphs use."""

    def __init__(self, device: Any) -> None:
        self.torch: Any = sys.modules["torch"]
        self.device, self.side = device, self.torch.cuda.Stream(device)
        self.pool = self.torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Any]) -> tuple[Any, Launch]:
        cuda = self.torch.cuda
        caller, graph = cuda.current_stream(self.device), cuda.CUDAGraph()
        self.side.wait_stream(caller)
        # Not `torch.cuda.graph`: it waits for the device. Other threads may go on with what they do.
        with cuda.device(self.device), cuda.stream(self.side):
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                result = work()
            except BaseException:
                _end(graph.capture_end)
                raise
            graph.capture_end()
        caller.wait_stream(self.side)
        return result, graph.replay


class CupyRecorder:
    """``cupy.cuda.Graph``, likewise."""

    def __init__(self, device: Any) -> None:
        self.cupy: Any = sys.modules["cupy"]
        self.device = device
        with device:
            self.side = self.cupy.cuda.Stream(non_blocking=True)
            self.pool = self.cupy.cuda.MemoryPool()

    def record(self, work: Callable[[], Any]) -> tuple[Any, Launch]:
        cuda = self.cupy.cuda
        with self.device:
            self.side.wait_event(cuda.get_current_stream().record())
            with cuda.using_allocator(self.pool.malloc), self.side:
                # Relaxed: the pool asks the device for memory while the work is recorded, which is no part of it.
                self.side.begin_capture(cuda.runtime.streamCaptureModeRelaxed)
                try:
                    result = work()
                except BaseException:
                    _end(self.side.end_capture)
                    raise
                graph = self.side.end_capture()

        def launch() -> None:  # holds the pool that the graph works in, too
            with self.device:
                graph.launch()

        return result, launch


def _end(capture: Callable[[], Any]) -> None:
    """End a capture that failed: it says so once more."""
    try:
        capture()
    except Exception:
        return
