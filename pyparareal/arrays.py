# SPDX-License-Identifier: BSD-3-Clause
"""Array libraries behind one small face: NumPy, torch and CuPy arrays are created and read alike.

Nothing is imported here but NumPy: an array's own library is already loaded when its array arrives.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from . import _trace

Array = Any
"""A NumPy, torch or CuPy array (or, for the kernels, any object with ``__dlpack__``)."""


def namespace(u: Array) -> Any:
    """The module ``u`` comes from: ``numpy``, ``torch`` or ``cupy``.

    Raises
    ------
    TypeError
        If ``u`` is an array of another library (give ``out=`` to use it with the kernels) or no array.
    """
    if isinstance(u, np.ndarray):
        return np
    for name, kind in (("torch", "Tensor"), ("cupy", "ndarray")):
        module = sys.modules.get(name)
        if module is not None and isinstance(u, getattr(module, kind)):
            return module
    raise TypeError(
        f"got {type(u).__name__}, expected a NumPy, CuPy or torch array; arrays of other libraries need out= given"
    )


def is_torch(u: Array) -> bool:
    """True for a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(u, torch.Tensor)


def on_cpu(u: Array) -> bool:
    """Whether ``u`` is in host memory."""
    return u.device.type == "cpu" if is_torch(u) else namespace(u) is np


def empty(like: Array, shape: tuple[int, ...], dtype: str | None = None) -> Array:
    """An uninitialised contiguous array of ``shape``, of the library and on the device of ``like``.

    ``dtype`` is a name such as ``"float64"``; default: the dtype of ``like``.
    """
    module = namespace(like)
    kind = like.dtype if dtype is None else getattr(module, dtype)
    if module is np:
        return np.empty(shape, kind)
    if is_torch(like):
        return module.empty(shape, dtype=kind, device=like.device)
    with like.device:
        return module.empty(shape, kind)


def zeros(like: Array, shape: tuple[int, ...]) -> Array:
    """The same, filled with zeros."""
    u = empty(like, shape)
    u[...] = 0
    return u


def empty_like(u: Array, slices: int | None = None) -> Array:
    """An uninitialised contiguous array like ``u``, with another number of slices if given."""
    if slices is None and is_torch(u):  # half the host time of torch.empty with the same arguments spelled out
        torch = sys.modules["torch"]
        return torch.empty_like(u, memory_format=torch.contiguous_format)
    shape = tuple(u.shape)
    return empty(u, shape if slices is None else (slices, *shape[1:]))


class Pool:
    """Arrays of ``rows`` rows in total from one piece of memory: a large one comes in large pages, and sooner.

    What it has no room for, or is not like ``u``, gets memory of its own, and so does all that is not NumPy's.
    """

    def __init__(self, u: Array, rows: int) -> None:
        self._left = empty_like(u, slices=rows if isinstance(u, np.ndarray) else 0)

    def take(self, like: Array, rows: int) -> Array:
        """An uninitialised contiguous array of ``rows`` rows like those of ``like``."""
        left = self._left
        if rows > len(left) or (like.shape[1:], like.dtype) != (left.shape[1:], left.dtype):
            return empty_like(like, slices=rows)
        self._left = left[rows:]
        return left[:rows]


def to_numpy(u: Array) -> np.ndarray[Any, Any]:
    """``u`` as a NumPy array on the host. Waits for the device where there is one."""
    if isinstance(u, np.ndarray):
        return u
    if is_torch(u):
        with _waiting(u.is_cuda):
            return u.detach().cpu().numpy()
    with _waiting(True):
        return namespace(u).asnumpy(u)


def _waiting(for_device: bool) -> AbstractContextManager[None]:
    return _trace.mark("device", "wait") if for_device else _trace.NOTHING


