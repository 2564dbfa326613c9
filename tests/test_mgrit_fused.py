# SPDX-License-Identifier: BSD-3-Clause
"""Fused relaxation: the bits of single steps, in as many calls as there are sweeps."""

import collections
import tracemalloc

import numpy as np
import pytest

from pyparareal import MGRIT, LocalRuntime, TimeGrid, arrays, ops, problems, serial_solve, solve
from pyparareal.equations import FusedPair, Pair, pair
from pyparareal.implicit import DiagonallyImplicit, ImplicitEuler
from pyparareal.operators import Tridiagonal
from pyparareal.propagators import RungeKutta, compares, is_fused, relax_by_steps
from pyparareal.tableaux import BACKWARD_EULER, CRANK_NICOLSON


class Steps:
    """A propagator with nothing but its step."""

    batch_invariant = True

    def __init__(self, phi):
        self.phi, self.grid = phi, phi.grid

    def step(self, u, points):
        return self.phi.step(u, points)

    def rediscretise(self, m):
        return Steps(self.phi.rediscretise(m))


def heat(steps, points=17):
    dx = 1 / (points + 1)
    off = np.full(points - 1, 1 / dx**2)
    return ImplicitEuler(off, np.full(points, -2 / dx**2), off, TimeGrid(0, 0.1, steps))


def case(steps, points=17, **options):
    fine = heat(steps, points)
    u0 = np.random.default_rng(0).standard_normal((2, points))
    return {"fine": fine, "u0": u0, "grid": fine.grid, "m": 3, "tol": 1e-8, "method": MGRIT(**options)}


