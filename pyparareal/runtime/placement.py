# SPDX-License-Identifier: BSD-3-Clause
"""Several devices in one process: ``LocalRuntime(devices=["cuda:0", "cuda:1"])``, or threads, ``["cpu", "cpu"]``.

The slices of every ``map`` are cut into contiguous blocks, one for each entry of ``devices``, and all blocks advance at
the same time. Everything else (coarse chains, ops, norms) runs where the states are. A slice takes the same steps
wherever it is, so with batch-invariant propagators the bits are those of one device; with ``deterministic=True`` too,
if matrix products on the devices do the same, for which CPUs need one intra-op thread in the caller as well.

CPUs: each block has a thread of its own with one intra-op thread, so Python code between the kernels takes turns. GPUs:
:mod:`.device_streams`. The first entry for the device of the states uses the propagator itself, all others replicas
(:mod:`.replicas`). Plain functions are shared, unless they hold tensors: they are called from several threads at once,
and on several GPUs for states on each of them.

Backward passes of :func:`pyparareal.solve` take their adjoint steps on the device of the states alone: they go back
through the graph of the propagator itself.
"""

from __future__ import annotations

import contextvars
import itertools
import math
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import _trace, arrays
from ..propagators import Propagator
from ..time_grid import count_points, part_of_points
from .local import LocalRuntime, steps_of
from .replicas import Replicas

Array = Any

WHO = "LocalRuntime(devices=...)"


class Block(NamedTuple):
    """The slices ``first .. last - 1`` of a relaxation, on entry ``entry`` of the devices."""

    entry: int
    first: int
    last: int


class PlacedRuntime(LocalRuntime):
    """What ``LocalRuntime(devices=...)`` is.

    Parameters
    ----------
    devices : sequence of str or torch.device
        "cpu" or "cuda:N", all of one kind; an entry may come several times, for as many threads or streams.
    shares : sequence of numbers above 0, optional
        How much of the slices each entry gets; default: all the same.
    slices_per_call : int, optional
        Of each entry; see :class:`.LocalRuntime`.

    Raises
    ------
    TypeError, ValueError
        For a wrong argument, or a device that is not there; from a solve, for states that are not on such a device.
    """

    def __init__(
        self,
        *,
        devices: Sequence[Any] | None = None,
        shares: Sequence[float] | None = None,
        slices_per_call: int | None = None,
    ) -> None:
        super().__init__(slices_per_call=slices_per_call)
        self.devices = checked_devices(devices)
        self._ends = _ends_of(shares, len(self.devices))
        self._replicas: dict[str, list[Replicas | None]] = {}
        self._streams: dict[str, Any] = {}

    @property
    def kind(self) -> str:
        """ "cpu" or "cuda"."""
        return self.devices[0].partition(":")[0]

    def accept(self, u0: Array) -> None:
        """Refuse states that are not on such a device; a solve from ``u0`` begins."""
        if arrays.namespace(u0).__name__ == "cupy":
            raise TypeError(f"u0: got a CuPy array, expected torch for the devices {', '.join(self.devices)}")
        here = _place_of(u0)
        if here.partition(":")[0] != self.kind:
            got = "a NumPy array" if isinstance(u0, np.ndarray) else f"a tensor on {here}"
            expected = "NumPy or torch on the CPU" if self.kind == "cpu" else "torch on a CUDA device"
            raise ValueError(f"u0: got {got}, expected {expected} for the devices {', '.join(self.devices)}")
        for replicas in self._replicas.get(here, ()):
            if replicas is not None:
                replicas.forget()

    def blocks(self, slices: int) -> list[Block]:
        """Who takes which; the first entries, where there are fewer slices than entries."""
        ends = [0, *(math.ceil(end * slices) for end in self._ends)]
        cut = [Block(n, first, last) for n, (first, last) in enumerate(itertools.pairwise(ends))]
        return [block for block in cut if block.last > block.first]

    def map(
        self,
        phi: Propagator,
        u: Array,
        points: slice,
        m: int = 1,
        *,
        out: Array | None,
        shifted: Array | None = None,
        **fused: Any,
    ) -> None:
        if not len(u):
            return
        here, blocks = _place_of(u), self.blocks(len(u))
        if here.partition(":")[0] != self.kind:
            self.accept(u)
        if _stays(phi) or (len(blocks) == 1 and self._replicas_for(here)[blocks[0].entry] is None):
            super().map(phi, u, points, m, out=out, **fused)
        else:
            self.do(self._spread, here, blocks, phi, u, points, m, out, fused)

    def _spread(
        self,
        here: str,
        blocks: list[Block],
        phi: Propagator,
        u: Array,
        points: slice,
        m: int,
        out: Array | None,
        fused: dict[str, Any],
    ) -> None:
        replicas = self._replicas_for(here)
        works = []
        for entry, first, last in blocks:
            part = part_of_points(points, first, last)
            work = Work(
                phi,
                u[first:last],
                part,
                m,
                None if out is None else out[first:last],
                {name: value if isinstance(value, str) else value[first:last] for name, value in fused.items()},
                self.slices_per_call,
            )
            works.append((entry, work))
        if self.kind == "cpu":
            ready = [
                work if (copies := replicas[entry]) is None else work._replace(phi=copies.of(phi, work.rows))
                for entry, work in works
            ]
            in_threads([work.run for work in ready], len(self.devices))
        else:
            self._streams_for(here).run(works, u.device, replicas)

    def _replicas_for(self, here: str) -> list[Replicas | None]:
        """By entry, for states that are ``here``; None for the one that needs none."""
        if here not in self._replicas:
            first = self.devices.index(here) if here in self.devices else -1
            used_on = self._streams_for(here).used_on if self.kind == "cuda" else (lambda entry: None)
            self._replicas[here] = [
                None if n == first else Replicas(device, here, used_on(n)) for n, device in enumerate(self.devices)
            ]
        return self._replicas[here]

    def _streams_for(self, here: str) -> Any:
        if here not in self._streams:
            from .device_streams import DeviceStreams

            self._streams[here] = DeviceStreams(self.devices, here)
        return self._streams[here]