def float64_like(values: np.ndarray[Any, Any], u: Array) -> Array:
    """``values`` as float64 in the library and on the device of ``u``."""
    if isinstance(u, np.ndarray):
        return values
    if is_torch(u):
        return sys.modules["torch"].as_tensor(np.ascontiguousarray(values), device=u.device)
    with u.device:
        return namespace(u).asarray(values)


def float64_copy(values: Array) -> Array:
    """``values`` as float64 in memory of its own, in the same library and place."""
    if is_torch(values):
        return values.detach().to(sys.modules["torch"].float64, copy=True)
    return values.astype(np.float64, copy=True)


def copy(u: Array) -> Array:
    """A contiguous copy."""
    v = empty_like(u)
    v[...] = u
    return v


def detached(u: Array) -> Array:
    """``u`` itself, for torch without its graph."""
    return u.detach() if is_torch(u) else u


def epsilon(u: Array) -> float:
    """The distance from 1 to the next larger number of the dtype of ``u``."""
    return float((namespace(u) if is_torch(u) else np).finfo(u.dtype).eps)


def windows(u: Array, points: slice, m: int, shift: int = 0) -> Array:
    """``v[n, j] = u[points[n] + j + shift]`` for ``j < m``: a view ``[points, m, batch, features...]``.

    Raises
    ------
    ValueError
        If a window ends beyond ``u``.
    """
    count, start = len(range(points.start, points.stop, points.step)), points.start + shift
    if count and start + (count - 1) * points.step + m > len(u):
        raise ValueError(f"points: got {points} with {m} rows each, expected windows inside the {len(u)} rows of u")
    if count == 1:
        return u[None, start : start + m]
    if points.step == m:
        return u[start : start + count * m].reshape(count, m, *u.shape[1:])
    shape = (count, m, *u.shape[1:])
    if is_torch(u):
        strides = (points.step * u.stride(0), *u.stride())
        return u.as_strided(shape, strides, u.storage_offset() + start * u.stride(0))
    strides = (points.step * u.strides[0], *u.strides)
    return namespace(u).lib.stride_tricks.as_strided(u[start:], shape, strides)


def read_later(u: Array) -> Callable[[], np.ndarray[Any, Any]]:
    """Start copying ``u`` to the host; the function returned waits for it. On the host there is nothing to wait for."""
    if isinstance(u, np.ndarray):
        return lambda: u
    if is_torch(u):
        torch = sys.modules["torch"]
        if not u.is_cuda:
            return lambda: to_numpy(u)
        pinned = torch.empty(u.shape, dtype=u.dtype, pin_memory=True)
        with torch.cuda.device(u.device):
            pinned.copy_(u.detach(), non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        return lambda: _after(copied, pinned.numpy())
    cupy = namespace(u)
    with u.device:
        memory = cupy.cuda.alloc_pinned_memory(max(1, u.nbytes))
        host = np.frombuffer(memory, u.dtype, u.size).reshape(u.shape)
        cupy.asnumpy(u, out=host, blocking=False)
        event = cupy.cuda.Event(disable_timing=True)
        event.record()
    return lambda: _after(event, host)


def _after(copied: Any, host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with _waiting(True):
        copied.synchronize()
    return host


def kernel_takes(u: Array) -> bool:
    """Whether the relaxation kernels may be used: 32 or 64 bits, and nothing that torch records or transforms."""
    if u.dtype.itemsize == 2:
        return False
    if not is_torch(u):
        return True
    torch = sys.modules["torch"]
    recorded = u.requires_grad and torch.is_grad_enabled()
    dual = torch.autograd.forward_ad._current_level >= 0
    return not (recorded or dual or torch._C._functorch.is_functorch_wrapped_tensor(u))


def device_scratch(like: Array, nbytes: int) -> Array:
    """``nbytes`` (a multiple of 8) of uninitialised scratch on the device of ``like``, as float64."""
    if sys.modules.get("torch") is None and sys.modules.get("cupy") is None:
        raise TypeError("scratch on a CUDA device needs torch or CuPy: import one of them")
    return empty(like, (nbytes // 8,), "float64")
