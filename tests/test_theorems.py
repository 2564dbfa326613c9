# SPDX-License-Identifier: BSD-3-Clause
"""What parareal promises, on problems where a wrong formula fails: bit for bit, and not one iteration earlier."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from pyparareal import ops, parareal, problems, tableaux
from pyparareal.propagators import Map
from pyparareal.runtime import LocalRuntime
from pyparareal.solution import Status, predicted_speedup
from pyparareal.solver import serial_solve, solve
from pyparareal.time_grid import TimeGrid

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")

LOGISTIC = Map(lambda u: 3.9 * u * (1 - u), batch_invariant=True)  # chaotic
POOR = {
    "sin": Map(lambda u: 0.8 * np.sin(2.5 * u), batch_invariant=True),
    "cos": Map(lambda u: 0.7 * np.cos(1.7 * u), batch_invariant=True),
}


def logistic(steps=48, m=4, coarse="sin"):
    return {
        "fine": LOGISTIC,
        "coarse": POOR[coarse],
        "u0": np.array([[0.37, 0.2]]),
        "grid": TimeGrid(0, 1, steps),
        "m": m,
    }


def poor_lorenz():
    """Lorenz with Euler steps as coarse propagator, which knows little of the attractor."""
    p = dataclasses.replace(problems.lorenz(), slices=20, m=30, coarse=tableaux.EULER, coarse_substeps=40)
    return p.normalised().parareal()


def serial(case, **options):
    return serial_solve(case["fine"], case["u0"], case["grid"], m=case["m"], **options)


CASES = {
    "logistic-sin": logistic(),
    "logistic-cos": logistic(coarse="cos"),
    "logistic-trailing": logistic(steps=51),
    "logistic-m1": logistic(steps=13, m=1),
    "lorenz": poor_lorenz(),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_k_iterations_make_exactly_k_slices_exact(case):
    slices = case["grid"].slices(case["m"])
    chain = serial(case).u[case["grid"].c_points(case["m"])]
    for k in range(1, slices + 1):
        u = solve(**case, tol=0.0, max_iterations=k, keep_going=True, on_failure="return").u
        exact = [np.array_equal(u[n], chain[n]) for n in range(slices + 1)]
        assert exact == [n <= k for n in range(slices + 1)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_as_many_iterations_as_slices_give_the_chain(case):
    slices = case["grid"].slices(case["m"])
    chain = serial(case)
    solution = solve(**case, tol=0.0, keep_going=True, save="all")
    assert solution.status is Status.CONVERGED
    assert solution.iterations == slices
    assert solution.residuals[-1] == 0.0
    assert np.array_equal(solution.u, chain.u)
    early = solve(**case, tol=0.0, keep_going=True, save="all", max_iterations=slices - 1, on_failure="return")
    assert early.status is Status.MAX_ITERATIONS
    assert not np.array_equal(early.u, chain.u)


def test_work_is_done_on_slices_that_are_not_final_only():
    case = logistic()
    solution = solve(**case, tol=0.0, keep_going=True)
    assert solution.stats.fine_steps == 4 * sum(range(1, 13))
    assert solution.stats.coarse_steps == 12 + sum(range(12))
    assert solution.stats.critical_fine_steps == 4 * 12
    assert solution.stats.converged_slices == tuple(range(1, 13))


def test_the_bracket_alone_makes_slices_exact():
    # The iteration written out without freezing: exactness comes from the formula. With the sum in another order
    # the chain is never exact.
    def iterate(update, slices=12):
        u0 = np.array([0.37])
        fine, coarse = LOGISTIC.step, POOR["sin"].step
        chain, u = [u0], [u0]
        for _ in range(slices):
            chain.append(fine(chain[-1][None], None)[0])
            u.append(coarse(u[-1], None))
        exact = []
        for _ in range(slices + 3):
            f, g = [fine(x[None], None) for x in u[:-1]], [coarse(x[None], None) for x in u[:-1]]
            for n in range(slices):
                u[n + 1] = update(f[n], coarse(u[n][None], None), g[n])[0]
            exact.append(all(np.array_equal(a, b) for a, b in zip(u, chain, strict=True)))
        return exact

    assert iterate(ops.parareal_update) == [False] * 11 + [True] * 4
    assert not any(iterate(lambda f, g_new, g_old: (g_new + f) - g_old))


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("case", [CASES["lorenz"], CASES["logistic-trailing"]], ids=["lorenz", "logistic"])
def test_splitting_the_slices_into_calls_changes_nothing(case, size):
    options = {"tol": 1e-8, "max_iterations": 4, "save": "all", "on_failure": "return"}
    whole = solve(**case, **options)
    split = solve(**case, **options, runtime=LocalRuntime(slices_per_call=size))
    assert np.array_equal(whole.u, split.u, equal_nan=True)
    np.testing.assert_array_equal(whole.residuals, split.residuals)


def test_exact_coarse_propagator_converges_in_one_iteration():
    case = logistic()
    case["coarse"] = Map(
        lambda u: LOGISTIC.step(LOGISTIC.step(LOGISTIC.step(LOGISTIC.step(u, None), None), None), None)
    )
    solution = solve(**case, tol=1e-300)
    assert solution.iterations == 1
    assert solution.residuals == (0.0,)
    assert np.array_equal(solution.u, serial(case, save="coarse").u)
    # A jump of zero is no proof of exactness: at tolerance zero only the exact prefix counts.
    assert solve(**case, tol=0.0).stats.converged_slices == tuple(range(1, 13))


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("coarse", [0.0, 0.05])
@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("keep", [0.5, 0.9, 0.99])
def test_slices_have_not_converged_while_what_they_start_from_moves(keep, tol, coarse, freeze):
    # The coarse propagator sees little of the start, so that every slice waits for the one before it and looks still.
    # Converged means residuals below tol, and for a contraction by keep an error below tol / (1 - keep).
    grid, u0 = TimeGrid(0, 1, 40), np.ones((1, 1))
    fine, poor = (Map(lambda u, a=a: a * u, batch_invariant=True) for a in (keep, coarse))
    solution = solve(fine, u0, grid, m=1, coarse=poor, tol=tol, freeze=freeze)
    chain = serial_solve(fine, u0, grid)
    assert np.abs(solution.u[1:] - keep * solution.u[:-1]).max() <= tol
    assert np.abs(solution.u - chain.u).max() <= tol / (1 - keep)


@pytest.mark.parametrize("initial", ["array", "solution"])
def test_the_solution_as_guess_converges_in_one_iteration(initial):
    case = logistic()
    chain = serial(case)
    guess = chain if initial == "solution" else chain.u[::4].copy()
    solution = solve(**case, tol=1e-300, initial=guess)
    assert solution.iterations == 1
    assert solution.residuals == (0.0,)
    assert solution.stats.critical_coarse_steps == 1 + 11  # one batched guess, one chain
    assert np.array_equal(solution.u, chain.u[::4])


# The linear test equation u' = lambda u with amplification phi_f of the fine slice, phi_g of the coarse step


def linear(rate, slices=16, m=8, width=8.0):
    p = problems.Problem(
        "linear",
        lambda t, u: rate * u,
        (1.0,),
        (0.0,),
        (1.0,),
        0.0,
        width,
        slices,
        tableaux.COOPER_VERNER_8,
        m,
        tableaux.EULER,
        1,
    )
    h = width / slices
    phi_f = float(p.parareal()["fine"].step(np.ones((1, 1)), slice(0, 1, 1))[0, 0]) ** m
    return p.parareal(), phi_f, 1 + rate * h


@pytest.mark.parametrize("rate", [-0.5, -1.0, -2.5])
def test_errors_of_the_linear_equation(rate):
    # Gander and Vandewalle 2007, eq. (3.2): e_k = (phi_f - phi_g)^k T^k e_0, T_ij = phi_g^(i-j-1) for i > j.
    # Rounding: e_k is a difference of numbers of size 1 that carry about 20 roundings each.
    case, phi_f, phi_g = linear(rate)
    slices = 16
    powers = np.subtract.outer(np.arange(slices + 1), np.arange(slices + 1)) - 1
    matrix = np.where(powers >= 0, float(phi_g) ** np.maximum(powers, 0), 0.0)
    chain = serial(case, save="coarse").u[:, 0]
    error = phi_g ** np.arange(slices + 1) - chain
    first = np.abs(error).max()
    for k in range(1, slices + 1):
        error = (phi_f - phi_g) * matrix @ error
        u = solve(**case, tol=0.0, max_iterations=k, on_failure="return").u[:, 0]
        np.testing.assert_allclose(u - chain, error, rtol=1e-9, atol=50 * np.finfo(float).eps)
        # Theorems 4.9 (bounded intervals) and 4.5 (unbounded), |phi_g| < 1
        bounded = abs(phi_f - phi_g) ** k / math.factorial(k) * math.prod(slices - j for j in range(1, k + 1))
        unbounded = (abs(phi_f - phi_g) / (1 - abs(phi_g))) ** k
        assert np.abs(u - chain).max() <= min(bounded, unbounded) * first + 50 * np.finfo(float).eps


@pytest.mark.parametrize(("order", "scheme"), [(1, tableaux.EULER), (2, tableaux.HEUN)])
def test_each_iteration_raises_the_order(order, scheme):
    # k iterations with a coarse scheme of order p are of order p (k + 1): Gander, Vandewalle 2007, section 4.
    def error(slices, k):
        p = problems.Problem(
            "cos",
            lambda t, u: u * np.cos(t),
            (1.0,),
            (0.0,),
            (1.0,),
            0.0,
            2.0,
            slices,
            tableaux.COOPER_VERNER_8,
            2,
            scheme,
            1,
        )
        case = p.parareal()
        u = solve(**case, tol=0.0, max_iterations=k, on_failure="return").u
        return abs(u[-1, 0] - np.exp(np.sin(2.0)))

    for k in (1, 2):
        slope = math.log2(error(64, k) / error(128, k))
        assert abs(slope - order * (k + 1)) < 0.35


@pytest.mark.parametrize(("save", "dtype"), [("coarse", "float32"), ("all", "float32"), ("all", "float64")])
def test_deterministic_restores_bits_of_a_torch_matrix_product(save, dtype):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    weight = torch.randn(64, 64, dtype=kind) / 8
    case = {
        "fine": lambda u: u + 0.1 * torch.tanh(u @ weight),
        "coarse": lambda u: u + 0.4 * torch.tanh(u @ weight),
        "u0": torch.randn(1, 64, dtype=kind),
        "grid": TimeGrid(0, 1, 46),
        "m": 4,
    }
    chain = serial(case, deterministic=True)
    solution = solve(**case, tol=0.0, deterministic=True, save=save)
    assert torch.equal(solution.u, chain.u[torch.tensor(solution.points)])
    # Without it the rows of a batch may round otherwise than a single row: then equal to rounding, grown along the
    # chain by at most 1.3 per step (norm of the step's Jacobian is below 1 + 0.1 * 2.1) over 46 steps.
    free = solve(**case, tol=0.0, save=save).u
    bound = torch.finfo(kind).eps * 10 * sum(1.3**i for i in range(46))
    assert (free - chain.u[torch.tensor(solution.points)]).abs().max() < bound


def test_predicted_speedup():
    assert predicted_speedup(2, 16, 0.0) == 8
    assert predicted_speedup(0, 16, 0.25) == 4
    assert predicted_speedup(4, 16, 0.1) == pytest.approx(1 / (1.25 * 0.1 + 0.25))
    assert predicted_speedup(16, 16, 0.1) < 1  # it will not help
    for arguments in ((-1, 4, 0.1), (1, 0, 0.1), (1, 4, -0.1), (1, 4, float("nan"))):
        with pytest.raises(ValueError, match="iterations, slices, cost_ratio"):
            predicted_speedup(*arguments)


def test_the_method_says_what_and_not_where():
    source = Path(parareal.__file__).read_text()
    assert len(source.splitlines()) <= 150
    for word in ("stream", "rank", "pointer", "thread", "cuda", "torch", "synchron"):
        assert word not in source.lower()
