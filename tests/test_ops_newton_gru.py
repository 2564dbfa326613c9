# SPDX-License-Identifier: BSD-3-Clause
"""``newton_gru`` gives the bits of its reference, which is ``gru_step``, its derivative and ``scan_diag``."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_backends import arrange, assert_same_bits, on_every_backend, simd
from scan_cases import loop, roundings

from pyparareal import ops, reference, reference_gru, reference_scan

CHUNK, GROUP = reference_scan.ROWS, reference_scan.ROWS * reference_scan.CHUNKS
# Around the borders of chunks and groups.
STEPS = (1, 2, CHUNK - 1, CHUNK, CHUNK + 1, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP + 3 * CHUNK + 5)
DTYPES = (np.dtype("float64"), np.dtype("float32"))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def problem(rng, dtype, steps, batch, hidden, *, scale=1.0):
    """``u, products, gates, diagonal, bias`` and the weight; products are those of the reference's order."""
    u = rng.standard_normal((steps + 1, *batch, hidden)).astype(dtype)
    weight = (scale * rng.standard_normal((3 * hidden, hidden)) / np.sqrt(hidden)).astype(dtype)
    gates = rng.standard_normal((steps, *batch, 3 * hidden)).astype(dtype)
    bias = rng.standard_normal(hidden).astype(dtype)
    return [u, reference_gru._times(u[:-1], weight.T), gates, diagonal_of(weight), bias], weight


def diagonal_of(weight):
    return np.stack([np.diagonal(w) for w in np.split(weight, 3)])


def agree(given_arrays, factor=1.0, *, like=lambda a: a, to_numpy=lambda a: a, wanted=None, **more):
    wanted = reference.newton_gru(*given_arrays, factor) if wanted is None else wanted
    given_arrays = [None if a is None else like(a) for a in given_arrays]
    shape, dtype = wanted[0].shape, wanted[0].dtype
    out, jacobians = like(np.full(shape, 7, dtype)), like(np.full(shape, 7, dtype))
    residuals, updates = like(np.full(len(shape) and shape[0], 7.0)), like(np.full(shape[0], 7.0))
    asked = {"jacobians": jacobians, "residuals": residuals, "updates": updates}
    assert ops.newton_gru(*given_arrays, factor=factor, out=out, **asked, **more) is out
    for got, expected in zip((out, *asked.values()), wanted, strict=True):
        assert_same_bits(to_numpy(got), expected)
    # What is not asked for changes nothing.
    assert_same_bits(to_numpy(ops.newton_gru(*given_arrays, factor=factor, **more)), wanted[0])


@on_every_backend
@every_dtype
def test_the_bits_of_the_reference(backend, dtype):
    rng = np.random.default_rng(1)
    for steps in STEPS:
        batch, hidden = [((), 3), ((1,), 17), ((3,), 16), ((2, 2), 5)][steps % 4]
        operands, _ = problem(rng, dtype, steps, batch, hidden)
        factor = float(rng.choice([1.0, 0.7]))
        agree(operands, factor, like=backend.like, to_numpy=backend.to_numpy)
        agree([*operands[:4], None], like=backend.like, to_numpy=backend.to_numpy)


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
@every_dtype
def test_every_instruction_set(name, dtype):
    # Lanes of less than a vector, of several, of whole and of partial tiles, and hidden sizes that fill some.
    rng = np.random.default_rng(2)
    with simd(name):
        for batch, hidden in ((1, 1), (3, 1), (1, 8), (31, 1), (2, 64), (3, 43), (2, 80)):
            steps = GROUP + 21 if hidden == 1 else 2 * CHUNK + 5
            agree(problem(rng, dtype, steps, (batch,), hidden)[0])


@every_dtype
def test_the_number_of_threads_changes_no_bit(dtype):
    # Enough rows for teams that share lanes, and groups of rows where there are few lanes.
    rng = np.random.default_rng(3)
    for steps, batch, hidden in ((300, 5, 48), (16 * GROUP + 5, 1, 1), (16 * GROUP, 1, 3)):
        operands, _ = problem(rng, dtype, steps, (batch,), hidden)
        wanted = reference.newton_gru(*operands)
        for threads in (1, 2, 3, 5, 16):
            agree(operands, wanted=wanted, threads=threads)


@pytest.mark.parametrize(
    "layout", ["every other slice", "every third feature", "transposed", "slices backward", "wide"]
)
def test_strides(layout):
    rng = np.random.default_rng(4)
    operands, _ = problem(rng, np.float64, GROUP + 9, (2,), 16)
    wanted = reference.newton_gru(*operands)
    out, jacobians = (arrange(np.full_like(wanted[0], 7), layout) for _ in range(2))
    ops.newton_gru(*(arrange(a, layout) if a.ndim == 3 else a for a in operands), out=out, jacobians=jacobians)
    for got, expected in zip((out, jacobians), wanted, strict=False):
        base = got if got.base is None else got.base
        assert_same_bits(np.ascontiguousarray(got), expected)
        assert (base == 7).sum() == base.size - got.size
    spaced = np.repeat(operands[3], 2, axis=1)[:, ::2], np.repeat(operands[4], 3)[::3]
    assert_same_bits(ops.newton_gru(*operands[:3], *spaced), wanted[0])


