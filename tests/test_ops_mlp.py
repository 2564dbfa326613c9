# SPDX-License-Identifier: BSD-3-Clause
"""``relax_mlp_sgd`` gives the bits of its reference, and the reference those of gradient descent."""

import copy
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_backends import arrange, assert_same_bits, on_every_backend, simd

from pyparareal import ops, reference, reference_mlp

DTYPES = (np.dtype("float64"), np.dtype("float32"))
KINDS = ("sigmoid", "tanh", "relu", "identity")
# In lanes where there are several slices; alone where weights are many; of one matrix; of many.
NETS = ((3, 4, 1), (3, 9, 17), (5, 70, 3), (1, 1), (40, 33), (2, 3, 4, 5, 3, 2))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
XOR = (np.array([[0.0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]]), np.array([[0.0], [1], [1], [0]]))


def weights(sizes, bias):
    return sum((i + bias) * o for i, o in itertools.pairwise(sizes))


def problem(rng, sizes, dtype, slices, m, examples, *, bias=False, batch=(), own=False, count=None):
    """``u, positional arguments, keywords``; with ``own`` every slice and step has its rate and its batch."""
    u = (rng.standard_normal((slices, *batch, weights(sizes, bias))) / math.sqrt(max(sizes))).astype(dtype)
    x, y = (rng.standard_normal((examples, d)).astype(dtype) for d in (sizes[0], sizes[-1]))
    alpha = rng.random((slices, m))
    for array in (u, x, y, alpha):  # zeros, whose signs are kept
        array[rng.random(array.shape) < 0.1] = rng.choice([0.0, -0.0])
    keywords = {"bias": bias}
    if own:
        keywords |= {"first": rng.integers(0, examples, (slices, m)), "count": count}
    return u, (sizes, x, y, alpha if own else 0.3, m), keywords


def sides_of(rng, u, m, mode):
    shape = (u.shape[0], m, *u.shape[1:])
    return {name: rng.standard_normal(shape).astype(u.dtype) for name in "fg" if name in mode}


def agree(u, positional, keywords, *, like=lambda a: a, to_numpy=lambda a: a, **more):
    shape = (u.shape[0], positional[-1], *u.shape[1:])
    expected_every = np.empty(shape, u.dtype)
    expected = reference.relax_mlp_sgd(u, *positional, every=expected_every, **keywords)
    every, out = like(np.full(shape, 7, u.dtype)), like(np.full_like(u, 7))
    arrays = [like(a) if isinstance(a, np.ndarray) else a for a in (u, *positional)]
    keywords = {name: like(a) if isinstance(a, np.ndarray) else a for name, a in keywords.items()}
    assert ops.relax_mlp_sgd(*arrays, every=every, out=out, **keywords, **more) is out
    assert_same_bits(to_numpy(out), expected)
    assert_same_bits(to_numpy(every), expected_every)


@on_every_backend
@every_dtype
@pytest.mark.parametrize("sizes", NETS, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_the_bits_of_the_reference(backend, sizes, dtype, bias):
    rng = np.random.default_rng(1)
    for hidden, last in zip(KINDS, KINDS[::-1], strict=True):
        for own, count in ((False, None), (True, 1), (True, 3)):
            u, positional, keywords = problem(rng, sizes, dtype, 3, 2, 5, bias=bias, own=own, count=count)
            keywords |= {"hidden": hidden, "last": last, **sides_of(rng, u, 2, "fg" if own else "")}
            agree(u, positional, keywords, like=backend.like, to_numpy=backend.to_numpy)


@every_dtype
def test_the_adder_of_the_paper(dtype):
    rng = np.random.default_rng(13)
    sizes = (24, 128, 64, 12)
    u, positional, keywords = problem(rng, sizes, dtype, 1, 1, 2)
    agree(u, positional, keywords)
    agree(*problem(rng, sizes, dtype, 2, 1, 3, own=True, count=1))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=2, max_size=5),
    dtype=st.sampled_from(DTYPES),
    slices=st.integers(1, 20),
    batch=st.sampled_from([(), (1,), (3,), (2, 2)]),
    m=st.integers(1, 3),
    examples=st.integers(1, 7),
    count=st.integers(0, 7),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    bias=st.booleans(),
    mode=st.sampled_from(["", "f", "fg"]),
    threads=st.integers(1, 3),
    instructions=st.sampled_from(["baseline", "avx2", "avx512"]),
    seed=st.integers(0, 99),
)
def test_any_network_any_batch_any_threads(
    sizes, dtype, slices, batch, m, examples, count, kinds, bias, mode, threads, instructions, seed
):
    rng, count = np.random.default_rng(seed), min(count, examples)
    own = count > 0
    u, positional, keywords = problem(
        rng, sizes, dtype, slices, m, examples, bias=bias, batch=batch, own=own, count=count
    )
    keywords |= {"hidden": kinds[0], "last": kinds[1], **sides_of(rng, u, m, mode)}
    with simd(instructions):
        agree(u, positional, keywords, threads=threads)