class Work(NamedTuple):
    """``m`` steps of a block of slices, as :meth:`.Runtime.map` is asked for them."""

    phi: Propagator
    u: Array
    points: slice
    m: int
    out: Array | None
    fused: dict[str, Any]
    slices_per_call: int | None

    @property
    def rows(self) -> range:
        """The steps of the grid from the first that is taken to the last."""
        last = self.points.start + (count_points(self.points) - 1) * self.points.step
        return range(self.points.start, last + self.m)

    def run(self) -> None:
        steps_of(self.slices_per_call, self.phi, self.u, self.points, self.m, self.out, **self.fused)()


def in_threads(tasks: Sequence[Callable[[], None]], threads: int) -> None:
    """All of ``tasks``, each in a thread. All end before an exception leaves; of several, the first task's."""
    tasks = [partial(contextvars.copy_context().run, task) for task in tasks]  # NumPy keeps its error states there
    if "torch" not in sys.modules:
        if getattr(_plain, "inside", False):
            _in_turn(tasks)
        else:
            _run_plainly(tasks, threads)
        return
    from .team import Context, allowed, standing

    context = Context.current(WHO, "use LocalRuntime() there")
    if allowed() is not None:  # a task of a team that waits for its own threads would wait for ever
        _in_turn(tasks)
    else:
        standing(threads, 1, WHO, "use LocalRuntime()").run(tasks, context)


def _in_turn(tasks: Sequence[Callable[[], None]]) -> None:
    for task in tasks:
        task()


def _run_plainly(tasks: Sequence[Callable[[], None]], threads: int) -> None:
    """Without torch there is nothing to carry, and kernels take the threads of OpenMP's default."""

    def inside(task: Callable[[], None]) -> None:
        _plain.inside = True
        task()

    with ThreadPoolExecutor(threads, thread_name_prefix="pyparareal-block") as pool:
        if _trace.listener is not None:
            tasks = [_trace.carried(task) for task in tasks]
        futures = [pool.submit(inside, task) for task in tasks]
        with _trace.mark("threads", "wait"):
            wait(futures)
    for future in futures:
        future.result()


_plain = threading.local()


def checked_devices(devices: Any) -> list[str]:
    """Their names, "cpu" or "cuda:N".

    Raises
    ------
    TypeError, ValueError
        For what is no device, or not here, or of two kinds.
    """
    if isinstance(devices, str) or not isinstance(devices, Sequence):
        raise TypeError(f"devices: got {devices!r}, expected a sequence such as ['cuda:0', 'cuda:1']")
    if not devices:
        raise ValueError("devices: got none, expected at least one")
    names = [_checked(device) for device in devices]
    if len({name.partition(":")[0] for name in names}) > 1:
        raise ValueError(f"devices: got {', '.join(names)}, expected devices of one kind")
    return names


def _checked(device: Any) -> str:
    if not isinstance(device, str) and type(device).__name__ != "device":
        raise TypeError(f"devices: got {type(device).__name__} for a device, expected a str or a torch.device")
    kind, _, index = str(device).partition(":")
    if (kind, index) == ("cpu", ""):
        return kind
    if kind != "cuda" or not (index.isdecimal() or str(device) == "cuda"):
        raise ValueError(f"devices: got {str(device)!r}, expected 'cpu' or 'cuda:N'")
    torch: Any = sys.modules.get("torch")
    there = torch.cuda.device_count() if torch is not None else 0
    number = int(index) if index else (torch.cuda.current_device() if there else 0)
    if number >= there:
        found = f"torch finds {there}" if torch is not None else "torch is not imported"
        raise ValueError(f"devices: got {str(device)!r}, expected a CUDA device that is there: {found}")
    return f"cuda:{number}"


def _ends_of(shares: Any, entries: int) -> list[Fraction]:
    """Where the blocks of all entries end, in parts of the whole."""
    if shares is None:
        shares = [1] * entries
    if isinstance(shares, str) or not isinstance(shares, Sequence):
        raise TypeError(f"shares: got {shares!r}, expected a number for each of the {entries} devices")
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise TypeError(f"shares: got {share!r}, expected numbers")
        if not 0 < share < math.inf:
            raise ValueError(f"shares: got {share!r}, expected finite numbers above 0")
    if len(shares) != entries:
        raise ValueError(f"shares: got {len(shares)}, expected one for each of the {entries} devices")
    sums = list(itertools.accumulate(map(Fraction, shares)))
    return [one / sums[-1] for one in sums]


def _place_of(u: Array) -> str:
    return str(u.device) if arrays.is_torch(u) else "cpu" if isinstance(u, np.ndarray) else "cupy"


def _stays(phi: Any) -> bool:
    """Whether ``phi``, or what it wraps, is a step of a backward pass."""
    while phi is not None:
        if getattr(phi, "stays", False) is True:
            return True
        phi = getattr(phi, "phi", None)
    return False
