# SPDX-License-Identifier: BSD-3-Clause
"""Backward passes of so many iterations after a forward solve with a tolerance, and what they say of their states."""

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from pyparareal import MGRIT, Adjoint, Status, TimeGrid, solve  # noqa: E402

STEPS, M = 24, 4


class Euler:
    """``u + h tanh(W_i u)``."""

    batch_invariant = False

    def __init__(self, weight, h=0.1):
        self.weight, self.h, self.steps = weight, h, len(weight)

    def step(self, u, points):
        return u + self.h * torch.tanh(torch.einsum("sij,sbj->sbi", self.weight[points], u))

    def rediscretise(self, m):
        return Euler(self.weight[: self.steps // m * m : m], self.h * m)


def solved(**options):
    torch.manual_seed(0)
    weight = torch.randn(STEPS, 3, 3, dtype=torch.float64)
    u0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    solution = solve(Euler(weight), u0, TimeGrid(0, 1, STEPS), m=M, method=MGRIT(), **options)
    gradient = torch.autograd.grad(solution.u[-1].sum(), u0)[0]
    return gradient, solution.adjoint[0], weight, u0.detach()


@pytest.mark.parametrize("tol", [1e-12, None])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_so_many_iterations_whatever_the_tolerance_forward(tol, k):
    adjoint = Adjoint(max_iterations=k, fixed=True)
    gradient, went, *_ = solved(tol=tol, max_iterations=8, adjoint=adjoint)
    assert (went.status, went.iterations) == (Status.FIXED, k)
    exact = solved(tol=1e-13, adjoint=Adjoint("serial"))[0]
    assert float((gradient - exact).norm()) > 1e-9  # 6 slices; each cycle but the first makes two of them exact


@pytest.mark.parametrize("options", [{"max_iterations": None}, {"max_iterations": 2, "tol": 1e-3}])
def test_fixed_needs_a_number_and_no_tolerance(options):
    with pytest.raises(ValueError, match="adjoint: fixed: got True, expected max_iterations with it, and no tol"):
        solved(tol=1e-6, adjoint=Adjoint(fixed=True, **options))


@pytest.mark.parametrize("adjoint", [None, Adjoint("serial", norm="l2")])
def test_size_and_path_are_those_of_lambda(adjoint):
    _, went, weight, u0 = solved(tol=1e-14, adjoint=adjoint)
    with torch.enable_grad():
        states = [u0.requires_grad_()]
        for w in weight:
            states.append(states[-1] + 0.1 * torch.tanh(states[-1] @ w.T))
        found = torch.autograd.grad(states[-1].sum(), states)
    norms = [float(v.norm()) for v in found[:STEPS:M]]
    moves = [float((a - b).norm()) for a, b in zip(found[:STEPS:M], found[M::M], strict=True)]
    path = sum(d / n for d, n in zip(moves, norms, strict=True))
    size = math.sqrt(sum(n * n for n in norms)) if adjoint is None else max(norms)
    # Sums of 6 numbers, of 24 products of Jacobians with norms below 2; the solve stops at 1e-14.
    assert went.size == pytest.approx(size, rel=1e-11)
    assert went.path == pytest.approx(path, rel=1e-11)
