# SPDX-License-Identifier: BSD-3-Clause
"""Residual dense layers by kernels: the values and derivatives of the formula, and exact when they should be."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from pyparareal import MGRIT, Adjoint, TimeGrid, serial_solve, solve  # noqa: E402
from pyparareal.adjoint_step import AdjointStep  # noqa: E402
from pyparareal.nn.layer_parallel.dense_step import (  # noqa: E402
    ACTIVATIONS,
    DenseStep,
    SmoothReLU,
    dense_activation,
    smooth_relu,
)

LAYERS, BATCH, FEATURES = 12, 3, 5


def tensor(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def dense(layers=LAYERS, *, activation="tanh", bias=True, h=0.3, dtype=torch.float64):
    weight = tensor(layers, FEATURES, FEATURES, dtype=dtype).requires_grad_()
    return DenseStep(
        weight, tensor(layers, FEATURES, seed=1, dtype=dtype).requires_grad_() if bias else None, h, activation
    )


class Formula:
    """The same by autograd."""

    batch_invariant = False

    def __init__(self, phi):
        self.phi, self.weight, self.bias, self.steps = phi, phi.weight, phi.bias, phi.steps

    def step(self, u, points):
        with torch.enable_grad():
            return self.phi._formula(u, points)

    def rediscretise(self, m):
        return Formula(self.phi.rediscretise(m))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_kernel_is_the_formula(activation, bias):
    phi, u = dense(activation=activation, bias=bias), tensor(4, BATCH, 2, FEATURES, seed=2)
    for points in (slice(0, 4, 1), slice(1, 11, 3)):
        with torch.no_grad():
            torch.testing.assert_close(phi.step(u, points), phi._formula(u, points), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_relaxation_is_its_steps_bit_for_bit(dtype):
    phi, u, points = dense(dtype=dtype), tensor(3, BATCH, FEATURES, seed=2, dtype=dtype), slice(0, 9, 4)
    out, v = torch.empty_like(u), u
    phi.relax(u, points, 4, out)
    with torch.no_grad():
        for j in range(4):
            v = phi.step(v, slice(j, 9 + j, 4))
    assert torch.equal(out, v)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kept", [0, 3])
@pytest.mark.parametrize("known", ["nothing", "the end", "all"])
def test_the_adjoint_is_that_of_autograd(activation, kept, known):
    """Also where steps right of the end keep lambda, which they must bit for bit."""
    phi, u = dense(activation=activation), tensor(LAYERS + 1, BATCH, FEATURES, seed=3)
    w = None if known == "nothing" else tensor(LAYERS + 1, BATCH, FEATURES, seed=4)
    if known == "the end":
        w[:-1] = 0
    last = LAYERS + kept
    own, expected = phi.adjoint(u, last, w), AdjointStep(Formula(phi), u, last, w)
    v = tensor(8, BATCH, FEATURES, seed=5)
    for points in (slice(0, 5, 1), slice(0, last - 2, 3), slice(1, last - 1, 2)):
        part = v[: len(range(*points.indices(1000)))]
        torch.testing.assert_close(own.step(part, points), expected.step(part, points), rtol=1e-12, atol=1e-12)
    out = torch.empty_like(v[:1])
    own.relax(v[:1], slice(0, 1, 1), last, out)
    u_all = v[:1]
    for j in range(last):
        u_all = expected.step(u_all, slice(j, j + 1, 1))
    torch.testing.assert_close(out, u_all, rtol=1e-11, atol=1e-11)
    if kept and w is None:
        assert torch.equal(own.step(v[:2], slice(0, 2, 1)), v[:2])


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_parameters_are_those_of_autograd(bias):
    phi, u, w = dense(bias=bias), tensor(LAYERS, BATCH, 2, FEATURES, seed=3), tensor(LAYERS, BATCH, 2, FEATURES, seed=4)
    other = torch.zeros(1)
    found = phi.parameter_gradients(u, w, [*phi.parameters, other])
    expected = torch.autograd.grad(phi._formula(u, slice(0, LAYERS, 1)), phi.parameters, w)
    assert found.pop() is None
    for got, by_autograd in zip(found, expected, strict=True):
        torch.testing.assert_close(got, by_autograd, rtol=1e-12, atol=1e-12)


def test_slopes_are_those_of_the_states_now():
    """Not of states that were overwritten, nor of others at the same place."""
    phi, u = dense(), tensor(LAYERS, BATCH, FEATURES, seed=3)
    first = phi.slopes(u)
    assert phi.slopes(u[:4]).data_ptr() == first.data_ptr()
    u.mul_(2)
    assert not torch.equal(phi.slopes(u), first)
    assert torch.equal(phi.slopes(u), dense().slopes(u))


@pytest.mark.parametrize("layers", [12, 14, 35])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_at_full_iterations_values_and_gradients_are_serial_bit_for_bit(layers, dtype):
    """FCF-relaxation makes two slices final in a cycle: ``ceil(slices / 2)`` are needed, and no fewer."""

    def run(**options):
        phi = dense(layers, dtype=dtype, h=0.5)
        u0 = tensor(BATCH, FEATURES, seed=2, dtype=dtype).requires_grad_()
        solution = options.pop("by")(phi, u0, TimeGrid(0, 1, layers), m=3, parameters=phi.parameters, **options)
        return solution.u[-1], *torch.autograd.grad(solution.u[-1].square().sum(), [u0, *phi.parameters])

    exact = -(-(layers // 3) // 2)
    method, backward = MGRIT(skip_first_down=False), MGRIT(skip_first_down=False)
    serial = run(by=serial_solve, save="coarse")
    found = {}
    for k in (exact - 1, exact):
        again = {"by": solve, "method": method, "tol": None, "max_iterations": k}
        found[k] = run(**again, adjoint=Adjoint(backward, max_iterations=k))
    assert all(torch.equal(got, expected) for got, expected in zip(found[exact], serial, strict=True))
    assert not any(torch.equal(got, expected) for got, expected in zip(found[exact - 1], serial, strict=True))


def test_which_blocks_are_dense():
    linear = torch.nn.Linear(FEATURES, FEATURES)
    assert dense_activation(torch.nn.Sequential(linear, torch.nn.Tanh()), FEATURES) == "tanh"
    assert dense_activation(torch.nn.Sequential(linear, SmoothReLU()), FEATURES) == "smooth_relu"
    assert dense_activation(torch.nn.Sequential(linear, torch.nn.GELU()), FEATURES) is None
    assert dense_activation(torch.nn.Sequential(torch.nn.Linear(FEATURES, 6), torch.nn.Tanh()), FEATURES) is None
    hooked = torch.nn.Sequential(linear, torch.nn.Tanh())
    hooked[0].register_forward_hook(lambda *_: None)
    assert dense_activation(hooked, FEATURES) is None


def test_the_smooth_relu_is_smooth():
    """Value and slope meet at both ends of its quadratic part."""
    z = torch.tensor([-0.1, 0.1], dtype=torch.float64)
    for side in (-1e-9, 1e-9):
        torch.testing.assert_close(smooth_relu(z + side), z.clamp(min=0), rtol=0, atol=2e-9)
        slope = torch.func.vmap(torch.func.grad(smooth_relu))(z + side)
        torch.testing.assert_close(slope, (z > 0).double(), rtol=0, atol=1e-7)


def test_the_precision_of_the_kernels_is_for_float32_on_cuda_alone(monkeypatch):
    phi, u = dense(dtype=torch.float32), tensor(1, BATCH, FEATURES, dtype=torch.float32)
    with torch.no_grad():
        exact = phi.step(u, slice(0, 1, 1))
        monkeypatch.setattr(DenseStep, "precision", "tf32x3")
        assert torch.equal(phi.step(u, slice(0, 1, 1)), exact)
    for device, dtype, asked in (
        (True, torch.float32, True),
        (True, torch.float64, False),
        (False, torch.float32, False),
    ):
        options = DenseStep.kernel_options(SimpleNamespace(is_cuda=device, dtype=dtype))
        assert options == ({"precision": "tf32x3"} if asked else {})
