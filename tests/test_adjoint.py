# SPDX-License-Identifier: BSD-3-Clause
"""Gradients through ``solve``: those of the serial chain, by an adjoint chain that is exact when it should be."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pyparareal import MGRIT, Adjoint, LocalRuntime, Newton, Status, TimeGrid, Transfer, serial_solve, solve  # noqa: E402
from pyparareal.adjoint import _transposed  # noqa: E402
from pyparareal.adjoint_step import AdjointStep  # noqa: E402
from pyparareal.propagators import Map, RungeKutta  # noqa: E402

# Both solves stop at 1e-13, the adjoint's relative to the gradients that come in. In every problem here at most 50
# steps amplify an error by less than 100 in all, and gradients of parameters sum at most 50 of them.
TOL, RTOL = 1e-13, 1e-9


def tensor(*shape, scale=1.0, seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, dtype=torch.float64, generator=generator)).requires_grad_(grad)


def uneven(steps):
    return TimeGrid.from_times(np.cumsum(np.r_[0.0, 0.03 + 0.07 * np.random.default_rng(0).random(steps)]))


class Problem:
    """``u' = tanh(W u + b) - u / 2 + sin t``, RK4 on uneven steps, and a right-hand side."""

    def __init__(self, steps):
        self.weight, self.bias = tensor(3, 3, seed=1), tensor(3, seed=2)
        self.u0, self.rhs = tensor(2, 3, seed=3), tensor(steps, 2, 3, scale=0.1, seed=4)
        self.grid = uneven(steps)
        self.phi = RungeKutta(self.slope, self.grid)
        self.inputs = [self.u0, self.rhs, self.weight, self.bias]

    def slope(self, t, u):
        return torch.tanh(u @ self.weight + self.bias) - u / 2 + torch.sin(t)

    def chain(self):
        """Every state, by the loop that autograd differentiates."""
        u = [self.u0]
        for i in range(self.grid.steps):
            u.append(self.phi.step(u[-1][None], slice(i, i + 1, 1))[0] + self.rhs[i])
        return torch.stack(u)

    def solve(self, **options):
        return solve(self.phi, self.u0, self.grid, rhs=self.rhs, **{"tol": TOL, "save": "all"} | options)


def cost(u):
    """One that every given state enters, not linearly, each in its own way."""
    return (torch.sin(u) * torch.linspace(1.0, 2.0, u.numel(), dtype=u.dtype).reshape(u.shape)).sum()


def last(u):
    return (u[-1] ** 2).sum()


def assert_gradients(got, expected, rtol=RTOL):
    for g, e in zip(got, expected, strict=True):
        scale = float(e.abs().max())
        assert scale > 0
        assert float((g - e).abs().max()) <= rtol * scale


CASES = {
    "parareal": (24, 4, "parareal"),
    "parareal, trailing steps": (26, 4, "parareal"),
    "two levels": (24, 4, MGRIT(levels=2)),
    "F-relaxation, trailing steps": (26, 4, MGRIT(levels=2, nu=0)),
    "three levels, W": (27, 3, MGRIT(levels=3, cycle="W")),
    "factors that divide on no level": (47, 2, MGRIT(levels=4, cycle="F")),
    "another factor per level": (47, [2, 3, 2], MGRIT(levels=4)),
    "as many levels as there are": (47, 3, MGRIT(levels=None, nested=True)),
    "one level": (7, 3, MGRIT(levels=1)),
    "Newton, trailing steps": (26, 4, "newton"),
    "Newton without Jacobians": (24, 1, Newton("none")),
}


