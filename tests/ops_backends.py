# SPDX-License-Identifier: BSD-3-Clause
"""The array libraries the kernel tests run on, memory layouts, and comparison of bits."""

from __future__ import annotations

import contextlib
import importlib

import ml_dtypes
import numpy as np
import pytest

from pyparareal import _core

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype("float64"), np.dtype("float32"), np.dtype("float16"), BFLOAT16)
BITS = {8: np.int64, 4: np.int32, 2: np.int16}
SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-320, 1e-40, 6e-8, 6e4, 3e38, 1e300)


class NumPyBackend:
    name = "numpy"
    negative_strides = True

    def like(self, view):
        """The array ``view`` of this library: same values, strides and dtype; its base is copied whole."""
        base, offset = base_of(view)
        return np.ndarray(view.shape, view.dtype, base.copy().view(np.uint8), offset, view.strides)

    def to_numpy(self, u):
        return u


class TorchBackend:
    negative_strides = False

    def __init__(self, device):
        self.name = f"torch-{device}"
        self.device = device

    def like(self, view):
        import torch

        base, offset = base_of(view)
        item = view.itemsize
        flat = torch.from_numpy(base.copy().view(BITS[item])).to(self.device).view(getattr(torch, view.dtype.name))
        return flat.as_strided(view.shape, [s // item for s in view.strides], offset // item)

    def to_numpy(self, u):
        import torch

        dtype = BFLOAT16 if u.dtype == torch.bfloat16 else np.dtype(str(u.dtype).split(".")[1])
        bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[u.element_size()]
        return u.cpu().contiguous().view(bits).numpy().view(dtype)


class CuPyBackend:
    name = "cupy"
    negative_strides = True

    def like(self, view):
        import cupy

        base, offset = base_of(view)
        buffer = cupy.asarray(base.view(np.uint8))
        return cupy.ndarray(view.shape, view.dtype, buffer.data + offset, strides=view.strides)

    def to_numpy(self, u):
        return u.get()


def lacks(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return True
    return False


def _backends():
    missing = {name: pytest.mark.skip(reason=f"{name} is not installed") for name in ("torch", "cupy") if lacks(name)}
    yield pytest.param(NumPyBackend(), id="numpy")
    yield pytest.param(TorchBackend("cpu"), id="torch-cpu", marks=[missing["torch"]] if "torch" in missing else [])
    for backend, library in ((TorchBackend("cuda"), "torch"), (CuPyBackend(), "cupy")):
        marks = [pytest.mark.gpu, *([missing[library]] if library in missing else [])]
        yield pytest.param(backend, id=backend.name, marks=marks)


BACKENDS = list(_backends())
on_every_backend = pytest.mark.parametrize("backend", BACKENDS)


def base_of(view):
    """The flat buffer ``view`` was arranged in, and the byte offset of its first element there."""
    base = view
    while isinstance(base.base, np.ndarray):
        base = base.base
    start = np.lib.array_utils.byte_bounds(base)[0]
    return base.reshape(-1), view.__array_interface__["data"][0] - start


# Each takes C-contiguous values to a view with the same values (or their repetition) in a larger buffer
# filled with `filler`, so that a write beside the view is seen.
def _into(shape, index, values, filler=7.0):
    base = np.full(shape, filler, values.dtype)
    base[index] = values
    return base[index]


def _transposed(values):
    return np.ascontiguousarray(values.T).copy().T


LAYOUTS = {
    "contiguous": lambda v: v.copy(),
    "wide": lambda v: _into((*v.shape[:-1], v.shape[-1] + 3), (..., slice(1, 1 + v.shape[-1])), v),
    "every other slice": lambda v: _into((2 * v.shape[0], *v.shape[1:]), slice(None, None, 2), v),
    "every third feature": lambda v: _into((*v.shape[:-1], 3 * v.shape[-1]), (..., slice(None, None, 3)), v),
    "transposed": _transposed,
}
BACKWARD = {
    "slices backward": lambda v: v[::-1].copy()[::-1],
    "features backward": lambda v: v[..., ::-1].copy()[..., ::-1],
}
REPEATED = {
    "one slice repeated": lambda v: np.broadcast_to(v[:1].copy(), v.shape),
    "one feature repeated": lambda v: np.broadcast_to(v[..., :1].copy(), v.shape),
}


def arrange(values, layout):
    """``values`` in a memory layout of one of the three tables."""
    if 0 in values.shape:
        return values.copy()
    return (LAYOUTS | BACKWARD | REPEATED)[layout](values)


def random_state(rng, shape, dtype, special=0.0):
    """Values over several magnitudes; a share ``special`` of them NaN, infinite, signed zeros, subnormal or huge."""
    values = rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape)
    if special:
        values = np.where(rng.random(shape) < special, rng.choice(SPECIAL, shape), values)
    with np.errstate(all="ignore"):
        return values.astype(dtype)


def assert_same_bits(got, expected):
    """Equal dtype, shape and bits. NaN equals NaN: the sign and payload of a computed NaN are the processor's."""
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    bits = BITS[got.dtype.itemsize]
    same = np.ascontiguousarray(got).view(bits) == np.ascontiguousarray(expected).view(bits)
    both_nan = np.isnan(got.astype(np.float64)) & np.isnan(expected.astype(np.float64))
    wrong = ~(same | both_nan)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} differ, first at {np.argwhere(wrong)[0]}"


@contextlib.contextmanager
def simd(name):
    """The CPU kernels of one instruction set; a skip where this processor lacks it."""
    try:
        _core.select_simd(name)
    except ValueError:
        pytest.skip(f"this processor or build has no {name} kernels")
    try:
        yield
    finally:
        _core.select_simd("best")
