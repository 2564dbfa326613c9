# SPDX-License-Identifier: BSD-3-Clause
"""Save what an op is really given, in the middle of a solve or of training."""

from __future__ import annotations

import ctypes
import operator
import platform
import re
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

import pyparareal

from .. import arrays, traced_ops
from ..cuda_slopes import CudaSlope
from ..nn.atomic_files import write_files
from .captured_files import ALIGNMENT, ITEMSIZE, Block, Bytes, Captured, Output, Place, digest, extent

Array = Any
OUTPUTS = frozenset(
    ("out", "jump", "every", "norms", "jacobians", "residuals", "updates", "d_start", "d_gates", "d_hidden")
)
_OF_OP = {"relax_dense": frozenset(("slopes",)), "inject": frozenset("u")}
IN_PLACE = frozenset(("inject",))  # ops that leave a part of their output as it was
_NAME = re.compile(r"[(,] ?(\w+): ")


def outputs_of(op: str) -> frozenset[str]:
    """The names of the arguments that ``op`` writes."""
    return OUTPUTS | _OF_OP.get(op, frozenset())


def names_of(call: Callable[..., Any]) -> list[str]:
    """Those of the arguments of a function of ``_core``, from its signature."""
    return _NAME.findall((call.__doc__ or "").partition(" -> ")[0])


def capture(op: str, folder: str | Path, *, calls: int | Iterable[int] = 0) -> Capture:
    """Save the arguments of the calls number ``calls`` of ``op`` in files of ``folder``: ``with capture(...): ...``.

    Parameters
    ----------
    op : str
        One of :mod:`pyparareal.ops`. However it is called, by a solve, a module or yourself, in any thread.
    folder : path
        Where ``op.<number>.npz`` is written, whole or not at all, one file for each call; made if need be.
    calls : int or iterable of int
        Which, from 0 in the order in which they begin.

    Returns
    -------
    Capture
        A context manager; ``paths`` are the files written so far, ``called`` is how often the op was called.

    Raises
    ------
    ValueError, TypeError
        An unknown op or number. At the end of the block, if the op was not called as often as asked. From the op, for
        arrays of another library than NumPy, torch and CuPy, and for a right-hand side of one's own as a C function,
        whose code cannot be saved; one in CUDA C++ is saved as its text.

    Notes
    -----
    The device is waited for before and after such a call; in a timeline that listens it takes as long as saving does.
    Calls while a CUDA graph is captured are neither counted nor
    saved: their arrays hold no values then.
    """
    if op not in traced_ops.FORMS:
        raise ValueError(f"op: got {op!r}, expected one of {', '.join(traced_ops.FORMS)}")
    numbers = [calls] if isinstance(calls, int) else list(calls)
    for one in numbers:
        if isinstance(one, bool) or not hasattr(one, "__index__"):
            raise TypeError(f"calls: got {one!r}, expected an int or several")
        if operator.index(one) < 0:
            raise ValueError(f"calls: got {one}, expected 0 or more")
    if not numbers:
        raise ValueError("calls: got none, expected at least one")
    return Capture(op, Path(folder), frozenset(map(operator.index, numbers)))


class Capture:
    """Made by :func:`capture`."""

    def __init__(self, op: str, folder: Path, calls: frozenset[int]) -> None:
        self.op, self.folder, self.calls = op, folder, calls
        self.paths: list[Path] = []
        self.called = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Capture:
        traced_ops.surround(self.op, self._around)
        if self.op == "relax_rk":
            self._relax = CudaSlope.relax
            CudaSlope.relax = lambda slope, *given: self._cuda(slope, *given)  # type: ignore[method-assign]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.op == "relax_rk":
            CudaSlope.relax = self._relax  # type: ignore[method-assign]
        traced_ops.leave_alone(self.op)
        missing = sorted(self.calls - set(range(self.called)))
        if missing and error is None:
            raise ValueError(f"calls: got {missing[0]}, but {self.op} was called {self.called} times")

    def _around(self, call: Callable[..., None], *arguments: Any) -> None:
        self._take(call, dict(zip(names_of(call), arguments, strict=True)), arguments)

    def _cuda(self, slope: CudaSlope, out: Array, u: Array, *given: Any) -> None:
        """As ``_core.relax_rk`` has it, with the text in the place of a code."""
        text = {"cuda": slope.text, "components": slope.components, "parameters": slope.parameters}
        names = names_of(traced_ops.plain("relax_rk"))
        named = dict(zip(names, (out, u, text, *given, 0), strict=True))
        self._take(partial(self._relax, slope), named, (out, u, *given))

    def _take(self, call: Callable[..., None], named: dict[str, Any], arguments: tuple[Any, ...]) -> None:
        if _graph_is_captured(arguments):
            call(*arguments)
            return
        with self._lock:
            number, self.called = self.called, self.called + 1
        if number not in self.calls:
            call(*arguments)
            return
        taken = _Taken(self.op, number, named)
        call(*arguments)
        name = f"{self.op}.{number}.npz"
        write_files(self.folder, {name: taken.finished()})
        self.paths.append(self.folder / name)