@every_dtype
@pytest.mark.parametrize(("sizes", "slices"), [((3, 4, 1), 701), ((5, 70, 3), 41)], ids=["in lanes", "alone"])
@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])
def test_no_thread_count_and_no_instruction_set_changes_a_bit(dtype, sizes, slices, instructions):
    # Work for a team; slices that leave a part of a tile, and columns of two batch indices.
    rng = np.random.default_rng(2)
    u, positional, keywords = problem(rng, sizes, dtype, slices, 2, 6, bias=True, batch=(2,), own=True, count=3)
    with simd(instructions):
        for threads in (1, 2, 7):
            agree(u, positional, keywords, threads=threads)


@pytest.mark.parametrize("examples", [63, 64, 65, 129])
@pytest.mark.parametrize("sizes", [(3, 4, 1), (5, 70, 3)], ids=["in lanes", "alone"])
def test_batches_around_those_that_are_cut_into_blocks(sizes, examples):
    rng = np.random.default_rng(3)
    agree(*problem(rng, sizes, np.float64, 2, 2, examples, bias=True))
    agree(*problem(rng, sizes, np.float64, 2, 1, examples, own=True, count=examples - 1))


def test_the_full_batch_is_the_range_of_all_and_ranges_wrap():
    rng = np.random.default_rng(4)
    u, positional, keywords = problem(rng, (3, 4, 1), np.float64, 5, 3, 6)
    full = ops.relax_mlp_sgd(u, *positional, **keywords)
    zeros = np.zeros((5, 3), np.int64)
    assert_same_bits(ops.relax_mlp_sgd(u, *positional, first=zeros, count=6, **keywords), full)
    sizes, x, y, alpha, m = positional
    turned = ops.relax_mlp_sgd(u, *positional, first=zeros + 4, count=3, **keywords)
    order = [4, 5, 0]
    assert_same_bits(ops.relax_mlp_sgd(u, sizes, x[order], y[order], alpha, m, **keywords), turned)
    assert (turned != full).any()
    one = ops.relax_mlp_sgd(u, *positional, first=zeros + 4, **keywords)  # one example, unless said otherwise
    assert_same_bits(ops.relax_mlp_sgd(u, sizes, x[4:5], y[4:5], alpha, m, **keywords), one)


@every_dtype
@pytest.mark.parametrize("sizes", [(3, 4, 1), (5, 70, 3)], ids=["in lanes", "alone"])
def test_m_steps_are_m_calls_of_one_step(sizes, dtype):
    rng = np.random.default_rng(5)
    u, positional, keywords = problem(rng, sizes, dtype, 21, 5, 4, own=True, count=2, bias=True)
    sides = sides_of(rng, u, 5, "fg")
    v = u
    for j in range(5):
        one = slice(j, j + 1)
        own = keywords | {"first": keywords["first"][:, one]} | {name: a[:, one] for name, a in sides.items()}
        v = ops.relax_mlp_sgd(v, *positional[:3], positional[3][:, one], 1, **own)
    assert_same_bits(ops.relax_mlp_sgd(u, *positional, **keywords, **sides), v)


@every_dtype
@pytest.mark.parametrize("sizes", [(3, 4, 1), (5, 70, 3)], ids=["in lanes", "alone"])
def test_the_bits_of_a_slice_do_not_depend_on_its_company(sizes, dtype):
    rng = np.random.default_rng(6)
    u, positional, keywords = problem(rng, sizes, dtype, 67, 2, 4)
    together = ops.relax_mlp_sgd(u, *positional, **keywords)
    for size in (1, 2, 7, 40):
        for first in range(0, 67, size):
            part = slice(first, first + size)
            assert_same_bits(ops.relax_mlp_sgd(u[part], *positional, **keywords), together[part])
    order = rng.permutation(67)
    assert_same_bits(ops.relax_mlp_sgd(u[order], *positional, **keywords), together[order])