@pytest.mark.parametrize("save", ["coarse", "all"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_serial_chain(name, save):
    steps, m, method = CASES[name]
    problem = Problem(steps)
    solution = problem.solve(m=m, method=method, save=save)
    states = problem.chain()[torch.tensor(solution.points)]
    for function in (last, cost):
        got = torch.autograd.grad(function(solution.u), problem.inputs, retain_graph=True)
        assert_gradients(got, torch.autograd.grad(function(states), problem.inputs, retain_graph=True))
    assert [went.status.ok for went in solution.adjoint] == [True, True]


@pytest.mark.parametrize("method", ["parareal", MGRIT(levels=3, min_coarse=1), "serial"])
@pytest.mark.parametrize("save", ["coarse", "all"])
def test_gradcheck(method, save):
    problem = Problem(5)

    def states(u0, rhs, weight, bias):
        problem.weight, problem.bias = weight, bias
        if method == "serial":
            return serial_solve(problem.phi, u0, problem.grid, rhs=rhs, m=2, save=save).u
        return solve(problem.phi, u0, problem.grid, rhs=rhs, m=2, tol=TOL, method=method, save=save).u

    # Central differences: TOL / eps of noise and eps^2 of third derivatives, both about 1e-7 for eps = 1e-6.
    assert torch.autograd.gradcheck(states, problem.inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


# When the adjoint is exact


class Logistic:
    """``u (1 + h (1 - u))`` with a coarse step that is far off; sums and products only, the same bits in any batch."""

    batch_invariant = True

    def __init__(self, h=0.3):
        self.h = h

    def step(self, u, points):
        return u + self.h * (u * (1.0 - u))

    def rediscretise(self, m):
        return Logistic(-0.1)


def exactness(method, adjoint, steps=23, m=2):
    u0 = torch.full((1, 2), 0.2, dtype=torch.float64, requires_grad=True)
    grid = TimeGrid(0, 1, steps)
    rhs = tensor(steps, 1, 2, scale=0.05)
    options = {"m": m, "tol": 0.0, "rhs": rhs, "method": method}
    solution = solve(Logistic(), u0, grid, adjoint=adjoint, **options)
    serial = solve(Logistic(), u0, grid, adjoint="serial", **options)
    assert torch.equal(solution.u, serial.u)
    got, expected = (torch.autograd.grad(cost(s.u), [u0, rhs]) for s in (solution, serial))
    return all(map(torch.equal, got, expected)), max(
        float((g - e).abs().max() / e.abs().max()) for g, e in zip(got, expected, strict=True)
    )


@pytest.mark.parametrize(
    ("method", "cycles"),
    [
        ("parareal", 11),
        (MGRIT(levels=2, nu=0, skip_first_down=False), 11),
        (MGRIT(levels=2, nu=1, skip_first_down=False), 6),
        (MGRIT(levels=2, nu=1), 7),
        (MGRIT(levels=2, nu=2, skip_first_down=False), 4),
    ],
)
def test_exact_after_as_many_cycles_as_the_theorem_says(method, cycles):
    # 11 slices, each step of the adjoint the same operations in the same order: bitwise, and not one cycle earlier.
    def adjoint(k):
        return Adjoint(method, max_iterations=k, on_failure="return")

    assert exactness("parareal", adjoint(cycles))[0]
    same, error = exactness("parareal", adjoint(cycles - 1))
    assert not same
    assert error > 1e-9


def test_levels_whose_factor_does_not_divide_are_exact_too():
    # 23 steps, 11 slices: level 1 has an odd number of steps, and level 2 one of 5. With V-cycles a coarser level is
    # as exact as the cycles above it make it, and all are after as many cycles as there are slices.
    for levels in (3, 4):
        method = MGRIT(levels=levels, nu=0, min_coarse=1, skip_first_down=False)
        same, _ = exactness("parareal", Adjoint(method, max_iterations=11, on_failure="return"))
        assert same
        same, _ = exactness("parareal", Adjoint(method, max_iterations=10, on_failure="return"))
        assert not same


@pytest.mark.parametrize(
    ("steps", "m", "levels", "expected"),
    [(48, 2, 3, [48, 24, 12]), (47, 2, 2, [46, 23]), (47, 2, 4, [48, 24, 12, 6]), (47, [2, 3, 2], 4, [48, 24, 8, 4])],
)
def test_reversed_grids_are_no_longer_than_they_must_be(steps, m, levels, expected):
    problem = Problem(steps)
    solution = problem.solve(m=m, method=MGRIT(levels=levels))
    assert solution.u.grad_fn.work.chain.reversed_steps() == expected


def test_steps_in_front_keep_the_adjoint():
    u = tensor(4, 1, 2, grad=False)  # three steps; the reversed grid has five
    w = tensor(4, 1, 2, seed=1, grad=False)
    step = AdjointStep(Logistic(), u, last=5, w=w)
    v = tensor(3, 1, 2, seed=2, grad=False)
    got = step.step(v, slice(0, 5, 2))  # forward steps 4, 2, 0
    assert torch.equal(got[0], v[0])
    for row, i in ((1, 2), (2, 0)):
        expected = v[row] * (1 + 0.3 * (1 - 2 * u[i])) + w[i]
        torch.testing.assert_close(got[row], expected, rtol=1e-14, atol=0)  # a product and three sums


def test_gradients_of_few_cycles_are_inexact_and_improve():
    problem = Problem(48)
    expected = torch.autograd.grad(cost(problem.chain()), problem.inputs)
    errors = []
    for k in range(1, 6):
        adjoint = Adjoint(MGRIT(levels=3), max_iterations=k, on_failure="return")
        solution = problem.solve(m=2, method=MGRIT(levels=2), adjoint=adjoint)
        got = torch.autograd.grad(cost(solution.u), problem.inputs)
        went = solution.adjoint[0]
        assert (went.status, went.iterations) == (Status.MAX_ITERATIONS, k)
        errors.append(max(float((g - e).abs().max() / e.abs().max()) for g, e in zip(got, expected, strict=True)))
    assert errors[0] > 1e-2
    # A cycle with FCF-relaxation reduces the error at least by 3 here; 5 cycles by far more than 3^4.
    assert all(after < before / 3 for before, after in itertools.pairwise(errors))
    assert errors[-1] > 1e-12


# Its own settings


@pytest.mark.parametrize(
    "adjoint",
    ["serial", "parareal", "mgrit", MGRIT(levels=3, nu=[0, 1]), Adjoint("serial"), Adjoint(MGRIT(stopping="jump")),
     Adjoint(MGRIT(relative="first"), tol=1e-14, norm="l1"), Adjoint(MGRIT(cycle="W", levels=3), norm="inf")],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("method", ["parareal", MGRIT(levels=2)], ids=["parareal", "mgrit"])
def test_every_method_for_the_adjoint_of_every_method(method, adjoint):
    problem = Problem(26)
    solution = problem.solve(m=4, method=method, adjoint=adjoint)
    got = torch.autograd.grad(cost(solution.u), problem.inputs)
    assert_gradients(got, torch.autograd.grad(cost(problem.chain()), problem.inputs))
    serial = adjoint in ("serial", Adjoint("serial"))
    assert solution.adjoint[0].status is (Status.SERIAL if serial else Status.CONVERGED)
    assert (solution.adjoint[0].iterations == 0) == serial


def test_the_tolerance_is_relative_to_the_gradients_that_come_in():
    problem = Problem(48)
    solution = problem.solve(m=2, method=MGRIT(), adjoint=Adjoint(tol=1e-6))
    torch.autograd.grad(cost(solution.u), problem.inputs, retain_graph=True)
    torch.autograd.grad(1e-8 * cost(solution.u), problem.inputs)
    usual, small = solution.adjoint
    assert usual.iterations == small.iterations < solution.iterations
    np.testing.assert_allclose(np.array(small.residuals), 1e-8 * np.array(usual.residuals), rtol=1e-6)


def test_calls_of_few_slices_and_fixed_blocks():
    problem = Problem(26)
    expected = torch.autograd.grad(cost(problem.chain()), problem.inputs)
    for more in ({"runtime": LocalRuntime(slices_per_call=4)}, {"deterministic": True}):
        solution = problem.solve(m=4, method=MGRIT(levels=3), **more)
        assert_gradients(torch.autograd.grad(cost(solution.u), problem.inputs), expected)


def test_norms_of_the_solve_are_those_of_its_adjoint_where_it_has_them():
    calls = []

    def norm(u):
        calls.append(1)
        return 2 * u.flatten(1).abs().amax(1)

    problem = Problem(24)
    expected = torch.autograd.grad(cost(problem.chain()), problem.inputs)
    for method, adjoint, counted in (
        (MGRIT(), None, True),
        (MGRIT(), "parareal", False),  # whose norms have names
        (MGRIT(), Adjoint("mgrit", norm="inf"), False),
    ):
        solution = problem.solve(m=4, method=method, norm=norm, adjoint=adjoint)
        calls.clear()
        assert_gradients(torch.autograd.grad(cost(solution.u), problem.inputs), expected)
        assert bool(calls) == counted
    first = []
    for norm in ("inf", "l1"):
        solution = problem.solve(m=4, norm=norm)
        torch.autograd.grad(cost(solution.u), problem.inputs)
        first.append(solution.adjoint[0].residuals[0])
    assert first[1] > 2 * first[0]  # six numbers instead of the largest


def test_the_first_of_several_coarse_propagators():
    problem = Problem(24)
    coarse = [problem.phi.rediscretise(2), problem.phi.rediscretise(4)]
    solution = problem.solve(m=2, method=MGRIT(levels=3), coarse=coarse, adjoint="parareal")
    assert_gradients(
        torch.autograd.grad(cost(solution.u), problem.inputs),
        torch.autograd.grad(cost(problem.chain()), problem.inputs),
    )


def interpolation(n):
    """Linear, from ``n`` inner points to ``2 n + 1``."""
    p = torch.zeros(2 * n + 1, n, dtype=torch.float64)
    for j in range(n):
        p[2 * j : 2 * j + 3, j] = torch.tensor([0.5, 1.0, 0.5], dtype=torch.float64)
    return p


def between(n):
    p = interpolation(n)
    return Transfer(lambda u: u @ p / 2, lambda v: v @ p.T)


class Heat:
    """Backward Euler on ``n`` inner points of the unit interval."""

    batch_invariant = False

    def __init__(self, h, n, conductivity):
        off = torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
        self.matrix = (n + 1) ** 2 * (off + off.T - 2 * torch.eye(n, dtype=torch.float64))
        self.h, self.conductivity = h, conductivity

    def step(self, u, points):
        system = torch.eye(len(self.matrix), dtype=u.dtype) - self.h * self.conductivity * self.matrix
        return torch.linalg.solve(system, u.mT).mT


def test_coarsening_in_space():
    # 15 points, 7 and 3; full weighting and linear interpolation between.
    conductivity = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    transfers = [between(7), between(3)]
    u0, grid = tensor(1, 15), TimeGrid(0, 1, 32)
    fine, *coarse = (Heat(h / 32, n, conductivity) for h, n in ((1, 15), (2, 7), (4, 3)))
    states = serial_solve(fine, u0, grid, m=2, save="coarse").u
    expected = torch.autograd.grad(cost(states), [u0, conductivity])
    for levels in (2, 3):
        method = MGRIT(levels=levels, transfer=transfers)
        solution = solve(fine, u0, grid, m=2, tol=1e-12, coarse=coarse[: levels - 1], method=method, max_iterations=60)
        assert_gradients(torch.autograd.grad(cost(solution.u), [u0, conductivity]), expected)
        # The transposed iteration has the spectrum of the forward one, so it takes about as many cycles.
        assert abs(solution.adjoint[0].iterations - solution.iterations) <= 3

    transfer = transfers[0]
    transposed = _transposed(transfer, u0.detach()[None], u0.detach()[None, :, :7])
    v, w = tensor(2, 1, 7, grad=False), tensor(2, 1, 15, grad=False)
    assert float((transposed.restrict(w) * v).sum()) == pytest.approx(float((w * transfer.prolong(v)).sum()))
    assert float((transposed.prolong(v) * w).sum()) == pytest.approx(float((v * transfer.restrict(w)).sum()))


# What is differentiated


def test_modules_closures_and_what_they_were_computed_from():
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.Linear(3, 3) for _ in range(6)]).double()
    shared = torch.nn.Linear(3, 3).double()
    theta = tensor(2, 3, 3)
    made = torch.tanh(theta[0] + theta[1])  # a tensor of the graph, as a hypernetwork makes it
    layers[2].weight.requires_grad_(False)
    u0, grid = tensor(2, 3, grad=False), TimeGrid(0, 1, 6)
    for fine, leaves in (
        (layers, [p for p in layers.parameters() if p.requires_grad]),
        (shared, list(shared.parameters())),
        (lambda u: u + 0.1 * shared(u), list(shared.parameters())),
        (Map(lambda u: u + 0.1 * torch.tanh(u @ made)), [theta]),
    ):
        u = u0
        for i in range(6):
            u = fine[i](u) if fine is layers else (fine.step(u, None) if isinstance(fine, Map) else fine(u))
        solution = solve(fine, u0, grid, m=2, tol=TOL, coarse=lambda u: u)
        got = torch.autograd.grad(last(solution.u), leaves, retain_graph=True)
        assert_gradients(got, torch.autograd.grad(last(u[None]), leaves, retain_graph=True))


class Held:
    """``tanh(w u + p)``, ``w`` and ``p`` attributes."""

    batch_invariant = False

    def __init__(self, w, p, module=None):
        self.w, self.p, self.module = w, p, module

    def step(self, u, points):
        return torch.tanh(self.w * u + self.p)


def test_tensors_computed_from_one_another_are_counted_once():
    # Each path from a leaf to a step has one share in its gradient: through w alone, directly too, through two tensors.
    torch.manual_seed(0)
    a, b = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    module = torch.nn.Linear(3, 1, bias=False).double()
    weight = module.weight
    u0, grid = tensor(2, 3, grad=False), TimeGrid(0, 1, 6)
    for made in (
        lambda: Held(a * 1.5, b),
        lambda: Held(a * 1.5, a),
        lambda: Held(torch.sin(weight[0]), b, module),
        lambda: Held((w := a * b), w * a),
        lambda: Held((w := a * b), torch.cos(w)),
    ):
        for named in (False, True):
            fine = made()
            u = u0
            for _ in range(6):
                u = fine.step(u, None)
            leaves = [a, b, weight]
            expected = torch.autograd.grad(last(u[None]), leaves, retain_graph=True, allow_unused=True)
            parameters = [fine.w, fine.p, *leaves] if named else None
            solution = solve(fine, u0, grid, m=2, tol=TOL, coarse=lambda u: u, parameters=parameters)
            got = torch.autograd.grad(last(solution.u), leaves, retain_graph=True, allow_unused=True)
            assert [g is None for g in got] == [e is None for e in expected]
            assert_gradients([g for g in got if g is not None], [e for e in expected if e is not None])


def test_only_the_parameters_that_are_named():
    problem = Problem(12)
    solution = problem.solve(m=3, parameters=[problem.bias, problem.bias])
    (got,) = torch.autograd.grad(last(solution.u), [problem.bias], retain_graph=True)
    assert_gradients([got], torch.autograd.grad(last(problem.chain()), [problem.bias]))
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        torch.autograd.grad(last(solution.u), [problem.weight])


def test_without_gradients_there_is_no_graph():
    problem = Problem(12)
    with torch.no_grad():
        assert not problem.solve(m=3).u.requires_grad
    plain = solve(Logistic(), torch.ones(1, 2), TimeGrid(0, 1, 6), m=2, tol=1e-5)
    assert not plain.u.requires_grad
    assert plain.adjoint is None


def test_the_serial_solution_and_a_fallback_to_it():
    problem = Problem(12)
    expected = torch.autograd.grad(cost(problem.chain()), problem.inputs, retain_graph=True)
    serial = serial_solve(problem.phi, problem.u0, problem.grid, rhs=problem.rhs)
    assert_gradients(torch.autograd.grad(cost(serial.u), problem.inputs), expected)
    fallen = problem.solve(m=3, max_iterations=1, on_failure="serial")
    assert fallen.status is Status.SERIAL_FALLBACK
    assert_gradients(torch.autograd.grad(cost(fallen.u), problem.inputs), expected)
    assert fallen.adjoint[0].status is Status.CONVERGED  # max_iterations is the solve's own


def test_c_points_are_all_that_is_kept():
    problem = Problem(24)
    solution = problem.solve(m=4, save="coarse")
    assert solution.u.grad_fn.saved_tensors[0].shape[0] == 7
    warm = problem.solve(m=4, initial=solution)  # of which it is not a function
    torch.autograd.grad(cost(warm.u), problem.inputs)
    torch.autograd.grad(cost(solution.u), problem.inputs)


def test_no_gradient_comes_in():
    problem = Problem(12)
    solution = problem.solve(m=3)
    assert all(float(g.abs().max()) == 0 for g in torch.autograd.grad((0 * solution.u).sum(), problem.inputs))
    alone = solve(problem.phi, problem.u0, problem.grid, m=3, tol=TOL, parameters=[])
    assert float(torch.autograd.grad((0 * alone.u).sum(), problem.u0)[0].abs().max()) == 0