class _Taken:
    """The arguments of one call, as they are before it."""

    def __init__(self, op: str, number: int, named: dict[str, Any]) -> None:
        if op == "relax_rk" and isinstance(named["rhs"], tuple):
            raise TypeError(
                "rhs: got a right-hand side as a C function, whose code cannot be saved; capture a call with a name "
                "such as 'lorenz', or with a CudaSlope"
            )
        given = {name: one for name, one in named.items() if hasattr(one, "dtype") and not isinstance(one, np.generic)}
        self.library, self.device, self.model = _where(given)
        blocks, places = _blocks(given)
        self.arrays, self.places = given, places
        written = outputs_of(op)
        read = {places[name].block for name in given if op in IN_PLACE or name not in written}
        self.held = [
            (Block(high - low, low % ALIGNMENT, i in read), low, array) for i, (low, high, array) in enumerate(blocks)
        ]
        self.contents = {i: self._bytes(i) for i, (block, _, _) in enumerate(self.held) if block.kept}
        values = {name: places.get(name, one) for name, one in named.items()} | {"stream": None}
        outputs = [Output(name, "") for name in given if name in written]
        exact = not named.get("precision")
        self.captured = Captured(
            op, number, self.library, self.device, self.model, pyparareal.__version__, values,
            [block for block, _, _ in self.held], outputs, exact,
        )  # fmt: skip

    def _bytes(self, block: int) -> Bytes:
        held, low, array = self.held[block]
        return _read(array, low, held.nbytes)

    def finished(self) -> bytes:
        """The file, once the op has run."""
        after: dict[int, Bytes] = {}
        for output in self.captured.outputs:
            place = self.places[output.name]
            if place.block is not None and place.block not in after:
                after[place.block] = self._bytes(place.block)
            output.digest = digest(np.empty(0, np.uint8) if place.block is None else after[place.block], place)
        return self.captured.data(self.contents)


def _where(given: dict[str, Array]) -> tuple[str, str, str]:
    """Library, device and model of the arrays."""
    libraries = set()
    for name, one in given.items():
        try:
            libraries.add(arrays.namespace(one).__name__)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
    library = next(iter(libraries - {"numpy"}), "numpy")
    there = next((one for one in given.values() if not arrays.on_cpu(one)), None)
    return library, "cpu" if there is None else "cuda", model_of(there)


def model_of(array: Array) -> str:
    """The name of the device of ``array``, or of this processor for None."""
    if array is None:
        return platform.machine()
    if arrays.is_torch(array):
        return str(sys.modules["torch"].cuda.get_device_name(array.device))
    cupy = arrays.namespace(array)
    return str(cupy.cuda.runtime.getDeviceProperties(array.device.id)["name"].decode())


def _pointer(array: Array) -> tuple[int, list[int]]:
    """Address and strides, in bytes."""
    if isinstance(array, np.ndarray):
        return array.__array_interface__["data"][0], list(array.strides)
    if arrays.is_torch(array):
        return array.data_ptr(), [n * array.element_size() for n in array.stride()]
    return array.data.ptr, list(array.strides)


def _blocks(given: dict[str, Array]) -> tuple[list[tuple[int, int, Array]], dict[str, Place]]:
    """Runs of bytes that the arrays cover, each with the array that starts it, and where in them every array lies."""
    known = []
    places: dict[str, Place] = {}
    for name, array in given.items():
        dtype, shape = str(array.dtype).rpartition(".")[2], [int(n) for n in array.shape]
        start, strides = _pointer(array)
        if dtype not in ITEMSIZE:
            raise TypeError(f"{name}: got {dtype}, expected one of {', '.join(ITEMSIZE)}")
        places[name] = Place(None, 0, shape, strides, dtype)
        if 0 not in shape:
            known.append((*extent(start, shape, strides, ITEMSIZE[dtype]), name, start))
    blocks: list[tuple[int, int, Array]] = []
    for low, high, name, start in sorted(known):
        if blocks and low < blocks[-1][1]:
            blocks[-1] = blocks[-1][0], max(high, blocks[-1][1]), blocks[-1][2]
        else:
            blocks.append((low, high, given[name]))
        places[name].block, places[name].offset = len(blocks) - 1, start - blocks[-1][0]
    return blocks, places


def _read(array: Array, low: int, nbytes: int) -> Bytes:
    """A copy of the memory from the address ``low`` on, on the host; ``array`` lies there."""
    if arrays.on_cpu(array):
        return np.frombuffer(memoryview((ctypes.c_ubyte * nbytes).from_address(low)), np.uint8).copy()
    if arrays.is_torch(array):
        torch = sys.modules["torch"]
        torch.cuda.synchronize(array.device)
        storage = array.untyped_storage()
        flat = torch.empty(0, dtype=torch.uint8, device=array.device)
        return flat.set_(storage, low - storage.data_ptr(), (nbytes,)).cpu().numpy()
    cupy = arrays.namespace(array)
    with array.device:
        cupy.cuda.Device().synchronize()
        return cupy.ndarray((nbytes,), np.uint8, array.data + (low - array.data.ptr)).get()


def _graph_is_captured(given: Iterable[Any]) -> bool:
    """Whether work on the device of these arguments is recorded now, not done."""
    for one in given:
        module = type(one).__module__.partition(".")[0]
        if module == "cupy":
            return bool(sys.modules["cupy"].cuda.get_current_stream().is_capturing())
        if getattr(one, "is_cuda", False):
            return bool(sys.modules["torch"].cuda.is_current_stream_capturing())
    return False