@pytest.mark.parametrize("sizes", [(3, 4, 1), (5, 70, 3)], ids=["in lanes", "alone"])
@pytest.mark.parametrize("layout", ["every other slice", "every third feature", "transposed", "features backward"])
def test_strides(sizes, layout):
    rng = np.random.default_rng(7)
    u, (sizes, x, y, alpha, m), keywords = problem(rng, sizes, np.float64, 19, 3, 5, own=True, count=2)
    sides = sides_of(rng, u, m, "fg")
    expected_every = np.empty_like(sides["f"])
    expected = reference.relax_mlp_sgd(u, sizes, x, y, alpha, m, every=expected_every, **keywords, **sides)
    sides = {name: arrange(a, layout) for name, a in sides.items()}
    keywords["first"] = np.asfortranarray(keywords["first"])
    out, every = arrange(np.full_like(u, 7), layout), arrange(np.full_like(expected_every, 7), layout)
    base = every if every.base is None else every.base
    x, y, alpha = (arrange(a, layout) for a in (x, y, alpha))
    outside = base.size - every.size
    ops.relax_mlp_sgd(arrange(u, layout), sizes, x, y, alpha, m, every=every, out=out, **keywords, **sides)
    assert_same_bits(np.ascontiguousarray(out), expected)
    assert_same_bits(np.ascontiguousarray(every), expected_every)
    assert (base == 7).sum() == outside


