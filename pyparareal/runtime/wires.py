# SPDX-License-Identifier: BSD-3-Clause
"""What carries states from rank to rank, bit for bit: gloo through host memory, or NCCL from device to device.

===========  ==========================================================================================================
``"host"``   bytes through gloo; those of a GPU through pinned memory. For states of any library that is known here
``"nccl"``   bytes of CUDA tensors through a group of NCCL of our own, ordered with the current stream
===========  ==========================================================================================================

A wire raises ``RuntimeError`` where a message is lost or late; :class:`.Ranks` says which and why.

Not verified: NCCL between several GPUs. :class:`NcclWire` is tested against a stand-in that records its calls.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Protocol

import numpy as np

from .. import _trace, arrays

Array = Any

CHOICES = ("auto", "host", "nccl")
# NCCL's watchdog ends the process when an operation is late, unless it is told not to (0). A wait then raises for an
# error that NCCL has found, if waits are blocking (1). ProcessGroupNCCL reads both when it is made, and nowhere else.
ENVIRONMENT = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_BLOCKING_WAIT": "1"}
EVERY, PAUSE = 0.1, 2e-5  # seconds between two looks at whether another rank failed, and at whether a message is there


class Sent(Protocol):
    """A message under way; it keeps its bytes alive."""

    def wait(self) -> None:
        """Until it has left."""
        ...


class Wire(Protocol):
    """Messages between the ranks of one group; every call has the limit of the group."""

    def send(self, u: Array, to: int) -> Sent:
        """A copy of ``u``, on its way to rank ``to``."""
        ...

    def expect(self, u: Array, source: int) -> Sent:
        """Ask for what rank ``source`` sends; it is in ``u`` after the wait."""
        ...

    def receive(self, u: Array, source: int) -> None:
        """What rank ``source`` sent, into ``u``."""
        ...

    def broadcast(self, u: Array, source: int) -> None:
        """``u`` of rank ``source``, into that of all others."""
        ...

    def close(self) -> None:
        """Give up: whoever waits here stops waiting."""
        ...


class HostWire:
    """Bytes in host memory, through ``group`` (gloo) of which this process is number ``rank``."""

    def __init__(self, group: Any, rank: int) -> None:
        self._group, self._rank = group, rank

    def send(self, u: Array, to: int) -> Sent:
        data = to_bytes(u)
        return _Sent(self._group.send([data], to, 0), data)

    def expect(self, u: Array, source: int) -> Sent:
        data = _room_for(u)
        return _Expected(self._group.recv([data], source, 0), data, u)

    def receive(self, u: Array, source: int) -> None:
        self.expect(u, source).wait()

    def broadcast(self, u: Array, source: int) -> None:
        data = to_bytes(u) if source == self._rank else _room_for(u)
        self._group.broadcast(data, source).wait()
        if source != self._rank:
            from_bytes(u, data)

    def close(self) -> None:
        self._group = None  # and with it the connections


class NcclWire:
    """CUDA tensors from device to device, through ``group`` (NCCL) of which this process is number ``rank``.

    NCCL takes a message when the work of the current stream before it is done, and the current stream goes on when it
    is there. The host waits too, as it does with gloo: only so can it see that another rank failed.

    Parameters
    ----------
    limit : float
        Seconds that a message may take.
    failed : callable
        Whether another rank has said that it failed.
    """

    def __init__(self, group: Any, rank: int, limit: float, failed: Callable[[], bool]) -> None:
        self._group, self._rank, self._limit, self._failed = group, rank, limit, failed

    def send(self, u: Array, to: int) -> Sent:
        data = _device_bytes(u)
        return _Sent(self._group.send([data], to, 0), data, self._wait)

    def expect(self, u: Array, source: int) -> Sent:
        data = _device_room(u)
        return _Expected(self._group.recv([data], source, 0), data, u, self._wait)

    def receive(self, u: Array, source: int) -> None:
        self.expect(u, source).wait()

    def broadcast(self, u: Array, source: int) -> None:
        data = _device_bytes(u) if source == self._rank else _device_room(u)
        self._wait(self._group.broadcast(data, source))
        if source != self._rank:
            from_bytes(u, data)

    def close(self) -> None:
        group, self._group = self._group, None
        if group is not None and hasattr(group, "abort"):
            with contextlib.suppress(RuntimeError):  # it may have been aborted by NCCL already
                group.abort()

    def _wait(self, work: Any) -> None:
        begin = asked = time.monotonic()
        while not work.is_completed():
            now = time.monotonic()
            if now - begin > self._limit:
                raise RuntimeError(f"NCCL: nothing came within {self._limit:g} s")
            if now - asked > EVERY:
                asked = now
                if self._failed():
                    raise RuntimeError("NCCL: another rank failed")
            time.sleep(PAUSE)
        work.wait()  # the current stream waits from here on; raises what NCCL found


class _Sent:
    def __init__(self, work: Any, data: Any, wait: Callable[[Any], None] | None = None) -> None:
        self._work, self._data, self._wait = work, data, wait

    def wait(self) -> None:
        if self._wait is None:
            self._work.wait()
        else:
            self._wait(self._work)
        self._data = None


class _Expected(_Sent):
    def __init__(self, work: Any, data: Any, u: Array, wait: Callable[[Any], None] | None = None) -> None:
        super().__init__(work, data, wait)
        self._u = u

    def wait(self) -> None:
        data = self._data
        super().wait()
        from_bytes(self._u, data)


def nccl_group(store: Any, rank: int, size: int, limit: float) -> Any:
    """A group of NCCL for these ranks alone, which leaves errors to who waits. It connects when it is used."""
    dist: Any = sys.modules["torch"].distributed
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=limit)
    with _environment(ENVIRONMENT):
        return dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, size, options)


def choose(wire: str, group: Any) -> str:
    """``"host"`` or ``"nccl"`` for the caller's ``group``: NCCL, where that is what its CUDA tensors go by.

    Raises
    ------
    ValueError
        For an unknown ``wire``, or ``"nccl"`` for a group without it.
    """
    if wire not in CHOICES:
        raise ValueError(f"wire: got {wire!r}, expected one of {', '.join(map(repr, CHOICES))}")
    config = str(sys.modules["torch"].distributed.get_backend_config(group))
    if "cuda:nccl" in config.split(","):
        return "host" if wire == "host" else "nccl"
    if wire == "nccl":
        raise ValueError(f"wire: got 'nccl' for a group with {config}, expected one with cuda:nccl")
    return "host"


def travels_by_nccl(u: Array) -> bool:
    """Whether ``u`` can go from device to device."""
    return arrays.is_torch(u) and bool(u.is_cuda)


def to_bytes(u: Array) -> Any:
    """The states ``u`` as a torch tensor of bytes in host memory, a copy."""
    torch: Any = sys.modules["torch"]
    if isinstance(u, np.ndarray):
        return torch.from_numpy(np.frombuffer(u.tobytes(), np.uint8).copy()) if u.size else torch.empty(0)
    flat = u.detach().contiguous().reshape(-1).view(torch.uint8)
    data = torch.empty(flat.shape, dtype=torch.uint8, pin_memory=u.is_cuda)
    with _copying(u, "to the host"):
        return data.copy_(flat)


def from_bytes(u: Array, data: Any) -> None:
    """The states that :func:`to_bytes` took, into ``u``."""
    if not len(data):
        return
    if isinstance(u, np.ndarray):
        u[...] = np.frombuffer(data.numpy(), u.dtype).reshape(u.shape)
    else:
        with _copying(u, "from the host"):
            u.copy_(data.view(u.dtype).reshape(u.shape))


def _copying(u: Any, name: str) -> contextlib.AbstractContextManager[None]:
    """A copy for a timeline, of a tensor on a device; the host waits for it."""
    if _trace.listener is None or not u.is_cuda:
        return _trace.NOTHING
    return _trace.mark(name, "copy", {"bytes": u.nbytes})


def _room_for(u: Array) -> Any:
    """Uninitialised host memory for the bytes of ``u``."""
    torch: Any = sys.modules["torch"]
    return torch.empty(u.nbytes, dtype=torch.uint8, pin_memory=travels_by_nccl(u))


def _device_bytes(u: Array) -> Any:
    """A copy on the device: who sent ``u`` may write to it at once."""
    torch: Any = sys.modules["torch"]
    return u.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def _device_room(u: Array) -> Any:
    torch: Any = sys.modules["torch"]
    return torch.empty(u.nbytes, dtype=torch.uint8, device=u.device)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
