# SPDX-License-Identifier: BSD-3-Clause
"""What the bits of an op may not depend on, the 16-bit conversions exhaustively, and the theorems of the ops."""

import ml_dtypes
import numpy as np
import pytest
from ops_backends import BFLOAT16, DTYPES, assert_same_bits, on_every_backend, random_state, simd

from pyparareal import ops, reference

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
half_types = pytest.mark.parametrize("dtype", [np.dtype("float16"), BFLOAT16], ids=str)
sets = pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])


@every_dtype
@sets
def test_no_thread_count_and_no_instruction_set_changes_a_bit(dtype, instructions):
    # Seven threads get work from 7 * 256 KiB of operands on; an odd size splits chunks unevenly.
    rng = np.random.default_rng(1)
    f, g, h, old = (random_state(rng, (5, 60_001), dtype, 0.01) for _ in range(4))
    with np.errstate(all="ignore"):
        expected = {norm: reference.parareal_update(f, g, h, old, norm=norm) for norm in reference.NORMS}
        relaxed = reference.c_relax(f, g, 0.7)
    with simd(instructions):
        for threads in (1, 2, 3, 7):
            for norm, (u, jump) in expected.items():
                got_u, got_jump = ops.parareal_update(f, g, h, old, norm=norm, threads=threads)
                assert_same_bits(got_u, u)
                assert_same_bits(got_jump, jump)
                assert_same_bits(ops.slice_norms(u, old, norm=norm, threads=threads), jump)
            assert_same_bits(ops.parareal_update(f, g, h, threads=threads), u)
            assert_same_bits(ops.c_relax(f, g, 0.7, threads=threads), relaxed)
            assert_same_bits(ops.extract(f, start=1, step=3, threads=threads), f[1::3])


