# SPDX-License-Identifier: BSD-3-Clause
"""What MGRIT promises: bitwise exactness after as many cycles as the theorem says; parareal as its simplest case."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from pyparareal import MGRIT, LocalRuntime, Status, TimeGrid, Transfer, problems, serial_solve, solve, tableaux
from pyparareal.equations import Stored
from pyparareal.propagators import Map

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")

LOGISTIC = Map(lambda u: 3.9 * u * (1 - u), batch_invariant=True)  # chaotic
POOR = [
    Map(lambda u: 0.8 * np.sin(2.5 * u), batch_invariant=True),
    Map(lambda u: 0.7 * np.cos(1.7 * u), batch_invariant=True),
    Map(lambda u: 0.5 + 0.1 * u, batch_invariant=True),
]
U0 = np.array([[0.37, 0.2]])


class Decay:
    """Backward Euler for ``u' = -u``."""

    batch_invariant = True

    def __init__(self, grid):
        self.grid = grid

    def step(self, u, points):
        h = self.grid.dt(points)
        return u / (1 + (h if isinstance(h, float) else h.reshape(-1, *[1] * (u.ndim - 1))))

    def rediscretise(self, m):
        return Decay(self.grid.coarsen(m))


class DecayWithResidual(Decay):
    """The same, and the equation it solves: ``(1 + h) u_next - u = 0``."""

    def _h(self, u, points):
        h = self.grid.dt(points)
        return h if isinstance(h, float) else h.reshape(-1, *[1] * (u.ndim - 1))

    def residual(self, u_next, u, points):
        return (1 + self._h(u, points)) * u_next - u

    def step_with(self, u, points, rhs):
        return (u + rhs) / (1 + self._h(u, points))

    def rediscretise(self, m):
        return DecayWithResidual(self.grid.coarsen(m))


def logistic(steps=48, m=4, levels=2, **options):
    """Arguments of solve for a chaotic chain with coarse propagators that know nothing of it."""
    common = {"tol": 0.0, "on_failure": "return", "keep_going": True}
    common |= {name: options.pop(name) for name in ("max_iterations", "save", "runtime", "initial") if name in options}
    method = MGRIT(levels=levels, **({"stagnation": None, "divergence": math.inf} | options))
    grid = TimeGrid(0, 1, steps)
    return {"fine": LOGISTIC, "coarse": POOR[: levels - 1], "u0": U0, "grid": grid, "m": m, "method": method, **common}


def decay(steps=64, m=4, tol=1e-9, **options):
    common = {name: options.pop(name) for name in ("max_iterations", "norm", "on_failure", "save") if name in options}
    grid = TimeGrid(0, 8, steps)
    return {"fine": Decay(grid), "u0": U0, "grid": grid, "m": m, "tol": tol, "method": MGRIT(**options), **common}


def chain(case, **options):
    return serial_solve(case["fine"], case["u0"], case["grid"], **options).u


# Exactness


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("nu", [0, 1, 2])
@pytest.mark.parametrize("steps", [48, 51])
@pytest.mark.parametrize("levels", [2, 3])
def test_every_point_is_exact_after_as_many_cycles_as_the_theorem_says(levels, steps, nu, skip):
    slices = 12
    cycles = math.ceil(slices / (nu + 1)) + skip
    expected = chain(logistic(steps))
    for k, exact in ((cycles - 1, False), (cycles, True)):
        case = logistic(steps, levels=levels, nu=nu, skip_first_down=skip, save="all", max_iterations=k)
        if not skip:
            case["initial"] = np.full((slices + 1, 1, 2), 0.9)
        assert np.array_equal(solve(**case).u, expected) is exact


