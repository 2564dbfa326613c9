# SPDX-License-Identifier: BSD-3-Clause
"""What the processes of a ``runtime=`` agree on outside of the solves; without one there is one process."""

from __future__ import annotations

import dataclasses
import platform
import zlib
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from .distributed import DistributedRuntime
from .ranks import Ranks

Array = Any
PART = 1 << 24  # bytes that are copied at a time


class Group:
    """The ranks of ``runtime``; for None one rank, which agrees with itself.

    Raises
    ------
    TypeError
        For anything else.
    """

    def __init__(self, runtime: Any) -> None:
        if runtime is not None and not isinstance(runtime, DistributedRuntime):
            raise TypeError(
                f"runtime: got {type(runtime).__name__}, expected what pyparareal.distributed() returns, or None"
            )
        self.runtime: DistributedRuntime | None = runtime

    def __bool__(self) -> bool:
        """Whether there are others to agree with, or a runtime that could have some."""
        return self.runtime is not None

    @property
    def rank(self) -> int:
        return 0 if self.runtime is None else self.runtime.rank

    @property
    def size(self) -> int:
        return 1 if self.runtime is None else self.runtime.size

    def together(self) -> AbstractContextManager[None]:
        """Around checks: an error of one rank before they agree is told to all there, and the runtime stays.

        One may be inside of another: to agree in there is to agree in both.
        """
        return nullcontext() if self.runtime is None else self.runtime.together()

    def failing(self) -> AbstractContextManager[Ranks | None]:
        """Around work for each other: an error of one rank is one of all, and the end of the runtime."""
        return nullcontext() if self.runtime is None else self.runtime.failing()

    def agree(self, asked: dict[str, Any]) -> None:
        """Refuse to go on with other ``asked`` than the other ranks."""
        if self.runtime is not None:
            self.runtime.ask(asked)
            self.runtime.agree()

    def told(self, message: Any, what: str) -> list[Any]:
        """What every rank says: anything that JSON can hold."""
        if self.runtime is None:
            return [message]
        with self.runtime.failing() as ranks:
            return ranks.texts(message, what)

    def any(self, answer: bool, what: str) -> bool:
        """Whether one of them says so."""
        return any(self.told(answer, what))

    def least(self, free: int, device: Any) -> int:
        """Of the bytes ``free`` on the ``device`` of every rank; those on the same one share them."""
        where = f"{platform.node()} {_hardware(device)}"
        everyone = self.told([where, free], "comparing what memory is free")
        places = [place for place, _ in everyone]
        return int(min(free // places.count(place) for place, free in everyone))


def checksum(tensors: Iterable[Array]) -> str:
    """Of shapes, dtypes and bits of torch tensors, to find different ones: CRC-32; on a GPU, of sums of 256 words."""
    import torch

    found = 0
    for tensor in tensors:
        found = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        data = tensor.detach().contiguous().reshape(-1)
        if not data.numel():
            continue
        data = data.view(dtype=torch.uint8)
        if data.is_cuda:
            data = torch.nn.functional.pad(data, (0, -len(data) % 2048)).view(dtype=torch.int64)
            data = data.view(-1, 256).sum(1).cpu()
        for part in data.split(PART):
            # Of a copy: torch never again resizes, as FSDP does, what NumPy has seen.
            found = zlib.crc32(memoryview(part.clone().numpy()), found)
    return f"{found:08x}"


def plain(value: Any) -> str:
    """``value`` as a text that processes can compare: options, but no addresses."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        options = (f"{field.name}={plain(getattr(value, field.name))}" for field in dataclasses.fields(value))
        return f"{type(value).__name__}({', '.join(options)})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(plain, value))}]"
    if value is None or isinstance(value, str | bool | int | float):
        return repr(value)
    return str(getattr(value, "__qualname__", type(value).__name__))


def _hardware(device: Any) -> str:
    """Every rank may call its own GPU ``cuda:0``."""
    if device.type != "cuda":
        return str(device.type)
    import torch

    return str(getattr(torch.cuda.get_device_properties(device), "uuid", device))