@every_dtype
def test_writing_around_the_caches_changes_nothing(dtype):
    # From 8 MiB of output on; slices and the base start off a cache line.
    shape = (3, (9 << 20) // dtype.itemsize // 3 + 1)
    rng = np.random.default_rng(2)
    f, g, h, old = (np.tile(random_state(rng, (3, 1 + shape[1] // 8), dtype), 8)[:, : shape[1]] for _ in range(4))
    out = np.full(3 * shape[1] + 5, 9, dtype)
    frame = out[3:-2].reshape(shape)
    u, jump = ops.parareal_update(f, g, h, old, out=frame, threads=2)
    expected, expected_jump = reference.parareal_update(f, g, h, old)
    assert_same_bits(u, expected)
    assert_same_bits(jump, expected_jump)
    assert (out[:3] == 9).all()
    assert (out[-2:] == 9).all()
    assert_same_bits(ops.c_relax(f, g, 0.3, out=frame), reference.c_relax(f, g, 0.3))
    assert (out[:3] == 9).all()
    assert (out[-2:] == 9).all()


def every_half(dtype):
    return np.arange(1 << 16, dtype=np.uint16).view(dtype).reshape(1, -1)


@half_types
@sets
def test_every_half_survives_the_round_trip_through_float32(dtype, instructions):
    u = every_half(dtype)
    zero = np.zeros_like(u)
    with simd(instructions), np.errstate(invalid="ignore"):  # NumPy warns of the signalling NaNs
        got = ops.parareal_update(u, zero, zero)
        assert_same_bits(got, u + zero)  # u + 0 is u, but for -0 + 0 = +0
        assert_same_bits(got[u != 0], u[u != 0])
        assert_same_bits(ops.slice_norms(u.T.copy(), norm="sum_abs"), np.abs(u[0].astype(np.float64)))


@half_types
@sets
@pytest.mark.parametrize("omega", [1 / 3, 0.5, 0.5 + 2.0**-9, 0.5 + 2.0**-12, 0.25 - 2.0**-13, 1.9, 2.0**-16, -3.7])
def test_rounding_to_half_is_to_nearest_even(dtype, instructions, omega):
    # omega * phi puts the float32 products of all halves on, just beside and between the half grid:
    # normal, subnormal, overflowing and vanishing results.
    phi = every_half(dtype)
    u = np.zeros_like(phi)
    with simd(instructions), np.errstate(all="ignore"):
        assert_same_bits(ops.c_relax(phi, u, omega), reference.c_relax(phi, u, omega))


@half_types
def test_random_sums_round_as_numpy_and_ml_dtypes_do(dtype):
    bits = np.random.default_rng(3).integers(0, 1 << 16, (3, 1, 1 << 18), dtype=np.uint16)
    f, g, h = bits.view(dtype)
    with np.errstate(all="ignore"):
        expected = (f.astype(np.float32) + (g.astype(np.float32) - h.astype(np.float32))).astype(dtype)
    assert_same_bits(ops.parareal_update(f, g, h), expected)


def test_bfloat16_is_recognised_by_name_and_other_small_floats_are_not():
    assert ops.extract(np.ones((2, 2), ml_dtypes.bfloat16), step=1).dtype == BFLOAT16
    with pytest.raises(TypeError, match=r"u: got dtype float8_e4m3fn, expected float64, float32, float16 or bfloat16"):
        ops.extract(np.ones((2, 2), ml_dtypes.float8_e4m3fn), step=1)


@on_every_backend
@every_dtype
def test_a_zero_bracket_leaves_the_fine_solution_bitwise(backend, dtype):
    rng = np.random.default_rng(4)
    f = random_state(rng, (4, 777), dtype, 0.1)
    g = random_state(rng, (4, 777), dtype)
    u = backend.to_numpy(ops.parareal_update(backend.like(f), backend.like(g), backend.like(g)))
    signed_zero = f == 0  # -0 + 0 is +0: equal, as the theorem needs, but another bit
    assert_same_bits(u[~signed_zero], f[~signed_zero])
    assert (u[signed_zero] == 0).all()
    # The other order of the sum is not exact on this data: the bracket matters.
    compute = reference.compute_dtype(f)
    with np.errstate(all="ignore"):
        wrong = ((f.astype(compute) + g.astype(compute)) - g.astype(compute)).astype(dtype)
    assert (wrong[np.isfinite(f)] != f[np.isfinite(f)]).any()


@on_every_backend
@every_dtype
def test_unweighted_relaxation_is_phi_even_where_u_is_not_finite(backend, dtype):
    phi = random_state(np.random.default_rng(5), (3, 100), dtype, 0.3)
    for bad in (np.nan, np.inf, -np.inf):
        got = backend.to_numpy(ops.c_relax(backend.like(phi), backend.like(np.full((3, 100), bad, dtype)), 1.0))
        bits = f"i{dtype.itemsize}"
        assert (got.view(bits) == phi.view(bits)).all()  # NaN payloads and -0 too: it is a copy


@on_every_backend
@pytest.mark.parametrize(("start", "step", "slices"), [(0, 1, 5), (0, 2, 7), (1, 3, 11), (4, 5, 5), (2, 4, 2)])
def test_inject_is_the_transpose_of_extract(backend, start, step, slices):
    # Integers: both scalar products are exact, so equality needs no tolerance.
    rng = np.random.default_rng(6)
    u = rng.integers(-9, 9, (slices, 3, 5)).astype(np.float64)
    coarse = ops.extract(backend.like(u), start=start, step=step)
    v = rng.integers(-9, 9, coarse.shape).astype(np.float64)
    fine = backend.like(np.zeros_like(u))
    ops.inject(backend.like(v), fine, start=start, step=step)
    assert (backend.to_numpy(coarse) * v).sum() == (u * backend.to_numpy(fine)).sum()
    # and extract(inject(v)) is v
    assert_same_bits(backend.to_numpy(ops.extract(fine, start=start, step=step)), v)


@on_every_backend
@every_dtype
def test_norms_of_joined_slices_are_the_joined_norms(backend, dtype):
    rng = np.random.default_rng(7)
    u, w = random_state(rng, (3, 2500), dtype), random_state(rng, (4, 2500), dtype)
    joined = ops.slice_norms(backend.like(np.concatenate([u, w])))
    parts = [backend.to_numpy(ops.slice_norms(backend.like(part))) for part in (u, w)]
    assert_same_bits(backend.to_numpy(joined), np.concatenate(parts))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13, 37])
@pytest.mark.parametrize("block", [1, 2, 4, 8, 16])
def test_an_aligned_block_of_a_tree_sum_is_a_subtree(count, block):
    values = random_state(np.random.default_rng(8), (count,), np.float64)
    blocks = [reference.tree_sum(values[at : at + block]) for at in range(0, count, block)]
    assert reference.tree_sum(np.array(blocks)) == reference.tree_sum(values)


def test_the_chunks_of_a_slice_are_summed_by_the_tree_not_from_left_to_right():
    u = random_state(np.random.default_rng(9), (1, 333 * 1024), np.float64)
    chunks = ops.slice_norms(u.reshape(333, 1024))
    assert ops.slice_norms(u)[0] == reference.tree_sum(chunks)
    assert np.cumsum(chunks)[-1] != reference.tree_sum(chunks)  # or the line above would test nothing


@on_every_backend
@pytest.mark.parametrize("norm", reference.NORMS)
@pytest.mark.parametrize("at", [0, 63, 64, 1000, 1023, 1024, 2999])
def test_a_nan_reaches_the_norm_of_its_slice_and_no_other(backend, norm, at):
    u = np.ones((3, 3000))
    u[1, at] = np.nan
    assert np.isnan(backend.to_numpy(ops.slice_norms(backend.like(u), norm=norm))).tolist() == [False, True, False]


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2), (0, 1, 3, 2), (0, 2, 1, 3)], ids=str)
def test_feature_axes_merge_only_where_they_are_contiguous_to_each_other(axes):
    # Two of three feature axes merge in some of these orders; the third keeps a stride of its own.
    states = (
        np.random.default_rng(5)
        .standard_normal((4, 3, 10, 8, 8))[:, :, ::2, :, :7]
        .transpose(0, *(a + 1 for a in axes))
    )
    f, g, h, old = states
    u, jump = ops.parareal_update(f, g, h, old)
    expected, expected_jump = reference.parareal_update(f, g, h, old)
    assert_same_bits(u, expected)
    assert_same_bits(jump, expected_jump)
    assert_same_bits(ops.slice_norms(f), reference.slice_norms(f))
