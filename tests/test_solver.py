# SPDX-License-Identifier: BSD-3-Clause
"""The entry: every way a solve can end, every argument that can be wrong."""

import dataclasses
import time

import numpy as np
import pytest

from pyparareal import problems
from pyparareal.errors import ConvergenceError
from pyparareal.propagators import Blocks, Map, RungeKutta
from pyparareal.runtime import LocalRuntime
from pyparareal.solution import Stats, Status
from pyparareal.solver import serial_solve, solve
from pyparareal.time_grid import TimeGrid

STEPS = 24


def decay(factor=0.9, **changes):
    """u[i+1] = 0.9 u[i] + i / 100 with a coarse step that is off by 5 %."""
    case = {
        "fine": Map(lambda u, points: factor * u + _index(u, points) / 100, pass_points=True, batch_invariant=True),
        "coarse": Map(lambda u: 0.95 * factor**4 * u, batch_invariant=True),
        "u0": np.array([[1.0, -2.0], [0.5, 3.0]]),
        "grid": TimeGrid(0, 1, STEPS),
        "m": 4,
        "tol": 1e-10,
    }
    return case | changes


def _index(u, points):
    i = np.arange(points.start, points.stop, points.step, dtype=u.dtype)
    return i.reshape((-1,) + (1,) * (u.ndim - 1))


def serial(case, **options):
    return serial_solve(case["fine"], case["u0"], case["grid"], m=case["m"], **options)


def neuron():
    """FitzHugh-Nagumo in 40 slices, with fewer fine steps than the published run."""
    return dataclasses.replace(problems.fitzhugh_nagumo(), m=200).normalised().parareal()


@pytest.mark.parametrize("m", [1, 3, 4, 5, 7, 11, 13, 24])
@pytest.mark.parametrize("save", ["coarse", "all"])
def test_every_point_is_there_whatever_m(m, save):
    case = decay(m=m, tol=0.0)
    solution, chain = solve(**case, save=save), serial(case).u
    assert solution.status is Status.CONVERGED
    expected = range(STEPS + 1) if save == "all" else sorted({*range(0, STEPS + 1 - STEPS % m, m), STEPS})
    assert solution.points.tolist() == list(expected)
    assert np.array_equal(solution.u, chain[solution.points])
    np.testing.assert_allclose(solution.t, np.linspace(0, 1, STEPS + 1)[solution.points], rtol=1e-15)
    other = serial(case, save=save)
    assert np.array_equal(solution.u, other.u)
    assert np.array_equal(solution.points, other.points)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_states_of_any_shape(shape, dtype):
    u0 = np.linspace(1, 2, int(np.prod(shape))).reshape(shape).astype(dtype)
    case = decay(u0=u0, tol=0.0)
    solution = solve(**case)
    assert solution.u.shape == (7, *shape)
    assert solution.u.dtype == dtype
    assert np.array_equal(solution.u, serial(case, save="coarse").u)


def test_numbers_and_lists_are_initial_values():
    assert solve(**decay(u0=1.0)).u.shape == (7,)
    assert solve(**decay(u0=[1, 2])).u.dtype == np.float64


def test_tolerance_and_norms():
    case = decay()
    exact = serial(case, save="coarse").u
    jumps = {}
    for norm in ("inf", "l1", "l2", "rms"):
        solution = solve(**case, norm=norm, max_iterations=1, on_failure="return")
        jumps[norm] = solution.residuals[0]
    guess = np.stack([case["u0"] * (0.95 * 0.9**4) ** n for n in range(7)])
    jump = (solve(**case, max_iterations=1, on_failure="return").u - guess)[2:].reshape(5, 4)  # slice 0 is exact
    # sums of four terms in another order: a few ulps
    assert jumps["inf"] == pytest.approx(np.abs(jump).max(), rel=1e-14)
    assert jumps["l1"] == pytest.approx(np.abs(jump).sum(1).max(), rel=1e-14)
    assert jumps["l2"] == pytest.approx(np.sqrt((jump**2).sum(1)).max(), rel=1e-14)
    assert jumps["rms"] == pytest.approx(np.sqrt((jump**2).mean(1)).max(), rel=1e-14)

    solution = solve(**decay(tol=1e-3))
    assert solution.iterations < 6
    assert solution.residuals[-1] < 1e-3 <= max(solution.residuals[:-1])
    # The coarse step is off by 3 % of a state of size 3: what is left after a jump of 1e-3 is smaller than the jump.
    assert np.abs(solution.u - exact).max() < 1e-3


