# SPDX-License-Identifier: BSD-3-Clause
"""Propagators that bring their derivatives along: the gradients are those that autograd finds."""

import pytest

torch = pytest.importorskip("torch")

from pyparareal import MGRIT, Adjoint, Status, TimeGrid, solve  # noqa: E402
from pyparareal.propagators import relax_by_steps  # noqa: E402


class Decay:
    """``u[i+1] = u[i] + h a[i] sin(u[i])``, by autograd."""

    batch_invariant = True

    def __init__(self, a, h):
        self.a, self.h, self.steps = a, h, len(a)

    def step(self, u, points):
        return u + self.h * self.a[points, None, None] * torch.sin(u)

    def rediscretise(self, m):
        return type(self)(self.a[: self.steps // m * m : m], self.h * m)


class Backwards:
    """The adjoint of :class:`Decay` by formula; one call for a relaxation."""

    batch_invariant, fused = True, True

    def __init__(self, phi, u, last, w):
        self.phi, self.u, self.steps, self.w, self.calls = phi, u, last, w, 0

    def step(self, v, points):
        rows = []
        for n, j in enumerate(range(points.start, points.stop, points.step)):
            i = self.steps - 1 - j
            if i >= len(self.u) - 1:
                rows.append(v[n])
                continue
            of_state = v[n] * (1 + self.phi.h * self.phi.a[i] * torch.cos(self.u[i]))
            rows.append(of_state if self.w is None else of_state + self.w[i])
        return torch.stack(rows)

    def relax(self, v, points, m, out, **more):
        self.calls += 1
        relax_by_steps(self, v, points, m, out, **more)


class Own(Decay):
    """The same with its own derivatives, and a step that has no graph."""

    def __init__(self, a, h):
        super().__init__(a, h)
        self.made = []

    def step(self, u, points):
        with torch.no_grad():
            return super().step(u, points)

    def adjoint(self, u, last, w):
        self.made.append(Backwards(self, u, last, w))
        return self.made[-1]

    def parameter_gradients(self, u, w, parameters):
        found = (self.h * torch.sin(u) * w).sum((1, 2))
        return [found if tensor is self.a else None for tensor in parameters]


def gradients(kind, steps, backward, **options):
    a = torch.linspace(-1, 1, steps, dtype=torch.float64).requires_grad_()
    u0 = torch.linspace(0.5, 2, 6, dtype=torch.float64).reshape(2, 3).requires_grad_()
    phi = kind(a, 0.1)
    solution = solve(phi, u0, TimeGrid(0, 1, steps), tol=1e-13, adjoint=backward, **options)
    found = torch.autograd.grad((solution.u[-1] ** 2).sum() + solution.u.sum(), [u0, a])
    return phi, solution, found


@pytest.mark.parametrize("steps", [2, 7, 32, 37])
@pytest.mark.parametrize("save", ["coarse", "all"])
@pytest.mark.parametrize("backward", [None, "serial", MGRIT(levels=2, nu=0)])
def test_the_gradients_are_those_of_autograd(steps, save, backward):
    options = {"m": 2, "method": MGRIT(levels=3), "save": save}
    _, _, expected = gradients(Decay, steps, backward, **options)
    own, solution, found = gradients(Own, steps, backward, **options)
    assert own.made
    assert solution.adjoint[0].status.ok
    for got, by_autograd in zip(found, expected, strict=True):
        torch.testing.assert_close(got, by_autograd, rtol=1e-11, atol=1e-11)  # both solves stop at 1e-13


def test_a_serial_adjoint_that_is_fused_is_one_call():
    phi, solution, _ = gradients(Own, 32, Adjoint("serial"), m=4, method="mgrit")
    assert solution.adjoint[0].status is Status.SERIAL
    assert sum(one.calls for one in phi.made) == 1


def test_a_propagator_without_graph_and_without_its_own_adjoint_is_refused():

    class NoGraph(Decay):
        def step(self, u, points):
            return super().step(u.detach(), points).detach()

    with pytest.raises(ValueError, match=r"NoGraph\.step: returned a tensor without a graph"):
        gradients(NoGraph, 8, None, m=2)
