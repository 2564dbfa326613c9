# SPDX-License-Identifier: BSD-3-Clause
"""What Newton's method promises for a chain: exact slices whatever the Jacobians, and how fast with which."""

import itertools

import numpy as np
import pytest
from newton_cases import Cell, Linear, Logistic, Shear

from pyparareal import LocalRuntime, Newton, Status, TimeGrid, serial_solve, solve
from pyparareal.implicit import DiagonallyImplicit
from pyparareal.operators import Laplacian2D, Tridiagonal
from pyparareal.propagators import Map
from pyparareal.runtime.model import ModelRuntime, StepCost
from pyparareal.tableaux import CRANK_NICOLSON

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")

U0 = np.array([[0.37, 0.2]])
EPS = np.finfo(np.float64).eps


def largest(u):
    return float(np.abs(u).max())


# Exactness. The logistic map with rate 3.9 is chaotic; slopes that are wrong are as good as any others for it.

WRONG = {"zero": 0.0, "small": 0.3, "large": -1.7}


@pytest.mark.parametrize(("damping", "trust"), [(0.0, None), (0.4, None), ("adaptive", None), (0.0, 0.3)])
@pytest.mark.parametrize("jacobian", ["full", "diagonal", "none"])
@pytest.mark.parametrize("slope", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(("steps", "m"), [(24, 2), (13, 1), (26, 4)])
def test_k_iterations_make_exactly_k_slices_exact(steps, m, slope, jacobian, damping, trust):
    grid, phi = TimeGrid(0, 1, steps), Logistic(slope=slope)
    chain, slices = serial_solve(phi, U0, grid).u[grid.c_points(m)], grid.slices(m)
    method = Newton(jacobian, damping, trust)
    for k in range(1, slices + 1):
        options = {"tol": 0.0, "max_iterations": k, "keep_going": True, "on_failure": "return", "method": method}
        u = solve(phi, U0, grid, m=m, **options).u
        assert [np.array_equal(u[n], chain[n]) for n in range(slices + 1)] == [n <= k for n in range(slices + 1)]


@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
def test_the_true_jacobian_keeps_the_exact_slices_though_the_rest_overflows(jacobian):
    grid, phi = TimeGrid(0, 1, 40), Logistic()
    chain = serial_solve(phi, U0, grid).u
    for k in (1, 7, 39, 40):
        options = {"tol": 0.0, "max_iterations": k, "keep_going": True, "on_failure": "return"}
        solution = solve(phi, U0, grid, m=1, method=Newton(jacobian), **options)
        assert np.array_equal(solution.u[: k + 1], chain[: k + 1])
    assert solution.status is Status.CONVERGED


@pytest.mark.parametrize("save", ["coarse", "all"])
def test_as_many_iterations_as_slices_give_the_chain(save):
    grid, phi = TimeGrid(0, 1, 27), Logistic(slope=0.5)
    solution = solve(phi, U0, grid, m=4, tol=0.0, method=Newton("diagonal"), keep_going=True, save=save)
    assert solution.status is Status.CONVERGED
    assert solution.iterations == 6
    assert np.array_equal(solution.u, serial_solve(phi, U0, grid, m=4, save=save).u)


def test_without_jacobians_it_is_parareal_with_a_coarse_propagator_that_is_zero():
    grid, zero = TimeGrid(0, 1, 26), Map(lambda u: 0 * u, batch_invariant=True)
    guess = np.random.default_rng(0).random((7, 1, 2))
    for k in range(1, 7):
        options = {"tol": 0.0, "max_iterations": k, "on_failure": "return", "initial": guess}
        ours = solve(Logistic(), U0, grid, m=4, method=Newton("none"), **options)
        theirs = solve(Logistic(), U0, grid, m=4, coarse=zero, **options)
        assert np.array_equal(ours.u, theirs.u)


def test_work_is_done_on_slices_that_are_not_final_only():
    phi = Logistic(slope=0.2)
    solution = solve(phi, U0, TimeGrid(0, 1, 24), m=2, tol=0.0, method=Newton("diagonal"))
    assert solution.stats.fine_steps == 2 * sum(range(1, 13))
    assert solution.stats.critical_fine_steps == 2 * 12
    assert solution.stats.coarse_steps == 0
    assert solution.stats.converged_slices == tuple(range(1, 13))
    assert phi.taken == 2 * 12
    assert solution.stats.jacobian == "diagonal"


def test_deterministic_blocks_are_exact_where_matrix_products_are_not():
    cell = Cell(20, features=64, batch=1)
    options = {"m": 2, "deterministic": True}
    chain = serial_solve(cell, cell.u0, cell.grid, save="coarse", **options)
    solution = solve(cell, cell.u0, cell.grid, tol=0.0, method=Newton("full"), **options)
    assert np.array_equal(solution.u, chain.u)


def test_slices_per_call_change_nothing():
    phi, grid = Logistic(slope=0.3), TimeGrid(0, 1, 26)
    options = {"m": 2, "tol": 0.0, "max_iterations": 5, "method": Newton("full"), "on_failure": "return"}
    u = solve(phi, U0, grid, **options).u
    assert np.array_equal(solve(phi, U0, grid, runtime=LocalRuntime(slices_per_call=3), **options).u, u)


# How fast


@pytest.mark.parametrize("m", [1, 3])
def test_the_true_jacobian_converges_quadratically(m):
    # A contraction by 0.9 with second derivatives below 1: |e_{k+1}| <= C |e_k|^2 with C = 0.77 |W|^2 sum 0.9^i < 8.
    cell = Cell(60)
    chain = serial_solve(cell, cell.u0, cell.grid, m=m, save="coarse").u
    states = []
    solve(
        cell, cell.u0, cell.grid, m=m, tol=1e-12, method=Newton("full"),
        callback=lambda k, u, r: states.append(u.copy()),
    )  # fmt: skip
    errors = [largest(u - chain) for u in states]
    assert errors[0] > 1e-3
    for e, e_next in itertools.pairwise(errors):
        assert e_next <= 8 * e**2 + 100 * EPS
    assert len(errors) <= 7


def test_less_of_the_jacobian_takes_more_iterations():
    # Like the cell of a GRU it keeps most of its state, and the diagonal is most of its Jacobian.
    cell = Cell(120, keep=0.8)
    kinds = ("full", "block", "diagonal", "none")
    solutions = {kind: solve(cell, cell.u0, cell.grid, m=1, tol=1e-10, method=Newton(kind)) for kind in kinds}
    chain = serial_solve(cell, cell.u0, cell.grid).u
    for solution in solutions.values():
        assert solution.status is Status.CONVERGED
        # Residuals below 1e-10 in each of 4 features, amplified by at most sum 0.98^i = 50.
        assert largest(solution.u - chain) < 2 * 50 * 1e-10
    counts = [solutions[kind].iterations for kind in kinds]
    assert counts[0] < counts[1] < counts[2] < counts[3]


def test_longer_slices_need_fewer_iterations_without_jacobians():
    cell = Cell(120)
    counts = [solve(cell, cell.u0, cell.grid, m=m, tol=1e-8, method=Newton("none")).iterations for m in (1, 4, 16)]
    assert counts[0] > counts[1] > counts[2]


def rotations(steps, size, growth=1.0):
    random = np.random.default_rng(3)
    return growth * np.stack([np.linalg.qr(random.normal(size=(size, size)))[0] for _ in range(steps)])


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("size", [1, 3, 9])
def test_one_iteration_solves_a_linear_chain(size, m):
    phi, grid = Linear(rotations(52, size), source=0.25), TimeGrid(0, 1, 52)
    u0 = np.ones((2, size))
    chain = serial_solve(phi, u0, grid, m=m, save="all").u
    once = solve(phi, u0, grid, m=m, tol=None, max_iterations=1, method="newton" if size < 9 else Newton("full"))
    # Orthogonal matrices keep rounding errors as they are: 52 steps and 52 sums of size products.
    assert largest(once.u - chain[once.points]) <= 2 * 52 * (size + 2) * EPS * largest(chain)
    assert once.status is Status.FIXED
    solution = solve(phi, u0, grid, m=m, tol=1e-10, method=Newton("full"), save="all")
    assert solution.iterations == 2  # the second sees that the first was right
    assert largest(solution.u - chain) <= 2 * 52 * (size + 2) * EPS * largest(chain)


def test_jacobians_of_a_linear_chain_are_computed_once():
    phi = Linear(rotations(20, 3))
    solve(phi, np.ones((1, 3)), TimeGrid(0, 1, 20), m=4, tol=1e-12, method="newton")
    assert phi.taken == 4


HEAT = Tridiagonal(np.full(8, 90.0), np.full(9, -180.0), np.full(8, 90.0))


@pytest.mark.parametrize(
    "phi",
    [
        DiagonallyImplicit(HEAT, TimeGrid(0, 1, 24)),
        DiagonallyImplicit(
            HEAT, TimeGrid(0, 1, 24), CRANK_NICOLSON, source=lambda t: np.sin(9 * t)[:, None] * np.ones(9)
        ),
        DiagonallyImplicit(HEAT, TimeGrid.from_times(np.linspace(0, 1, 25) ** 2)),
        DiagonallyImplicit(Laplacian2D(3), TimeGrid(0, 1, 24)),
    ],
    ids=["heat", "source", "uneven", "heat-2d"],
)
def test_implicit_steps_of_linear_equations_have_full_jacobians(phi):
    u0 = np.random.default_rng(0).random((2, *phi.operator.shape))
    once = solve(phi, u0, phi.grid, m=3, tol=None, max_iterations=1, method="newton")
    chain = serial_solve(phi, u0, phi.grid, m=3, save="coarse").u
    assert once.stats.jacobian == "full"
    # No step is larger than the identity; 9 sums of products for each of 24 steps.
    assert largest(once.u - chain) <= 24 * 20 * EPS * largest(u0)


# The rest of solve


def test_a_coarse_propagator_makes_the_guess():
    phi, grid = Logistic(rate=0.8), TimeGrid(0, 1, 12)
    seen = []
    solve(
        phi, U0, grid, m=3, tol=None, max_iterations=1, method=Newton("none"),
        coarse=Map(lambda u: 0.5 * u), callback=lambda k, u, r: seen.append(r),
    )  # fmt: skip
    first = U0 * 0.5 ** np.arange(5)[:, None, None]
    ends = first[:-1]
    for _ in range(3):
        ends = phi.step(ends, None)
    assert seen == [largest(ends - first[1:])]


def test_a_solution_as_guess_needs_one_iteration():
    cell = Cell(40)
    options = {"m": 2, "tol": 1e-9, "method": Newton("full")}
    solution = solve(cell, cell.u0, cell.grid, **options)
    assert solve(cell, cell.u0, cell.grid, initial=solution, **options).iterations == 1


def test_fixed_iterations_are_the_first_ones_of_a_solve():
    cell = Cell(40)
    seen = []
    fixed = solve(cell, cell.u0, cell.grid, m=2, tol=None, max_iterations=3, method=Newton("diagonal"))
    solve(
        cell, cell.u0, cell.grid, m=2, tol=0.0, freeze=False, method=Newton("diagonal"),
        callback=lambda k, u, r: seen.append((u.copy(), r)) or k == 3, on_failure="return",
    )  # fmt: skip
    assert fixed.status is Status.FIXED
    assert np.array_equal(fixed.u, seen[-1][0])
    assert fixed.residuals == tuple(r for _, r in seen)


@pytest.mark.parametrize("method", [Newton("full"), Newton("full", 0.5), Newton("diagonal"), Newton("none")], ids=str)
def test_slices_at_rest_are_not_converged_while_their_starts_still_move(method):
    # A guess that solves all slices but the first: its residuals are zero where the answer is far away.
    cell = Cell(30, keep=0.6)
    guess = serial_solve(cell, cell.u0 + 5e-5, cell.grid).u
    solution = solve(cell, cell.u0, cell.grid, m=1, tol=1e-8, initial=guess, method=method)
    # A contraction by 0.96: residuals below the tolerance in 4 features leave at most 2 * 25 times as much.
    assert largest(solution.u - serial_solve(cell, cell.u0, cell.grid).u) < 50 * 1e-8
    # Updates of 5e-5 are below the root of the tolerance, and the squares of them below the tolerance.
    assert (solution.iterations == 1) == (method == Newton("full"))


def test_a_callback_stops():
    cell = Cell(40)
    solution = solve(cell, cell.u0, cell.grid, m=2, tol=1e-9, method="newton", callback=lambda k, u, r: k == 2)
    assert solution.status is Status.STOPPED
    assert solution.iterations == 2


@pytest.mark.parametrize("norm", ["inf", "l1", "l2", "rms"])
def test_the_residual_is_that_of_the_recurrence_in_the_norm(norm):
    cell = Cell(12)
    guess = np.random.default_rng(1).random((13, 3, 4))
    guess[0] = cell.u0
    solution = solve(
        cell, cell.u0, cell.grid, m=1, tol=None, max_iterations=1, method="newton", norm=norm, initial=guess
    )
    d = (cell.step(guess[:-1], slice(0, 12, 1)) - guess[1:]).reshape(12, -1)
    norms = {
        "inf": np.abs(d).max(1), "l1": np.abs(d).sum(1),
        "l2": np.sqrt((d**2).sum(1)), "rms": np.sqrt((d**2).mean(1)),
    }  # fmt: skip
    assert solution.residuals == pytest.approx([norms[norm].max()], rel=20 * EPS)


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_right_hand_side_leaves_the_jacobian_as_it_is(deterministic):
    cell, grid = Cell(30), TimeGrid(0, 1, 30)
    options = {"m": 3, "rhs": np.random.default_rng(2).normal(size=(30, 3, 4)), "deterministic": deterministic}
    solution = solve(cell, cell.u0, grid, tol=1e-12, method=Newton("full"), **options)
    chain = serial_solve(cell, cell.u0, grid, save="coarse", **options).u
    assert solution.iterations <= 8
    assert largest(solution.u - chain) < 1e-11


def test_freezing_saves_work_and_not_the_result():
    cell = Cell(64)
    options = {"m": 1, "tol": 1e-10, "method": Newton("none")}
    frozen, free = (solve(cell, cell.u0, cell.grid, freeze=freeze, **options) for freeze in (True, False))
    assert frozen.stats.fine_steps < free.stats.fine_steps
    assert largest(frozen.u - free.u) < 1e-9


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 2)])
def test_states_of_any_shape(shape):
    u0 = np.random.default_rng(0).random(shape) * 0.4 + 0.1
    grid = TimeGrid(0, 1, 10)
    chain = serial_solve(Logistic(rate=2.5), u0, grid).u
    solution = solve(Logistic(rate=2.5), u0, grid, m=1, tol=1e-12, method=Newton("diagonal"))
    assert solution.u.shape == (11, *shape)
    assert largest(solution.u - chain) < 1e-11