@pytest.mark.parametrize("cycle", ["V", "F", "W"])
@pytest.mark.parametrize("nu", [0, 1])
def test_k_cycles_make_the_first_points_exact_on_four_levels(cycle, nu):
    # Non-divisible on every level: 203 -> 67 -> 22 -> 7.
    steps, m = 203, 3
    case = logistic(steps, m, levels=4, nu=nu, cycle=cycle, save="all")
    expected = chain(case)
    for k in (1, 5, 20):
        u = solve(**case | {"max_iterations": k}, initial=np.full((steps // m + 1, 1, 2), 0.9)).u
        exact = k * (nu + 1) * m
        assert np.array_equal(u[: exact + 1], expected[: exact + 1])
        assert not np.array_equal(u, expected)


def test_omega_other_than_one_is_not_exact_where_one_is():
    case = logistic(nu=1, max_iterations=6, initial=np.full((13, 1, 2), 0.9))
    expected = chain(case, m=4, save="coarse")
    assert np.array_equal(solve(**case).u, expected)
    weighted = dataclasses.replace(case["method"], omega=0.9)
    assert not np.array_equal(solve(**case | {"method": weighted}).u, expected)


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("problem", ["logistic", "lorenz"])
def test_two_levels_with_f_relaxation_are_parareal(problem, k):
    if problem == "logistic":
        case = logistic(50, nu=0)
    else:
        p = dataclasses.replace(problems.lorenz(), slices=20, m=30, coarse=tableaux.EULER, coarse_substeps=40)
        case = p.normalised().parareal() | {"tol": 0.0, "on_failure": "return", "method": MGRIT(nu=0, stagnation=None)}
    coarse = case["coarse"][0] if isinstance(case["coarse"], list) else case["coarse"]
    options = {"max_iterations": k, "freeze": False, "keep_going": True}
    parareal = solve(**case | {"method": "parareal", "coarse": coarse, **options})
    # The guess of parareal, the coarse chain, is the first cycle here.
    mgrit = solve(**case | {"coarse": coarse, "max_iterations": k + 1, "keep_going": True})
    assert np.array_equal(mgrit.u, parareal.u, equal_nan=True)
    assert not np.array_equal(solve(**case | {"coarse": coarse, "max_iterations": k}).u, parareal.u)


@pytest.mark.parametrize("nu", [0, 1])
def test_on_two_levels_all_cycles_are_one(nu):
    found = [solve(**decay(nu=nu, cycle=cycle)) for cycle in "VFW"]
    assert all(np.array_equal(found[0].u, other.u) for other in found)
    assert all(found[0].residuals[1:] == other.residuals[1:] for other in found)


def test_on_three_levels_they_differ_and_cost_what_they_say():
    cases = {cycle: solve(**decay(steps=256, levels=3, cycle=cycle, tol=0, max_iterations=2, on_failure="return",
                                  skip_first_down=False, stagnation=None)) for cycle in "VFW"}  # fmt: skip
    assert cases["F"].residuals[1] < cases["V"].residuals[1]
    # One cycle with FCF: level 0 relaxes twice over 256 steps. Level 1 has 64, level 2 has 16.
    # V visits level 1 once: g for the pair, two sweeps, interpolation of the 3 F-points in 4; then level 2.
    assert cases["V"].stats.steps_per_level == (2 * 512, 2 * (64 + 128 + 48), 2 * (16 + 16))
    for kind in "FW":  # twice, with one interpolation at the end
        assert cases[kind].stats.steps_per_level == (2 * 512, 2 * (64 + 2 * 128 + 48), 2 * 2 * (16 + 16))
    assert cases["V"].stats.critical_steps_per_level == (2 * 8, 2 * (1 + 8 + 3), 2 * (1 + 16))


def test_visits_of_the_coarsest_level_on_four_levels():
    # V: once. F: each of the two levels between sends an F- and a V-cycle down, so 3 visits. W: 2 * 2 visits.
    # A visit takes 4 serial steps and, before it, the 4 of g.
    for cycle, visits in {"V": 1, "F": 3, "W": 4}.items():
        case = decay(steps=256, levels=4, cycle=cycle, tol=0, max_iterations=1, on_failure="return",
                     skip_first_down=False)  # fmt: skip
        assert solve(**case).stats.steps_per_level[3] == 8 * visits


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_splitting_the_slices_into_calls_changes_nothing(levels, size):
    case = logistic(51, levels=levels, max_iterations=3, save="all")
    whole, split = solve(**case), solve(**case | {"runtime": LocalRuntime(slices_per_call=size)})
    assert np.array_equal(whole.u, split.u)
    np.testing.assert_array_equal(whole.residuals, split.residuals)


@pytest.mark.parametrize("options", [{}, {"cycle": "F"}, {"nu": 0}, {"omega": 1.3}, {"coarsest_sweeps": 1}])
def test_the_serial_solution_is_a_fixed_point(options):
    case = logistic(51, levels=3, **options)
    expected = chain(case)
    solution = solve(**case | {"save": "all"}, initial=expected[::4].copy())
    # With a weight, omega x + (1 - omega) x is x to rounding only.
    if "omega" in options:
        np.testing.assert_allclose(solution.residuals[0], 0, atol=1e-13)
    else:
        assert solution.status is Status.CONVERGED
        assert solution.residuals == (0.0,)
        assert np.array_equal(solution.u, expected)


# Grids and levels


def test_levels_stop_where_the_next_would_be_too_short():
    # 64 -> 16 -> 4 -> 1
    assert solve(**decay(levels=None)).stats.levels == 3
    assert solve(**decay(levels=None, min_coarse=1)).stats.levels == 4
    assert solve(**decay(levels=None, min_coarse=5)).stats.levels == 2
    assert solve(**decay(steps=32, levels=None)).stats.levels == 3  # 32 -> 8 -> 2
    assert solve(**decay(steps=4, m=4, min_coarse=1)).stats.levels == 2  # one slice
    assert solve(**decay(m=[4, 2, 2], levels=None)).stats.levels == 4
    assert solve(**decay(m=[4, 2, 2], levels=3)).stats.levels == 3


@pytest.mark.parametrize("options", [{"levels": 1}, {"min_coarse": 17}])
def test_one_level_is_the_serial_solution(options):
    case = decay(**options)
    solution = solve(**case)
    assert (solution.status, solution.residuals, solution.stats.levels) == (Status.SERIAL, (0.0,), 1)
    assert np.array_equal(solution.u, chain(case, m=4, save="coarse"))


@pytest.mark.parametrize("measure", ["descent", "end"])
@pytest.mark.parametrize("kind", ["steps", "residual"])
def test_times_that_are_not_equidistant(kind, measure):
    grid = TimeGrid.from_times(np.cumsum(np.linspace(0.01, 0.2, 98)))
    fine = (Decay if kind == "steps" else DecayWithResidual)(grid)
    case = decay(levels=3, tol=1e-12, measure=measure) | {"grid": grid, "fine": fine, "save": "all"}
    solution = solve(**case, max_iterations=40)
    # Converged to 1e-12 in the residual; each residual reaches later points damped.
    np.testing.assert_allclose(solution.u, chain(case), atol=98 * 1e-12)
    assert solution.iterations < (12 if kind == "steps" else 24)  # the residual is scaled differently on each level


# Starting


def test_nested_iteration_starts_closer_than_the_coarsest_level_alone():
    first = {}
    for name, options in {"skip": {}, "nested": {"nested": True}, "full": {"cycle": "F"}}.items():
        solution = solve(**decay(steps=256, levels=4, tol=1e-8, **options))
        first[name] = next(r for r in solution.residuals if not math.isnan(r))
    assert first["nested"] < first["skip"]
    # With F-cycles the first cycle that only goes up is nested iteration; the second finds what nested starts from.
    assert first["full"] == first["nested"]


def test_the_first_cycle_has_no_residual_where_it_only_goes_up():
    assert math.isnan(solve(**decay()).residuals[0])
    assert not any(map(math.isnan, solve(**decay(skip_first_down=False)).residuals))
    assert not any(map(math.isnan, solve(**decay(nested=True)).residuals))
    assert not any(map(math.isnan, solve(**decay(measure="end")).residuals))


def test_a_solution_is_a_guess_for_a_neighbouring_problem():
    case = decay(levels=3)
    cold = solve(**case)
    warm = solve(**case | {"u0": U0 * (1 + 1e-6)}, initial=cold)
    assert warm.iterations < cold.iterations
    assert warm.residuals[0] < 1e-3


# Stopping


def test_the_residual_is_what_it_says():
    # Measured at the end of a cycle and by a guess that is not touched any more: the same defect.
    end = solve(**decay(measure="end", max_iterations=3, tol=0, on_failure="return", final_residual=True))
    f = end.u[:-1]
    for _ in range(4):
        f = f / (1 + 8 / 64)
    # Eight roundings in each, of numbers below 1, over 16 points of two components.
    expected = math.sqrt(np.sum((f - end.u[1:]) ** 2))
    assert end.residuals[-1] == pytest.approx(expected, abs=50 * np.finfo(float).eps)
    assert end.stats.final_residual == end.residuals[-1]


def test_measuring_on_the_way_down_tests_before_the_last_correction():
    down = solve(**decay(nu=0, final_residual=True, skip_first_down=False))
    end = solve(**decay(nu=0, measure="end", skip_first_down=False))
    assert down.iterations == end.iterations + 1
    assert down.residuals[1:] == end.residuals
    assert down.stats.final_residual < down.residuals[-1]


@pytest.mark.parametrize("temporal", ["l1", "l2", "inf"])
@pytest.mark.parametrize("norm", ["l1", "l2", "inf", "rms"])
def test_norms_in_space_and_time(temporal, norm):
    options = {"measure": "end", "max_iterations": 1, "tol": 0, "on_failure": "return"}
    solution = solve(**decay(temporal_norm=temporal, norm=norm, **options))
    f = solution.u[:-1]
    for _ in range(4):
        f = f / (1 + 8 / 64)
    r = (f - solution.u[1:]).reshape(16, -1)
    order = {"l1": 1, "l2": 2, "inf": np.inf, "rms": 2}
    per_point = np.linalg.norm(r, order[norm], axis=1) / (math.sqrt(2) if norm == "rms" else 1)
    expected = np.linalg.norm(per_point, order[temporal])
    assert solution.residuals[0] == pytest.approx(expected, rel=1e-9, abs=0)


def test_a_norm_of_the_users_own():
    weighted = solve(**decay(norm=lambda u: 3 * np.abs(u).reshape(len(u), -1).max(1)))
    plain = solve(**decay(norm="inf"))
    np.testing.assert_allclose(weighted.residuals[1:3], 3 * np.array(plain.residuals[1:3]), rtol=1e-12)


def test_jump_is_the_change_of_the_c_points_in_a_cycle():
    seen = []
    case = decay(stopping="jump", skip_first_down=False)
    case["callback"] = lambda k, u, r: seen.append((u.copy(), r))
    solve(**case)
    for (before, _), (after, jump) in itertools.pairwise(seen):
        assert jump == pytest.approx(np.linalg.norm(after - before), rel=1e-12, abs=0)
    assert seen[-1][1] < 1e-9 <= seen[-2][1]


def test_relative_to_the_first_residual_and_to_the_states():
    plain = solve(**decay(tol=1e-12, skip_first_down=False))
    first = solve(**decay(tol=1e-6, relative="first", skip_first_down=False))
    assert first.residuals[-1] < 1e-6 * first.residuals[0] <= first.residuals[-2]
    assert first.residuals == plain.residuals[: first.iterations]
    # States decay from 0.4 to 1e-4, so a state-relative test of every point by itself is the hardest.
    size = np.linalg.norm(plain.u[1:])
    by_states = solve(**decay(tol=1e-6, relative="state"))
    assert by_states.residuals[-1] < 1e-6 * size * 1.01
    local = solve(**decay(tol=1e-6, relative="state", scope="local"))
    assert local.iterations > by_states.iterations


def test_local_scope_asks_every_point_by_itself():
    everywhere = solve(**decay(tol=1e-6))
    each = solve(**decay(tol=1e-6, scope="local"))
    largest = solve(**decay(tol=1e-6, temporal_norm="inf"))
    assert each.iterations == largest.iterations <= everywhere.iterations


@pytest.mark.parametrize("lag", [1, 2])
def test_a_lagging_check_does_more_cycles_and_tells_the_same_history(lag):
    prompt, late = solve(**decay()), solve(**decay(lag=lag))
    assert late.iterations == prompt.iterations + lag
    np.testing.assert_array_equal(late.residuals, prompt.residuals)
    assert late.status is Status.CONVERGED


def test_the_last_cycles_are_judged_however_late_the_check():
    assert solve(**decay(lag=50, max_iterations=8)).status is Status.CONVERGED


def test_the_callback_sees_every_cycle_and_can_stop():
    seen = []
    case = decay(levels=3)
    case["callback"] = lambda k, u, residual: seen.append((k, u.shape)) or k == 3
    solution = solve(**case)
    assert seen == [(1, (17, 1, 2)), (2, (17, 1, 2)), (3, (17, 1, 2))]
    assert solution.status is Status.STOPPED


# Failing


def growth(factor):
    grid = TimeGrid(0, 1, 256)
    coarse = Map(lambda u: factor * u, batch_invariant=True)
    fine = Map(lambda u: 0.9 * u, batch_invariant=True)
    return {"fine": fine, "coarse": coarse, "u0": U0, "grid": grid, "m": 4, "tol": 1e-8, "on_failure": "return"}


def test_divergence_is_named_before_anything_overflows():
    solution = solve(**growth(3.0), method=MGRIT(nu=0, skip_first_down=False, stagnation=None))
    assert solution.status is Status.DIVERGED
    assert np.isfinite(solution.u).all()


def test_stagnation_is_named():
    # A chaotic chain whose values stay in [0, 1], and a coarse map that knows nothing of it: exact after 64 cycles,
    # and until then the last points are as wrong as in the beginning.
    case = growth(0.0) | {"fine": Map(lambda u: 0.5 + 0.5 * np.sin(9 * u), batch_invariant=True)}
    solution = solve(**case, method=MGRIT(nu=0, stagnation=5))
    assert solution.status is Status.STAGNATED
    assert solution.iterations < 30


def test_a_tolerance_below_rounding_is_named():
    weighted = {"omega": 1.2, "nu": 1}  # so that nothing becomes bitwise exact
    solution = solve(**decay(tol=1e-300, steps=1024, on_failure="return", **weighted))
    assert solution.status is Status.ROUND_OFF
    assert solution.residuals[-1] < 1e-13


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_from_the_step_ends_the_iteration(bad):
    def step(u, points):
        u = 0.9 * u
        if points.start <= 33 < points.stop:
            u[:] = bad
        return u

    case = growth(0.5) | {"fine": Map(step, pass_points=True, batch_invariant=True)}
    assert solve(**case, method=MGRIT()).status is Status.NON_FINITE


def test_a_failed_solve_raises_or_falls_back():
    from pyparareal import ConvergenceError

    case = decay(tol=1e-12, max_iterations=2)
    with pytest.raises(ConvergenceError, match=r"2 cycles on 2 levels, last residual .* \(tol 1e-12\)") as caught:
        solve(**case)
    assert caught.value.solution.status is Status.MAX_ITERATIONS
    serial = solve(**case | {"on_failure": "serial"})
    assert serial.status is Status.SERIAL_FALLBACK
    assert serial.stats.failure is Status.MAX_ITERATIONS
    assert np.array_equal(serial.u, chain(case, m=4, save="coarse"))


class Boom(Exception):
    pass


def test_an_exception_in_the_step_reaches_the_caller_unchanged():
    boom = Boom()

    def step(u):
        raise boom

    with pytest.raises(Boom) as caught:
        solve(**growth(0.5) | {"fine": step}, method=MGRIT())
    assert caught.value is boom


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (lambda u: u[..., :1], r"Map.step: returned shape \(\d+, 1, 1\), expected \(\d+, 1, 2\)"),
        (lambda u: u.astype(np.float32), "Map.step: returned dtype float32, expected float64"),
    ],
)
@pytest.mark.parametrize("where", ["fine", "coarse"])
def test_a_step_that_changes_shape_or_dtype(step, match, where):
    with pytest.raises(ValueError, match=match):
        solve(**growth(0.5) | {where: step}, method=MGRIT())


ERRORS = [
    ({"m": 1}, ValueError, "m: got 1, expected a coarsening factor of at least 2"),
    ({"m": 65}, ValueError, "m: got 65, expected at most the 64 steps of the grid"),
    ({"m": 4.0}, TypeError, "m: got 4.0, expected an integer"),
    ({"m": []}, ValueError, "m: got no coarsening factor"),
    ({"levels": 0}, ValueError, "levels: got 0, expected at least 1"),
    ({"levels": 2.5}, TypeError, "levels: got 2.5, expected an integer or None"),
    ({"nu": -1}, ValueError, "nu: got -1, expected at least 0"),
    ({"nu": [1, -1]}, ValueError, "nu: got -1, expected at least 0"),
    ({"omega": 0.0}, ValueError, "omega: got 0.0, expected a number between 0 and 2"),
    ({"omega": 2.0}, ValueError, "omega: got 2.0, expected a number between 0 and 2"),
    ({"cycle": "X"}, ValueError, "cycle: got 'X', expected one of 'V', 'F', 'W'"),
    ({"measure": "never"}, ValueError, "measure: got 'never'"),
    ({"stopping": "error"}, ValueError, "stopping: got 'error'"),
    ({"relative": True}, ValueError, "relative: got True"),
    ({"storage": "f"}, ValueError, "storage: got 'f'"),
    ({"scope": "both"}, ValueError, "scope: got 'both'"),
    ({"temporal_norm": "l3"}, ValueError, "temporal_norm: got 'l3'"),
    ({"norm": "l3"}, ValueError, "norm: got 'l3'"),
    ({"norm": lambda u: np.abs(u).max()}, ValueError, r"norm: returned shape \(\) for 1 states"),
    ({"norm": lambda u: u.reshape(len(u), -1).sum(1)}, ValueError, "norm: .* not a norm"),
    ({"norm": lambda u: (u**2).reshape(len(u), -1).sum(1)}, ValueError, "norm: .* not a norm"),
    ({"norm": lambda u: np.ones(len(u))}, ValueError, "norm: .* not a norm"),
    ({"lag": -1}, ValueError, "lag: got -1"),
    ({"stagnation": 0}, ValueError, "stagnation: got 0"),
    ({"divergence": 0.5}, ValueError, "divergence: got 0.5, expected a number above 1"),
    ({"coarsest_sweeps": 0}, ValueError, "coarsest_sweeps: got 0"),
    ({"nested": True, "skip_first_down": True}, ValueError, "nested: got True with skip_first_down=True"),
]


@pytest.mark.parametrize(("wrong", "error", "match"), ERRORS, ids=[str(list(e[0].items())) for e in ERRORS])
def test_wrong_options(wrong, error, match):
    calls = []
    grid = TimeGrid(0, 8, 64)
    case = decay(**{k: v for k, v in wrong.items() if k != "m"}) | {k: v for k, v in wrong.items() if k == "m"}
    case["fine"] = Decay(grid)
    case["fine"].step = lambda u, points: calls.append(1)
    with pytest.raises(error, match=match):
        solve(**case)
    assert not calls


def test_propagators_for_the_coarse_levels():
    case = logistic(levels=3)
    with pytest.raises(ValueError, match="coarse: got 1 propagators, expected 2, one per coarse level"):
        solve(**case | {"coarse": POOR[:1]})
    with pytest.raises(ValueError, match="coarse: got one propagator for up to 3 levels"):
        solve(**case | {"coarse": POOR[0]})
    with pytest.raises(TypeError, match="coarse: not given, and fine has no rediscretise"):
        solve(**case | {"coarse": None})
    with pytest.raises(TypeError, match=r"^coarse\[1\]: got int, expected a callable"):
        solve(**case | {"coarse": [POOR[0], 3]})
    with pytest.raises(TypeError, match=r"^coarse: got int, expected a callable"):
        solve(**logistic() | {"coarse": 3})
    assert solve(**case | {"coarse": POOR, "m": 2}, max_iterations=1).stats.levels == 3
    every = dataclasses.replace(case["method"], levels=None)
    assert solve(**case | {"coarse": POOR, "m": 2, "method": every}, max_iterations=1).stats.levels == 4
    with pytest.raises(ValueError, match="nested: got True with an initial guess"):
        solve(**case | {"method": MGRIT(nested=True)}, initial=np.zeros((13, 1, 2)))


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