@every_dtype
@settings(deadline=None, max_examples=20)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 2 * GROUP), st.integers(1, 5), st.integers(1, 9), st.floats(0.0, 1.0),
    st.floats(0.1, 4.0), st.integers(1, 3),
)  # fmt: skip
def test_any_problem(dtype, seed, steps, batch, hidden, factor, scale, threads):
    agree(problem(np.random.default_rng(seed), dtype, steps, (batch,), hidden, scale=scale)[0], factor, threads=threads)


@every_dtype
def test_it_is_the_step_its_derivative_and_the_scan(dtype):
    # F is gru_step's bit for bit, and with it and J the rest is scan_diag's. The first row of a chunk follows from what
    # the map of the rows before gives in place of d there: both have the rounding errors that the scan's tests derive.
    rng = np.random.default_rng(5)
    operands, weight = problem(rng, dtype, GROUP + 30, (3,), 12)
    u, _, gates, _, bias = operands
    f = reference_gru.gru_step(u[:-1], gates, weight, bias)
    j = np.empty_like(f)
    u_new = ops.newton_gru(*operands, jacobians=j)
    r = f - u[1:]
    d = ops.scan_diag(j, r)
    assert_same_bits(u_new[0], f[0])
    expected = f[1:] + j[1:] * d[:-1]
    opens = np.arange(1, len(f)) % CHUNK == 0
    assert_same_bits(u_new[1:][~opens], expected[~opens])
    _, size = loop(j, r, None, None, False)
    bound = 2 * roundings(len(f), None, False).reshape(-1, 1, 1) * np.finfo(dtype).eps * size
    assert (np.abs(u_new[1:] - expected) <= np.abs(j[1:]) * bound[:-1] + np.finfo(dtype).eps * np.abs(expected)).all()


def test_the_derivative_is_that_of_complex_steps():
    # Im F(h + i e) / e has no truncation of its own; what differs is the rounding of two evaluations of O(10) numbers.
    rng = np.random.default_rng(6)
    hidden = 9
    operands, weight = problem(rng, np.float64, 4, (5,), hidden)
    u, _, gates, _, bias = operands
    jacobians = np.empty_like(u[1:])
    ops.newton_gru(*operands, jacobians=jacobians)

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    for i in range(hidden):
        h = u[:-1].astype(complex)
        h[..., i] += 1e-30j
        a_r, a_z, a_n = np.split(gates, 3, -1)
        w_r, w_z, w_n = np.split(h @ weight.T, 3, -1)
        z = sigmoid(a_z + w_z)
        n = np.tanh(a_n + sigmoid(a_r + w_r) * (w_n + bias))
        wanted = (n + z * (h - n)).imag[..., i] / 1e-30
        assert np.abs(jacobians[..., i] - wanted).max() < 100 * np.finfo(float).eps * (1 + np.abs(wanted).max())


@every_dtype
def test_a_chain_that_has_converged_is_a_fixed_point_bit_for_bit(dtype):
    rng = np.random.default_rng(7)
    operands, weight = problem(rng, dtype, GROUP + 40, (2,), 10)
    u, gates, bias = operands[0], operands[2], operands[4]
    for i in range(len(gates)):
        u[i + 1] = reference_gru.gru_step(u[i], gates[i], weight, bias)
    operands[1] = reference_gru._times(u[:-1], weight.T)
    residuals, updates = np.full(len(gates), 7.0), np.full(len(gates), 7.0)
    for factor in (1.0, 0.5):
        assert_same_bits(ops.newton_gru(*operands, factor=factor, residuals=residuals, updates=updates), u[1:])
        assert not residuals.any()
        assert not updates.any()


@every_dtype
def test_k_iterations_make_k_states_exact(dtype):
    # Each iteration starts one more state from a final one, whatever J is. The products are those of the reference.
    rng = np.random.default_rng(8)
    operands, weight = problem(rng, dtype, 8, (2,), 4, scale=3.0)
    u, gates, bias = operands[0], operands[2], operands[4]
    exact = [u[0]]
    for gate in gates:
        exact.append(reference_gru.gru_step(exact[-1], gate, weight, bias))
    for k in range(1, len(gates) + 1):
        operands[1] = reference_gru._times(u[:-1], weight.T)
        u[1:] = ops.newton_gru(*operands, factor=0.9)
        assert_same_bits(u[: k + 1], np.stack(exact[: k + 1]))


def test_without_a_jacobian_it_is_the_jacobi_iteration():
    rng = np.random.default_rng(9)
    operands, weight = problem(rng, np.float64, 50, (2,), 6)
    f = reference_gru.gru_step(operands[0][:-1], operands[2], weight, operands[4])
    assert_same_bits(ops.newton_gru(*operands, factor=0.0), f)