@every_dtype
@pytest.mark.parametrize("sizes", [(3, 4, 1), (5, 70, 3)], ids=["in lanes", "alone"])
def test_some_states_and_the_norms_of_the_last(sizes, dtype):
    rng = np.random.default_rng(14)
    u, positional, keywords = problem(rng, sizes, dtype, 9, 6, 4, batch=(2,))
    all_states = np.empty((9, 6, *u.shape[1:]), dtype)
    ops.relax_mlp_sgd(u, *positional, every=all_states, **keywords)
    target = rng.standard_normal(u.shape).astype(dtype)
    for kept in (1, 2, 3):
        some, norms = np.empty((9, kept, *u.shape[1:]), dtype), np.empty(9)
        for norm in ("sum_squares", "max_abs"):
            ops.relax_mlp_sgd(u, *positional, every=some, target=target, norms=norms, norm=norm, **keywords)
            assert_same_bits(some, np.ascontiguousarray(all_states[:, 6 // kept - 1 :: 6 // kept]))
            assert_same_bits(norms, reference.slice_norms(all_states[:, -1], target, norm=norm))


@every_dtype
def test_in_place(dtype):
    rng = np.random.default_rng(8)
    for sizes in ((3, 4, 1), (5, 70, 3)):
        u, positional, keywords = problem(rng, sizes, dtype, 9, 2, 4)
        sides = sides_of(rng, u, 2, "fg")
        every = np.empty_like(sides["f"])
        expected = ops.relax_mlp_sgd(u, *positional, every=every, out=np.empty_like(u), **sides, **keywords)
        state = u.copy()
        assert ops.relax_mlp_sgd(state, *positional, every=sides["f"], out=state, **sides, **keywords) is state
        assert_same_bits(state, expected)
        assert_same_bits(sides["f"], every)


def test_a_pair_of_equal_right_hand_sides_leaves_the_first_bitwise():
    rng = np.random.default_rng(9)
    for sizes in ((3, 4, 1), (5, 70, 3)):
        u, positional, keywords = problem(rng, sizes, np.float64, 5, 1, 4)
        g = ops.relax_mlp_sgd(u, *positional, **keywords)[:, None]
        f = rng.standard_normal(g.shape)
        assert_same_bits(ops.relax_mlp_sgd(u, *positional, f=f, g=g, **keywords), f[:, 0])
        assert ((f + g) - g != f).any()


def test_nothing_to_do():
    for shape in ((0, 16), (2, 0, 16)):
        assert ops.relax_mlp_sgd(np.empty(shape), (3, 4, 1), *XOR, 1.0, 2).shape == shape


def module_of(torch, sizes, hidden, last, bias):
    kinds = {"sigmoid": torch.nn.Sigmoid, "tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "identity": torch.nn.Identity}
    layers = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        layers += [torch.nn.Linear(inputs, outputs, bias=bias), kinds[last if i == len(sizes) - 2 else hidden]()]
    return torch.nn.Sequential(*layers)


@every_dtype
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("hidden", "last"), list(zip(KINDS, KINDS[::-1], strict=True)))
@pytest.mark.parametrize("sizes", [(3, 4, 1), (5, 70, 3)], ids=["in lanes", "alone"])
def test_steps_are_those_of_torch_autograd_and_its_sgd(sizes, hidden, last, bias, dtype):
    # The sums are of at most 71 terms of size one, three products deep, over 6 steps of rate 0.05: errors of a few
    # hundred units of rounding, and twice the derivatives' bound of that through the steps.
    torch = pytest.importorskip("torch")
    torch.manual_seed(4)
    rng = np.random.default_rng(10)
    module = module_of(torch, sizes, hidden, last, bias).to(getattr(torch, dtype.name))
    x, y = (rng.random((6, d)).astype(dtype) for d in (sizes[0], sizes[-1]))
    u = torch.nn.utils.parameters_to_vector(module.parameters()).detach()[None].clone()
    first = np.array([[0, 2, 4, 0, 2, 4]])
    got = ops.relax_mlp_sgd(
        u, sizes, torch.from_numpy(x), torch.from_numpy(y), 0.05, 6, first=torch.from_numpy(first), count=2,
        hidden=hidden, last=last, bias=bias,
    )  # fmt: skip
    trained = copy.deepcopy(module)
    descent = torch.optim.SGD(trained.parameters(), lr=0.05)
    for j in first[0]:
        descent.zero_grad()
        loss = 0.5 * ((trained(torch.from_numpy(x[j : j + 2])) - torch.from_numpy(y[j : j + 2])) ** 2).sum()
        loss.backward()
        descent.step()
    expected = torch.nn.utils.parameters_to_vector(trained.parameters()).detach()
    scale = 1 + expected.abs().max().item()
    assert (got[0] - expected).abs().max().item() <= 500 * np.finfo(dtype).eps * scale
    assert (got[0] - u[0]).abs().max().item() > 1e-3  # it did move


def test_sixty_thousand_steps_of_xor_end_where_eleven_lines_of_numpy_do():
    # papers.md 2.5: random weights of seed 1, all four examples, rate 1. The descent is contracting where it ends, so
    # that two ways to round stay as close together as in a few steps.
    x, y = XOR
    rng = np.random.RandomState(1)
    syn0, syn1 = 2 * rng.random_sample((3, 4)) - 1, 2 * rng.random_sample((4, 1)) - 1
    u = np.concatenate([syn0.T.ravel(), syn1.T.ravel()])[None]
    out = ops.relax_mlp_sgd(u, (3, 4, 1), x, y, 1.0, 60_000)
    for _ in range(60_000):
        l1 = 1 / (1 + np.exp(-(x @ syn0)))
        l2 = 1 / (1 + np.exp(-(l1 @ syn1)))
        delta2 = (y - l2) * (l2 * (1 - l2))
        delta1 = delta2.dot(syn1.T) * (l1 * (1 - l1))
        syn1 += l1.T.dot(delta2)
        syn0 += x.T.dot(delta1)
    expected = np.concatenate([syn0.T.ravel(), syn1.T.ravel()])
    assert np.abs(out[0] - expected).max() <= 1e-9
    hidden = 1 / (1 + np.exp(-(x @ out[0, :12].reshape(4, 3).T)))
    prediction = 1 / (1 + np.exp(-(hidden @ out[0, 12:])))
    assert np.abs(prediction - y[:, 0]).max() < 0.01


@every_dtype
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_activations_are_within_two_and_a_half_units_in_the_last_place(name, dtype):
    rng = np.random.default_rng(11)
    lowest = -700 if dtype == np.float64 else -86
    z = np.concatenate([rng.uniform(-3, 3, 20_000), rng.uniform(lowest, 40, 20_000), 10 ** rng.uniform(-30, 0, 9000)])
    z = z.astype(dtype)
    wide = z.astype(np.longdouble)
    exact = np.tanh(wide) if name == "tanh" else 1 / (1 + np.exp(-wide))
    value = reference_mlp.ACTIVATIONS[name][0](z)
    assert (np.abs(value - exact) <= 2.5 * np.spacing(np.abs(exact).astype(dtype))).all()
    ends = reference_mlp.ACTIVATIONS[name][0](np.array([-np.inf, -1e4, 0, 1e4, np.inf, np.nan], dtype))
    limits = [-1, -1, 0, 1, 1, np.nan] if name == "tanh" else [0, 0, 0.5, 1, 1, np.nan]
    np.testing.assert_allclose(ends, limits, rtol=0, atol=1e-37)


@every_dtype
def test_the_multiply_add_of_the_reference_is_rounded_once(dtype):
    from fractions import Fraction

    rng = np.random.default_rng(12)
    a, b, c = ((rng.standard_normal(3000) * 2.0 ** rng.integers(-20, 20, 3000)).astype(dtype) for _ in range(3))
    c[::3] = -(a * b)[::3]
    a[::7] *= dtype.type(2.0) ** (-500 if dtype == np.float64 else -60)
    got = reference_mlp.fma(a, b, c)
    exact = [Fraction(float(p)) * Fraction(float(q)) + Fraction(float(r)) for p, q, r in zip(a, b, c, strict=True)]
    if dtype == np.float64:
        assert_same_bits(got, np.array([float(e) for e in exact]))
    # Nothing of the dtype is nearer, and a sum twice rounded is not always as near.
    error = [abs(Fraction(float(g)) - e) for g, e in zip(got, exact, strict=True)]
    for direction in (-np.inf, np.inf):
        other = np.nextafter(got, dtype.type(direction))
        assert all(abs(Fraction(float(o)) - e) >= d for o, e, d in zip(other, exact, error, strict=True))
    assert ((a * b + c) != got).any()