OPTIONS = [
    {"levels": 2},
    {"levels": 2, "nu": 0, "measure": "end"},
    {"levels": 3, "cycle": "F", "nu": [1, 2]},
    {"levels": 4, "cycle": "W", "omega": 1.2},
    {"levels": 3, "nested": True, "coarsest_sweeps": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("steps", [81, 89])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_fused_and_single_steps_give_the_same_bits(options, steps, library):
    fused = case(steps, **options)
    if library == "torch":
        fused["u0"] = pytest.importorskip("torch").from_numpy(fused["u0"])
    single = fused | {"fine": Steps(fused["fine"])}
    assert is_fused(fused["fine"])
    assert not is_fused(single["fine"])
    got, expected = (
        solve(**problem, save="all", max_iterations=30, on_failure="return") for problem in (fused, single)
    )
    assert np.array_equal(arrays.to_numpy(got.u), arrays.to_numpy(expected.u))
    np.testing.assert_array_equal(got.residuals, expected.residuals)
    assert got.stats.steps_per_level == expected.stats.steps_per_level
    assert got.stats.critical_steps_per_level == expected.stats.critical_steps_per_level


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("steps", [81, 89])
def test_calls_of_few_slices_change_nothing(size, steps, monkeypatch):
    problem = case(steps, levels=3) | {"save": "all", "max_iterations": 20}
    whole, most, original = solve(**problem), [], ops.relax_tridiagonal

    def relax(u, *arguments, **named):
        most.append(len(u))
        return original(u, *arguments, **named)

    monkeypatch.setattr(ops, "relax_tridiagonal", relax)
    split = solve(**problem, runtime=LocalRuntime(slices_per_call=size))
    assert np.array_equal(whole.u, split.u)
    np.testing.assert_array_equal(whole.residuals, split.residuals)
    assert max(most) == size


def test_the_serial_chain_is_the_fixed_point_of_fused_cycles():
    problem = case(81, levels=3)
    chain = serial_solve(Steps(problem["fine"]), problem["u0"], problem["grid"]).u
    solution = solve(**problem, initial=chain[::3].copy(), save="all")
    assert solution.residuals == (0.0,)
    assert np.array_equal(solution.u, chain)


@pytest.mark.parametrize("levels", [2, 3, 4, 5])
@pytest.mark.parametrize("nu", [0, 1, 2])
@pytest.mark.parametrize("omega", [1.0, 1.1])
def test_a_cycle_calls_a_kernel_per_sweep_whatever_the_number_of_points(levels, nu, omega, monkeypatch):
    calls = collections.Counter()

    def count(name):
        original = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, **k: calls.update([name]) or original(*a, **k))

    for name in ("relax_tridiagonal", "c_relax", "slice_norms", "extract", "inject", "parareal_update"):
        count(name)
    found = []
    for steps in (162, 1620):
        options = {"levels": levels, "nu": nu, "omega": omega, "skip_first_down": False, "stagnation": None}
        problem = case(steps, **options) | {"tol": 0.0, "initial": np.ones((steps // 3 + 1, 2, 17))}
        per_run = []
        for cycles in (1, 2):
            calls.clear()
            solve(**problem, max_iterations=cycles, on_failure="return")
            per_run.append(calls.copy())
        found.append(per_run[1] - per_run[0])
    assert found[0] == found[1]
    relaxed = levels - 1
    sweeps, pairs, chain, f_points = relaxed * (nu + 1), relaxed, 1, levels - 2
    expected = {
        "relax_tridiagonal": sweeps + pairs + chain + f_points,
        "c_relax": 0 if omega == 1 else relaxed * nu,
        "slice_norms": 0,  # found by the last relaxation
        "extract": levels - 2,
        "inject": levels - 2,
    }
    assert found[0] == +collections.Counter(expected)


def test_what_is_fused():
    a = Tridiagonal([1.0], [-2.0, -2.0], [1.0])
    uniform, graded = TimeGrid(0, 1, 4), TimeGrid.from_times([0.0, 0.1, 0.3, 0.6])
    assert DiagonallyImplicit(a, uniform).fused
    assert DiagonallyImplicit(a, uniform, BACKWARD_EULER).rediscretise(2).fused
    assert not DiagonallyImplicit(a, graded).fused
    assert not DiagonallyImplicit(a, uniform, CRANK_NICOLSON).fused
    assert not DiagonallyImplicit(a, uniform, source=lambda t: np.zeros((len(t), 2))).fused
    u = np.zeros((4, 1, 2))
    assert type(pair(DiagonallyImplicit(a, uniform), u, u)) is FusedPair
    assert type(pair(DiagonallyImplicit(a, graded), u, u)) is Pair


@pytest.mark.parametrize("rhs", [(), ("f",), ("f", "g")])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_relax_is_m_steps_with_what_is_added_and_kept(rhs, dtype):
    rng = np.random.default_rng(1)
    phi = heat(12, points=5)
    u = rng.standard_normal((3, 2, 5)).astype(dtype)
    more = {name: rng.standard_normal((3, 4, 2, 5)).astype(dtype) for name in rhs}
    results = []
    for relax in (phi.relax, lambda *a, **k: relax_by_steps(phi, *a, **k)):
        out, every = np.full_like(u, np.nan), np.full((3, 4, 2, 5), np.nan, dtype)
        relax(u, slice(0, 9, 4), 4, out, **more, every=every)
        results.append((out, every))
    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(results[0][1], results[1][1])
    assert np.array_equal(results[0][1][:, -1], results[0][0])


@pytest.mark.parametrize("norm", ["sum_squares", "sum_abs", "max_abs"])
@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize("kind", ["implicit", "explicit"])
def test_a_relaxation_compares_its_ends_with_a_target(kind, dtype, norm):
    grid = TimeGrid(0, 0.01, 12)
    phi = heat(12, points=3) if kind == "implicit" else RungeKutta(problems.lorenz().rhs, grid)
    assert compares(phi)
    assert not compares(Steps(phi))
    u, target = np.random.default_rng(2).standard_normal((2, 3, 2, 3)).astype(dtype)
    for relax in (phi.relax, lambda *a, **k: relax_by_steps(phi, *a, **k)):
        out, norms = np.empty_like(u), np.full(3, np.nan)
        relax(u, slice(0, 9, 4), 4, out, target=target, norms=norms, norm=norm)
        assert np.array_equal(norms, ops.slice_norms(out, target, norm=norm))


@pytest.mark.parametrize("norm", ["l1", "l2", "inf", "rms"])
@pytest.mark.parametrize("options", [{"nu": 0}, {}, {"nu": 2, "omega": 1.2}, {"measure": "end"}], ids=str)
def test_residuals_found_by_relaxations_are_those_found_afterwards(norm, options):
    problem = case(89, levels=3, stagnation=None, final_residual=True, **options)
    problem |= {"norm": norm, "tol": 0.0, "max_iterations": 4, "on_failure": "return"}
    a = problem["fine"].operator

    class Mute(ImplicitEuler):
        compares = False

    found = solve(**problem)
    after = solve(**problem | {"fine": Mute(a.lower, a.diagonal, a.upper, problem["grid"])})
    np.testing.assert_array_equal(found.residuals, after.residuals)
    assert found.stats.final_residual == after.stats.final_residual
    split = solve(**problem, runtime=LocalRuntime(slices_per_call=7))
    np.testing.assert_array_equal(split.residuals, after.residuals)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_windows_are_views(library):
    module = pytest.importorskip(library)
    rows = module.arange(20) if library == "numpy" else module.arange(20.0)
    u = rows[:, None]
    for points, m, shift in [
        (slice(0, 19, 4), 4, 0),
        (slice(0, 13, 4), 3, 1),
        (slice(5, 6, 9), 7, 2),
        (slice(1, 18, 8), 2, 1),
    ]:
        v = arrays.windows(u, points, m, shift)
        expected = [[p + j + shift for j in range(m)] for p in range(points.start, points.stop, points.step)]
        assert v[..., 0].tolist() == expected
        v[0, 0] = -1
        assert u[points.start + shift, 0] == -1
        u[points.start + shift] = points.start + shift
    with pytest.raises(ValueError, match="expected windows inside the 20 rows of u"):
        arrays.windows(u, slice(0, 17, 4), 5)


def test_a_differentiated_solve_is_that_of_the_kernel():
    torch = pytest.importorskip("torch")
    a = Tridiagonal([1.0, 2.0], [-4.0, -5.0, -4.0], [0.5, 1.0])
    b = torch.randn(2, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    plain, kernel = a.solve(b, 0.1), a.solve(b.detach(), 0.1)
    assert torch.equal(plain, kernel)
    torch.autograd.gradcheck(lambda x: a.solve(x, 0.1), b)


def test_a_step_of_ones_own_is_taken():
    class Forced(ImplicitEuler):
        def step(self, u, points):
            return super().step(u, points) + 1.0

    class Doubled(RungeKutta):
        def step(self, u, points):
            return 2 * super().step(u, points)

    base = heat(8, points=5)
    a = base.operator
    for phi, u0 in [
        (Forced(a.lower, a.diagonal, a.upper, base.grid), np.ones((1, 5))),
        (Doubled(problems.lorenz().rhs, TimeGrid(0, 0.1, 8)), np.array([[1.0, 2.0, 20.0]])),
    ]:
        assert not phi.fused
        u = u0
        for i in range(8):
            u = phi.step(u[None], slice(i, i + 1, 1))[0]
        assert np.array_equal(serial_solve(phi, u0, phi.grid, m=4, save="coarse").u[-1], u)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when it first makes a tangent
def test_tangents_take_the_plain_operations():
    torch = pytest.importorskip("torch")
    forward = torch.autograd.forward_ad
    phi, x = heat(4, points=5), torch.ones(2, 1, 5, dtype=torch.float64)
    with forward.dual_level():
        tangent = forward.unpack_dual(phi.step(forward.make_dual(x, 3 * x), slice(0, 2, 1))).tangent
    np.testing.assert_allclose(tangent.numpy(), 3 * phi.step(x, slice(0, 2, 1)).numpy(), rtol=1e-14)


@pytest.mark.parametrize("options", [{"levels": 3}, {"levels": 2, "coarsest_sweeps": 2}, {"levels": 3, "cycle": "F"}])
def test_deterministic_blocks_are_exact_on_coarse_levels_too(options):
    def step(u):  # its bits depend on how many slices share the call
        return np.sin(3 * u) + 1e-9 * len(u)

    grid, u0 = TimeGrid(0, 1, 27), np.array([[0.3]])
    common = {"m": 3, "deterministic": True}
    expected = serial_solve(step, u0, grid, **common, save="coarse").u
    coarse = [lambda u: np.cos(2 * u) + 1e-9 * len(u), lambda u: 0.5 * u + 1e-9 * len(u)][: options["levels"] - 1]
    method = MGRIT(stagnation=None, skip_first_down=False, **options)
    initial = np.full((10, 1, 1), 0.9)
    limit = {"max_iterations": 12, "on_failure": "return", "tol": 0.0}
    solution = solve(step, u0, grid, coarse=coarse, method=method, initial=initial, **limit, **common)
    assert np.array_equal(solution.u, expected)


def test_deterministic_blocks_have_steps_only():
    class WithResidual(Steps):
        batch_invariant = False

        def residual(self, u_next, u, points):
            return u_next - self.step(u, points)

    with pytest.raises(
        ValueError, match=r"deterministic: got True for a WithResidual with residual\(\), expected only"
    ):
        solve(**case(81) | {"fine": WithResidual(heat(81))}, deterministic=True)


@pytest.mark.parametrize("omega", [1.0, 1.3])
@pytest.mark.parametrize("levels", [2, 3, 4])
def test_memory_is_three_arrays_per_level(levels, omega):
    steps, m, points = 4096, 4, 64
    problem = case(steps, points, levels=levels, omega=omega, stagnation=None) | {"m": m, "tol": None}
    solve(**problem, max_iterations=1)  # factors and all that stays
    tracemalloc.start()
    try:
        solve(**problem, max_iterations=3)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # C-points, where relaxation writes to, and g of the pair on the level below; each one row more at most.
    rows = sum(3 * (steps // m**at + 1) for at in range(1, levels))
    # Besides: the norms of three cycles, and what a summation or the rest of the program needs.
    assert peak < rows * 2 * points * 8 + 5 * (steps // m) * 8 + 200_000