@every_dtype
def test_where_z_is_one_states_are_carried_on(dtype):
    # As for padded steps: the state and the derivative of it are kept, whatever n is.
    rng = np.random.default_rng(10)
    operands, _ = problem(rng, dtype, 40, (2,), 5)
    gates, hidden = operands[2], 5
    gates[..., hidden : 2 * hidden] = np.inf
    operands[0][1:] = operands[0][0]
    jacobians = np.empty_like(operands[0][1:])
    got = ops.newton_gru(*operands, jacobians=jacobians)
    assert_same_bits(got, operands[0][1:])
    assert (jacobians == 1).all()


@every_dtype
def test_infinities_and_nan_are_those_of_the_reference(dtype):
    rng = np.random.default_rng(11)
    for value, lanes in ((np.nan, 3), (np.inf, 40), (-np.inf, 40)):
        operands, _ = problem(rng, dtype, GROUP + 60, (1,), lanes)
        for array in operands[:3]:
            array[rng.random(array.shape) < 0.001] = value
        agree(operands, threads=3)
    operands, _ = problem(rng, dtype, GROUP + 60, (1,), 5)
    operands[3] *= dtype.type(1e30)  # factors whose product overflows in a chunk
    agree(operands, threads=2)


def test_nothing_to_do():
    for steps, batch, hidden in ((0, 2, 3), (4, 0, 3), (4, 2, 0)):
        u, sides = np.zeros((steps + 1, batch, hidden)), np.zeros((steps, batch, 3 * hidden))
        norms = np.full(steps, 7.0)
        out = ops.newton_gru(u, sides, sides, np.zeros((3, hidden)), residuals=norms)
        assert out.shape == (steps, batch, hidden)
        assert not norms.any()


SIDES = np.zeros((6, 2, 12))
REFUSED = {
    "float16": ({"u": np.zeros((7, 2, 4), np.float16)}, TypeError, "u: got dtype float16, expected float64 or float32"),
    "axes": ({"u": np.zeros(7)}, ValueError, "u: got 1 axes, expected 2 to 7"),
    "no start": ({"u": np.zeros((0, 2, 4))}, ValueError, r"u: got shape \[0, 2, 4\], expected \[steps \+ 1, batch, h"),
    "products": ({"products": SIDES[:5]}, ValueError, r"products: got shape \[5, 2, 12\], expected .*3 hidden\] of u"),
    "gates": ({"gates": SIDES[..., :11]}, ValueError, r"gates: got shape \[6, 2, 11\], expected .*3 hidden\] of u"),
    "dtype": ({"gates": SIDES.astype("f4")}, TypeError, "gates: got dtype float32, expected float64 like u"),
    "diagonal": ({"diagonal": np.zeros((4, 3))}, ValueError, r"diagonal: got shape \[4, 3\], expected \[3, 4\], of W"),
    "bias": ({"bias": np.zeros(12)}, ValueError, r"bias: got shape \[12\], expected \[4\], hidden"),
    "factor": ({"factor": np.inf}, ValueError, "factor: got inf, expected a finite number"),
    "no number": ({"factor": "a"}, TypeError, "factor: got str, expected a float"),
    "out": ({"out": np.zeros((7, 2, 4))}, ValueError, r"out: got shape \[7, 2, 4\], expected \[steps, ..., hidden\]"),
    "jacobians": ({"jacobians": SIDES}, ValueError, r"jacobians: got shape \[6, 2, 12\], expected .*, hidden\]"),
    "residuals": ({"residuals": np.zeros(7)}, ValueError, r"residuals: got shape \[7\], expected \[6\], one norm per"),
    "updates": ({"updates": np.zeros(6, "f4")}, TypeError, "updates: got dtype float32, expected float64"),
    "a number": ({"products": 1.0}, TypeError, "products: got float, expected a NumPy"),
    "threads": ({"threads": -1}, ValueError, "threads: got -1, expected 0"),
}  # fmt: skip


def call(**changed):
    given_arrays = {"u": np.zeros((7, 2, 4)), "products": SIDES, "gates": SIDES, "diagonal": np.zeros((3, 4))} | changed
    first = [given_arrays.pop(name) for name in ("u", "products", "gates", "diagonal")]
    return ops.newton_gru(*first, **given_arrays)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    changed, error, message = REFUSED[case]
    call()
    with pytest.raises(error, match=message):
        call(**changed)


def test_outputs_that_overlap_are_refused():
    u = np.zeros((7, 2, 4))
    with pytest.raises(ValueError, match="out: overlaps u, expected no common element"):
        call(u=u, out=u[1:])
    jacobians = np.zeros((6, 2, 4))
    with pytest.raises(ValueError, match="jacobians: overlaps out, expected no common element"):
        call(out=jacobians, jacobians=jacobians)
    norms = np.zeros(6)
    with pytest.raises(ValueError, match="updates: overlaps residuals, expected no common element"):
        call(residuals=norms, updates=norms)
