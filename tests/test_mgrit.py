# SPDX-License-Identifier: BSD-3-Clause
"""What MGRIT promises: bitwise exactness after as many cycles as the theorem says; parareal as its simplest case."""

import dataclasses
import math

import numpy as np
import pytest
from mgrit_cases import U0, Decay, DecayWithResidual, chain, decay, logistic

from pyparareal import MGRIT, LocalRuntime, Status, TimeGrid, problems, solve, tableaux

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")

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
    assert solve(**decay(m=[4, 2], levels=3)).stats.levels == 3
    assert solve(**decay(m=[4, 2], levels=9)).stats.levels == 3
    with pytest.raises(ValueError, match="m: got 2 factors for levels=2, expected 1"):
        solve(**decay(m=[4, 2]))


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
