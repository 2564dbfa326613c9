# SPDX-License-Identifier: BSD-3-Clause
"""How MGRIT ends: norms, tolerances, what is called failure, and what is refused before a step is taken."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from mgrit_cases import POOR, U0, Decay, chain, decay, growth, logistic

from pyparareal import MGRIT, Status, TimeGrid, solve
from pyparareal.propagators import Map

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")

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


def test_a_first_cycle_that_only_goes_up_has_no_jump():
    # At rest without its right-hand side, which the coarse levels do not see: going up changes nothing.
    case = decay(stopping="jump", levels=3, tol=1e-10)
    case["u0"] = np.zeros((1, 2))
    rhs = np.random.default_rng(0).standard_normal((64, 1, 2))
    solution = solve(**case, rhs=rhs)
    assert math.isnan(solution.residuals[0])
    expected = chain(case, rhs=rhs, m=4, save="coarse")
    np.testing.assert_allclose(solution.u, expected, atol=64 * 1e-10)


@pytest.mark.parametrize("lag", [0, 2, 50])
def test_the_callback_is_told_of_every_cycle_however_late_the_check(lag):
    told = []
    case = decay(lag=lag, tol=0.0, max_iterations=4, on_failure="return", stagnation=None)
    case["callback"] = lambda k, u, residual: told.append((k, residual))
    solution = solve(**case)
    assert [k for k, _ in told] == [1, 2, 3, 4]
    np.testing.assert_array_equal([r for _, r in told], solution.residuals)


def test_a_norm_of_states_that_overflows_is_no_scale():
    huge = decay(relative="state", tol=1e-12, on_failure="return", stagnation=None, max_iterations=3)
    assert not solve(**huge | {"u0": U0 * 1e156}).status.ok


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_norm_of_the_users_own_in_sixteen_bits(dtype):
    torch = pytest.importorskip("torch")
    case = decay(tol=1.0, norm=lambda u: 1000 * u.abs().amax((1, 2)), max_iterations=3, on_failure="return")
    solution = solve(**case | {"u0": torch.tensor(U0, dtype=getattr(torch, dtype))})
    assert np.isfinite(solution.residuals[1:]).all()


# Failing


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
    ({"transfer": 3}, TypeError, "transfer: got int, expected a Transfer or None"),
    ({"divergence": "x"}, TypeError, "divergence: got 'x', expected a number"),
    ({"lag": -1}, ValueError, "lag: got -1"),
    ({"stagnation": 0}, ValueError, "stagnation: got 0"),
    ({"divergence": 0.5}, ValueError, "divergence: got 0.5, expected a number above 1"),
    ({"coarsest_sweeps": 0}, ValueError, "coarsest_sweeps: got 0"),
    ({"nested": True, "skip_first_down": True}, ValueError, "nested: got True with skip_first_down=True"),
]


@pytest.mark.parametrize(
    ("wrong", "error", "match"), ERRORS, ids=[f"{i}-{', '.join(ERRORS[i][0])}" for i in range(len(ERRORS))]
)
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
    with pytest.raises(ValueError, match="coarse: got 3 propagators for levels=3, expected 2"):
        solve(**case | {"coarse": POOR})
    every = dataclasses.replace(case["method"], levels=None)
    assert solve(**case | {"coarse": POOR, "m": 2, "method": every}, max_iterations=1).stats.levels == 4
    with pytest.raises(ValueError, match="nested: got True with an initial guess"):
        solve(**case | {"method": MGRIT(levels=3, nested=True)}, initial=np.zeros((13, 1, 2)))
