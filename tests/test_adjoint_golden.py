# SPDX-License-Identifier: BSD-3-Clause
"""Gradients and residual histories of independent adjoint MGRIT programs: TorchBraid's and XBraid's."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pyparareal import MGRIT, Adjoint, TimeGrid, serial_solve, solve  # noqa: E402

# TorchBraid on one rank: options, (||y||, ||dx||, ||dW||) of the serial network, and after k = 1, 2, ... cycles the
# relative error of its forward states and the residual of its adjoint, linearised at these.
NORMS = {32: (6.273496606225484, 7.243766757881205, 6.204663009365798),
         64: (3.040906636198845, 3.783959067865696, 3.147059993793207)}  # fmt: skip
HISTORIES = [
    (32, 2, {"levels": 2, "nu": [0, 0], "skip_first_down": False},
     [4.514e-02, 4.408e-03, 2.176e-04, 4.395e-06, 7.599e-08, 6.423e-10],
     [3.225655968995e+00, 1.117763636894e-01, 6.476483090000e-03, 1.378939632360e-04, 2.877934171731e-06,
      9.387065336237e-08]),
    (32, 4, {"levels": 2, "nu": [0, 0], "skip_first_down": False},
     [1.099e-01, 2.308e-02, 2.158e-03, 9.437e-05, 1.533e-06, 1.322e-08],
     [3.180900832688e+00, 4.133104952263e-01, 6.386706241278e-02, 3.575888253942e-03, 1.763787829320e-04,
      1.111408334586e-05]),
    (32, 4, {"levels": 2, "nu": [1, 1], "skip_first_down": False},
     [9.227e-02, 1.018e-02, 1.649e-04, 0.0, 0.0],
     [3.109181715403e+00, 4.390598495982e-01, 2.511847523906e-02, 5.882725750956e-04, 0.0]),
    (32, 2, {"levels": 3, "nu": [1, 1], "skip_first_down": False},
     [9.373e-02, 1.171e-02, 3.912e-04, 2.283e-06, 7.411e-09, 9.983e-12],
     [3.182042175303e+00, 3.303634269209e-01, 1.699953328147e-02, 2.748994109682e-04, 2.158416771074e-06,
      1.872823625932e-08]),
    (32, 4, {"levels": 3, "nu": [0, 1], "skip_first_down": True},
     [5.574e-01, 6.380e-02, 6.296e-03, 3.348e-04, 9.703e-06, 1.439e-07],
     [float("nan"), 3.354608789419e+00, 2.835943934012e-01, 2.900146636851e-02, 1.264234219192e-03,
      5.160755914693e-05]),
    (64, 2, {"levels": 4, "nu": [1, 1], "skip_first_down": False, "cycle": "F"},
     [2.018e-02, 1.397e-03, 3.035e-05, 5.538e-07, 1.608e-08, 2.616e-10],
     [3.322729202361e+00, 6.460227116331e-02, 1.401136651379e-03, 7.201755425615e-05, 2.004547937789e-06,
      3.921060087447e-08]),
]  # fmt: skip


class Layers:
    """``u + h tanh(W_i u + b_i)``; a coarse level has the layers at its points, and longer steps."""

    batch_invariant = False

    def __init__(self, weight, bias, h, stride=1):
        self.weight, self.bias, self.h, self.stride = weight, bias, h, stride

    def rediscretise(self, m):
        return Layers(self.weight, self.bias, self.h * m, self.stride * m)

    def step(self, u, points):
        here = slice(points.start * self.stride, (points.stop - 1) * self.stride + 1, points.step * self.stride)
        return u + self.h * torch.tanh(torch.einsum("nij,nbj->nbi", self.weight[here], u) + self.bias[here][:, None])


def layers(steps):
    count = torch.arange(steps, dtype=torch.float64)
    i = torch.arange(4, dtype=torch.float64)
    weight = 0.5 * torch.sin((i[:, None] + 1) * (i + 2) + 0.1 * count[:, None, None])
    bias = 0.1 * torch.cos(i + count[:, None])
    phi = Layers(weight.requires_grad_(), bias.requires_grad_(), 4.0 / steps)
    b = torch.arange(5, dtype=torch.float64)[:, None]
    return phi, torch.cos(b + 0.5 * i).requires_grad_(), torch.sin(1 + b - 0.3 * i)


@pytest.mark.parametrize("steps", NORMS)
def test_gradients_of_layers(steps):
    phi, x, w = layers(steps)
    method = MGRIT(levels=3)
    solution = solve(phi, x, TimeGrid(0, 4, steps), m=2, tol=1e-13, method=method)
    dx, weight, bias = torch.autograd.grad(solution.u[-1], [x, phi.weight, phi.bias], w)
    dw = torch.cat([weight.flatten(), bias.flatten()])
    # tol relative to the size of the states; 64 steps with |J| < 1.2 amplify a residual by less than 1e4.
    for got, stored in zip((solution.u[-1], dx, dw), NORMS[steps], strict=True):
        assert float(got.detach().norm()) == pytest.approx(stored, rel=1e-9)


@pytest.mark.parametrize(("steps", "m", "options", "errors", "stored"), HISTORIES)
def test_history_of_the_adjoint_of_layers(steps, m, options, errors, stored):
    # Ours is linearised at the exact states, the stored residual after k cycles at states with the relative error
    # errors[k - 1]. The residual of cycle k - 1 is a product of fewer than 8 factors that depend on the states,
    # each by less than its own size: 8 errors. And where that is smaller, rounding: 1e-15 of the norms of w
    # (about 3) and of what 64 steps make of it.
    phi, x, w = layers(steps)
    grid = TimeGrid(0, 4, steps)
    adjoint = Adjoint(MGRIT(min_coarse=1, **options), tol=1e-18, max_iterations=len(stored), on_failure="return")
    exact = serial_solve(phi, x.detach(), grid, parameters=[], save="coarse", m=m).u
    solution = solve(
        phi, x, grid, m=m, tol=1e-12, method=MGRIT(levels=2), initial=exact, parameters=[], adjoint=adjoint
    )
    torch.autograd.grad(solution.u[-1], x, w)
    got = solution.adjoint[0].residuals
    assert len(got) == len(stored)
    for ours, theirs, error in zip(got, stored, errors, strict=True):
        assert ours == pytest.approx(theirs, rel=8 * error, abs=1e-14, nan_ok=True)
    assert errors[-1] < 2e-7  # so that the last entries were compared to many digits


def test_gradient_of_decay():
    # XBraid's ex-01-adjoint: u' = lambda u, backward Euler, J = sum u^2 / 50. Its state and its adjoint advance by
    # one cycle each in turn, so the history of its adjoint is none of a linearisation at fixed states and is not
    # compared. That of the state, and J after each cycle, are; r_k belongs to the states before cycle k.
    stored = [5.399995280753469e-01, 2.446736671656622e-02, 1.098316051892878e-03, 4.838178274037632e-05,
              2.065805657566744e-06, 8.359591528914130e-08]  # fmt: skip
    rate = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)

    class BackwardEuler:
        batch_invariant = True

        def __init__(self, h):
            self.h = h

        def step(self, u, points):
            return u / (1 - rate * self.h)

        def rediscretise(self, m):
            return BackwardEuler(self.h * m)

    guess = torch.full((26, 1), 0.456, dtype=torch.float64)
    solution = solve(
        BackwardEuler(0.5), torch.ones(1, dtype=torch.float64), TimeGrid(0, 25, 50), m=2, tol=1e-6,
        method=MGRIT(levels=2, nu=1, skip_first_down=False), initial=guess, save="all", parameters=[rate],
        adjoint=Adjoint(tol=1e-13),
    )  # fmt: skip
    assert solution.iterations == 6
    np.testing.assert_allclose(solution.residuals, stored, rtol=1e-9)
    cost = (solution.u**2).sum() / 50
    assert cost.item() == pytest.approx(3.599999999998741e-02, rel=1e-12)
    cost.backward()
    # Exactly: sum_i 2 u_i du_i/dlambda / 50 with u_i = 1.5^-i, du_i/dlambda = i u_i / 3; the tail of i > 50 is below
    # 1e-16. The state's last residual 8e-8 is that before the last cycle, which takes it to 4e-9.
    assert rate.grad.item() == pytest.approx(0.0192, rel=1e-8)
    # XBraid stopped with an adjoint that was off by 4.5e-7 of its residual: 5e-6 of the gradient.
    assert rate.grad.item() == pytest.approx(1.92000799963229e-02, rel=5e-6)
