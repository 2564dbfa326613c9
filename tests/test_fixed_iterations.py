# SPDX-License-Identifier: BSD-3-Clause
"""A number of iterations asked for, and nothing else: the same bits, and no look back before the last is launched."""

import numpy as np
import pytest
from mgrit_cases import DecayWithResidual, decay, growth
from test_mgrit_fused import case as heat

from pyparareal import MGRIT, ConvergenceError, LocalRuntime, Status, TimeGrid, arrays, solve
from pyparareal.propagators import Map

OPTIONS = [
    {},
    {"levels": 3, "cycle": "F", "nested": True},
    {"levels": 3, "cycle": "W", "nu": 0, "measure": "end"},
    {"levels": 4, "omega": 1.2, "coarsest_sweeps": 2},
    {"stopping": "jump", "relative": "state", "scope": "local"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_k_cycles_are_those_of_a_solve_that_looks(library, options):
    problem = heat(89, **options, stagnation=None) | {"max_iterations": 4, "on_failure": "return"}
    if library == "torch":
        problem["u0"] = pytest.importorskip("torch").from_numpy(problem["u0"])
    looks, fixed = solve(**problem | {"tol": 0.0}), solve(**problem | {"tol": None, "on_failure": "raise"})
    assert (fixed.status, fixed.iterations) == (Status.FIXED, 4)
    assert fixed.status.ok
    assert np.array_equal(arrays.to_numpy(fixed.u), arrays.to_numpy(looks.u))
    np.testing.assert_array_equal(fixed.residuals, looks.residuals)
    assert fixed.stats.steps_per_level == looks.stats.steps_per_level


def test_k_iterations_of_parareal_are_those_of_one_that_looks():
    problem = decay(on_failure="return") | {"method": "parareal"}
    for k in (1, 5, 16, 99):
        looks = solve(**problem | {"tol": 0.0, "freeze": False}, max_iterations=k)
        fixed = solve(**problem | {"tol": None}, max_iterations=k)
        assert (fixed.status, fixed.iterations) == (Status.FIXED, min(k, 16))  # 16 slices: then every one is exact
        assert np.array_equal(fixed.u, looks.u)
        assert fixed.residuals == looks.residuals
        assert fixed.stats.fine_steps == looks.stats.fine_steps
        assert fixed.stats.converged_slices == tuple(range(1, min(k, 16) + 1))


READS = {
    "item",
    "__float__",
    "__int__",
    "__bool__",
    "__index__",
    "__array__",
    "tolist",
    "numpy",
    "cpu",
    "to",
    "as_tensor",
}


def watched(problem, **options):
    """What a solve does with torch tensors: the regions it enters, and what makes a host wait for a device or copy."""
    torch = pytest.importorskip("torch")
    log = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            name = getattr(func, "__name__", str(func))
            if name in READS:
                log.append(name)
            return func(*args, **(kwargs or {}))

    class Regions(LocalRuntime):
        def mark(self, name):
            log.append(f"region {name}")
            return super().mark(name)

        def reduce(self, values, combine=np.add):
            log.append("reduce")
            return super().reduce(values, combine)

    problem = problem | {"u0": torch.from_numpy(problem["u0"])} | options
    with Watch():
        solution = solve(**problem, runtime=Regions())
    regions = [i for i, what in enumerate(log) if what.startswith("region")]
    return solution, log, regions


@pytest.mark.parametrize("method", ["parareal", *OPTIONS], ids=str)
@pytest.mark.parametrize("kind", ["fused", "steps", "residual"])
def test_nothing_is_read_before_the_last_iteration_is_launched(kind, method):
    options = {} if method == "parareal" else method
    if kind == "residual":
        grid = TimeGrid(0, 8, 81)
        problem = decay(**options) | {"fine": DecayWithResidual(grid), "grid": grid, "m": 3}
    else:
        problem = heat(81, **options) if kind == "fused" else decay(steps=81, m=3, **options)
    if method == "parareal":
        problem["method"] = "parareal"
    watched(problem, tol=None, max_iterations=1)  # the factors of a matrix go to the device when they are first needed
    solution, log, regions = watched(problem, tol=None, max_iterations=3, keep_going=True)
    assert solution.status is Status.FIXED
    assert not [what for what in log[regions[0] : regions[-1]] if not what.startswith("region")]
    # The watch sees what it should: residuals are read at the end, and by a solve that looks between the cycles.
    assert log[regions[-1] :].count("reduce") >= 2
    assert {"cpu", "numpy"} <= set(log[regions[-1] :])
    _, log, regions = watched(problem, tol=0.0, max_iterations=3,
                              on_failure="return")  # fmt: skip
    assert "reduce" in log[regions[0] : regions[-1]]


def test_a_lagging_check_reads_a_cycle_when_so_many_more_are_launched():
    solution, log, _ = watched(heat(81, lag=2, skip_first_down=False, stagnation=None), tol=0.0, max_iterations=6,
                               on_failure="return")  # fmt: skip
    assert solution.iterations == 6
    begun = [i for i, what in enumerate(log) if what == "region mgrit.restrict.1"]
    read = [i for i, what in enumerate(log) if what == "reduce"]
    assert (len(begun), len(read)) == (6, 6)
    for k in range(4):
        assert begun[k + 2] < read[k]
        assert k == 3 or read[k] < begun[k + 3]


@pytest.mark.parametrize("method", [MGRIT(), "parareal"])
def test_the_callback_is_told_of_everything_at_the_end(method):
    told = []
    problem = decay(max_iterations=3) | {"tol": None, "method": method}
    solution = solve(**problem, callback=lambda k, u, residual: told.append((k, u[1:].copy(), residual)) or True)
    assert [k for k, _, _ in told] == [1, 2, 3]
    np.testing.assert_array_equal([residual for _, _, residual in told], solution.residuals)
    assert all(np.array_equal(u, solution.u[1:]) for _, u, _ in told)


@pytest.mark.parametrize("method", [MGRIT(), "parareal"])
def test_what_is_not_finite_is_no_result(method):
    problem = growth(0.5) | {"fine": Map(lambda u: u / 0, batch_invariant=True), "tol": None, "method": method}
    with (
        np.errstate(divide="ignore", invalid="ignore"),
        pytest.raises(ConvergenceError, match=r"NaN or infinity \(.* last \w+ (nan|inf)\)") as error,
    ):
        solve(**problem | {"on_failure": "raise"}, max_iterations=3)
    assert error.value.solution.status is Status.NON_FINITE


def test_a_number_of_iterations_is_needed():
    with pytest.raises(ValueError, match="max_iterations: got None with tol=None, expected how many iterations to run"):
        solve(**decay(tol=None))


@pytest.mark.parametrize("method", [MGRIT(nu=0), "parareal"])
def test_its_gradients_are_those_of_as_many_adjoint_iterations(method):
    torch = pytest.importorskip("torch")
    found = []
    for tol, k in ((None, 18), (0.0, 18), (None, 2)):
        u0 = torch.tensor([[0.4, 0.7]], dtype=torch.float64, requires_grad=True)
        problem = decay() | {"u0": u0, "tol": tol, "method": method}
        solution = solve(**problem, max_iterations=k)
        solution.u[-1].sum().backward()
        found.append(u0.grad.numpy())
        (went,) = solution.adjoint
        assert went.status is (Status.CONVERGED if tol == 0 else Status.FIXED)
        assert went.iterations <= k
    # 16 slices, so 18 iterations are exact.
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[2], found[1])