def test_freezing_stops_work_on_converged_slices():
    case = neuron()
    frozen, free = solve(**case, tol=1e-6), solve(**case, tol=1e-6, freeze=False)
    assert frozen.stats.fine_steps < free.stats.fine_steps
    assert free.stats.converged_slices == (*range(1, free.iterations), 40)
    assert max(frozen.residuals[-1], free.residuals[-1]) < 1e-6 <= min(free.residuals[:-1])


def test_not_converged_raises_with_the_solution():
    with pytest.raises(
        ConvergenceError, match=r"iteration limit.*2 of 6 slices after 2 iterations, last jump"
    ) as caught:
        solve(**decay(tol=0.0), max_iterations=2)
    solution = caught.value.solution
    assert solution.status is Status.MAX_ITERATIONS
    assert not solution.status.ok
    assert solution.iterations == len(solution.residuals) == 2


def test_not_converged_returns_if_asked():
    assert solve(**decay(tol=0.0), max_iterations=2, on_failure="return").status is Status.MAX_ITERATIONS


@pytest.mark.parametrize("save", ["coarse", "all"])
def test_not_converged_falls_back_if_asked(save):
    case = decay(tol=0.0, m=5)
    solution = solve(**case, max_iterations=2, on_failure="serial", save=save)
    assert solution.status is Status.SERIAL_FALLBACK
    assert solution.status.ok
    assert solution.stats.failure is Status.MAX_ITERATIONS
    assert np.array_equal(solution.u, serial(case, save=save).u)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_non_finite_states_have_a_name():
    explode = Map(lambda u: u * 1e200, batch_invariant=True)
    with pytest.raises(ConvergenceError, match="starting guess holds NaN"):
        solve(**decay(coarse=explode))
    fallback = solve(**decay(coarse=explode), on_failure="serial")
    assert fallback.status is Status.SERIAL_FALLBACK
    assert fallback.stats.failure is Status.NON_FINITE_GUESS
    # It heals: the exact slices walk through it.
    assert np.array_equal(solve(**decay(coarse=explode), keep_going=True).u, serial(decay(), save="coarse").u)

    def nan_from_step_9(u, points):
        return np.where(_index(u, points) == 9, np.nan, 1.0) * u

    broken = Map(nan_from_step_9, pass_points=True)
    for options in ({}, {"keep_going": True}, {"tol": 0.0, "keep_going": True}):
        with pytest.raises(ConvergenceError, match="a fine or coarse step produced NaN") as caught:
            solve(**decay(fine=broken) | options)
        assert caught.value.solution.status is Status.NON_FINITE
    with pytest.raises(ConvergenceError, match="in the serial solve"):
        serial(decay(fine=broken))
    assert serial(decay(fine=broken), on_failure="return").status is Status.NON_FINITE
    with pytest.raises(ConvergenceError, match="in the serial solve"):
        solve(**decay(fine=broken), on_failure="serial")


def test_nan_in_the_last_slice_is_seen():
    def nan_at_the_end(u, points):
        return np.where(_index(u, points) == STEPS - 1, np.nan, 1.0) * u

    for m in (4, 5, STEPS):
        with pytest.raises(ConvergenceError, match="produced NaN"):
            solve(**decay(fine=Map(nan_at_the_end, pass_points=True), m=m, tol=0.0))


def test_exceptions_of_a_step_arrive_unchanged():
    error = KeyError("mine")

    def fail(u):
        raise error

    for which in ("fine", "coarse"):
        with pytest.raises(KeyError) as caught:
            solve(**decay() | {which: fail})
        assert caught.value is error
    with pytest.raises(KeyError):
        serial(decay(fine=fail))