def test_float32_and_float16_states():
    for dtype in (np.float32, np.float16):
        u0, phi = np.full((1, 2), 0.3, dtype), Logistic(rate=dtype(2.5))
        solution = solve(phi, u0, TimeGrid(0, 1, 12), m=2, tol=0.0, method=Newton("diagonal"))
        assert solution.u.dtype == dtype
        assert np.array_equal(solution.u, serial_solve(phi, u0, TimeGrid(0, 1, 12), m=2, save="coarse").u)


@pytest.mark.parametrize("jacobian", ["full", "block", "diagonal", "none"])
@pytest.mark.parametrize("options", [{}, {"damping": "adaptive"}, {"trust": 1.0}])
def test_an_empty_batch(jacobian, options):
    cell = Cell(8, batch=0)
    solution = solve(cell, cell.u0, cell.grid, m=2, tol=1e-9, method=Newton(jacobian, **options))
    assert solution.status is Status.CONVERGED
    assert solution.u.shape == (5, 0, 4)


def test_a_schedule_can_be_priced():
    runtime = ModelRuntime(4)
    priced = runtime.priced(StepCost(call=0.0, per_slice=1.0))
    options = {"m": 5, "tol": None, "max_iterations": 3, "runtime": runtime}
    solve(priced, np.zeros((1, 0)), TimeGrid(0, 1, 40), method=Newton("none"), **options)
    # 8, 7 and 6 slices of 5 steps, on 4 processors.
    assert runtime.total == 5 * (2 + 2 + 2)


@pytest.mark.parametrize("error", [1e-9, 1e-12, 3e-17])
@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize(
    "method", [Newton("diagonal"), Newton("full"), Newton("full", 0.5), Newton("full", 0.0, 0.25)], ids=str
)
def test_residuals_amplified_by_a_jacobian_that_is_not_the_true_one_have_not_converged(method, linear, error):
    # From a guess with a tiny error, in residuals below tol, the diagonal makes updates of 2^40 times as much. An
    # update below tol leaves |A - J| of it, |A| < 6, and the residual of a guess |A| error besides.
    grid, u0, tol = TimeGrid(0, 1, 40), np.ones((1, 2)), 1e-8
    phi = Shear(linear)
    guess = serial_solve(phi, u0, grid).u
    guess[1] += error
    solution = solve(phi, u0, grid, m=1, tol=tol, method=method, initial=guess)
    assert largest(solution.u[1:] - phi.step(solution.u[:-1], None)) < 6 * tol
