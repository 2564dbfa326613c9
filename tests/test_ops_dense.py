# SPDX-License-Identifier: BSD-3-Clause
"""``relax_dense`` and its adjoint give the bits of their reference, and the reference is the layer of torch."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_backends import arrange, assert_same_bits, on_every_backend, simd

from pyparareal import ops, reference, reference_dense

DTYPES = (np.dtype("float64"), np.dtype("float32"))
ACTIVATIONS = tuple(reference_dense.ACTIVATIONS)
H = 0.3
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_width = pytest.mark.parametrize("d", [1, 3, 17, 64, 100])
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def problem(rng, dtype, slices, m, d, *, batch=(2,), bias=True):
    """``u, weight, bias`` with some signed zeros."""
    u = rng.standard_normal((slices, *batch, d)).astype(dtype)
    weight = (rng.standard_normal((slices, m, d, d)) / math.sqrt(d)).astype(dtype)
    for array in (u, weight):
        array[rng.random(array.shape) < 0.05] = rng.choice([0.0, -0.0])
    return u, weight, rng.standard_normal((slices, m, d)).astype(dtype) if bias else None


def steps_like(u, m):
    return np.empty((u.shape[0], m, *u.shape[1:]), u.dtype)


def sides_of(rng, u, m, mode):
    return {name: rng.standard_normal(steps_like(u, m).shape).astype(u.dtype) for name in "fg" if name in mode}


def agree(rng, u, weight, bias, sides, *, activation="tanh", like=lambda a: a, to_numpy=lambda a: a, **more):
    """Of both ops, with all their results."""
    m = weight.shape[1]
    moved = [None if a is None else like(a) for a in (u, weight, bias)]
    given_sides = {name: like(a) for name, a in sides.items()}
    every, slopes, wanted_every, wanted_slopes = (steps_like(u, m) for _ in range(4))
    wanted = reference.relax_dense(
        u, weight, bias, H, m, activation=activation, slopes=wanted_slopes, every=wanted_every, **sides
    )
    out, every, slopes = like(np.full_like(u, 7)), like(every), like(slopes)
    more_forward = {"activation": activation, "slopes": slopes, "every": every, "out": out}
    assert ops.relax_dense(*moved, H, m, **more_forward, **given_sides, **more) is out
    for got, expected in ((out, wanted), (every, wanted_every), (slopes, wanted_slopes)):
        assert_same_bits(to_numpy(got), expected)
    assert_same_bits(to_numpy(ops.relax_dense(*moved, H, m, activation=activation, **given_sides, **more)), wanted)

    v = rng.standard_normal(u.shape).astype(u.dtype)
    wanted = reference.relax_dense_adjoint(v, weight, wanted_slopes, m, scale=3.0, every=wanted_every, **sides)
    got = ops.relax_dense_adjoint(like(v), moved[1], slopes, m, scale=3.0, every=every, out=out, **given_sides, **more)
    assert got is out
    assert_same_bits(to_numpy(out), wanted)
    assert_same_bits(to_numpy(every), wanted_every)


@on_every_backend
@every_dtype
@every_width
def test_the_bits_of_the_reference(backend, d, dtype):
    rng = np.random.default_rng(1)
    for mode, bias in (("", True), ("f", False), ("fg", True)):
        u, *parts = problem(rng, dtype, 3, 2, d, bias=bias)
        agree(rng, u, *parts, sides_of(rng, u, 2, mode), like=backend.like, to_numpy=backend.to_numpy)


@on_every_backend
@every_dtype
@every_activation
def test_the_bits_of_every_activation(backend, activation, dtype):
    # Weights of size one in sums of nine: some arguments lie within the bend of smooth_relu, some saturate.
    rng = np.random.default_rng(2)
    u, weight, bias = problem(rng, dtype, 4, 3, 9, batch=(19,))
    bias[..., 0] = np.float64([-1e4, 1e4, -90])
    agree(rng, u, weight, bias, {}, activation=activation, like=backend.like, to_numpy=backend.to_numpy)


@settings(max_examples=40, deadline=None)
@given(
    d=st.integers(1, 35),
    dtype=st.sampled_from(DTYPES),
    slices=st.integers(1, 5),
    batch=st.sampled_from([(), (1,), (5,), (17,), (70,), (2, 3)]),
    m=st.integers(1, 3),
    bias=st.booleans(),
    mode=st.sampled_from(["", "f", "fg"]),
    activation=st.sampled_from(ACTIVATIONS),
    threads=st.integers(1, 3),
    instructions=st.sampled_from(["baseline", "avx2", "avx512"]),
    seed=st.integers(0, 99),
)
def test_any_width_any_batch_any_threads(
    d, dtype, slices, batch, m, bias, mode, activation, threads, instructions, seed
):
    rng = np.random.default_rng(seed)
    u, *parts = problem(rng, dtype, slices, m, d, batch=batch, bias=bias)
    with simd(instructions):
        agree(rng, u, *parts, sides_of(rng, u, m, mode), activation=activation, threads=threads)


@every_dtype
@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])
def test_no_thread_count_and_no_instruction_set_changes_a_bit(dtype, instructions):
    # Work for a team; one slice, whose rows are shared; and more rows than a group of tiles has.
    rng = np.random.default_rng(3)
    for slices, batch, m, d in ((9, 34, 3, 24), (1, 33, 3, 48), (1, 700, 1, 9)):
        u, *parts = problem(rng, dtype, slices, m, d, batch=(batch,))
        with simd(instructions):
            for threads in (1, 2, 7):
                agree(rng, u, *parts, {}, threads=threads)


@every_dtype
def test_the_bits_of_a_row_do_not_depend_on_its_company(dtype):
    rng = np.random.default_rng(4)
    u, weight, bias = problem(rng, dtype, 6, 3, 21, batch=(19,))
    slopes = steps_like(u, 3)
    together = ops.relax_dense(u, weight, bias, H, 3, slopes=slopes)
    back = ops.relax_dense_adjoint(u, weight, slopes, 3)
    for first, last in ((0, 1), (2, 5)):
        part, mirror = slice(first, last), slice(6 - last, 6 - first)
        assert_same_bits(ops.relax_dense(u[part], weight[part], bias[part], H, 3), together[part])
        got = ops.relax_dense_adjoint(u[mirror], weight[part], slopes[part], 3)
        assert_same_bits(got, back[mirror])
    for rows in (slice(0, 1), slice(3, 19)):
        assert_same_bits(ops.relax_dense(u[:, rows], weight, bias, H, 3), together[:, rows])
        assert_same_bits(ops.relax_dense_adjoint(u[:, rows], weight, slopes[:, :, rows], 3), back[:, rows])


@every_dtype
def test_slices_of_a_network_are_views_and_m_steps_are_m_calls(dtype):
    # One serial pass through 12 layers is four slices of three, each from where the one before ended; and backward.
    rng = np.random.default_rng(5)
    u, weight, bias = problem(rng, dtype, 1, 12, 19)
    every, slopes = steps_like(u, 12), steps_like(u, 12)
    ops.relax_dense(u, weight, bias, H, 12, every=every, slopes=slopes)
    parts = [a[0].reshape(4, 3, *a.shape[2:]) for a in (weight, bias)]
    starts, own = np.concatenate([u, every[0, 2:-1:3]]), np.empty((4, 3, 2, 19), dtype)
    assert_same_bits(ops.relax_dense(starts, *parts, H, 3, slopes=own), every[0, 2::3])
    assert_same_bits(own.reshape(slopes.shape), slopes)
    v, w = u, u
    back = steps_like(u, 12)
    ops.relax_dense_adjoint(u, weight, slopes, 12, every=back)
    ends = np.concatenate([u, back[0, 2:-1:3]])
    assert_same_bits(ops.relax_dense_adjoint(ends, parts[0], own, 3), back[0, 2::3])
    for j in range(12):
        v = ops.relax_dense(v, weight[:, j : j + 1], bias[:, j : j + 1], H, 1)
        assert_same_bits(v, every[:, j])
        w = ops.relax_dense_adjoint(w, weight[:, 11 - j : 12 - j], slopes[:, 11 - j : 12 - j], 1)
        assert_same_bits(w, back[:, j])


@pytest.mark.parametrize("d", [5, 64])
@pytest.mark.parametrize("layout", ["every other slice", "every third feature", "transposed", "features backward"])
def test_strides(d, layout):
    rng = np.random.default_rng(6)
    u, weight, bias = problem(rng, np.float64, 5, 3, d)
    sides, stepped = sides_of(rng, u, 3, "fg"), {"every": steps_like(u, 3), "slopes": steps_like(u, 3)}
    expected = reference.relax_dense(u, weight, bias, H, 3, **stepped, **sides)
    moved = [arrange(a, layout) for a in (u, weight, bias)]
    sides = {name: arrange(a, layout) for name, a in sides.items()}
    out, every, slopes = (arrange(np.full_like(a, 7), layout) for a in (u, stepped["every"], stepped["slopes"]))
    ops.relax_dense(*moved, H, 3, every=every, slopes=slopes, out=out, **sides)
    for got, wanted in ((out, expected), (every, stepped["every"]), (slopes, stepped["slopes"])):
        base = got if got.base is None else got.base
        assert_same_bits(np.ascontiguousarray(got), wanted)
        assert (base == 7).sum() == base.size - got.size
    expected = reference.relax_dense_adjoint(u, weight, stepped["slopes"], 3)
    ops.relax_dense_adjoint(moved[0], moved[1], slopes, 3, out=out)
    assert_same_bits(np.ascontiguousarray(out), expected)
    turned = np.ascontiguousarray(np.swapaxes(weight, -1, -2)).swapaxes(-1, -2)  # unit stride over the outputs
    assert_same_bits(ops.relax_dense_adjoint(u, turned, stepped["slopes"], 3), expected)
    assert_same_bits(
        ops.relax_dense(u, turned, bias, H, 3), np.ascontiguousarray(ops.relax_dense(u, weight, bias, H, 3))
    )


def test_a_coarse_chain_is_a_strided_view():
    rng = np.random.default_rng(7)
    u, weight, bias = problem(rng, np.float64, 1, 12, 8)
    coarse = [a[:, ::4] for a in (weight, bias)]
    slopes = steps_like(u, 3)
    expected = reference.relax_dense(u, *coarse, 4 * H, 3, slopes=slopes)
    assert_same_bits(ops.relax_dense(u, *coarse, 4 * H, 3), expected)
    same = np.broadcast_to(weight[:, :1], weight.shape)  # tied layers: a stride of zero
    assert_same_bits(ops.relax_dense(u, same, bias, H, 12), reference.relax_dense(u, same, bias, H, 12))


@every_dtype
def test_some_states_and_the_norms_of_the_last(dtype):
    rng = np.random.default_rng(8)
    u, weight, bias = problem(rng, dtype, 5, 6, 9)
    slopes, target = steps_like(u, 6), rng.standard_normal(u.shape).astype(dtype)
    ops.relax_dense(u, weight, bias, H, 6, slopes=slopes)

    def forward(**more):
        return ops.relax_dense(u, weight, bias, H, 6, **more)

    def adjoint(**more):
        return ops.relax_dense_adjoint(u, weight, slopes, 6, **more)

    for op in (forward, adjoint):
        all_states = steps_like(u, 6)
        op(every=all_states)
        for kept in (1, 2, 3):
            some, norms = steps_like(u, kept), np.empty(5)
            for norm in ("sum_squares", "max_abs"):
                assert op(every=some, target=target, norms=norms, norm=norm) is some
                assert_same_bits(some, np.ascontiguousarray(all_states[:, 6 // kept - 1 :: 6 // kept]))
                assert_same_bits(norms, reference.slice_norms(all_states[:, -1], target, norm=norm))


@every_dtype
def test_in_place(dtype):
    rng = np.random.default_rng(9)
    u, weight, bias = problem(rng, dtype, 5, 2, 18)
    sides = sides_of(rng, u, 2, "fg")
    every, slopes = steps_like(u, 2), steps_like(u, 2)
    expected = ops.relax_dense(u, weight, bias, H, 2, every=every, slopes=slopes, out=np.empty_like(u), **sides)
    state, f = u.copy(), sides["f"].copy()
    assert ops.relax_dense(state, weight, bias, H, 2, every=f, out=state, f=f, g=sides["g"]) is state
    assert_same_bits(state, expected)
    assert_same_bits(f, every)
    expected = ops.relax_dense_adjoint(u, weight, slopes, 2, every=every, **sides)
    state, f = u.copy(), sides["f"].copy()
    ops.relax_dense_adjoint(state, weight, slopes, 2, every=f, out=state, f=f, g=sides["g"])
    assert_same_bits(f, expected)


def test_a_pair_of_equal_right_hand_sides_leaves_the_first_bitwise():
    rng = np.random.default_rng(10)
    u, weight, bias = problem(rng, np.float64, 5, 1, 12)
    g = ops.relax_dense(u, weight, bias, H, 1)[:, None]
    f = rng.standard_normal(g.shape)
    assert_same_bits(ops.relax_dense(u, weight, bias, H, 1, f=f, g=g), f[:, 0])
    assert ((f + g) - g != f).any()


def test_nothing_to_do():
    for shape in ((0, 2, 3), (2, 0, 3)):
        weight, slopes = np.zeros((shape[0], 4, 3, 3)), np.empty((shape[0], 4, shape[1], 3))
        assert ops.relax_dense(np.empty(shape), weight, None, H, 4, slopes=slopes).shape == shape
        assert ops.relax_dense_adjoint(np.empty(shape), weight, slopes, 4).shape == shape


@every_width
@every_activation
def test_a_network_and_its_gradients_are_those_of_torch(activation, d):
    # Sums of d terms of size one, so errors of d roundings in the worst case; four layers of slope at most 1 + 2 h
    # (h act' W, whose norm is about 2, for silu 1.1 times that) enlarge each by at most (1 + 2.2 h)^4 < 8.
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    m, batch = 4, 5
    u, weight, bias = problem(rng, np.float64, 1, m, d, batch=(batch,))
    act = {
        "tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "silu": torch.nn.functional.silu,
        "smooth_relu": lambda z: torch.where(z.abs() < 0.1, z**2 / 0.4 + z / 2 + 0.025, torch.relu(z)),
    }[activation]  # fmt: skip
    leaves = [torch.tensor(a[0]).requires_grad_() for a in (u, weight, bias)]
    state = leaves[0]
    for j in range(m):
        state = state + H * act(state @ leaves[1][j].T + leaves[2][j])
    d_end = rng.standard_normal(u.shape)
    wanted = torch.autograd.grad(state, leaves, torch.tensor(d_end[0]))

    slopes, every, back = (steps_like(u, m) for _ in range(3))
    ops.relax_dense(u, weight, bias, H, m, activation=activation, slopes=slopes, every=every)
    bound = 8 * 8 * (d + 4) * np.finfo(float).eps * (1 + np.abs(every).max())
    assert np.abs(every[0, -1] - state.detach().numpy()).max() <= bound
    ops.relax_dense_adjoint(d_end, weight, slopes, m, every=back)
    ends = np.concatenate([back[0, m - 2 :: -1], d_end])  # the gradient of the state after each layer
    p = slopes[0] * ends
    before = np.concatenate([u, every[0, :-1]])
    gradients = (back[0, -1], np.swapaxes(p, -1, -2) @ before, p.sum(1))
    for mine, other in zip(gradients, wanted, strict=True):
        assert np.abs(mine - other.numpy()).max() <= batch * bound * max(1, np.abs(other.numpy()).max())
