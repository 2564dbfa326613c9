# SPDX-License-Identifier: BSD-3-Clause
"""The digest of what an op wrote: every bit counts, but for those of a NaN, the processor's. And its memory."""

import numpy as np
import pytest

from pyparareal import ops
from pyparareal.profiling import capture, capturing, replay
from pyparareal.profiling.captured_files import Place, digest, read

# Unsigned integers as wide, the bits of infinity, and the first bit of the mantissa.
FORMATS = {
    "float64": (np.uint64, 0x7FF0 << 48, 1 << 51),
    "float32": (np.uint32, 0x7F80 << 16, 1 << 22),
    "float16": (np.uint16, 0x7C00, 1 << 9),
    "bfloat16": (np.uint16, 0x7F80, 1 << 6),
}


def told(dtype, bits, shape=(1,), strides=None):
    kind = FORMATS[dtype][0]
    strides = [kind().itemsize] if strides is None else strides
    return digest(np.array(bits, kind).view(np.uint8), Place(0, 0, list(shape), strides, dtype))


@pytest.mark.parametrize("dtype", FORMATS)
def test_all_numbers_differ_and_every_nan_is_the_same(dtype):
    kind, infinity, half = FORMATS[dtype]
    sign = 1 << 8 * kind().itemsize - 1
    numbers = [0, sign, 1, infinity, infinity | sign, infinity - 1]  # -0, the smallest, the largest
    nans = [infinity | 1, infinity | sign | 5, infinity | half, infinity | sign | half | 1]
    digests = [told(dtype, [one]) for one in numbers]
    assert len(set(digests)) == len(numbers)
    (nan,) = {told(dtype, [one]) for one in nans}
    assert nan not in digests


def test_elements_count_and_where_they_lie_does_not():
    whole = told("float32", [1, 2, 3], (3,))
    assert told("float32", [1, 9, 2, 9, 3], (3,), [8]) == whole
    assert told("float32", [1, 3, 2], (3,)) != whole
    assert told("float32", [1, 2, 3], (3, 1), [4, 4]) != whole


def test_memory_of_a_device_is_read_through_its_storage(tmp_path, monkeypatch):
    """The way that tensors on a GPU take, on tensors of the host: no address is read."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(capturing.arrays, "on_cpu", lambda _: False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    whole = torch.arange(200, dtype=torch.float32).reshape(10, 4, 5)
    u = whole[1::2, 1:, 2:]
    with capture("slice_norms", tmp_path) as captured:
        ops.slice_norms(u, u)
    saved, contents = read(captured.paths[0])
    assert (saved.device, saved.model, saved.library) == ("cuda", "a GPU", "torch")
    place = saved.arguments["u"]
    got = np.ndarray(place.shape, place.dtype, contents[place.block].data, place.offset, place.strides)
    np.testing.assert_array_equal(got, u.numpy())
    monkeypatch.undo()
    assert replay(captured.paths[0], device="cpu").ok
