# SPDX-License-Identifier: BSD-3-Clause
"""``scan_diag`` and ``scan_block`` give the bits of their reference, and the reference those of a loop, nearly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_backends import arrange, assert_same_bits, on_every_backend, simd
from scan_cases import DTYPES, SIZES, expected, loop, problem, roundings, scan_of

from pyparareal import ops, reference_scan

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_size = pytest.mark.parametrize("d", SIZES, ids=lambda d: "diag" if d is None else f"block{d}")
CHUNK, GROUP = reference_scan.ROWS, reference_scan.ROWS * reference_scan.CHUNKS
# Around the borders of chunks and groups.
STEPS = (0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP + 3 * CHUNK + 5)
WAYS = ((True, False), (False, False), (False, True))  # with a start, reverse


def agree(a, b, start, d, *, like=lambda a: a, to_numpy=lambda a: a, **more):
    for with_start, reverse in WAYS:
        before = start if with_start else None
        wanted = expected(a, b, before, d, reverse)
        out = like(np.full_like(b, 7))
        given_start = None if before is None else like(before)
        assert scan_of(d)(like(a), like(b), given_start, reverse=reverse, out=out, **more) is out
        assert_same_bits(to_numpy(out), wanted)


@on_every_backend
@every_dtype
@every_size
def test_the_bits_of_the_reference(backend, dtype, d):
    rng = np.random.default_rng(1)
    for steps in STEPS:
        lanes = (int(rng.choice([1, 3, 17, 70])),) if steps <= GROUP + 1 else (2, 3)
        a, b, start = problem(rng, dtype, steps, lanes, d)
        agree(a, b, start, d, like=backend.like, to_numpy=backend.to_numpy)


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
@every_dtype
def test_every_instruction_set(name, dtype):
    # Lanes of less than a vector, of several, of whole and of partial tiles.
    rng = np.random.default_rng(2)
    with simd(name):
        for lanes in (1, 3, 8, 31, 65, 130):
            for d in (None, 2, 3, 4):
                agree(*problem(rng, dtype, GROUP + 21 if lanes == 3 else 3 * CHUNK + 5, (lanes,), d), d)


@every_dtype
@pytest.mark.parametrize("d", [None, 2, 4, 6])
def test_the_number_of_threads_changes_no_bit(dtype, d):
    # Enough rows for teams that share lanes, and groups of rows where there are few lanes; scratch of every size.
    rng = np.random.default_rng(3)
    for steps, lanes in ((700, 300), (16 * GROUP + 5, 1), (16 * GROUP, 3)):
        steps = steps if d in (None, 2) else steps // 4
        a, b, start = problem(rng, dtype, steps, (lanes,), d, scale=1.02)
        wanted = scan_of(d)(a, b, start, threads=1)
        assert_same_bits(wanted, expected(a, b, start, d))
        for threads in (2, 3, 5, 16):
            assert_same_bits(scan_of(d)(a, b, start, threads=threads), wanted)
            assert_same_bits(scan_of(d)(a, b, reverse=True, threads=threads), scan_of(d)(a, b, reverse=True, threads=1))


@every_size
@pytest.mark.parametrize(
    "layout", ["every other slice", "every third feature", "transposed", "slices backward", "wide"]
)
def test_strides(d, layout):
    rng = np.random.default_rng(4)
    a, b, start = problem(rng, np.float64, 2 * GROUP + 9, (2, 3), d)
    out = arrange(np.full_like(b, 7), layout)
    base = out if out.base is None else out.base
    outside = base.size - out.size
    for with_start, reverse in WAYS:
        before = arrange(start, layout) if with_start else None
        scan_of(d)(arrange(a, layout), arrange(b, layout), before, reverse=reverse, out=out)
        assert_same_bits(np.ascontiguousarray(out), expected(a, b, start if with_start else None, d, reverse))
        assert (base == 7).sum() == outside


@every_size
def test_one_matrix_for_all_rows_and_one_start_for_all_lanes(d):
    rng = np.random.default_rng(5)
    a, b, start = problem(rng, np.float32, GROUP + 40, (20,), d)
    a, start = np.broadcast_to(a[:1], a.shape), np.broadcast_to(start[:1], start.shape)
    agree(a, b, start, d)
    agree(np.broadcast_to(a[:, :1], a.shape), np.broadcast_to(b[:1], b.shape), start, d)


@every_size
@every_dtype
def test_out_may_be_b(d, dtype):
    rng = np.random.default_rng(6)
    for lanes in (1, 40):
        a, b, start = problem(rng, dtype, GROUP + 50, (lanes,), d)
        for with_start, reverse in WAYS:
            before = start if with_start else None
            wanted = expected(a, b, before, d, reverse)
            state = b.copy()
            assert scan_of(d)(a, state, before, reverse=reverse, out=state) is state
            assert_same_bits(state, wanted)


@every_dtype
@every_size
@settings(deadline=None, max_examples=12)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3 * GROUP), st.integers(1, 6), st.floats(0.05, 1.3))
def test_a_loop_gives_nearly_the_same(d, dtype, seed, steps, lanes, scale):
    # Every term of u[i] is a product of entries, rounded as often as roundings() says: a relative error of n eps / 2 to
    # first order, and less than n eps of the term as long as n eps < 1. Their absolute values sum up to `size`.
    rng = np.random.default_rng(seed)
    a, b, start = problem(rng, dtype, steps, (lanes,), d, scale=scale)
    for with_start, reverse in WAYS:
        before = start if with_start else None
        u, size = loop(a, b, before, d, reverse)
        if size.max() > 1e30:
            continue  # nearly infinite: the next test
        bound = roundings(steps, d, reverse).reshape(-1, *[1] * (b.ndim - 1)) * np.finfo(dtype).eps * size
        tiny = 4.0 * steps * np.finfo(dtype).tiny  # of products that underflow
        got = scan_of(d)(a, b, before, reverse=reverse, threads=1)
        assert (np.abs(got - u) <= bound + tiny).all()


@every_dtype
@pytest.mark.parametrize("d", [None, 2, 4, 6])
def test_products_that_overflow_spoil_nothing(d, dtype):
    # Factors of 1e10 while the state is zero: the product of a chunk is beyond float32 after 4 rows, that of a group
    # beyond float64, and infinity times zero is NaN. Then factors of size one, within the bound of the loop.
    rng = np.random.default_rng(7)
    steps, late = 2 * GROUP + 37, GROUP + 20
    for reverse in (False, True):
        a, b, start = problem(rng, dtype, steps, (3,), d)
        huge = slice(steps - late + 1, None) if reverse else slice(None, late)
        a[huge] *= dtype.type(1e10)
        b[huge] = 0
        before = None if reverse else np.zeros_like(start)
        got = scan_of(d)(a, b, before, reverse=reverse)
        assert_same_bits(got, expected(a, b, before, d, reverse))
        u, size = loop(a, b, before, d, reverse)
        bound = roundings(steps, d, reverse).reshape(-1, *[1] * (b.ndim - 1)) * np.finfo(dtype).eps * size
        assert (np.abs(got - u) <= bound).all()
        assert (got[huge] == 0).all()
        assert (np.abs(u).max(axis=tuple(range(1, u.ndim))) > 0).mean() > 0.4


@every_dtype
@every_size
def test_infinities_and_nan_are_those_of_the_reference(d, dtype):
    rng = np.random.default_rng(8)
    for special, scale in ((0.01, 0.7), (0.0, 8.0)):
        for lanes in (1, 5, 40):
            a, b, start = problem(rng, dtype, GROUP + 60, (lanes,), d, scale=scale, special=special)
            agree(a, b, start, d, threads=3)


@pytest.mark.parametrize("d", [None, 3, 6])
def test_the_reverse_scan_is_the_transpose_of_the_scan(d):
    # Integers, and factors of which few are not 0: every product and sum is exact, so <w, S b> == <S^T w, b>.
    rng = np.random.default_rng(9)
    own = () if d is None else (d,)
    steps = GROUP + 77
    a = rng.integers(-1, 2, (steps, 4, *own, *own)) * (rng.random((steps, 4, *own, *own)) < 0.3)
    if d:
        a *= np.eye(d, dtype=int)[::-1]  # one entry a row: states stay small
    b, w = (rng.integers(-9, 10, (steps, 4, *own)).astype(float) for _ in range(2))
    a = a.astype(float)
    assert (w * scan_of(d)(a, b)).sum() == (scan_of(d)(a, w, reverse=True) * b).sum()
    assert (w * scan_of(d)(a, b)).sum() != (scan_of(d)(a, w) * b).sum()


def test_blocks_of_one_row_are_the_diagonal_scan():
    rng = np.random.default_rng(10)
    a, b, start = problem(rng, np.float32, 600, (5,), None)
    assert_same_bits(
        ops.scan_block(a[..., None, None], b[..., None], start[..., None])[..., 0], ops.scan_diag(a, b, start)
    )


def test_row_zero_of_a_is_not_read_without_a_start():
    rng = np.random.default_rng(11)
    for d in (None, 3, 6):
        a, b, start = problem(rng, np.float64, 40, (3,), d)
        bad = a.copy()
        bad[0] = np.nan
        for reverse in (False, True):
            assert_same_bits(scan_of(d)(bad, b, reverse=reverse), scan_of(d)(a, b, reverse=reverse))
        assert np.isnan(scan_of(d)(bad, b, start)).any()


def test_nothing_to_do():
    for shape in ((0, 4), (5, 0), (3, 2, 0)):
        assert ops.scan_diag(np.empty(shape), np.empty(shape), np.empty(shape[1:])).shape == shape
        assert ops.scan_block(np.empty((*shape, shape[-1])), np.empty(shape)).shape == shape


@pytest.mark.parametrize("shape", [(0, 3, 2), (5, 0, 2), (5, 3, 0)])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_reference_of_blocks_takes_empty_arrays_as_the_kernel_does(shape, reverse):
    a, b = np.ones((*shape, shape[-1])), np.ones(shape)
    assert reference_scan.scan_block(a, b, reverse=reverse).shape == shape
    assert ops.scan_block(a, b, reverse=reverse).shape == shape
