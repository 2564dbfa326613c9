# SPDX-License-Identifier: BSD-3-Clause
"""What a differentiable solve refuses, and what it says when its adjoint does not converge."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pyparareal import MGRIT, Adjoint, ConvergenceError, Status, TimeGrid, serial_solve, solve  # noqa: E402
from pyparareal.propagators import Map  # noqa: E402

GRID = TimeGrid(0, 1, 12)


def value(*shape):
    count = math.prod(shape)
    return torch.linspace(0.5, 1.5, count, dtype=torch.float64).reshape(shape).requires_grad_()


def step(u):
    return u + 0.1 * torch.tanh(u)


def run(fine=step, u0=None, **options):
    u0 = value(2, 3) if u0 is None else u0
    return solve(fine, u0, GRID, **{"m": 3, "tol": 1e-12, "coarse": lambda u: u + 0.3 * torch.tanh(u)} | options)


# Adjoints that do not converge


@pytest.mark.parametrize("method", ["parareal", MGRIT()], ids=["parareal", "mgrit"])
def test_not_converged_raises_and_names_the_adjoint(method):
    solution = run(adjoint=Adjoint(method, max_iterations=1))
    with pytest.raises(ConvergenceError, match=r"^adjoint: the iteration limit was reached") as caught:
        solution.u.sum().backward()
    found = caught.value.solution
    assert found.status is Status.MAX_ITERATIONS
    assert found.points.tolist() == [0, 3, 6, 9, 12]
    assert torch.equal(found.u[-1], torch.ones(2, 3, dtype=torch.float64))
    assert solution.adjoint == []


def test_not_converged_falls_back_or_returns():
    expected = torch.autograd.grad(serial_solve(step, u0 := value(2, 3), GRID, m=3, save="coarse").u.sum(), u0)[0]
    fallen = run(u0=u0, adjoint=Adjoint(max_iterations=1, on_failure="serial"))
    (got,) = torch.autograd.grad(fallen.u.sum(), u0)
    assert torch.equal(got, expected)
    assert (fallen.adjoint[0].status, fallen.adjoint[0].failure) == (Status.SERIAL_FALLBACK, Status.MAX_ITERATIONS)

    asked = run(u0=u0, adjoint=Adjoint(max_iterations=1, on_failure="return"))
    (got,) = torch.autograd.grad(asked.u.sum(), u0)
    assert asked.adjoint[0].status is Status.MAX_ITERATIONS
    # One of 4 slices is exact; the others saw a coarse step that is off by (0.1)^2 per step.
    assert 1e-6 < float((got - expected).abs().max() / expected.abs().max()) < 1e-1


def test_what_nobody_asked_for_is_warned_of():
    matrix = value(3, 3).detach()

    def fine(u):
        return u + 0.1 * torch.tanh(u @ matrix)

    method = MGRIT(omega=1.5, coarsest_sweeps=1)  # never exact, and the tolerance is far below rounding
    solution = run(fine, adjoint=Adjoint(method, tol=1e-300, on_failure="return"))
    with pytest.warns(RuntimeWarning, match="adjoint: the gradients are inexact"):
        solution.u.sum().backward()


def test_policy_and_tolerance_are_those_of_the_solve():
    assert run(tol=0.1, on_failure="serial", max_iterations=1).status.ok
    solution = run(u0=(u0 := value(2, 3)), adjoint="mgrit", on_failure="serial")
    torch.autograd.grad(solution.u.sum(), u0)
    assert solution.adjoint[0].status is Status.CONVERGED


def test_gradients_that_are_not_finite_pass_as_autograd_passes_them():
    solution = run(u0=(u0 := value(2, 3)))
    weight = torch.zeros_like(solution.u)
    weight[-1, 0, 0] = math.inf
    (got,) = torch.autograd.grad(solution.u, u0, weight)
    assert math.isinf(got[0, 0])
    assert torch.equal(got.isfinite(), torch.tensor([[False, True, True], [True, True, True]]))
    assert solution.adjoint[0].failure is Status.NON_FINITE


# Steps without a usable derivative


def test_a_step_that_detaches_is_named():
    class Frozen:
        batch_invariant = True

        def step(self, u, points):
            with torch.no_grad():
                return step(u)

    for fine, coarse, name in (
        (lambda u: step(u.detach()), step, "Map"),
        (Frozen(), step, "Frozen"),
        (lambda u: value(2, 3).expand(u.shape) * 1.0, step, "Map"),
        (step, Frozen(), "Frozen"),
    ):
        with pytest.raises(ValueError, match=rf"{name}\.step: returned a tensor without a graph to its argument u"):
            run(fine, coarse=coarse)
    assert run(step, coarse=Frozen(), adjoint="serial").u.requires_grad  # has no use for a coarse step


def test_modules_whose_value_varies():
    for module, message in (
        (torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)), r"'1' \(BatchNorm1d\)"),
        (torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.1)), r"'1' \(Dropout\)"),
        (torch.nn.InstanceNorm1d(3, track_running_stats=True), r"'itself' \(InstanceNorm1d\)"),
        (torch.nn.RReLU(), r"'itself' \(RReLU\)"),
    ):
        with pytest.raises(ValueError, match=rf"fine: its module {message}"):
            run(module.double())
        if not isinstance(module, torch.nn.InstanceNorm1d):  # which wants states of another shape
            assert run(module.eval()).u.requires_grad
    assert run(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.0)).double()).u.requires_grad
    forgetful = torch.nn.BatchNorm1d(3, track_running_stats=False).double().eval()  # of the batch at hand, always
    with pytest.raises(ValueError, match="BatchNorm1d"):
        run(forgetful)


def test_a_tensor_that_only_a_later_step_depends_on():
    rates = [value(1), value(1)]

    def fine(u, points):
        chosen = [rates[int(i > 0)] for i in range(points.start, points.stop, points.step)]
        return u * (1 - 0.01 * torch.stack(chosen)[:, None])

    solution = run(Map(fine, pass_points=True), save="all", m=1)
    with pytest.raises(ValueError, match=r"parameters: a step depends on a tensor of shape \(1,\) that requires grad"):
        solution.u.sum().backward()
    run(Map(fine, pass_points=True), save="all", m=1, parameters=rates).u.sum().backward()
    assert rates[1].grad.abs().max() > 0


def test_errors_of_the_step_reach_the_caller_of_backward():
    calls = []

    def fine(u):
        if calls:
            raise LookupError("mine")
        return step(u)

    solution = run(fine)
    calls.append(1)
    with pytest.raises(LookupError, match=r"^mine$"):
        solution.u.sum().backward()


# Misuse of the graph


def test_second_derivatives_are_refused():
    u0 = value(2, 3)
    (first,) = torch.autograd.grad(run(u0=u0).u.sum(), u0, create_graph=True)
    (plain,) = torch.autograd.grad(run(u0=u0).u.sum(), u0)
    assert torch.equal(first, plain)
    with pytest.raises(NotImplementedError, match="solve: its gradient is not differentiable again"):
        torch.autograd.grad(first.sum(), u0)


def test_values_changed_before_the_backward_pass():
    weight = torch.eye(3, dtype=torch.float64).requires_grad_()
    solution = run(lambda u: u + 0.1 * torch.tanh(u @ weight))
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        solution.u.sum().backward()
    solution = run()
    with torch.no_grad():
        solution.u[0] += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        solution.u.sum().backward()


def test_steps_that_work_in_place():
    def fine(u):
        return u.mul_(1.1).add_(0.1)

    solution = run(fine, u0=(u0 := value(2, 3)), coarse=lambda u: u)
    (got,) = torch.autograd.grad(solution.u[-1].sum(), u0)
    # Twelve products of 1.1, in any grouping.
    torch.testing.assert_close(got, torch.full_like(got, 1.1**12), rtol=1e-14, atol=0)


# Wrong arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"adjoint": 3}, TypeError, "adjoint: got int, expected Adjoint, MGRIT, Newton or one of parareal, mgrit"),
        ({"adjoint": "jacobi"}, ValueError, "adjoint: method: got 'jacobi'"),
        ({"adjoint": Adjoint(tol=-1.0)}, ValueError, "adjoint: tol: got -1"),
        ({"adjoint": Adjoint(max_iterations=0)}, ValueError, "adjoint: max_iterations: got 0"),
        ({"adjoint": Adjoint(on_failure="pray")}, ValueError, "adjoint: on_failure: got 'pray'"),
        ({"adjoint": Adjoint(norm="l7")}, ValueError, "adjoint: norm: got 'l7'"),
        ({"adjoint": MGRIT(cycle="X")}, ValueError, "adjoint: cycle: got 'X'"),
        ({"adjoint": MGRIT(levels=3)}, ValueError, "adjoint: coarse: got one propagator for up to 3 levels"),
        ({"parameters": value(3)}, TypeError, "parameters: got Tensor, expected several tensors"),
        ({"parameters": torch.nn.Linear(3, 3)}, TypeError, "parameters: got Linear, expected several tensors"),
        ({"parameters": 1}, TypeError, "parameters: got int"),
        ({"parameters": [1.0]}, TypeError, "parameters: got float, expected tensors"),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_wrong_arguments(options, error, message, grad):
    taken = []

    def fine(u):
        taken.append(1)
        return step(u)

    with pytest.raises(error, match=message):
        run(fine, u0=value(2, 3).detach().requires_grad_(grad), **options)
    assert taken == []


@pytest.mark.parametrize("options", [{"adjoint": "serial"}, {"parameters": []}])
def test_numpy_states_have_no_gradients(options):
    (name,) = options
    with pytest.raises(TypeError, match=rf"{name}: got .* for u0 of ndarray, expected a torch tensor as u0"):
        solve(lambda u: u, np.ones((1, 2)), GRID, m=3, tol=1e-6, coarse=lambda u: u, **options)


@pytest.mark.parametrize("method", ["parareal", MGRIT()], ids=["parareal", "mgrit"])
def test_hooks_see_the_whole_gradient_once(method):
    u0, k = value(2, 3), value(3)
    fine, given = Map(lambda u: u + 0.1 * torch.tanh(k * u)), {"method": method, "coarse": step}
    expected = torch.autograd.grad(run(fine, u0, **given).u.square().sum(), [u0, k])
    calls = []
    for tensor in (u0, k):
        tensor.register_hook(lambda g: calls.append(1) or 2 * g)
    run(fine, u0, **given).u.square().sum().backward()
    assert len(calls) == 2
    assert torch.equal(u0.grad, 2 * expected[0])
    assert torch.equal(k.grad, 2 * expected[1])


class Scaled(torch.nn.Module):
    """A step with a frozen weight and two buffers, in one of which it counts its calls."""

    def __init__(self):
        super().__init__()
        self.inner, self.frozen = (torch.nn.Linear(3, 3, dtype=torch.float64) for _ in range(2))
        self.frozen.requires_grad_(False)
        self.register_buffer("scale", torch.full((3,), 0.1, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, u):
        self.calls += 1
        return u + torch.tanh(self.frozen(self.inner(u))) * self.scale


@pytest.mark.parametrize("written", ["inner.weight", "frozen.weight", "scale", "calls"])
def test_what_steps_read_may_not_be_written_to_before_the_backward_pass(written):
    fine = Scaled()
    solution = run(fine)
    with torch.no_grad():
        fine.state_dict()[written].mul_(2)
    if written == "calls":  # it is the step's own to write to
        solution.u.sum().backward()
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        solution.u.sum().backward()
