# SPDX-License-Identifier: BSD-3-Clause
"""The small adapter of array libraries: made and read alike, nothing imported that was not loaded."""

import subprocess
import sys

import numpy as np
import pytest
from ops_backends import DTYPES, assert_same_bits, on_every_backend

from pyparareal import arrays


@on_every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_like_keeps_library_dtype_and_device(backend, dtype):
    u = backend.like(np.ones((3, 2, 5), dtype).transpose(0, 2, 1))
    for slices in (None, 0, 7):
        v = arrays.empty_like(u, slices)
        assert type(v) is type(u)
        assert v.dtype == u.dtype
        assert tuple(v.shape) == (3 if slices is None else slices, 5, 2)
        assert getattr(v, "device", None) == getattr(u, "device", None)
        assert backend.to_numpy(v).flags.c_contiguous
    norms = arrays.empty(u, (3,), "float64")
    assert type(norms) is type(u)
    assert backend.to_numpy(norms).dtype == np.float64


@on_every_backend
def test_to_numpy_has_the_values(backend):
    u = np.arange(12.0).reshape(3, 4)
    assert_same_bits(arrays.to_numpy(backend.like(u[::2])), u[::2])


def test_to_numpy_detaches():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert arrays.to_numpy(torch.ones(2, requires_grad=True)).tolist() == [1.0, 1.0]


def test_namespace():
    assert arrays.namespace(np.ones(1)) is np
    torch = pytest.importorskip("torch", reason="torch is not installed")
    assert arrays.namespace(torch.ones(1)) is torch
    assert arrays.is_torch(torch.ones(1))
    assert not arrays.is_torch(np.ones(1))


@pytest.mark.parametrize("bad", [[1.0], 1.0, None])
def test_no_array(bad):
    with pytest.raises(TypeError, match=f"got {type(bad).__name__}, expected a NumPy, CuPy or torch array"):
        arrays.namespace(bad)


def test_scratch_needs_a_library():
    code = "from pyparareal import arrays; arrays.device_scratch(None, 8)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "TypeError: scratch on a CUDA device needs torch or CuPy" in run.stderr


def test_kernels_on_numpy_load_no_other_library():
    code = (
        "import sys, numpy as np, pyparareal.ops as ops; u = np.ones((2, 300_000)); ops.c_relax(u, u, 0.5); "
        "assert ops.slice_norms(u)[0] == 300_000; assert not {'torch', 'cupy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_an_array_read_later_is_the_array(library):
    module = pytest.importorskip(library)
    u = module.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(arrays.read_later(u)(), np.arange(6.0).reshape(2, 3))


@pytest.mark.gpu
@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_a_device_array_read_later_is_what_it_was_when_asked(library):
    module = pytest.importorskip(library)
    if library == "torch" and not module.cuda.is_available():
        pytest.skip("no CUDA device")
    place = {"device": "cuda"} if library == "torch" else {}
    u = module.ones((1 << 20,), dtype=module.float64, **place)
    read = arrays.read_later(u)
    u += 1  # on the same stream, after the copy
    np.testing.assert_array_equal(read(), np.ones(1 << 20))
    assert float(u[0]) == 2
