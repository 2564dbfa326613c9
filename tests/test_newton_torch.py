# SPDX-License-Identifier: BSD-3-Clause
"""Newton's method on torch: Jacobians by autograd, the same results as NumPy's, and gradients by one reverse chain."""

import numpy as np
import pytest
from newton_cases import Cell

torch = pytest.importorskip("torch")

from pyparareal import MGRIT, Adjoint, LocalRuntime, Newton, Status, TimeGrid, problems, serial_solve, solve  # noqa: E402
from pyparareal.autograd_jacobians import growth_of_a_tangent  # noqa: E402
from pyparareal.errors import ConvergenceError  # noqa: E402
from pyparareal.linearise import Linearised, source_of  # noqa: E402
from pyparareal.propagators import Map, RungeKutta  # noqa: E402

EPS = np.finfo(np.float64).eps


def largest(u):
    return float(u.abs().max())


def tensor(*shape, scale=1.0, seed=0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Recurrence:
    """A GRU cell of torch with its inputs, without a Jacobian of its own."""

    def __init__(self, steps, hidden=5, batch=3):
        torch.manual_seed(0)
        self.cell = torch.nn.GRUCell(4, hidden).double()
        self.x, self.u0 = (
            tensor(steps, batch, 4, seed=1).requires_grad_(),
            tensor(batch, hidden, seed=2).requires_grad_(),
        )
        self.grid, self.inputs = TimeGrid(0, 1, steps), [self.u0, self.x, *self.cell.parameters()]
        self.phi = Map(self.step, pass_points=True)
        self.calls = 0

    def step(self, u, points):
        self.calls += 1
        return self.cell(self.x[points].flatten(0, 1), u.flatten(0, 1)).reshape(u.shape)

    def chain(self):
        u = [self.u0]
        for x in self.x:
            u.append(self.cell(x, u[-1]))
        return torch.stack(u)

    def solve(self, **options):
        return solve(
            self.phi, self.u0, self.grid, **{"tol": 1e-13, "save": "all", "parameters": self.inputs[1:]} | options
        )


def serial(phi, u0, grid, **options):
    with torch.no_grad():
        return serial_solve(phi, u0, grid, **options).u


# Jacobians


@pytest.mark.parametrize("kind", ["full", "diagonal"])
@pytest.mark.parametrize("m", [1, 3])
def test_jacobians_by_autograd_are_the_analytic_ones(kind, m):
    cell = Cell(12, keep=0.3, like=tensor(1))
    plain = Map(cell.step, pass_points=True)
    u, points = tensor(4, 3, 4, seed=3), cell.grid.starts(3)
    found = []
    for phi in (cell, plain):
        linearised = Linearised(phi, source_of(phi, u[:1]), kind)
        ends, jacobians = torch.empty_like(u), linearised.empty_jacobians(u)
        linearised.relax(u, points, m, ends, jacobians=jacobians)
        found.append((ends, jacobians))
    (ends, own), (ends_too, by_autograd) = found
    assert own.shape == ((4, 3, 4, 4) if kind == "full" else (4, 3, 4))
    assert torch.equal(ends, ends_too)
    assert largest(own - by_autograd) <= 100 * EPS


def test_numpy_and_torch_agree():
    ours, theirs = Cell(40, keep=0.5), Cell(40, keep=0.5, like=tensor(1))
    for kind in ("full", "block", "diagonal", "none"):
        options = {"m": 2, "tol": 1e-11, "method": Newton(kind)}
        a = solve(ours, ours.u0, ours.grid, **options)
        b = solve(theirs, theirs.u0, theirs.grid, **options)
        assert a.iterations == b.iterations
        # Two libraries round differently; 40 steps of a contraction, and what the last tolerance leaves.
        assert largest(torch.from_numpy(a.u) - b.u) < 1e-13
        assert a.stats.worst_slice == b.stats.worst_slice
        if kind != "none":
            assert a.stats.exponent == pytest.approx(b.stats.exponent, rel=1e-9)
            assert a.stats.chain_exponent == pytest.approx(b.stats.chain_exponent, rel=1e-9)


@pytest.mark.parametrize("name", ["lorenz", "brusselator"])
def test_known_equations_have_the_jacobians_that_autograd_finds(name):
    problem = getattr(problems, name)()
    grid = TimeGrid(0, 0.5, 25)
    phi = RungeKutta(problem.rhs, grid)
    u = np.random.default_rng(0).normal(size=(5, 2, len(problem.u0))) + np.array(problem.u0)
    found = []
    for v in (u, torch.from_numpy(u)):
        linearised = Linearised(phi, source_of(phi, v[:1]), "full")
        jacobians = linearised.empty_jacobians(v)
        linearised.relax(v, grid.starts(5), 5, v.copy() if v is u else v.clone(), jacobians=jacobians)
        found.append(torch.as_tensor(jacobians))
    assert largest(found[0] - found[1]) <= 1e4 * EPS * largest(found[0])


def test_a_batch_that_interacts_is_one_state():
    weight = 0.2 * tensor(3, 3, seed=5)
    phi, u0 = Map(lambda u: torch.sin(torch.einsum("ij,sjk->sik", weight, u))), tensor(3, 2, seed=6)
    grid = TimeGrid(0, 1, 20)
    solution = solve(
        phi, u0, grid, m=2, tol=None, max_iterations=1, method="newton", initial=serial(phi, u0, grid)[::2]
    )
    assert source_of(phi, u0[None]).size == 6
    solution = solve(phi, u0, grid, m=2, tol=1e-13, method=Newton("full"))
    assert solution.iterations <= 5
    assert largest(solution.u - serial(phi, u0, grid, m=2, save="coarse")) < 1e-13


def test_auto_is_full_for_few_features_and_what_is_cheap_beyond():
    def chosen(phi, u0, grid):
        return solve(phi, u0, grid, m=1, tol=None, max_iterations=1, method="newton").stats.jacobian

    few, many = Cell(4, features=16, like=tensor(1)), Cell(4, features=18, like=tensor(1))
    assert chosen(few, few.u0, few.grid) == "full"
    assert chosen(many, many.u0, many.grid) == "block"
    many.jacobians = ("full", "diagonal")
    assert chosen(many, many.u0, many.grid) == "diagonal"
    assert chosen(Map(few.step, pass_points=True), few.u0, few.grid) == "full"
    assert chosen(Map(many.step, pass_points=True), many.u0, many.grid) == "none"
    cell = Cell(4)
    assert chosen(Map(cell.step, pass_points=True), cell.u0, cell.grid) == "none"


def test_inference_mode_has_no_autograd():
    cell = Cell(8, like=tensor(1))
    with torch.inference_mode():
        phi = Map(cell.step, pass_points=True)
        assert solve(phi, cell.u0, cell.grid, m=2, tol=1e-9, method="newton").stats.jacobian == "none"
        assert solve(cell, cell.u0, cell.grid, m=2, tol=1e-9, method="newton").stats.jacobian == "full"
        lorenz = RungeKutta(problems.lorenz().rhs, TimeGrid(0, 0.1, 8))
        solution = solve(lorenz, tensor(2, 3), lorenz.grid, m=2, tol=1e-9, method="newton")
        assert solution.stats.jacobian == "none"
        with pytest.raises(TypeError, match="jacobian: got 'full' for a Map that has no linearise"):
            solve(phi, cell.u0, cell.grid, m=2, tol=1e-9, method=Newton("full"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_of_fewer_bits(dtype):
    u0, grid = torch.full((2, 3), 0.3, dtype=dtype), TimeGrid(0, 1, 12)
    phi = Map(lambda u: 2.5 * u * (1 - u), batch_invariant=True)
    solution = solve(phi, u0, grid, m=2, tol=0.0, method=Newton("full"))
    assert solution.u.dtype == dtype
    assert torch.equal(solution.u, serial(phi, u0, grid, m=2, save="coarse"))


def test_a_failure_without_jacobians_is_told_the_growth_of_a_tangent():
    phi, grid, u0 = Map(lambda u: torch.sin(4 * u) + 0.3), TimeGrid(0, 1, 400), torch.tensor([[0.37]]).double()
    with pytest.raises(ConvergenceError, match=r"Slice \d+ \(steps \d+ to \d+\) grows by exp") as error:
        solve(phi, u0, grid, m=8, tol=1e-6, method=Newton("none"), max_iterations=20)
    solution = error.value.solution
    # One feature: |J w| / |w| is |J|, here along what the iteration ended in.
    u, slopes = solution.u[:-1, 0, 0], 0.0
    for _ in range(8):
        slopes, u = slopes + torch.log(torch.abs(4 * torch.cos(4 * u))), torch.sin(4 * u) + 0.3
    assert solution.stats.exponent == pytest.approx(float(slopes.max()) / 8, rel=1e-9)
    assert solution.stats.worst_slice == int(slopes.argmax())


# Gradients

RTOL = 1e-10  # both solves stop at 1e-13, and 40 steps of a GRU amplify little


def cost(u):
    return (torch.sin(u) * torch.linspace(1.0, 2.0, u.numel(), dtype=u.dtype).reshape(u.shape)).sum()


def assert_gradients(got, expected, rtol=RTOL):
    for g, e in zip(got, expected, strict=True):
        assert largest(e) > 0
        assert largest(g - e) <= rtol * largest(e)


@pytest.mark.parametrize("save", ["coarse", "all"])
@pytest.mark.parametrize(("steps", "m"), [(40, 1), (40, 4), (43, 4)])
@pytest.mark.parametrize("method", [Newton("full"), Newton("diagonal"), Newton("none"), Newton("full", 0.2), "newton"])
def test_gradients_are_those_of_the_serial_chain(method, steps, m, save):
    problem = Recurrence(steps)
    solution = problem.solve(m=m, method=method, save=save)
    states = problem.chain()[torch.tensor(solution.points)]
    got = torch.autograd.grad(cost(solution.u), problem.inputs)
    assert_gradients(got, torch.autograd.grad(cost(states), problem.inputs))
    assert solution.adjoint[0].status is Status.CONVERGED
    if method in ("newton", Newton("full"), Newton("full", 0.2)):
        # One reverse scan, not damped, and a look at its residual.
        assert solution.adjoint[0].iterations == 2
        assert solution.adjoint[0].residuals[1] < 1e-13


@pytest.mark.parametrize("m", [1, 4])
def test_one_reverse_scan_is_the_adjoint(m):
    problem = Recurrence(40)
    solution = problem.solve(m=m, method=Newton("full"), adjoint=Adjoint(max_iterations=1, on_failure="return"))
    got = torch.autograd.grad(cost(solution.u), problem.inputs)
    assert solution.adjoint[0].iterations == 1
    assert_gradients(got, torch.autograd.grad(cost(problem.chain()), problem.inputs))


@pytest.mark.parametrize(
    ("method", "adjoint"),
    [
        (MGRIT(levels=2), "newton"),
        ("newton", MGRIT(levels=2)),
        ("newton", "serial"),
        ("newton", Newton("diagonal", 0.1)),
    ],
)
def test_forward_and_backward_may_have_different_methods(method, adjoint):
    problem = Recurrence(24)
    coarse = Map(lambda u, points: problem.step(u, points), pass_points=True)
    solution = problem.solve(m=4, method=method, adjoint=adjoint, coarse=coarse)
    got = torch.autograd.grad(cost(solution.u), problem.inputs)
    assert_gradients(got, torch.autograd.grad(cost(problem.chain()), problem.inputs))


@pytest.mark.parametrize("method", [Newton("full"), Newton("diagonal")])
def test_gradcheck(method):
    cell = Cell(5, features=4, batch=2, keep=0.4, like=tensor(1))
    u0, weight, x = tensor(2, 4, seed=3).requires_grad_(), cell.weight.requires_grad_(), cell.x.requires_grad_()

    def states(u0, weight, x):
        cell.weight, cell.x = weight, x
        return solve(cell, u0, cell.grid, m=2, tol=1e-13, method=method, save="all").u

    # Central differences: 1e-13 / eps of noise and eps^2 of third derivatives, both about 1e-7 for eps = 1e-6.
    assert torch.autograd.gradcheck(states, (u0, weight, x), eps=1e-6, atol=1e-6, rtol=1e-5)


def test_the_graph_keeps_the_states_and_nothing_else():
    problem = Recurrence(64)
    for save in ("all", "coarse"):
        solution = problem.solve(m=4, method=Newton("full"), save=save)
        kept = [t for t in solution.u.grad_fn.saved_tensors if t is not None]
        known = {t.data_ptr() for t in problem.inputs}
        assert [t.shape for t in kept if t.data_ptr() not in known] == [solution.u.shape]


def test_the_backward_pass_computes_each_jacobian_once():
    class Counted(Cell):
        rows = 0

        def linearise(self, u, points, kind):
            self.rows += len(u)
            return super().linearise(u, points, kind)

    cell = Counted(24, keep=0.6, like=tensor(1))
    u0 = tensor(3, 4, seed=3).requires_grad_()
    for kind in ("full", "diagonal"):
        solution = solve(cell, u0, cell.grid, m=3, tol=1e-12, method=Newton(kind))
        cell.rows = 0
        solution.u.sum().backward()
        assert cell.rows == 24
        assert solution.adjoint[0].iterations > (1 if kind == "full" else 2)


def test_deterministic_blocks_and_slices_per_call():
    problem = Recurrence(40)
    expected = torch.autograd.grad(cost(problem.chain()), problem.inputs)
    for options in ({"deterministic": True}, {"runtime": LocalRuntime(slices_per_call=3)}):
        solution = problem.solve(m=2, method=Newton("full"), **options)
        assert_gradients(torch.autograd.grad(cost(solution.u), problem.inputs), expected)


def test_a_step_without_a_graph_is_refused():
    phi, u0 = Map(lambda u: 0.5 * u.detach()), tensor(2, 3)
    with pytest.raises(ValueError, match=r"Map.step: returned a tensor without a graph"):
        solve(phi, u0, TimeGrid(0, 1, 8), m=2, tol=1e-9, method="newton")
    assert solve(phi, u0, TimeGrid(0, 1, 8), m=2, tol=1e-9, method=Newton("none")).status is Status.CONVERGED


def test_the_growth_of_a_tangent_is_that_of_the_transposed_slice():
    cell = Cell(12, like=tensor(1))
    u, points = tensor(3, 3, 4, seed=3), cell.grid.starts(4)
    linearised = Linearised(cell, source_of(cell, u[:1]), "full")
    jacobians = linearised.empty_jacobians(u)
    linearised.relax(u, points, 4, torch.empty_like(u), jacobians=jacobians)
    w = torch.randn(u.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    product = (jacobians.mT @ w[..., None]).flatten(1).norm(dim=1) / w.flatten(1).norm(dim=1)
    assert largest(growth_of_a_tangent(cell, u, points, 4) - torch.log(product)) < 1e-12


@pytest.mark.parametrize(
    "end", [torch.ones_like, lambda u: torch.ones(1, requires_grad=True).to(u) * torch.ones_like(u)]
)
@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
def test_a_later_step_without_a_graph_to_its_state_is_refused_by_name(jacobian, end):
    class Leaving:
        batch_invariant = True

        def step(self, u, points):
            return end(u) if points.start == 3 else torch.tanh(u)

    with pytest.raises(ValueError, match=r"Leaving\.step: returned a tensor without a graph to its argument u"):
        solve(Leaving(), torch.ones(2, 3), TimeGrid(0, 1, 8), m=4, tol=1e-5, method=Newton(jacobian))
