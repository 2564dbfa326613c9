# SPDX-License-Identifier: BSD-3-Clause
"""Norms fused into the relaxations: the bits of ``slice_norms(end states, target)``, whoever computes them."""

import numpy as np
import pytest
from ops_backends import arrange, assert_same_bits, on_every_backend, simd
from relax_calls import DTYPES, MODES, OPS, arguments, right_hand_sides

from pyparareal import ops, reference

every_op = pytest.mark.parametrize("op", OPS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_norm = pytest.mark.parametrize("norm", reference.NORMS)
# Of one chunk and of several, with batches that do and do not fill tiles; fewer slices than threads, and more.
SHAPES = [(1, 1), (1, 1030), (2, 5, 700), (3, 2, 17), (9, 1024), (33, 3, 2), (70, 5), (129, 9)]


def case(op, shape, dtype, m, rng, mode=""):
    u, positional, keywords = arguments(op, shape, dtype, m, rng)
    keywords |= right_hand_sides(u, m, mode, rng)
    return u, positional, keywords, rng.standard_normal(u.shape).astype(dtype)


@on_every_backend
@every_op
@every_dtype
@every_norm
def test_the_bits_of_slice_norms(backend, op, dtype, norm):
    rng = np.random.default_rng(1)
    like, to_numpy = backend.like, backend.to_numpy
    for i, shape in enumerate(SHAPES):
        mode = list(MODES.values())[i % len(MODES)]
        u, positional, keywords, target = case(op, shape, dtype, 2, rng, mode)
        end = getattr(reference, op)(u, *positional, **keywords)
        expected = np.full(len(u), 7.0)
        getattr(reference, op)(u, *positional, **keywords, target=target, norms=expected, norm=norm)
        assert_same_bits(expected, reference.slice_norms(end, target, norm=norm))
        norms = like(np.full(len(u), 7.0))
        arrays = {name: like(x) if isinstance(x, np.ndarray) else x for name, x in keywords.items()}
        first = [like(x) if isinstance(x, np.ndarray) else x for x in (u, *positional)]
        out = getattr(ops, op)(*first, **arrays, target=like(target), norms=norms, norm=norm)
        assert_same_bits(to_numpy(out), end)
        assert_same_bits(to_numpy(norms), expected)


@every_op
@every_dtype
@pytest.mark.parametrize("shape", [(3001, 21), (601, 5, 21), (3, 7000), (4, 400, 20)])
def test_no_thread_count_no_block_and_no_instruction_set_changes_a_bit(op, dtype, shape):
    # More than 7 * 256 KiB: a team of seven; more than 256 KiB of states a thread, in blocks with and without a tail.
    rng = np.random.default_rng(2)
    u, positional, keywords, target = case(op, shape, dtype, 5, rng)
    expected = np.empty(len(u))
    end = getattr(reference, op)(u, *positional, **keywords, target=target, norms=expected)
    for instructions in ("baseline", "best"):
        with simd(instructions):
            for threads in (1, 2, 7):
                norms = np.full(len(u), 7.0)
                out = getattr(ops, op)(u, *positional, **keywords, target=target, norms=norms, threads=threads)
                assert_same_bits(out, end)
                assert_same_bits(norms, expected)


@every_op
def test_residuals_at_the_c_points(op):
    # u and target are shifted views of one array: u = c[:-1], target = c[1:].
    rng = np.random.default_rng(3)
    u, positional, keywords, _ = case(op, (40, 33), np.float64, 3, rng)
    c = np.concatenate([u, u[:1]])
    before, norms = c.copy(), np.empty(len(u))
    end = getattr(ops, op)(c[:-1], *positional, **keywords, target=c[1:], norms=norms)
    assert_same_bits(norms, reference.slice_norms(end, c[1:]))
    assert_same_bits(c, before)
    if op == "relax_diagonal":  # a C-point that is what the step makes of its neighbour leaves nothing
        exact = np.empty_like(c)
        exact[0] = c[0]
        for n in range(40):
            exact[n + 1] = ops.relax_diagonal(exact[n : n + 1], *positional)[0]
        ops.relax_diagonal(exact[:-1], *positional, target=exact[1:], norms=norms)
        assert (norms == 0).all()


@every_op
@pytest.mark.parametrize("layout", ["every other slice", "every third feature", "transposed", "slices backward"])
def test_strides_and_end_states_among_the_states_between(op, layout):
    rng = np.random.default_rng(4)
    u, positional, keywords, target = case(op, (19, 3, 10), np.float64, 3, rng)
    states = np.empty((len(u), 3, *u.shape[1:]))
    end = getattr(reference, op)(u, *positional, every=states, **keywords)
    expected = reference.slice_norms(end, target, norm="max_abs")
    for given in ("every", "out"):
        result = arrange(np.full_like(states if given == "every" else u, 7), layout)
        norms = np.full(len(u), 7.0)
        more = {given: result, "target": arrange(target, layout), "norms": norms, "norm": "max_abs"}
        assert getattr(ops, op)(arrange(u, layout), *positional, **more, **keywords) is result
        assert_same_bits(norms, expected)
        assert_same_bits(np.ascontiguousarray(result), states if given == "every" else end)


@every_op
def test_in_place(op):
    rng = np.random.default_rng(5)
    u, positional, keywords, target = case(op, (37, 12), np.float64, 3, rng)
    expected = np.empty(len(u))
    end = getattr(reference, op)(u, *positional, target=target, norms=expected, **keywords)
    norms = np.empty(len(u))
    assert getattr(ops, op)(u, *positional, out=u, target=target, norms=norms, **keywords) is u
    assert_same_bits(u, end)
    assert_same_bits(norms, expected)


@every_op
@every_norm
def test_a_nan_is_not_lost(op, norm):
    u, positional, keywords, target = case(op, (6, 5), np.float64, 1, np.random.default_rng(6))
    target[2].flat[1] = np.nan
    norms = np.empty(6)
    getattr(ops, op)(u, *positional, target=target, norms=norms, norm=norm, **keywords)
    assert np.isnan(norms).tolist() == [False, False, True, False, False, False]


@every_op
@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4)])
def test_nothing_to_do(op, shape):
    u, positional, keywords, target = case(op, shape, np.float64, 2, np.random.default_rng(7))
    norms = np.full(len(u), 7.0)
    getattr(ops, op)(u, *positional, target=target, norms=norms, **keywords)
    assert (norms == 0).all()


