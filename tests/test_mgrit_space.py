# SPDX-License-Identifier: BSD-3-Clause
"""MGRIT with stored points, coarsening in space, residuals of the user, and states of other libraries."""

import numpy as np
import pytest
from mgrit_cases import U0, Decay, DecayWithResidual, chain, decay, logistic

from pyparareal import MGRIT, Status, TimeGrid, Transfer, solve
from pyparareal.equations import Stored
from pyparareal.propagators import Map

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")

# Storage


class Newton:
    """Backward Euler for ``u' = -u^3`` by Newton's method to rounding; counts its iterations."""

    batch_invariant = True

    def __init__(self, grid):
        self.grid, self.iterations = grid, 0

    def step_from(self, u, points, guess):
        h, v = self.grid.dt(points), guess
        for _ in range(50):
            self.iterations += 1
            change = (v + h * v**3 - u) / (1 + 3 * h * v * v)
            v = v - change
            if np.abs(change).max() < 1e-15:
                return v
        raise AssertionError("Newton's method failed")

    def step(self, u, points):
        return self.step_from(u, points, u)

    def rediscretise(self, m):
        return Newton(self.grid.coarsen(m))


def test_stored_points_are_starting_guesses():
    found = {}
    for storage in ("c", "all"):
        grid = TimeGrid(0, 16, 64)
        fine = Newton(grid)
        method = MGRIT(levels=2, storage=storage)
        found[storage] = solve(fine, np.array([[1.0, 2.0]]), grid, m=4, tol=1e-10, method=method), fine.iterations
    # Newton's method ends within an ulp or so of the same root, wherever it starts.
    np.testing.assert_allclose(found["all"][0].u, found["c"][0].u, atol=64 * 1e-15)
    assert found["all"][0].iterations == found["c"][0].iterations
    assert found["all"][1] < 0.8 * found["c"][1]


def test_a_store_holds_the_states_where_the_next_relaxation_looks_for_them():
    store = np.zeros((9, 1, 1))
    seen = []

    class Counting:
        batch_invariant = True

        def step(self, u, points):
            return u + 1

        def step_from(self, u, points, guess):
            seen.append(guess.ravel().copy())
            return self.step(u, points)

    equation = Stored(Counting(), store)
    for _ in range(2):
        equation.step(np.array([[[10.0]], [[20.0]]]), slice(1, 6, 4))
    assert store.ravel().tolist() == [0, 0, 11, 0, 0, 0, 21, 0, 0]
    np.testing.assert_array_equal(seen, [[0, 0], [11, 21]])


def test_storage_changes_no_bit_of_a_step_that_needs_no_guess():
    kept, recomputed = (solve(**logistic(51, levels=3, max_iterations=3, storage=s)) for s in ("all", "c"))
    assert np.array_equal(kept.u, recomputed.u)


# Space


class Heat:
    """Backward Euler for ``u_t = u_xx`` on ``points`` inner points of (0, 1), by a dense inverse; and its residual."""

    batch_invariant = False  # a matrix product

    def __init__(self, grid, points):
        self.grid, self.points = grid, points
        n = (points + 1) ** 2
        a = n * (np.diag([-2.0] * points) + np.diag([1.0] * (points - 1), 1) + np.diag([1.0] * (points - 1), -1))
        self.matrix = np.eye(points) - grid.dt() * a
        self.inverse = np.linalg.inv(self.matrix)

    def step(self, u, points):
        return u @ self.inverse.T

    def rediscretise(self, m):
        return Heat(self.grid.coarsen(m), self.points)


class HeatWithResidual(Heat):
    def residual(self, u_next, u, points):
        return u_next @ self.matrix.T - u

    def step_with(self, u, points, rhs):
        return (u + rhs) @ self.inverse.T

    def rediscretise(self, m):
        return HeatWithResidual(self.grid.coarsen(m), self.points)


def full_weighting(u):
    return (u[..., :-2:2] + 2 * u[..., 1:-1:2] + u[..., 2::2]) / 4


def interpolation(e):
    fine = np.zeros((*e.shape[:-1], 2 * e.shape[-1] + 1))
    fine[..., 1::2] = e
    padded = np.pad(e, [(0, 0)] * (e.ndim - 1) + [(1, 1)])
    fine[..., ::2] = (padded[..., :-1] + padded[..., 1:]) / 2
    return fine


def heat(kind=Heat, points=31, steps=64, **options):
    grid = TimeGrid(0, 0.1, steps)
    x = np.linspace(0, 1, points + 2)[1:-1]
    return {"fine": kind(grid, points), "u0": (np.sin(np.pi * x) + np.sin(5 * np.pi * x))[None], "grid": grid, "m": 2,
            "tol": 1e-10, "method": MGRIT(**options)}  # fmt: skip


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("cycle", ["V", "F"])
def test_coarsening_in_space_converges_to_the_fine_solution(levels, cycle):
    case = heat(levels=levels, cycle=cycle, transfer=Transfer(full_weighting, interpolation))
    grids = [case["grid"].coarsen(2), case["grid"].coarsen(2).coarsen(2)]
    case["coarse"] = [Heat(grid, points) for grid, points in zip(grids, (15, 7), strict=True)][: levels - 1]
    solution = solve(**case)
    # The residual reaches the solution through at most 64 steps of a contraction.
    np.testing.assert_allclose(solution.u, chain(case, m=2, save="coarse"), atol=64 * 1e-10)
    assert 3 < solution.iterations < 20