def test_callback_sees_the_iterations_and_can_stop():
    seen = []

    def callback(k, u, residual):
        seen.append((k, u.shape, residual))
        return k == 3

    solution = solve(**decay(tol=0.0), callback=callback)
    assert solution.status is Status.STOPPED
    assert not solution.status.ok
    assert seen == [(k, (7, 2, 2), solution.residuals[k - 1]) for k in (1, 2, 3)]
    assert solve(**decay(tol=0.0), callback=lambda *a: None).status is Status.CONVERGED

    def fail(*arguments):
        raise LookupError

    with pytest.raises(LookupError):
        solve(**decay(), callback=fail)


def test_the_initial_value_is_not_touched():
    case = decay()
    before = case["u0"].copy()
    guess = np.full((7, 2, 2), 0.5)
    solution = solve(**case, initial=guess)
    assert np.array_equal(case["u0"], before)
    assert (guess == 0.5).all()
    assert np.array_equal(solution.u[0], before)


def test_warm_start_saves_iterations():
    case = neuron()
    cold = solve(**case, tol=1e-6)
    near = case | {"u0": case["u0"] + 1e-6}
    assert solve(**near, tol=1e-6, initial=cold).iterations < solve(**near, tol=1e-6).iterations


def test_coarse_propagator_is_made_by_rediscretisation():
    grid = TimeGrid(0, 2, 40)
    fine = RungeKutta(lambda t, u: -u + t, grid, batch_invariant=True)
    made = solve(fine, [1.0], grid, m=5, tol=0.0, max_iterations=2, on_failure="return")
    coarse = RungeKutta(lambda t, u: -u + t, grid.coarsen(5), batch_invariant=True)
    given = solve(fine, [1.0], grid, m=5, tol=0.0, max_iterations=2, on_failure="return", coarse=coarse)
    assert np.array_equal(made.u, given.u)


def test_heat_follows_the_exact_solution():
    case = problems.heat_1d(points=31, slices=8, m=64, t1=0.1)
    solution = solve(**case, tol=1e-12)
    x = np.arange(1, 32) / 32
    modes = {1: 1.0, 3: 0.5}
    # Backward Euler damps a mode by 1 / (1 + dt s) with the eigenvalue s of the difference operator, exactly so.
    dt = 0.1 / 512
    expected = sum(
        a * np.sin(q * np.pi * x) / (1 + dt * (2 * 32 * np.sin(q * np.pi / 64)) ** 2) ** 512 for q, a in modes.items()
    )
    assert np.abs(solution.u[-1] - expected).max() < 1e-11


def test_stats():
    solution = solve(**decay(tol=0.0, m=5), save="all")  # 4 slices, 4 trailing points
    stats = solution.stats
    assert (stats.slices, stats.m, stats.serial_steps) == (4, 5, 24)
    assert stats.fine_steps == 5 * (4 + 3 + 2 + 1) + 4 * 5  # four whole slices and the trailing one, four F-points each
    assert stats.critical_fine_steps == 5 * 4 + 4
    assert stats.coarse_steps == stats.critical_coarse_steps == 4 + (3 + 2 + 1 + 0)
    assert set(stats.seconds) == {"parareal.guess", "parareal.fine", "parareal.coarse", "parareal.fill"}
    assert all(value > 0 for value in stats.seconds.values())
    assert stats.cost_ratio > 0
    assert 0 < solution.predicted_speedup < 1  # as many iterations as slices
    chain = serial(decay())
    assert chain.status is Status.SERIAL
    assert chain.stats.fine_steps == chain.stats.critical_fine_steps == 24
    assert np.isnan(chain.predicted_speedup)


def test_cost_ratio_is_a_coarse_step_over_the_fine_steps_of_one_slice():
    seconds = {"parareal.guess": 1.0, "parareal.coarse": 2.0, "parareal.fine": 80.0}
    stats = Stats(5, 4, fine_steps=40, coarse_steps=6, critical_fine_steps=8, critical_coarse_steps=6, serial_steps=20)
    assert np.isnan(stats.cost_ratio)
    # 3 s for 6 coarse steps, 80 s for 40 fine ones: 0.5 s against 4 * 2 s
    assert dataclasses.replace(stats, seconds=seconds).cost_ratio == 0.5 / 8