def refuses(error, message, op, **changes):
    u, positional, keywords, target = case(op, (4, 3), np.float64, 2, np.random.default_rng(8))
    given = {"out": np.full(u.shape, 7.0), "target": target, "norms": np.full(4, 7.0), **keywords}
    given |= changes
    with pytest.raises(error, match=message):
        getattr(ops, op)(given.pop("u", u), *positional, **given)
    for name in ("out", "norms"):
        assert given[name] is None or (given[name] == 7).all(), "written in spite of the error"


@every_op
def test_errors(op):
    refuses(ValueError, "^norms: got none, expected a float64 array, because target is given$", op, norms=None)
    refuses(ValueError, "^norms: got an array, expected target as well$", op, target=None)
    refuses(ValueError, "^norm: got 'l2', expected one of sum_squares, sum_abs, max_abs$", op, norm="l2")
    refuses(ValueError, r"^target: got shape \[5, 3\], expected \[4, 3\] like u$", op, target=np.zeros((5, 3)))
    refuses(TypeError, "^target: got dtype float32, expected float64 like u$", op, target=np.zeros((4, 3), "f4"))
    refuses(TypeError, "^norms: got dtype float32, expected float64$", op, norms=np.full(4, 7, "f4"))
    refuses(ValueError, r"^norms: got shape \[3\], expected \[4\], one norm per slice of u$", op, norms=np.full(3, 7.0))
    refuses(ValueError, "^norms: got stride 2, expected a contiguous array$", op, norms=np.full(8, 7.0)[::2])
    memory = np.full(64, 7.0)
    out, target = memory[:12].reshape(4, 3), memory[3:15].reshape(4, 3)
    refuses(ValueError, "^out: overlaps target, expected no common element$", op, out=out, target=target)
    refuses(ValueError, "^out: overlaps target, expected no common element$", op, out=out, target=out)
    states = memory[:24].reshape(4, 2, 3)
    refuses(ValueError, "^every: overlaps target, expected no common element$", op, every=states, target=target)
    refuses(ValueError, "^norms: overlaps target partially", op, norms=memory[:4], target=out)
    refuses(ValueError, "^norms: overlaps u partially", op, norms=memory[:4], u=out)
    refuses(ValueError, "^norms: overlaps out partially", op, norms=memory[:4], out=out)
