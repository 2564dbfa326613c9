# SPDX-License-Identifier: BSD-3-Clause
"""The relaxations give the bits of the reference, which takes one step after another."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_backends import arrange, assert_same_bits, on_every_backend, random_state, simd
from relax_calls import DTYPES, MODES, OPS, PARAMETERS, arguments, both, diffusion, right_hand_sides

from pyparareal import ops, reference, tableaux
from pyparareal.problems import published
from pyparareal.problems.ordinary import MOON, _three_bodies
from pyparareal.propagators import RungeKutta
from pyparareal.time_grid import TimeGrid

every_op = pytest.mark.parametrize("op", OPS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=list(MODES))
# Around one and several vectors of every instruction set, in slices as in space; 65 and 129 columns leave one alone.
SHAPES = [(1, 1), (1, 40), (2, 3), (3, 2, 17), (9, 8), (17, 33), (5, 7, 16), (33, 2), (70, 5), (5, 13, 4), (129, 9)]


def agree(op, u, positional, keywords, mode="", **more):
    (end, every), (expected, expected_every) = both(op, u, positional, keywords, mode, **more)
    assert_same_bits(end, expected)
    if every is not None:
        assert_same_bits(every, expected_every)


@on_every_backend
@every_op
@every_dtype
@every_mode
def test_the_bits_of_the_reference(backend, op, dtype, mode):
    rng = np.random.default_rng(1)
    for shape in SHAPES:
        u, positional, keywords = arguments(op, shape, dtype, 3, rng)
        keywords |= right_hand_sides(u, 3, mode, rng)
        agree(op, u, positional, keywords, mode, like=backend.like, to_numpy=backend.to_numpy)


@every_op
@every_dtype
@pytest.mark.parametrize("mode", ["every", "f every", "f g every"])
def test_some_of_the_states_are_kept_where_their_number_divides_that_of_the_steps(op, dtype, mode):
    rng = np.random.default_rng(11)
    for shape in ((1, 9), (5, 2, 21), (70, 1, 33)):
        u, positional, keywords = arguments(op, shape, dtype, 6, rng)
        keywords |= right_hand_sides(u, 6, mode.replace("every", ""), rng)
        (_, all_of_them), _ = both(op, u, positional, keywords, "e")
        for rows in (1, 2, 3, 6):
            kept = np.full((len(u), rows, *u.shape[1:]), 7, dtype)
            expected = np.full_like(kept, 7)
            assert getattr(ops, op)(u, *positional, every=kept, **keywords) is kept
            getattr(reference, op)(u, *positional, every=expected, **keywords)
            assert_same_bits(kept, expected)
            assert_same_bits(kept, all_of_them[:, 6 // rows - 1 :: 6 // rows])


@every_op
@every_dtype
@pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])
def test_no_thread_count_and_no_instruction_set_changes_a_bit(op, dtype, instructions):
    # More than 7 * 256 KiB of states and right-hand sides: a team of seven. 3001 columns leave a tail everywhere.
    rng = np.random.default_rng(2)
    for mode in ("", "fge"):
        u, positional, keywords = arguments(op, (3001, 21), dtype, 5, rng)
        keywords |= right_hand_sides(u, 5, mode, rng)
        with simd(instructions):
            for threads in (1, 2, 7):
                agree(op, u, positional, keywords, mode, threads=threads)


@every_op
@every_mode
def test_special_values_and_long_columns(op, mode):
    rng = np.random.default_rng(3)
    for shape in ((2, 3000), (6, 1500)):
        u, positional, keywords = arguments(op, shape, np.float64, 2, rng)
        u = random_state(rng, u.shape, np.float64, special=0.01)
        keywords |= right_hand_sides(u, 2, mode, rng)
        agree(op, u, positional, keywords, mode)


@every_op
@pytest.mark.parametrize(
    "layout", ["wide", "every other slice", "every third feature", "transposed", "slices backward", "features backward"]
)
def test_strides(op, layout):
    rng = np.random.default_rng(4)
    for shape in ((19, 10), (6, 3, 11)):
        u, positional, keywords = arguments(op, shape, np.float64, 3, rng)
        sides = right_hand_sides(u, 3, "fg", rng)
        expected_every = np.empty_like(sides["f"])
        expected = getattr(reference, op)(u, *positional, every=expected_every, **sides, **keywords)
        sides = {name: arrange(x, layout) for name, x in sides.items()}
        out, every = arrange(np.full_like(u, 7), layout), arrange(np.full_like(expected_every, 7), layout)
        base = every if every.base is None else every.base
        outside = base.size - every.size
        getattr(ops, op)(arrange(u, layout), *positional, every=every, out=out, **sides, **keywords)
        assert_same_bits(np.ascontiguousarray(out), expected)
        assert_same_bits(np.ascontiguousarray(every), expected_every)
        assert (base == 7).sum() == outside  # nothing beside the view was written


@every_op
@pytest.mark.parametrize("strided", ["u", "f", "g", "every", "out"])
def test_one_operand_with_gaps_among_dense_ones(op, strided):
    rng = np.random.default_rng(20)
    u, positional, keywords = arguments(op, (9, 40), np.float64, 2, rng)
    arrays = {"u": u, **right_hand_sides(u, 2, "fg", rng)}
    arrays |= {"every": np.full_like(arrays["f"], 7), "out": np.full_like(u, 7)}
    expected_every = np.empty_like(arrays["f"])
    expected = getattr(reference, op)(u, *positional, f=arrays["f"], g=arrays["g"], every=expected_every, **keywords)
    arrays[strided] = arrange(arrays[strided], "every third feature")
    getattr(ops, op)(arrays.pop("u"), *positional, **arrays, **keywords)
    assert_same_bits(np.ascontiguousarray(arrays["out"]), expected)
    assert_same_bits(np.ascontiguousarray(arrays["every"]), expected_every)


@every_op
def test_repeated_right_hand_sides_and_views_of_one_array(op):
    # As MGRIT has them: C-points u[::m] start, F-points between them are `every`, and nothing is kept of the end.
    rng = np.random.default_rng(5)
    m = 4
    start, positional, keywords = arguments(op, (6, 9), np.float64, m - 1, rng)
    grid = np.full((6 * m, *start.shape[1:]), 7.0)
    grid[::m] = start
    f = np.broadcast_to(rng.standard_normal(start.shape[1:]), (6, m - 1, *start.shape[1:]))
    points = grid.reshape(6, m, *start.shape[1:])[:, 1:]
    expected = np.empty(points.shape)
    getattr(reference, op)(start, *positional, f=f, every=expected, **keywords)
    assert getattr(ops, op)(grid[::m], *positional, f=f, every=points, **keywords) is points
    assert_same_bits(np.ascontiguousarray(points), expected)
    assert_same_bits(grid[::m].copy(), start)


@every_op
@every_dtype
def test_in_place(op, dtype):
    rng = np.random.default_rng(6)
    u, positional, keywords = arguments(op, (37, 12), dtype, 3, rng)
    sides = right_hand_sides(u, 3, "fg", rng)
    expected_every = np.empty_like(sides["f"])
    expected = getattr(reference, op)(u, *positional, every=expected_every, **sides, **keywords)
    for name in ("f", "g"):  # `every` may take the place of a right-hand side
        state, own = u.copy(), {key: x.copy() for key, x in sides.items()}
        result = getattr(ops, op)(state, *positional, every=own[name], out=state, **own, **keywords)
        assert result is state
        assert_same_bits(state, expected)
        assert_same_bits(own[name], expected_every)


@every_op
@every_dtype
@every_mode
def test_m_steps_are_m_calls_of_one_step(op, dtype, mode):
    rng = np.random.default_rng(7)
    u, positional, keywords = arguments(op, (21, 6), dtype, 5, rng, dt="own")
    sides = right_hand_sides(u, 5, mode, rng)
    v = u
    for j in range(5):
        one = [x[:, j : j + 1] if getattr(x, "shape", None) == (21, 5) else x for x in positional[:-1]]
        v = getattr(ops, op)(v, *one, 1, **keywords, **{name: x[:, j : j + 1] for name, x in sides.items()})
    assert_same_bits(getattr(ops, op)(u, *positional, **sides, **keywords), v)


@every_op
@every_dtype
def test_the_bits_of_a_slice_do_not_depend_on_its_company(op, dtype):
    rng = np.random.default_rng(8)
    u, positional, keywords = arguments(op, (67, 13), dtype, 3, rng)
    sides = right_hand_sides(u, 3, "fg", rng)
    together = getattr(ops, op)(u, *positional, **sides, **keywords)
    for size in (1, 2, 7, 40):
        for first in range(0, 67, size):
            part = slice(first, first + size)
            own = {name: x[part] for name, x in sides.items()}
            assert_same_bits(getattr(ops, op)(u[part], *positional, **own, **keywords), together[part])
    order = rng.permutation(67)
    shuffled = getattr(ops, op)(u[order], *positional, **{k: x[order] for k, x in sides.items()}, **keywords)
    assert_same_bits(shuffled, together[order])


@every_op
@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (0, 0, 3)])
def test_nothing_to_do(op, shape):
    u, positional, keywords = arguments(op, shape, np.float64, 2, np.random.default_rng(9))
    assert getattr(ops, op)(u, *positional, **keywords).shape == u.shape


def test_a_last_axis_without_elements():
    none = np.empty(0)
    assert ops.relax_tridiagonal(np.empty((3, 0)), none, none, none, 2).shape == (3, 0)
    assert ops.relax_stencil(np.empty((3, 0)), np.ones(3), 2, boundary="periodic").shape == (3, 0)
    assert ops.relax_diagonal(np.empty((3, 0)), none, 2).shape == (3, 0)


@every_op
@every_dtype
def test_a_pair_of_equal_right_hand_sides_leaves_the_first_bitwise(op, dtype):
    # g = Phi(u): the bracket is zero, so that the state is f, whatever f is. The other order of the sum is not exact.
    rng = np.random.default_rng(10)
    u, positional, keywords = arguments(op, (23, 7), dtype, 1, rng)
    g = getattr(ops, op)(u, *positional, **keywords)[:, None]
    f = random_state(rng, g.shape, dtype)
    assert_same_bits(getattr(ops, op)(u, *positional, f=f, g=g, **keywords), f[:, 0])
    assert ((f + g) - g != f).any()


@every_dtype
@pytest.mark.parametrize("boundary", ["zero", "periodic"])
@pytest.mark.parametrize("width", [1, 3, 5, 7, 9])
def test_stencils(dtype, boundary, width):
    rng = np.random.default_rng(11)
    for length in (1, 2, 3, 4, 5, 31):  # shorter than the stencil, too
        u, positional, keywords = arguments(
            "relax_stencil", (35, length), dtype, 3, rng, width=width, boundary=boundary
        )
        agree("relax_stencil", u, positional, keywords)


def test_a_stencil_that_moves_the_state():
    u = random_state(np.random.default_rng(12), (5, 3, 12), np.float64)
    weights = np.array([1.0, 0.0, 0.0])  # u[i - 1], exactly
    assert_same_bits(ops.relax_stencil(u, weights, 4, boundary="periodic"), np.roll(u, 4, -1))
    moved = ops.relax_stencil(u, weights, 4)
    assert_same_bits(moved[..., 4:], u[..., :-4].copy())
    assert (moved[..., :4] == 0).all()


@every_dtype
@pytest.mark.parametrize("rhs", PARAMETERS)
@pytest.mark.parametrize("dt", [0.01, "own"], ids=str)
def test_every_right_hand_side_and_scheme(dtype, rhs, dt):
    rng = np.random.default_rng(13)
    schemes = (tableaux.EULER, tableaux.MIDPOINT, tableaux.HEUN, tableaux.RK4, tableaux.COOPER_VERNER_8)
    for tableau in schemes:
        for substeps in (1, 3):
            choices = {"rhs": rhs, "tableau": tableau, "substeps": substeps, "dt": dt}
            u, positional, keywords = arguments("relax_rk", (37, 2, 0), dtype, 2, rng, **choices)
            keywords |= right_hand_sides(u, 2, "fg", rng)
            agree("relax_rk", u, positional, keywords, "e")


KNOWN = {
    "lorenz": (published.lorenz().rhs, (10, 28, 8 / 3)),
    "brusselator": (published.brusselator().rhs, (1, 3)),
    "fitzhugh_nagumo": (published.fitzhugh_nagumo().rhs, (0.2, 0.2, 3)),
    "arenstorf": (_three_bodies, (MOON,)),
    "dahlquist": (lambda t, u: -0.7 * u, (-0.7,)),
    "van_der_pol": (
        lambda t, u: np.stack([u[..., 1], 1.5 * (1 - u[..., 0] * u[..., 0]) * u[..., 1] - u[..., 0]], -1),
        (1.5,),
    ),
}


@every_dtype
@pytest.mark.parametrize("rhs", KNOWN)
@pytest.mark.parametrize("uniform", [True, False])
def test_the_bits_of_the_runge_kutta_propagator(dtype, rhs, uniform):
    rng = np.random.default_rng(14)
    m, slices = 4, 9
    steps = np.full(slices * m, 0.01) if uniform else 0.005 + 0.01 * rng.random(slices * m)
    grid = (
        TimeGrid(0.0, 0.37, slices * m) if uniform else TimeGrid.from_times(np.concatenate([[0.0], np.cumsum(steps)]))
    )
    slope, parameters = KNOWN[rhs]
    u = rng.standard_normal((slices, reference.RIGHT_HAND_SIDES[rhs][0])).astype(dtype)
    for tableau in (tableaux.RK4, tableaux.COOPER_VERNER_8):
        phi = RungeKutta(slope, grid, tableau, substeps=2)
        expected = np.empty_like(u)
        phi.relax(u, slice(0, slices * m, m), m, expected)
        dt = grid.dt(slice(0, slices * m))
        dt = dt if isinstance(dt, float) else np.asarray(dt).reshape(slices, m)
        assert isinstance(dt, float) == uniform
        assert_same_bits(ops.relax_rk(u, rhs, parameters, tableau, dt, m, substeps=2), expected)


def test_zeros_of_a_tableau_are_left_out():
    # The slopes are infinite, and so is u + slope; 0 * slope would make a NaN of it, in a stage or in the end.
    u = np.array([[1e200]])
    last = SimpleNamespace(a=((), (0.0,)), b=(0.0, 1.0))
    for dt in (1.0, np.ones((1, 1))):
        assert ops.relax_rk(u, "dahlquist", (1e200,), last, dt, 1).tolist() == [[np.inf]]
    first = SimpleNamespace(a=((), (0.0,)), b=(0.0, 0.0))
    assert ops.relax_rk(u, "dahlquist", (1e200,), first, 1.0, 1).tolist() == u.tolist()
    # Rounded to zero is not zero: the coefficient times the step size is, in float32.
    with np.errstate(all="ignore"):
        u = np.array([[3e38]], np.float32)
        expected = reference.relax_rk(u, "dahlquist", (1e38,), tableaux.EULER, 1e-60, 1)
    assert np.isnan(expected).all()
    assert_same_bits(ops.relax_rk(u, "dahlquist", (1e38,), tableaux.EULER, 1e-60, 1), expected)


@every_dtype
@pytest.mark.parametrize("n", [1, 2, 3, 64, 257])
def test_the_tridiagonal_step_solves_the_system(dtype, n):
    rng = np.random.default_rng(15)
    lower, upper, diagonal = -rng.random(n - 1), -rng.random(n - 1), 2 + rng.random(n)
    matrix = np.diag(diagonal) + np.diag(lower, -1) + np.diag(upper, 1)
    u = rng.standard_normal((11, n)).astype(dtype)
    factors = [x.astype(dtype) for x in reference.factorise_tridiagonal(lower, diagonal, upper)]
    x = ops.relax_tridiagonal(u, *factors, 1).astype(np.float64)
    # Diagonally dominant, pivots at least 1: x is of the size of u, and every row is a handful of roundings.
    assert np.abs(x @ matrix.T - u).max() <= 32 * np.finfo(dtype).eps * np.abs(u).max()


def _dominant(rng, n):
    """Rows of any scale, whose diagonals exceed the rest by little or by much, of either sign."""
    lower, upper = rng.standard_normal(max(n - 1, 0)), rng.standard_normal(max(n - 1, 0))
    rest = np.abs(np.append(0.0, lower)) + np.abs(np.append(upper, 0.0))
    diagonal = (rest + 10.0 ** -rng.integers(0, 7)) * rng.choice([-1.0, 1.0], n)
    rows = 10.0 ** rng.uniform(-3, 3, n)
    return rows[1:] * lower, rows * diagonal, rows[:-1] * upper


def _definite(rng, n):
    """``B B^T`` of a bidiagonal ``B``: positive definite, hardly ever dominant, of condition up to 1e6 or so."""
    first, second = 0.1 + rng.random(n), rng.standard_normal(max(n - 1, 0))
    off = first[:-1] * second
    return off, first**2 + np.append(0.0, second**2), off


@given(st.sampled_from([_dominant, _definite]), st.integers(1, 70), st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_elimination_from_both_ends_is_backward_stable(kind, n, seed):
    # For these matrices the elements of the factors stay below a few of the matrix, without pivots: then x solves a
    # system whose elements differ by a few roundings (Higham 2002, section 9.5), so that the residual is that of a
    # backward stable solve: each row within a multiple of eps of |T| |x|. Growth is in |L| |U|, 3 |T| at most.
    rng = np.random.default_rng(seed)
    lower, diagonal, upper = kind(rng, n)
    matrix = np.diag(diagonal) + np.diag(lower, -1) + np.diag(upper, 1)
    b = rng.standard_normal((2, n))
    x = ops.relax_tridiagonal(b, *reference.factorise_tridiagonal(lower, diagonal, upper), 1)
    for right, found in zip(b, x, strict=True):
        expected = np.linalg.solve(matrix, right)
        eps = np.finfo(float).eps
        size = np.linalg.norm(matrix, np.inf) * np.abs(found).max() + np.abs(right).max()
        assert np.abs(matrix @ found - right).max() <= 4 * eps * size
        close = 16 * eps * np.linalg.cond(matrix, np.inf)
        assert np.abs(found - expected).max() <= close * np.abs(expected).max()


@pytest.mark.parametrize("n", [1, 2, 6, 7])
def test_factors_are_those_of_the_matrix(n):
    rng = np.random.default_rng(16)
    lower, upper, diagonal = rng.random(n - 1), rng.random(n - 1), 2 + rng.random(n)
    ratio, scale, coupling = reference.factorise_tridiagonal(lower, diagonal, upper)
    middle, rows = n // 2, np.arange(n)
    # Left: rows take from their outer neighbours, the middle one from both. Right: from their inner ones.
    left, right = np.eye(n), np.diag(1 / scale)
    inner = np.where(rows < middle, rows + 1, rows - 1)
    for i in rows[rows != middle]:
        right[i, inner[i]] = coupling[i] / scale[i]
        left[inner[i], i] = ratio[inner[i]]
    if middle > 0:
        left[middle, middle - 1] = coupling[middle] / scale[middle]
    matrix = np.diag(diagonal) + np.diag(lower, -1) + np.diag(upper, 1)
    np.testing.assert_allclose(left @ right, matrix, rtol=0, atol=8 * np.finfo(float).eps * 4)
    assert ratio[-1] == 0
    assert n < 4 or ratio[0] == 0


def test_diffusion_with_a_source_settles_where_the_matrix_says():
    # (I - h A) u = u + h f for many steps: A u = -f. The error shrinks by 1 / (1 + h |lambda|) a step.
    n, h = 20, 1e3
    line = -2 * np.eye(n) + np.eye(n, k=1) + np.eye(n, k=-1)
    off = np.full(n - 1, -h)
    factors = reference.factorise_tridiagonal(off, np.full(n, 1 + 2 * h), off)
    f = np.random.default_rng(17).random((1, 1, n))
    shift = ops.relax_tridiagonal(h * f[0], *factors, 1)  # the source goes through the solve
    sides = np.broadcast_to(shift[:, None], (1, 60, n))
    settled = ops.relax_tridiagonal(np.zeros((1, n)), *factors, 60, f=sides)
    np.testing.assert_allclose(line @ settled[0], -f[0, 0], rtol=0, atol=1e-10)


def test_a_coefficient_of_every_shape():
    rng = np.random.default_rng(18)
    u = rng.standard_normal((4, 3, 2, 5))
    for shape in ((5,), (2, 5), (3, 2, 5)):
        a = rng.standard_normal(shape)
        assert_same_bits(ops.relax_diagonal(u, a, 3), reference.relax_diagonal(u, a, 3))
        transposed = np.ascontiguousarray(a.T).T
        assert_same_bits(ops.relax_diagonal(u, transposed, 3), reference.relax_diagonal(u, a, 3))
    assert_same_bits(
        ops.relax_tridiagonal(u, *diffusion(5, "f8"), 3), reference.relax_tridiagonal(u, *diffusion(5, "f8"), 3)
    )


def test_step_sizes_of_any_strides():
    rng = np.random.default_rng(19)
    u = rng.standard_normal((30, 3))
    lorenz = ("lorenz", PARAMETERS["lorenz"], tableaux.RK4)
    steps = 0.01 * rng.random((6, 30))
    for dt in (steps.T[:, ::2], np.broadcast_to(steps[:1].T, (30, 3)), steps[:3].T[::-1]):
        assert_same_bits(ops.relax_rk(u, *lorenz, dt, 3), reference.relax_rk(u, *lorenz, dt, 3))
    constant = np.full((30, 3), 0.0125)  # a coefficient times it: one rounding either way
    assert_same_bits(ops.relax_rk(u, *lorenz, constant, 3), ops.relax_rk(u, *lorenz, 0.0125, 3))


def test_a_single_coefficient_has_no_stride():
    u, one = np.array([[3.0], [5.0]]), np.full(2, 0.5)[::2]
    assert one.strides == (16,)
    assert ops.relax_stencil(u, one, 2).tolist() == [[0.75], [1.25]]
    assert ops.relax_tridiagonal(u, one, one, one, 2).tolist() == [[0.75], [1.25]]