@pytest.mark.parametrize(("deterministic", "sizes"), [(False, {3, 2, 1}), (True, {3})])
def test_all_slices_are_one_call(deterministic, sizes):
    seen = set()

    def step(u):
        seen.add(len(u))
        return 0.9 * u

    solve(**decay(m=8, tol=0.0, fine=step), deterministic=deterministic)
    assert seen == sizes


def test_a_runtime_can_be_used_again():
    runtime, begin = LocalRuntime(), time.perf_counter()
    first, second = (solve(**decay(), runtime=runtime).stats.seconds["parareal.fine"] for _ in range(2))
    assert first + second == pytest.approx(runtime.seconds["parareal.fine"])
    first, second = (serial(decay(), runtime=runtime).stats.seconds["serial"] for _ in range(2))
    assert first + second == pytest.approx(runtime.seconds["serial"])
    assert sum(runtime.seconds.values()) < time.perf_counter() - begin  # phases do not overlap
    with pytest.raises(ValueError, match="slices_per_call: got 0"):
        LocalRuntime(slices_per_call=0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"runtime": "gpu"},
            TypeError,
            "runtime: got str without map, do, shift, chain, scan, largest, reduce, in_all, left_of, gather, mark, "
            "repeat, seconds",
        ),
        ({"method": "jacobi"}, ValueError, "method: got 'jacobi', expected one of parareal"),
        ({"norm": "l3"}, ValueError, "norm: got 'l3'"),
        ({"freeze": "no"}, TypeError, "freeze: got 'no', expected True or False"),
        ({"on_failure": "ignore"}, ValueError, "on_failure: got 'ignore'"),
        ({"save": "none"}, ValueError, "save: got 'none'"),
        ({"m": 0}, ValueError, "m: got 0"),
        ({"m": 25}, ValueError, "m: got 25"),
        ({"m": 2.0}, TypeError, "m: got 2.0"),
        ({"tol": -1.0}, ValueError, "tol: got -1.0"),
        ({"tol": float("inf")}, ValueError, "tol: got inf"),
        ({"tol": float("nan")}, ValueError, "tol: got nan"),
        ({"tol": "small"}, TypeError, "tol: got 'small'"),
        ({"max_iterations": 0}, ValueError, "max_iterations: got 0"),
        ({"max_iterations": 2.5}, TypeError, "max_iterations: got 2.5"),
        ({"grid": 24}, TypeError, "grid: got int"),
        ({"u0": "abc"}, TypeError, "u0: got str"),
        ({"u0": np.array([1, 2])}, TypeError, "u0: got dtype int64"),
        ({"u0": np.array([1j])}, TypeError, "u0: got dtype complex128"),
        ({"u0": np.array([1.0, np.nan])}, ValueError, "u0: got NaN"),
        ({"fine": 3}, TypeError, "fine: got int"),
        ({"coarse": 3}, TypeError, "coarse: got int"),
        ({"coarse": None}, TypeError, "coarse: not given, and fine has no rediscretise"),
        ({"fine": RungeKutta(max, TimeGrid(0, 1, 23))}, ValueError, "fine: lives on TimeGrid.*steps=23.*expected"),
        ({"coarse": RungeKutta(max, TimeGrid(0, 1, 24))}, ValueError, "coarse: lives on .*expected .*steps=6"),
        ({"fine": Blocks([abs] * 9)}, ValueError, "fine: has 9 steps, expected the 24"),
        ({"initial": np.ones((6, 2, 2))}, ValueError, r"initial: got shape \(6, 2, 2\), expected \(7, 2, 2\)"),
        ({"initial": np.ones((7, 2, 2), np.float32)}, ValueError, "initial: got dtype float32"),
    ],
)
def test_wrong_arguments_are_named_before_any_step(changes, error, message):
    def forbidden(u):
        raise AssertionError("a step was taken")

    case = decay(fine=forbidden, coarse=forbidden) | changes
    with pytest.raises(error, match=message):
        solve(**case)


