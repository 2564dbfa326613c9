# SPDX-License-Identifier: BSD-3-Clause
"""Right-hand sides the kernels know: the bits of the plain function, whichever way a step is taken."""

import dataclasses
import functools

import numpy as np
import pytest

from pyparareal import MGRIT, TimeGrid, arrays, problems, solve, tableaux
from pyparareal.compiled import CompiledRhs, compiled
from pyparareal.problems.ordinary import START, _three_bodies
from pyparareal.propagators import RungeKutta, is_fused

GRIDS = {"uniform": TimeGrid(0, 0.4, 12), "graded": TimeGrid.from_times(np.linspace(0, 0.6, 13) ** 1.5)}
PROBLEMS = {name: getattr(problems, name)() for name in ("lorenz", "brusselator", "fitzhugh_nagumo")}
PROBLEMS["arenstorf"] = dataclasses.replace(PROBLEMS["lorenz"], rhs=_three_bodies, u0=START, t1=1.0)


def pair_of(name, grid, **options):
    """The same scheme by the kernel and by the plain function."""
    rhs = PROBLEMS[name].rhs
    assert isinstance(rhs, CompiledRhs)
    plain = RungeKutta(lambda t, u: rhs(t, u), grid, batch_invariant=True, **options)
    return RungeKutta(rhs, grid, **options), plain


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(
    "options", [{}, {"tableau": tableaux.MIDPOINT, "substeps": 3}, {"tableau": tableaux.COOPER_VERNER_8}]
)
def test_kernel_and_function_give_the_same_bits(name, grid, dtype, library, options):
    kernel, plain = pair_of(name, grid, **options)
    assert kernel.fused
    assert kernel.batch_invariant
    assert not is_fused(plain)
    u0 = np.array(PROBLEMS[name].u0)
    u = (u0 * np.linspace(0.9, 1.1, 3 * 2).reshape(3, 2, 1)).astype(dtype)
    if library == "torch":
        u = pytest.importorskip("torch").from_numpy(u)
    points = slice(0, 9, 4)
    same = np.array_equal
    if name == "arenstorf" and dtype == "float16":
        pytest.skip("d^6 overflows")
    if name == "arenstorf" and library == "torch" and dtype == "float32":
        # torch's float32 square root is not always the nearest: one unit, in each of 4 steps of at most 11 stages
        same = functools.partial(np.allclose, rtol=44 * np.finfo(np.float32).eps, atol=0)
    assert same(kernel.step(u, points), plain.step(u, points))
    ends = [arrays.empty_like(u), arrays.empty_like(u)]
    kernel.relax(u, points, 4, ends[0])
    plain.relax(u, points, 4, ends[1])
    assert same(*ends)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("method", [MGRIT(levels=3, stagnation=None), "parareal"])
def test_a_solve_by_kernels_is_that_by_functions(name, method):
    problem = PROBLEMS[name]
    grid = TimeGrid(0, problem.t1 / 50, 200)
    solutions = [
        solve(
            phi,
            np.array(problem.u0),
            grid,
            m=6,
            tol=1e-9,
            method=method,
            save="all",
            max_iterations=4,
            on_failure="return",
        )
        for phi in pair_of(name, grid)
    ]
    assert np.array_equal(solutions[0].u, solutions[1].u)
    assert solutions[0].residuals[1:] == solutions[1].residuals[1:]


def test_gradients_take_the_function():
    torch = pytest.importorskip("torch")
    kernel, plain = pair_of("lorenz", GRIDS["uniform"])
    u = torch.tensor([[[1.0, 2.0, 20.0]]], dtype=torch.float64, requires_grad=True)
    gradients = [torch.autograd.grad(phi.step(u, slice(0, 1, 1)).sum(), u)[0] for phi in (kernel, plain)]
    assert torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="name: got 'pendulum', expected one of dahlquist, lorenz"):
        compiled("pendulum", 1)(lambda t, u: u)
    with pytest.raises(ValueError, match="parameters: got 2 numbers, expected 3 for lorenz"):
        compiled("lorenz", 1, 2)(lambda t, u: u)
    kernel, _ = pair_of("lorenz", GRIDS["uniform"])
    with pytest.raises(ValueError, match=r"u: got \(2,\) components, expected 3 for lorenz"):
        kernel.step(np.ones((4, 1, 2)), slice(0, 4, 1))
