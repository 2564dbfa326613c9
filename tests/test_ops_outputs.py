# SPDX-License-Identifier: BSD-3-Clause
"""Which outputs are refused: read-only, repeating, partially overlapping; and which shared memory is allowed."""

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from ops_backends import assert_same_bits, on_every_backend, random_state

from pyparareal import ops, reference


def states(count, shape=(4, 6), seed=1):
    rng = np.random.default_rng(seed)
    return [random_state(rng, shape, np.float64) for _ in range(count)]


def update_into(out, like=None):
    f, g, h = states(3, out.shape)
    return lambda: ops.parareal_update(f if like is None else like, g, h, out=out)


def refuses(message, call, *arrays):
    before = [np.array(a) for a in arrays]
    with pytest.raises(ValueError, match=message):
        call()
    for array, old in zip(arrays, before, strict=True):
        assert_same_bits(np.array(array), old)


def test_read_only_output():
    out = np.zeros((4, 6))
    out.flags.writeable = False
    (u,) = states(1)
    message = "^{}: is read-only, expected a writable array$"
    refuses(message.format("out"), update_into(out), out)
    refuses(message.format("out"), lambda: ops.c_relax(u, u, 0.5, out=out), out)
    refuses(message.format("out"), lambda: ops.extract(u, step=1, out=out), out)
    refuses(message.format("u"), lambda: ops.inject(u, out, step=1), out)
    refuses(message.format("out"), lambda: ops.slice_norms(u, out=out[:, 0]), out)
    refuses(message.format("jump"), lambda: ops.parareal_update(u, u, u, u, jump=out[:, 0]), out)
    assert ops.slice_norms(out).tolist() == [0.0] * 4  # as an input it is welcome


@pytest.mark.parametrize("axis", [0, 1])
def test_zero_stride_output(axis):
    base = np.zeros((1, 6) if axis == 0 else (4, 1))
    out = as_strided(base, (4, 6), [0 if i == axis else s for i, s in enumerate(base.strides)])
    message = f"^{{}}: got a zero stride on axis {axis}, expected an output without repetition$"
    refuses(message.format("out"), update_into(out), base)
    # One point only is assigned, but with a repeated slice the others would change with it.
    refuses(message.format("u"), lambda: ops.inject(np.ones((1, 6)), out, step=4), base)


@pytest.mark.parametrize("strides", [(8, 8), (16, 8), (40, 8), (8, 24)])
def test_output_that_overlaps_itself(strides):
    base = np.zeros(64)
    out = as_strided(base, (4, 6), strides)
    refuses("^out: overlaps itself, expected an output without repetition$", update_into(out), base)


@pytest.mark.parametrize("name", ["f_old", "g_new", "g_old", "u_old"])
@pytest.mark.parametrize("shift", [1, 5, 6, 23])
def test_partially_overlapping_output(name, shift):
    f, g, h, old = states(4)
    memory = np.zeros(48)
    out = memory[:24].reshape(4, 6)
    operands = {"f_old": f, "g_new": g, "g_old": h, "u_old": old}
    operands[name] = memory[shift : shift + 24].reshape(4, 6)
    message = f"^out: overlaps {name} partially, expected the same view or no common element$"
    refuses(message, lambda: ops.parareal_update(**operands, out=out), memory)