def test_a_solution_of_another_grid_is_no_guess():
    other = solve(**decay(grid=TimeGrid(0, 2, STEPS)))
    with pytest.raises(ValueError, match="initial: a solution on TimeGrid"):
        solve(**decay(), initial=other)
    sparse = solve(**decay(m=8, coarse=lambda u: u))
    with pytest.raises(ValueError, match="holds 4 of the 7 C-points for m = 4"):
        solve(**decay(), initial=sparse)


def test_wrong_arguments_of_the_serial_solve():
    with pytest.raises(ValueError, match="on_failure: got 'serial'"):
        serial(decay(), on_failure="serial")
    with pytest.raises(TypeError, match="fine: got int"):
        serial_solve(3, [1.0], TimeGrid(0, 1, 2))


# torch


def test_torch_states():
    torch = pytest.importorskip("torch")
    p = problems.fitzhugh_nagumo().normalised()
    case = p.parareal() | {"tol": 0.0, "max_iterations": 2, "on_failure": "return"}
    case["grid"], case["m"] = TimeGrid(0, 1, 12), 3
    case["fine"] = RungeKutta(p.rhs, case["grid"], batch_invariant=True)
    case["coarse"] = case["fine"].rediscretise(3)
    expected = solve(**case)
    got = solve(**case | {"u0": torch.tensor(case["u0"])})
    assert isinstance(got.u, torch.Tensor)
    assert np.array_equal(got.u.numpy(), expected.u)
    assert got.residuals == expected.residuals
    every = solve(**case | {"u0": torch.tensor(case["u0"])}, save="all")
    assert np.array_equal(every.u.numpy(), solve(**case, save="all").u)


def test_torch_modules_under_no_grad():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()) for _ in range(6)])
    coarse = torch.nn.Linear(4, 4)
    u0, grid = torch.randn(3, 4), TimeGrid(0, 6, 6)
    with torch.no_grad():
        solution = solve(layers, u0, grid, coarse=coarse, m=2, tol=0.0)
        u = u0
        for layer in layers:
            u = layer(u)
    assert torch.equal(solution.u[-1], u)  # each layer sees one slice at a time, as in the serial chain
    assert not solution.u.requires_grad


def test_wrong_torch_arguments():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"u0: got dtype torch\.int64"):
        solve(**decay(u0=torch.ones(2, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"step: returned dtype torch\.float64, expected torch\.float32"):
        solve(**decay(u0=torch.ones(2), fine=lambda u: u.double(), coarse=lambda u: u))
    with pytest.raises(ValueError, match=r"initial: got dtype torch\.float64"):
        solve(**decay(u0=torch.ones(2)), initial=torch.ones(7, 2, dtype=torch.float64))


@pytest.mark.gpu
def test_torch_states_on_a_gpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    case = neuron()
    expected = solve(**case, tol=1e-6)
    got = solve(**case | {"u0": torch.tensor(case["u0"], device="cuda")}, tol=1e-6)
    assert got.u.is_cuda
    assert got.iterations == expected.iterations
    # The device may fuse a product into a sum: the rounding of 8000 steps of a stable oscillator differs.
    np.testing.assert_allclose(got.u.cpu().numpy(), expected.u, atol=8000 * 4 * np.finfo(float).eps)


def test_the_coarse_chain_as_guess_is_the_coarse_chain():
    # The coarse step depends on its point, so a guess propagated from other points would show.
    case = decay(
        coarse=Map(lambda u, points: 0.6 * u + _index(u, points) / 7, pass_points=True, batch_invariant=True), tol=0.0
    )
    own, iterates = [], []
    plain = solve(**case, callback=lambda k, u, jump: own.append(u.copy()))
    chain = serial_solve(case["coarse"], case["u0"], case["grid"].coarsen(case["m"])).u
    guessed = solve(**case, initial=chain, callback=lambda k, u, jump: iterates.append(u.copy()))
    assert guessed.residuals == plain.residuals
    assert all(np.array_equal(a, b) for a, b in zip(own, iterates, strict=True))


def test_a_map_of_no_slices_is_no_call():
    nothing = np.ones((0, 2))
    LocalRuntime().map(Map(lambda u: 1 / 0), nothing, slice(0, 0, 1), out=np.ones((0, 2)))