def test_a_restriction_may_be_a_view():
    problems = []
    for restrict in (lambda u: u[..., 1::2], lambda u: u[..., 1::2].copy()):
        case = heat(transfer=Transfer(restrict, interpolation))
        problems.append(solve(**case | {"coarse": Heat(case["grid"].coarsen(2), 15)}))
    assert np.array_equal(problems[0].u, problems[1].u)
    np.testing.assert_array_equal(problems[0].residuals, problems[1].residuals)


def test_a_transfer_that_does_not_come_back():
    case = heat(transfer=Transfer(full_weighting, lambda e: e[..., :1]))
    case["coarse"] = Heat(case["grid"].coarsen(2), 15)
    with pytest.raises(ValueError, match=r"transfer: prolong returned shape \(33, 1, 1\), expected \(33, 1, 31\)"):
        solve(**case)


@pytest.mark.parametrize("levels", [2, 3])
def test_a_residual_of_the_users_own_gives_the_same_iterates(levels):
    # A(u_next, u) = (I - dt L)(u_next - Phi(u)): the residual is the other one times the matrix, whose eigenvalues are
    # 1.015 and 1.39 for the two modes that there are.
    steps, users = solve(**heat(levels=levels)), solve(**heat(HeatWithResidual, levels=levels))
    np.testing.assert_allclose(users.u, steps.u, atol=2 * 64 * 1e-10)
    assert 1.015 < users.residuals[1] / steps.residuals[1] < 1.39
    assert users.status is Status.CONVERGED


@pytest.mark.parametrize("with_residual", ["fine", "coarse"])
def test_a_residual_on_one_level_only_is_used_where_both_have_one(with_residual):
    case = decay(tol=1e-11, skip_first_down=False)
    kinds = (DecayWithResidual, Decay) if with_residual == "fine" else (Decay, DecayWithResidual)
    fine, coarse = kinds[0](case["grid"]), kinds[1](case["grid"].coarsen(4))
    mixed, plain = solve(**case | {"fine": fine, "coarse": coarse}), solve(**case)
    assert np.array_equal(mixed.u, plain.u)  # the pair of end states, as without any residual


def test_what_does_not_end_by_itself_gets_a_hundred_cycles():
    # With three slices relaxation alone is exact in the second cycle after one that only goes up. With a weight
    # nothing ever is, and a tolerance of zero is met only if rounding happens to meet it.
    short = {"steps": 12, "tol": 0.0, "on_failure": "return", "stagnation": None}
    assert solve(**decay(**short)).iterations == 3
    weighted = solve(**decay(omega=1.5, **short))
    assert 0 < weighted.residuals[-1] < 1e-17
    assert weighted.iterations == 100


# Arrays


def test_torch_states_give_the_same_bits():
    torch = pytest.importorskip("torch")
    case = logistic(51, levels=3, max_iterations=4, save="all")
    case["fine"] = Map(lambda u: 3.5 * u * (1 - u), batch_invariant=True)
    case["coarse"] = [
        Map(lambda u: 0.1 * u * u + 0.5, batch_invariant=True),
        Map(lambda u: 0.5 + 0.1 * u, batch_invariant=True),
    ]
    plain = solve(**case)
    tensors = solve(**case | {"u0": torch.from_numpy(U0)})
    assert isinstance(tensors.u, torch.Tensor)
    assert np.isfinite(plain.u).all()
    assert np.array_equal(tensors.u.numpy(), plain.u)
    np.testing.assert_array_equal(tensors.residuals, plain.residuals)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_of_the_states_is_kept(dtype):
    solution = solve(**decay(tol=1e-5) | {"u0": U0.astype(dtype)})
    assert solution.u.dtype == dtype


@pytest.mark.gpu
@pytest.mark.parametrize("library", ["torch", "cupy"])
@pytest.mark.parametrize("options", [{}, {"cycle": "F", "nu": 0}, {"omega": 1.2, "lag": 2}, {"storage": "all"}])
def test_states_on_a_gpu_converge_alike(library, options):
    module = pytest.importorskip(library)
    if library == "torch" and not module.cuda.is_available():
        pytest.skip("no CUDA device")
    case = decay(steps=67, levels=3, **options)
    expected = solve(**case, save="all")
    u0 = module.tensor(U0, device="cuda") if library == "torch" else module.asarray(U0)
    got = solve(**case | {"u0": u0}, save="all")
    assert type(got.u) is type(u0)
    assert got.iterations == expected.iterations
    # A quotient is correctly rounded on both, and the kernels give the same bits; only norms of libraries could differ.
    assert np.array_equal(got.u.cpu().numpy() if library == "torch" else module.asnumpy(got.u), expected.u)
    np.testing.assert_allclose(got.residuals, expected.residuals, rtol=1e-12)