def test_partial_overlaps_of_the_other_ops():
    memory = np.zeros(48)
    u, shifted = memory[:24].reshape(4, 6), memory[6:30].reshape(4, 6)
    common = "partially, expected the same view or no common element$"
    refuses(f"^out: overlaps phi {common}", lambda: ops.c_relax(shifted, u.copy(), 0.5, out=u), memory)
    refuses(f"^out: overlaps phi {common}", lambda: ops.c_relax(shifted, u.copy(), 1.0, out=u), memory)
    refuses(f"^out: overlaps u {common}", lambda: ops.extract(u, step=1, out=shifted), memory)
    refuses(f"^out: overlaps u {common}", lambda: ops.extract(u, step=2, out=u[:2]), memory)
    refuses(f"^u: overlaps v {common}", lambda: ops.inject(shifted, u, step=1), memory)
    refuses(f"^out: overlaps u {common}", lambda: ops.slice_norms(u, out=memory[2:6]), memory)
    f, g, h = states(3)
    refuses(f"^jump: overlaps out {common}",
            lambda: ops.parareal_update(f, g, h, f, out=u, jump=memory[20:24]), memory)  # fmt: skip
    refuses(f"^jump: overlaps u_old {common}",
            lambda: ops.parareal_update(f, g, h, u, jump=memory[20:24]), memory)  # fmt: skip


def test_the_same_memory_in_another_order_is_a_partial_overlap():
    (u,) = states(1, (5, 5))
    refuses("^out: overlaps f_old partially", update_into(u, like=u.T), u)
    refuses("^out: overlaps f_old partially", update_into(u, like=u[::-1]), u)


def test_one_byte_shifted_views_of_two_dtypes():
    memory = np.zeros(64)
    f = [np.ones((4, 6), np.float32)] * 4
    refuses("^jump: overlaps u_old partially",
            lambda: ops.parareal_update(*f[:3], memory[:12].view(np.float32).reshape(4, 6), jump=memory[11:15]),
            memory)  # fmt: skip


@pytest.mark.parametrize(("target", "source"), [
    (np.s_[0::2], np.s_[1::2]),
    (np.s_[1::2], np.s_[0::2]),
    (np.s_[:4], np.s_[4:]),
    (np.s_[::2, :3], np.s_[::2, 3:]),
    (np.s_[::2, 2:4], np.s_[1::2, 2:4]),
])  # fmt: skip
def test_interleaved_views_share_no_element(target, source):
    (memory,) = states(1, (8, 6))
    expected = memory.copy()
    out, f = memory[target], memory[source]
    g, h = states(2, f.shape, seed=2)
    expected[target] = reference.parareal_update(f.copy(), g, h)
    assert ops.parareal_update(f, g, h, out=out) is out
    assert_same_bits(memory, expected)


def test_coarse_and_fine_points_of_one_array():
    (u,) = states(1, (9, 6))
    expected = u.copy()
    expected[2::4] = u[0::4][:2]
    ops.extract(u[::4], step=1, count=2, out=u[2::4])
    assert_same_bits(u, expected)
    ops.inject(u[1::2], u, start=0, step=2)  # F-points onto their left C-points
    expected[0:8:2] = expected[1::2]
    assert_same_bits(u, expected)


@on_every_backend
@pytest.mark.parametrize("alias", range(4))
@pytest.mark.parametrize("norm", reference.NORMS)
@pytest.mark.parametrize("features", [1, 64, 1025, 40_000])
def test_output_is_any_input(backend, alias, norm, features):
    views = states(4, (3, features), seed=features)
    arrays = [backend.like(v) for v in views]
    u, jump = ops.parareal_update(*arrays, norm=norm, out=arrays[alias])
    assert u is arrays[alias]
    expected, expected_jump = reference.parareal_update(*views, norm=norm)
    assert_same_bits(backend.to_numpy(u), expected)
    assert_same_bits(backend.to_numpy(jump), expected_jump)
    others = [i for i in range(4) if i != alias]
    for i in others:
        assert_same_bits(backend.to_numpy(arrays[i]), views[i])


def test_one_array_in_every_place():
    (u,) = states(1)
    expected, expected_jump = reference.parareal_update(u, u, u, u)
    result, jump = ops.parareal_update(u, u, u, u, out=u)
    assert result is u
    assert_same_bits(u, expected)
    assert jump.tolist() == [0.0] * 4 == expected_jump.tolist()
    copy = u.copy()
    ops.extract(u, step=1, out=u)
    ops.inject(u, u, step=1)
    assert_same_bits(u, copy)
