# SPDX-License-Identifier: BSD-3-Clause
"""One call of an op as a file: what it was given, as it lay in memory, and what came out of it.

A file is an ``.npz`` of NumPy alone. Arrays that share memory share a *block*, whose bytes are kept from the first to
the last that any of them reaches: strides, alignment and the aliasing of inputs and outputs come back as they were. A
block that is only written is not kept, only its size.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .columns import plain, restored

FORMAT = 1
ALIGNMENT = 256  # bytes: what allocators of CUDA devices promise; no kernel asks for more
Bytes = np.ndarray[Any, Any]
_BITS = {8: np.uint64, 4: np.uint32, 2: np.uint16}
# Of each dtype of floating point: the bits of infinity, and one NaN in the place of all.
_INFINITY = {
    "float64": 0x7FF0 << 48,
    "float32": 0x7F80 << 16,
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
}
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8}


@dataclass
class Block:
    """Bytes in memory, from an address that is ``alignment`` above a multiple of ``ALIGNMENT``."""

    nbytes: int
    alignment: int
    kept: bool


@dataclass
class Place:
    """An array: where in which block it starts, and how it goes on; all in bytes. Without elements it is in none."""

    block: int | None
    offset: int
    shape: list[int]
    strides: list[int]
    dtype: str


@dataclass
class Output:
    """What an op wrote, as a digest of its elements in order, in which every NaN is the same one."""

    name: str
    digest: str


@dataclass
class Captured:
    """One call.

    Attributes
    ----------
    op, call : str, int
        Which op, and which of its calls, from 0.
    library, device, model : str
        Of its arrays: "numpy", "torch" or "cupy"; "cpu" or "cuda"; the name of the processor.
    arguments : dict
        In the order of ``_core``: a :class:`Place` or a value; of a right-hand side in CUDA C++ its text.
    exact : bool
        Whether the op promises the same bits wherever it runs; else only on the same model.
    """

    op: str
    call: int
    library: str
    device: str
    model: str
    version: str
    arguments: dict[str, Any]
    blocks: list[Block]
    outputs: list[Output]
    exact: bool

    def data(self, contents: dict[int, Bytes]) -> bytes:
        """The file; ``contents`` are the bytes of the blocks that are kept."""
        about: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        about["arguments"] = {
            name: {"array": asdict(one)} if isinstance(one, Place) else {"value": plain(one, f"{self.op}: {name}")}
            for name, one in self.arguments.items()
        }
        text = np.frombuffer(json.dumps(about, allow_nan=False).encode(), np.uint8)
        file = io.BytesIO()
        entries: dict[str, Any] = {f"block{i}": content for i, content in contents.items()}
        np.savez(file, about=text, **entries)
        return file.getvalue()


def read(path: str | Path) -> tuple[Captured, dict[int, Bytes]]:
    """What :meth:`Captured.data` wrote: the call, and the bytes of the blocks that were kept.

    Raises
    ------
    ValueError
        It is damaged, of another format or no such file: names it and what is wrong.
    """
    path = Path(path)
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            entries = {name: file[name] for name in file.files}
        about = json.loads(entries.pop("about").tobytes())
    except (
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
        ValueError,
        EOFError,
        AttributeError,
        NotImplementedError,
    ) as error:
        raise ValueError(f"{path}: not a captured call, or damaged ({error})") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        got = about.get("format") if isinstance(about, dict) else about
        raise ValueError(f"{path}: format: got {got!r}, expected {FORMAT}, that of this version of pyparareal")
    try:
        captured = _captured(about)
        contents = {i: entries[f"block{i}"] for i, block in enumerate(captured.blocks) if block.kept}
        for i, content in contents.items():
            if content.dtype != np.uint8 or content.shape != (captured.blocks[i].nbytes,):
                raise ValueError(f"block{i}: got {content.dtype} {content.shape}")
        for name, one in captured.arguments.items():
            if isinstance(one, Place):
                _check(name, one, captured.blocks)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{path}: damaged: {type(error).__name__}: {error}") from None
    return captured, contents


def _captured(about: dict[str, Any]) -> Captured:
    about = {one.name: about[one.name] for one in fields(Captured)}
    about["blocks"] = [Block(**one) for one in about["blocks"]]
    about["outputs"] = [Output(**one) for one in about["outputs"]]
    about["arguments"] = {
        name: Place(**one["array"]) if "array" in one else restored(one["value"])
        for name, one in about["arguments"].items()
    }
    for name in ("op", "library", "device", "model", "version"):
        if not isinstance(about[name], str):
            raise ValueError(f"{name}: got {about[name]!r}, expected a text")
    for i, block in enumerate(about["blocks"]):
        if type(block.nbytes) is not int or type(block.alignment) is not int:
            raise ValueError(f"block{i}: got {block}, expected whole numbers")
    return Captured(**about)


def _check(name: str, place: Place, blocks: list[Block]) -> None:
    """ValueError unless the array lies in its block: what is read from a file must not lead outside."""
    whole = all(type(n) is int for n in (place.offset, *place.shape, *place.strides))
    if not whole or any(n < 0 for n in place.shape) or len(place.shape) != len(place.strides):
        raise ValueError(f"{name}: got shape {place.shape} with strides {place.strides}")
    if place.block is None:
        if 0 not in place.shape:
            raise ValueError(f"{name}: in no block")
        return
    low, high = extent(place.offset, place.shape, place.strides, ITEMSIZE[place.dtype])
    if not 0 <= low <= high <= blocks[place.block].nbytes:
        raise ValueError(f"{name}: bytes {low} to {high} of a block of {blocks[place.block].nbytes}")


def extent(start: int, shape: list[int], strides: list[int], itemsize: int) -> tuple[int, int]:
    """The first byte of an array that starts there, and the one after its last."""
    reach = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True)]
    return start + sum(r for r in reach if r < 0), start + sum(r for r in reach if r > 0) + itemsize


def digest(content: Bytes, place: Place) -> str:
    """Of the elements of the array ``place``, in a block of this ``content``."""
    kind = _BITS[ITEMSIZE[place.dtype]]
    if place.block is None:
        bits = np.empty(place.shape, kind)
    else:
        bits = np.ndarray(place.shape, kind, content.data, place.offset, place.strides).copy()
    if place.dtype in _INFINITY:
        infinity = kind(_INFINITY[place.dtype])
        unsigned = bits & (kind(np.iinfo(kind).max) >> kind(1))
        bits[unsigned > infinity] = infinity | kind(1)  # sign and payload of a computed NaN are the processor's
    head = json.dumps([place.dtype, place.shape]).encode()
    return hashlib.blake2b(head + bits.tobytes(), digest_size=16).hexdigest()
