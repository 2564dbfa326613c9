# SPDX-License-Identifier: BSD-3-Clause
"""``relax_gru`` and its adjoint give the bits of their reference, and the reference is the cell of torch."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_backends import arrange, assert_same_bits, on_every_backend, simd

from pyparareal import ops, reference, reference_gru

DTYPES = (np.dtype("float64"), np.dtype("float32"))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_width = pytest.mark.parametrize("hidden", [1, 3, 17, 64, 100])


def problem(rng, dtype, slices, m, hidden, *, batch=(2,), bias=True):
    """``u, gates, weight, bias, m`` with some of the signed zeros and infinities that mean something."""
    u = rng.standard_normal((slices, *batch, hidden)).astype(dtype)
    gates = rng.standard_normal((slices, m, *batch, 3 * hidden)).astype(dtype)
    weight = (rng.standard_normal((3 * hidden, hidden)) / math.sqrt(hidden)).astype(dtype)
    for array in (u, gates, weight):
        array[rng.random(array.shape) < 0.05] = rng.choice([0.0, -0.0])
    held = gates[..., hidden : 2 * hidden]
    held[rng.random(held.shape) < 0.05] = np.inf
    return u, gates, weight, rng.standard_normal(hidden).astype(dtype) if bias else None, m


def sides_of(rng, u, m, mode):
    shape = (u.shape[0], m, *u.shape[1:])
    return {name: rng.standard_normal(shape).astype(u.dtype) for name in "fg" if name in mode}


def like_all(arguments, like):
    return [like(a) if isinstance(a, np.ndarray) else a for a in arguments]


def agree(positional, sides=None, *, like=lambda a: a, to_numpy=lambda a: a, **more):
    u, m, sides = positional[0], positional[-1], sides or {}
    shape = (u.shape[0], m, *u.shape[1:])
    expected_every = np.empty(shape, u.dtype)
    expected = reference.relax_gru(*positional, every=expected_every, **sides)
    every, out = like(np.full(shape, 7, u.dtype)), like(np.full_like(u, 7))
    sides = {name: like(a) for name, a in sides.items()}
    assert ops.relax_gru(*like_all(positional, like), every=every, out=out, **sides, **more) is out
    assert_same_bits(to_numpy(out), expected)
    assert_same_bits(to_numpy(every), expected_every)


def adjoint_problem(rng, dtype, slices, m, hidden, *, batch=(2,), bias=True, every=True):
    u, gates, weight, bias, _ = problem(rng, dtype, slices, m, hidden, batch=batch, bias=bias)
    starts = rng.standard_normal((slices, m, *batch, hidden)).astype(dtype)
    d_every = rng.standard_normal(starts.shape).astype(dtype) if every else None
    return (starts, gates, weight, bias, u), d_every


def agree_adjoint(positional, d_every, *, like=lambda a: a, to_numpy=lambda a: a, **more):
    expected = reference.relax_gru_adjoint(*positional, d_every=d_every)
    given_every = None if d_every is None else like(d_every)
    got = ops.relax_gru_adjoint(*like_all(positional, like), d_every=given_every, **more)
    for one, other in zip(got, expected, strict=True):
        assert_same_bits(to_numpy(one), other)
    start = ops.relax_gru_adjoint(*like_all(positional, like), d_every=given_every, only_start=True, **more)
    assert_same_bits(to_numpy(start), expected[0])


@on_every_backend
@every_dtype
@every_width
def test_the_bits_of_the_reference(backend, hidden, dtype):
    rng = np.random.default_rng(1)
    for mode, bias in (("", True), ("f", False), ("fg", True)):
        positional = problem(rng, dtype, 3, 2, hidden, bias=bias)
        agree(positional, sides_of(rng, positional[0], 2, mode), like=backend.like, to_numpy=backend.to_numpy)


@on_every_backend
@every_dtype
@every_width
def test_the_bits_of_the_adjoint_of_the_reference(backend, hidden, dtype):
    rng = np.random.default_rng(2)
    for bias, every in ((True, True), (False, False)):
        positional, d_every = adjoint_problem(rng, dtype, 3, 2, hidden, bias=bias, every=every)
        agree_adjoint(positional, d_every, like=backend.like, to_numpy=backend.to_numpy)


@settings(max_examples=30, deadline=None)
@given(
    hidden=st.integers(1, 35),
    dtype=st.sampled_from(DTYPES),
    slices=st.integers(1, 9),
    batch=st.sampled_from([(), (1,), (5,), (2, 3)]),
    m=st.integers(1, 3),
    bias=st.booleans(),
    mode=st.sampled_from(["", "f", "fg"]),
    threads=st.integers(1, 3),
    instructions=st.sampled_from(["baseline", "avx2", "avx512"]),
    seed=st.integers(0, 99),
)
def test_any_width_any_batch_any_threads(hidden, dtype, slices, batch, m, bias, mode, threads, instructions, seed):
    rng = np.random.default_rng(seed)
    positional = problem(rng, dtype, slices, m, hidden, batch=batch, bias=bias)
    adjoint = adjoint_problem(rng, dtype, slices, m, hidden, batch=batch, bias=bias, every="f" in mode)
    with simd(instructions):
        agree(positional, sides_of(rng, positional[0], m, mode), threads=threads)
        agree_adjoint(*adjoint, threads=threads)


@every_dtype
@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])
def test_no_thread_count_and_no_instruction_set_changes_a_bit(dtype, instructions):
    # Work for a team, which leaves a part of a tile to its last member.
    rng = np.random.default_rng(3)
    for hidden, slices in ((20, 19), (70, 2)):
        positional = problem(rng, dtype, slices, 2, hidden)
        adjoint = adjoint_problem(rng, dtype, slices, 2, hidden)
        with simd(instructions):
            for threads in (1, 2, 7):
                agree(positional, threads=threads)
                agree_adjoint(*adjoint, threads=threads)


@every_dtype
def test_the_bits_of_a_row_do_not_depend_on_its_company(dtype):
    rng = np.random.default_rng(4)
    u, gates, weight, bias, m = problem(rng, dtype, 11, 3, 21, batch=(3,))
    starts = rng.standard_normal((11, 3, 3, 21)).astype(dtype)
    together = ops.relax_gru(u, gates, weight, bias, m)
    back = ops.relax_gru_adjoint(starts, gates, weight, bias, u)
    for size in (1, 2, 5):
        for first in range(0, 11, size):
            part = slice(first, first + size)
            assert_same_bits(ops.relax_gru(u[part], gates[part], weight, bias, m), together[part])
            some = ops.relax_gru_adjoint(starts[part], gates[part], weight, bias, u[part])
            for one, other in zip(some, back, strict=True):
                assert_same_bits(one, other[part])
    for b in range(3):
        one = ops.relax_gru(u[:, b : b + 1], gates[:, :, b : b + 1], weight, bias, m)
        assert_same_bits(one, together[:, b : b + 1])


@every_dtype
def test_slices_of_a_sequence_are_views_and_m_steps_are_m_calls(dtype):
    # One serial pass over T = 12 steps is four slices of three, each from where the one before ended.
    rng = np.random.default_rng(5)
    u, gates, weight, bias, m = problem(rng, dtype, 1, 12, 19)
    every = np.empty((1, 12, 2, 19), dtype)
    ops.relax_gru(u, gates, weight, bias, m, every=every)
    chunks = gates[0].reshape(4, 3, 2, 57)
    assert np.shares_memory(chunks, gates)
    starts = np.concatenate([u, every[0, 2:-1:3]])
    assert_same_bits(ops.relax_gru(starts, chunks, weight, bias, 3), every[0, 2::3])
    v = u
    for j in range(12):
        v = ops.relax_gru(v, gates[:, j : j + 1], weight, bias, 1)
        assert_same_bits(v, every[:, j])


@pytest.mark.parametrize("hidden", [5, 64])
@pytest.mark.parametrize("layout", ["every other slice", "every third feature", "transposed", "features backward"])
def test_strides(hidden, layout):
    rng = np.random.default_rng(6)
    u, gates, weight, bias, m = problem(rng, np.float64, 5, 3, hidden)
    sides = sides_of(rng, u, m, "fg")
    expected_every = np.empty_like(sides["f"])
    expected = reference.relax_gru(u, gates, weight, bias, m, every=expected_every, **sides)
    moved = [arrange(a, layout) for a in (u, gates, weight)]
    sides = {name: arrange(a, layout) for name, a in sides.items()}
    out, every = arrange(np.full_like(u, 7), layout), arrange(np.full_like(expected_every, 7), layout)
    base = every if every.base is None else every.base
    ops.relax_gru(*moved, bias[::-1].copy()[::-1], m, every=every, out=out, **sides)
    assert_same_bits(np.ascontiguousarray(out), expected)
    assert_same_bits(np.ascontiguousarray(every), expected_every)
    assert (base == 7).sum() == base.size - every.size

    starts, d_every = (rng.standard_normal(expected_every.shape) for _ in range(2))
    expected = reference.relax_gru_adjoint(starts, gates, weight, bias, u, d_every=d_every)
    results = [arrange(np.full_like(a, 7), layout) for a in expected]
    ops.relax_gru_adjoint(
        arrange(starts, layout), moved[1], moved[2], bias, moved[0], d_every=arrange(d_every, layout),
        out=results[0], d_gates=results[1], d_hidden=results[2],
    )  # fmt: skip
    for got, wanted in zip(results, expected, strict=True):
        assert_same_bits(np.ascontiguousarray(got), wanted)


@every_dtype
def test_some_states_and_the_norms_of_the_last(dtype):
    rng = np.random.default_rng(7)
    positional = problem(rng, dtype, 5, 6, 9)
    u = positional[0]
    all_states = np.empty((5, 6, *u.shape[1:]), dtype)
    ops.relax_gru(*positional, every=all_states)
    target = rng.standard_normal(u.shape).astype(dtype)
    for kept in (1, 2, 3):
        some, norms = np.empty((5, kept, *u.shape[1:]), dtype), np.empty(5)
        for norm in ("sum_squares", "max_abs"):
            assert ops.relax_gru(*positional, every=some, target=target, norms=norms, norm=norm) is some
            assert_same_bits(some, np.ascontiguousarray(all_states[:, 6 // kept - 1 :: 6 // kept]))
            assert_same_bits(norms, reference.slice_norms(all_states[:, -1], target, norm=norm))


@every_dtype
def test_in_place(dtype):
    rng = np.random.default_rng(8)
    positional = problem(rng, dtype, 5, 2, 18)
    sides = sides_of(rng, positional[0], 2, "fg")
    every = np.empty_like(sides["f"])
    expected = ops.relax_gru(*positional, every=every, out=np.empty_like(positional[0]), **sides)
    state = positional[0].copy()
    assert ops.relax_gru(state, *positional[1:], every=sides["f"], out=state, **sides) is state
    assert_same_bits(state, expected)
    assert_same_bits(sides["f"], every)

    (starts, gates, weight, bias, d_end), d_every = adjoint_problem(rng, dtype, 5, 2, 18)
    expected = ops.relax_gru_adjoint(starts, gates, weight, bias, d_end, d_every=d_every)
    got = ops.relax_gru_adjoint(
        starts, gates, weight, bias, d_end, d_every=d_every, out=d_end, d_gates=gates, d_hidden=starts
    )
    assert all(one is other for one, other in zip(got, (d_end, gates, starts), strict=True))
    for one, other in zip(got, expected, strict=True):
        assert_same_bits(one, other)


@every_dtype
@every_width
def test_an_infinite_gate_keeps_the_state_bit_for_bit(hidden, dtype):
    # Padded steps after the end of a sequence: whatever stands there, and whatever sign a zero has.
    rng = np.random.default_rng(9)
    u, gates, weight, bias, m = problem(rng, dtype, 3, 8, hidden)
    u[..., 0] = -0.0
    every = np.empty((3, 8, *u.shape[1:]), dtype)
    ops.relax_gru(u, gates, weight, bias, m, every=every)
    lengths = np.array([5, 8, 1])
    padded = gates.copy()
    for n, length in enumerate(lengths):
        padded[n, length:] *= 100
        padded[n, length:, ..., hidden : 2 * hidden] = np.inf
    got = ops.relax_gru(u, padded, weight, bias, m)
    assert_same_bits(got, every[np.arange(3), lengths - 1])
    held = np.zeros_like(gates)
    held[..., hidden : 2 * hidden] = np.inf
    start, d_gates, d_hidden = ops.relax_gru_adjoint(every, held, weight, bias, u)
    assert_same_bits(start, u + dtype.type(0))  # a zero has no sign here
    assert not d_gates.any()
    assert not d_hidden.any()
    held[..., 2 * hidden :] = np.nan
    assert_same_bits(ops.relax_gru(u, held, weight, bias, m), u)


def test_a_pair_of_equal_right_hand_sides_leaves_the_first_bitwise():
    rng = np.random.default_rng(10)
    positional = problem(rng, np.float64, 5, 1, 12)
    g = ops.relax_gru(*positional)[:, None]
    f = rng.standard_normal(g.shape)
    assert_same_bits(ops.relax_gru(*positional, f=f, g=g), f[:, 0])
    assert ((f + g) - g != f).any()


def test_nothing_to_do():
    weight = np.zeros((9, 3))
    for shape in ((0, 2, 3), (2, 0, 3)):
        gates = np.empty((shape[0], 4, shape[1], 9))
        assert ops.relax_gru(np.empty(shape), gates, weight, None, 4).shape == shape
        states = np.empty((shape[0], 4, shape[1], 3))
        start, of_gates, of_hidden = ops.relax_gru_adjoint(states, gates, weight, None, np.empty(shape))
        assert (start.shape, of_gates.shape, of_hidden.shape) == (shape, gates.shape, states.shape)


@every_width
def test_a_step_is_that_of_the_cell_of_torch(hidden):
    # Both ways: sums of `hidden` terms of size one, so errors of hidden units of rounding in the worst case, in an
    # argument whose derivatives are one at most; three of them meet in a state.
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    cell = torch.nn.GRUCell(4, hidden).double()
    x, h = torch.randn(5, 4).double(), torch.randn(5, hidden).double().requires_grad_()
    gates = x @ cell.weight_ih.T + cell.bias_ih + torch.cat([cell.bias_hh[: 2 * hidden], torch.zeros(hidden)])
    gates = gates.detach().requires_grad_()
    in_r, in_z, in_n = gates.chunk(3, -1)
    of_r, of_z, of_n = (h @ cell.weight_hh.T).chunk(3, -1)
    r, z = torch.sigmoid(in_r + of_r), torch.sigmoid(in_z + of_z)
    n = torch.tanh(in_n + r * (of_n + cell.bias_hh[2 * hidden :]))
    own = (1 - z) * n + z * h
    bound = 8 * (hidden + 4) * np.finfo(float).eps
    assert (own - cell(x, h)).abs().max().item() <= bound
    plain = [a.detach().numpy() for a in (h, gates, cell.weight_hh, cell.bias_hh[2 * hidden :])]
    got = reference_gru.gru_step(*plain)
    assert np.abs(got - own.detach().numpy()).max() <= bound

    d = torch.randn(5, hidden).double()
    wanted = torch.autograd.grad(own, [h, gates, cell.weight_hh, cell.bias_hh], d)
    d_h, d_gates, d_s = reference_gru.gru_step_adjoint(d.numpy(), *plain)
    rows = np.concatenate([d_gates[:, : 2 * hidden], d_s], 1)
    d_weight, d_bias = rows.T @ plain[0], d_s.sum(0)
    # Each gradient is a sum of at most 3 hidden (or 5) products of such numbers with d and h, of size 4 at most.
    for mine, other in zip((d_h, d_gates, d_weight, d_bias), (*wanted[:3], wanted[3][2 * hidden :]), strict=True):
        assert np.abs(mine - other.numpy()).max() <= 64 * bound


def test_a_long_sequence_is_that_of_torch():
    # A hundred steps of a contracting cell: errors do not add up beyond those of a few.
    torch = pytest.importorskip("torch")
    torch.manual_seed(2)
    gru = torch.nn.GRU(3, 20).double()
    x, h0 = torch.randn(100, 2, 3).double(), torch.zeros(1, 2, 20).double()
    states, _ = gru(x, h0)
    gates = x @ gru.weight_ih_l0.T + gru.bias_ih_l0 + torch.cat([gru.bias_hh_l0[:40], torch.zeros(20)])
    every = torch.empty(1, 100, 2, 20).double()
    parts = (gates[None], gru.weight_hh_l0, gru.bias_hh_l0[40:])
    ops.relax_gru(h0, *(a.detach() for a in parts), 100, every=every)
    assert (every[0] - states).abs().max().item() <= 1000 * np.finfo(float).eps
