# SPDX-License-Identifier: BSD-3-Clause
"""Run a captured call of an op again: the same numbers, at the same places in memory, as often as asked."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import _core, _timing, arrays, traced_ops
from ..cuda_slopes import CudaSlope
from .captured_files import ALIGNMENT, Block, Bytes, Captured, Place, digest, read
from .capturing import _pointer, _read, model_of, names_of, outputs_of

Array = Any


@dataclass
class Replay:
    """What came out.

    Attributes
    ----------
    captured : Captured
        The call.
    outputs : dict
        What the op wrote, by the name of the argument.
    same : dict
        For each output whether its bits are those of the capture.
    promised : bool
        Whether the op promises that here; tensor cores promise it only on the same model of device.
    samples : Samples, optional
        Seconds of a call with cold caches (:mod:`pyparareal._timing`).
    """

    captured: Captured
    outputs: dict[str, Array]
    same: dict[str, bool]
    promised: bool
    place: str
    samples: _timing.Samples | None = field(default=None)

    @property
    def ok(self) -> bool:
        """Not a bit differs that was promised."""
        return not self.promised or all(self.same.values())

    def __str__(self) -> str:
        lines = [f"{self.captured.op}, call {self.captured.call} of {self.captured.device}, again on {self.place}"]
        differs = "NOT the bits of the capture" if self.promised else "other bits, as it may on another device"
        for name, same in self.same.items():
            shape = tuple(self.outputs[name].shape)
            lines.append(f"  {name} {list(shape)}: {'the bits of the capture' if same else differs}")
        if self.samples is not None:
            low, high = self.samples.min, self.samples.quantile(0.9)
            middle = f"{self.samples.median * 1e6:.1f} us a call"
            lines.append(f"  {middle} (median of {len(self.samples.seconds)}; {low * 1e6:.1f} to {high * 1e6:.1f})")
        return "\n".join(lines)


def replay(
    path: str | Path, *, device: str | None = None, repeats: int | None = None, library: str | None = None
) -> Replay:
    """Run the call in a file of :func:`.capture` again, and compare what it writes with what it wrote then.

    ``nsys profile`` and ``ncu`` see one kernel, or a few, instead of a whole program::

        nsys profile --stats=true python -m pyparareal.profiling.replay relax_gru.0.npz --device cuda --repeats 10
        ncu --set full --kernel-name regex:relax python -m pyparareal.profiling.replay relax_gru.0.npz --device cuda

    Parameters
    ----------
    path : path
    device : str, optional
        "cpu", "cuda" or "cuda:1"; default: the kind of device it was captured on.
    repeats : int, optional
        Take so many times, with cold caches, after the call whose bits are compared. None: take none.
    library : {"numpy", "torch", "cupy"}, optional
        Of the arrays; default: that of the capture where it is installed and reaches the device.

    Raises
    ------
    ValueError
        The file is damaged, of another format, or of an op that takes other arguments now; the library does not reach
        the device, or has no such arrays: torch has no negative strides.
    ImportError
        A library that is not installed; for a right-hand side in CUDA C++, CuPy.
    """
    captured, contents = read(path)
    names = names_of(traced_ops.plain(captured.op)) if captured.op in traced_ops.FORMS else []
    if list(captured.arguments) != names:
        raise ValueError(f"{path}: op: got {captured.op} of version {captured.version}, which is another one now")
    if repeats is not None and (isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1):
        raise ValueError(f"repeats: got {repeats!r}, expected an int of at least 1, or None")
    device = captured.device if device is None else device
    memory = _memory(_library(captured, device, library), device)
    held = [memory.block(block, contents.get(i)) for i, block in enumerate(captured.blocks)]
    given = {
        name: memory.array(held, one) if isinstance(one, Place) else _tuples(one)
        for name, one in captured.arguments.items()
    }
    written = {name for name in outputs_of(captured.op) if isinstance(captured.arguments.get(name), Place)}
    for one in captured.outputs:
        if one.name not in list(written):
            raise ValueError(f"{path}: damaged: outputs: got {one.name!r}, expected one of {sorted(written)}")
    run = _runner(captured.op, given)
    try:
        run()
    except TypeError as error:  # of an argument that no capture has
        raise ValueError(f"{path}: damaged: {captured.op} refuses it: {error}") from error
    outputs = {name: given[name] for name in captured.arguments if name in written}
    same = {
        one.name: one.digest == _digest(outputs[one.name], captured.arguments[one.name]) for one in captured.outputs
    }
    example = next(one for one in given.values() if hasattr(one, "dtype"))
    promised = captured.exact or model_of(None if arrays.on_cpu(example) else example) == captured.model
    found = Replay(captured, outputs, same, promised, f"{device} by {memory.name}")
    if repeats is not None:
        changed = {captured.arguments[name].block for name in written} & set(contents)
        again = (lambda: [memory.fill(held[i], contents[i]) for i in changed]) if changed else None
        kind = "cpu" if device == "cpu" else "cuda"
        found.samples = _timing.measure(run, device=kind, repeats=repeats, warmup=0, setup=again)
    return found


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def _runner(op: str, given: dict[str, Any]) -> Callable[[], None]:
    if op == "relax_rk" and isinstance(given["rhs"], dict):
        rhs = given["rhs"]
        slope = CudaSlope(rhs["cuda"], rhs["components"], rhs["parameters"])
        some = [one for name, one in given.items() if name not in ("rhs", "threads")]
        return lambda: slope.relax(*some)
    call, arguments = getattr(_core, op), tuple(given.values())
    return lambda: call(*arguments)


def _digest(array: Array, place: Place) -> str:
    if place.block is None:
        return digest(np.empty(0, np.uint8), place)
    low = _pointer(array)[0] + sum(min(0, (n - 1) * s) for n, s in zip(place.shape, place.strides, strict=True))
    high = _pointer(array)[0] + sum(max(0, (n - 1) * s) for n, s in zip(place.shape, place.strides, strict=True))
    content = _read(array, low, high + array.dtype.itemsize - low)
    return digest(content, Place(0, _pointer(array)[0] - low, place.shape, place.strides, place.dtype))


def _library(captured: Captured, device: str, library: str | None) -> str:
    if device != "cpu" and device != "cuda" and not (device.startswith("cuda:") and device[5:].isdecimal()):
        raise ValueError(f"device: got {device!r}, expected 'cpu', 'cuda' or 'cuda:<number>'")
    reaching = ("numpy", "torch") if device == "cpu" else ("torch", "cupy")
    if library is not None:
        if library not in ("numpy", "torch", "cupy"):
            raise ValueError(f"library: got {library!r}, expected numpy, torch or cupy")
        if library not in reaching:
            raise ValueError(f"library: got {library!r}, expected {' or '.join(reaching)} for device={device!r}")
        return library
    first = sorted(reaching, key=lambda name: name != captured.library)
    there = [name for name in first if importlib.util.find_spec(name) is not None]
    if not there:
        raise ImportError(f"device={device!r} needs {' or '.join(reaching)}, and none is installed")
    return there[0]


def _memory(name: str, device: str) -> _NumPy | _Torch | _CuPy:
    if name == "numpy":
        return _NumPy()
    module = importlib.import_module(name)
    return _Torch(module, device) if name == "torch" else _CuPy(module, device)


class _NumPy:
    """Blocks of memory, and arrays in them."""

    name = "numpy"

    def block(self, block: Block, content: Bytes | None) -> Any:
        whole = np.zeros(block.nbytes + ALIGNMENT, np.uint8)
        first = (block.alignment - whole.ctypes.data) % ALIGNMENT
        held = whole[first : first + block.nbytes]
        if content is not None:
            self.fill(held, content)
        return held

    def fill(self, held: Any, content: Bytes) -> None:
        held[:] = content

    def array(self, held: list[Any], place: Place) -> Array:
        dtype = _numpy_dtype(place.dtype)
        if place.block is None:
            return np.empty(place.shape, dtype)
        return np.ndarray(place.shape, dtype, held[place.block].data, place.offset, place.strides)


class _Torch:
    name = "torch"

    def __init__(self, torch: Any, device: str) -> None:
        self.torch, self.device = torch, device
        if device != "cpu" and not torch.cuda.is_available():
            raise ValueError(f"device: got {device!r}, but torch sees no GPU")

    def block(self, block: Block, content: Bytes | None) -> Any:
        whole = self.torch.zeros(block.nbytes + ALIGNMENT, dtype=self.torch.uint8, device=self.device)
        first = (block.alignment - whole.data_ptr()) % ALIGNMENT
        held = whole[first : first + block.nbytes]
        if content is not None:
            self.fill(held, content)
        return held

    def fill(self, held: Any, content: Bytes) -> None:
        held.copy_(self.torch.from_numpy(content.copy()))

    def array(self, held: list[Any], place: Place) -> Array:
        dtype = getattr(self.torch, place.dtype)
        if place.block is None:
            return self.torch.empty(place.shape, dtype=dtype, device=self.device)
        if any(stride < 0 for stride in place.strides):
            raise ValueError("library: got 'torch', which has no negative strides as of this call; expected another")
        storage, item = held[place.block].untyped_storage(), dtype.itemsize
        first = held[place.block].storage_offset() + place.offset
        flat = self.torch.empty(0, dtype=dtype, device=self.device)
        return flat.set_(storage, first // item, place.shape, [stride // item for stride in place.strides])


class _CuPy:
    name = "cupy"

    def __init__(self, cupy: Any, device: str) -> None:
        self.cupy = cupy
        self.place = cupy.cuda.Device(int(device.partition(":")[2] or 0))

    def block(self, block: Block, content: Bytes | None) -> Any:
        with self.place:
            whole = self.cupy.zeros(block.nbytes + ALIGNMENT, np.uint8)
        first = (block.alignment - whole.data.ptr) % ALIGNMENT
        held = whole[first : first + block.nbytes]
        if content is not None:
            self.fill(held, content)
        return held

    def fill(self, held: Any, content: Bytes) -> None:
        with self.place:
            held.set(np.ascontiguousarray(content))

    def array(self, held: list[Any], place: Place) -> Array:
        dtype = _numpy_dtype(place.dtype)
        with self.place:
            if place.block is None:
                return self.cupy.empty(place.shape, dtype)
            memory = held[place.block].data + place.offset
            return self.cupy.ndarray(tuple(place.shape), dtype, memory, strides=tuple(place.strides))


def _numpy_dtype(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    try:
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        raise ImportError("bfloat16 arrays of NumPy need ml_dtypes; library='torch' does without") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m pyparareal.profiling.replay FILE ...``; 1 if bits differ that were promised."""
    parser = argparse.ArgumentParser(
        prog="python -m pyparareal.profiling.replay", description="Run a captured op again."
    )
    parser.add_argument("file", nargs="+", help="what pyparareal.profiling.capture wrote")
    parser.add_argument("--device", help="cpu, cuda or cuda:<number>; default: as captured")
    parser.add_argument("--library", choices=("numpy", "torch", "cupy"), help="of the arrays; default: as captured")
    parser.add_argument("--repeats", type=int, help="take so many times with cold caches")
    asked = parser.parse_args(arguments)
    differs = False
    for path in asked.file:
        try:
            found = replay(path, device=asked.device, repeats=asked.repeats, library=asked.library)
        except (OSError, ValueError, ImportError) as error:
            parser.error(str(error))
        print(found)
        differs |= not found.ok
    return int(differs)
