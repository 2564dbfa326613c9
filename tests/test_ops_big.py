# SPDX-License-Identifier: BSD-3-Clause
"""More than 2^31 elements in one call: index arithmetic is 64-bit. Inputs repeat one slice or one element."""

import os

import numpy as np
import pytest
from ops_backends import assert_same_bits

from pyparareal import ops, reference

pytestmark = pytest.mark.slow
FEATURES = 2**31 + 4099  # past every 32-bit index, with a ragged last chunk


def needs(gigabytes):
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if available < (gigabytes + 1) * 1e9:
        pytest.skip(f"needs {gigabytes + 1} GB of free memory, has {available / 1e9:.1f}")


def repeated(values, shape):
    return np.broadcast_to(np.asarray(values, np.float16), shape)


def test_parareal_update_and_c_relax():
    needs(4.3)
    shape = (1, FEATURES)
    f, g, h = (repeated(value, shape) for value in (0.5, 1.25, 0.75))
    out = np.empty(shape, np.float16)
    ops.parareal_update(f, g, h, out=out)
    assert (out[0, ::65_537] == 1.0).all()
    assert (out[0, -5000:] == 1.0).all()
    ops.c_relax(f, g, 0.5, out=out)
    assert (out[0, ::65_537] == 0.875).all()
    assert (out[0, -5000:] == 0.875).all()
    assert (out[0, 2**31 - 3 : 2**31 + 3] == 0.875).all()


def test_slice_norms_are_exact_counts():
    # Every term is 1 and every partial sum an integer below 2^53, so the norm is the number of elements.
    u = repeated(1.0, (2, FEATURES))
    assert ops.slice_norms(u).tolist() == [FEATURES, FEATURES]


def test_extract_and_inject_past_two_gigabytes():
    needs(4.4)
    slices, features = 2**20 + 5, 2**11
    u = np.zeros((slices, features), np.float16)
    v = repeated(3.0, (2, features))
    ops.inject(v, u, start=slices - 3, step=2)
    assert (u[-3::2] == 3).all()
    assert (u[-2] == 0).all()
    assert (u[:-3:4097] == 0).all()
    assert_same_bits(ops.extract(u, start=slices - 3, step=2), np.full((2, features), 3, np.float16))


def test_many_slices():
    needs(4.4)
    slices = 2**31 + 3
    base = np.zeros((1, 1), np.float16)
    u = np.broadcast_to(base, (slices, 1))
    picked = ops.extract(u, start=slices - 1, step=2**30)
    assert_same_bits(picked, reference.extract(u, start=slices - 1, step=2**30))
