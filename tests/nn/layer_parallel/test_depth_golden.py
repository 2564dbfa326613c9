# SPDX-License-Identifier: BSD-3-Clause
"""Histories of an independent program: TorchBraid's residual layers, forward and backward."""

import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from torch import nn  # noqa: E402

from pyparareal import MGRIT, TimeGrid, solve  # noqa: E402
from pyparareal.adjoint_step import AdjointStep  # noqa: E402
from pyparareal.nn import LayerParallel  # noqa: E402
from pyparareal.nn.layer_parallel.dense_step import DenseStep  # noqa: E402
from pyparareal.nn.layer_parallel.settings import Settings  # noqa: E402
from pyparareal.nn.layer_parallel.stack import Stack  # noqa: E402
from pyparareal.vjp import parameter_gradients  # noqa: E402

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "depth.json").read_text())
ROWS = GOLDEN["histories"]
WIDTH, BATCH = GOLDEN["width"], GOLDEN["batch"]


def name_of(row):
    return f"{row['layers']}-{row['levels']}-{row['m']}-{''.join(map(str, row['nu']))}{row['cycle']}"


every_row = pytest.mark.parametrize("row", ROWS, ids=name_of)


def stored_network(row):
    """Blocks ``Sequential(Linear, Tanh)`` with the stored weights, the step size, ``x`` and the adjoint's seed."""
    layers = row["layers"]
    count, i = (torch.arange(n, dtype=torch.float64) for n in (layers, WIDTH))
    weight = 0.5 * torch.sin((i[:, None] + 1) * (i + 2) + 0.1 * count[:, None, None])
    bias = 0.1 * torch.cos(i + count[:, None])
    blocks = []
    for w, b in zip(weight, bias, strict=True):
        linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        linear.load_state_dict({"weight": w, "bias": b})
        blocks.append(nn.Sequential(linear, nn.Tanh()))
    b = torch.arange(BATCH, dtype=torch.float64)[:, None]
    return blocks, GOLDEN["depth"] / layers, torch.cos(b + 0.5 * i), torch.sin(1 + b - 0.3 * i)


def of_blocks(row):
    """The layers as any blocks are stepped: batched by vmap, differentiated by autograd."""
    blocks, h, x, _ = stored_network(row)
    stack = Stack(blocks, h)
    return stack.propagator(stack.frozen(x))


def of_kernels(row):
    """The layers as one kernel steps all of them, and another their adjoint."""
    blocks, h, _, _ = stored_network(row)
    weight, bias = (torch.stack([getattr(block[0], name).detach() for block in blocks]) for name in ("weight", "bias"))
    return DenseStep(weight, bias, h)


both = pytest.mark.parametrize("propagator_of", [of_blocks, of_kernels])


def serial(row):
    """``y``, ``dx`` and the gradients of all parameters in one vector, weights first, by autograd of the layers."""
    blocks, h, x, seed = stored_network(row)
    u = x.requires_grad_()
    for block in blocks:
        u = u + h * block(u)
    u.backward(seed)
    return u.detach(), x.grad, flat_gradients(blocks)


def flat_gradients(blocks):
    return torch.cat([getattr(block[0], name).grad.flatten() for name in ("weight", "bias") for block in blocks])


def method_of(row):
    # A coarsest level is solved serially: its nu is not used.
    return MGRIT(
        levels=row["levels"], nu=[*row["nu"], 0], cycle=row["cycle"], skip_first_down=row["skip_first_down"],
        min_coarse=1, divergence=1e30, stagnation=None,
    )  # fmt: skip


def iterated(row, phi, u0, k, coarse=None):
    """``k`` cycles from zero, all points kept."""
    guess = None if row["skip_first_down"] else u0.new_zeros(row["layers"] // row["m"] + 1, *u0.shape)
    with torch.no_grad():
        return solve(
            phi, u0, TimeGrid(0, 1, row["layers"]), m=row["m"], tol=None, max_iterations=k, method=method_of(row),
            coarse=coarse, initial=guess, save="all",
        )  # fmt: skip


def relaxed(phi, row, c):
    """The C-points after an F- and a C-relaxation of the slices that start from ``c``, the end of the grid included."""
    m, layers, ends = row["m"], row["layers"], c[:-1]
    for j in range(m):
        ends = phi.step(ends, slice(j, layers - m + 1 + j, m))
    return torch.cat([c[:1], ends])


def error(found, exact):
    return float((found.detach() - exact).norm() / exact.norm())


def agree_with(stored):
    # Printed with 4 digits: half a unit of the last is at most 5e-4 of the number. Zero is zero, or rounding where
    # kernels and matrix products differ: 64 layers, some 10 roundings each.
    return pytest.approx(stored, rel=5.1e-4, abs=64 * 10 * 2.3e-16 if stored == 0 else 0)


def same_residuals(found, stored, size):
    """Relative 1e-9 for three cycles and 1e-6 after; 1e-13 of the states, which residuals are differences of."""
    stored = [math.nan if r is None else r for r in stored]
    for k, (ours, theirs) in enumerate(zip(found, stored, strict=True)):
        assert ours == pytest.approx(theirs, rel=1e-9 if k < 3 else 1e-6, abs=1e-13 * size, nan_ok=True)


@every_row
def test_serial_norms(row):
    # Printed with 16 digits; sums of 20 and 1,280 squares, of what 64 layers of 10 operations made.
    for found, stored in zip(serial(row), (row["y"], row["dx"], row["dw"]), strict=True):
        assert float(found.norm()) == pytest.approx(stored, rel=1e-14)


@both
@every_row
def test_forward_history(row, propagator_of):
    exact, _, _ = serial(row)
    _, _, x, _ = stored_network(row)
    phi = propagator_of(row)
    for k, stored in enumerate(row["errors"], start=1):
        solution = iterated(row, phi, x, k)
        # The stored error is that after the relaxation which follows the last cycle.
        assert error(relaxed(phi, row, solution.u[:: row["m"]])[-1], exact) == agree_with(stored)
    same_residuals(solution.residuals, row["residuals"], float(solution.u.norm()))


@both
@every_row
def test_backward_history(row, propagator_of):
    # The stored run solves the adjoint at its states after k cycles; its coarse levels see the C-points after the
    # relaxation that follows, its fine level does not, nor do the gradients of the weights.
    _, dx, dw = serial(row)
    _, _, x, seed = stored_network(row)
    layers, m, phi = row["layers"], row["m"], propagator_of(row)
    residuals = []
    for k in range(1, len(row["adjoint_residuals"]) + 1):
        u = iterated(row, phi, x, k).u
        c = relaxed(phi, row, u[::m])
        factors = [m ** (depth + 1) for depth in range(row["levels"] - 1)]
        coarse = [AdjointStep(phi.rediscretise(f), c[:: f // m], layers // f) for f in factors]
        fine = AdjointStep(phi, u, layers)
        solution = iterated(row, fine, seed, k, coarse)
        residuals.append(solution.residuals[-1])
        assert error(relaxed(fine, row, solution.u[::m])[-1], dx) == agree_with(row["dx_errors"][k - 1])
        lambdas = solution.u.flip(0)[1:]
        of_weights = parameter_gradients(phi, u[:-1], lambdas, phi.parameters, complete=False, block=None)
        found = torch.cat([g.flatten() for g in of_weights])
        assert error(found, dw) == agree_with(row["dw_errors"][k - 1])
    same_residuals(residuals, row["adjoint_residuals"], float(solution.u.norm()))


@every_row
def test_network(row):
    # The network reads its answers before the relaxation that the stored errors come after, so they are those of our
    # own iteration; its gradients of weights and its residuals are the stored ones. Its adjoint has all levels
    # linearised at the states after k cycles, theirs the coarse ones at relaxed states: corrections differ by a factor
    # that is off by the error of the states, so that errors do by that times the error before.
    _, _, dw = serial(row)
    m, layers, phi = row["m"], row["layers"], of_blocks(row)
    error_before = 1.0
    for k, (of_states, of_weights, residual) in enumerate(
        zip(row["errors"], row["dw_errors"], row["adjoint_residuals"], strict=True), start=1
    ):
        blocks, h, x, seed = stored_network(row)
        settings = Settings(
            iterations=k, levels=row["levels"], nu=[*row["nu"], 0], cycle=row["cycle"], min_coarse=1,
            guess="coarse" if row["skip_first_down"] else "zero", stopping="residual",
        )  # fmt: skip
        net = LayerParallel(blocks, h=h, m=m, forward=settings, backward=settings)
        y = net(x.requires_grad_())
        y.backward(seed)

        solution = iterated(row, phi, x.detach(), k)
        u, factors = solution.u, [m ** (depth + 1) for depth in range(row["levels"] - 1)]
        coarse = [AdjointStep(phi.rediscretise(f), u[::f], layers // f) for f in factors]
        adjoint = iterated(row, AdjointStep(phi, u, layers), seed, k, coarse)
        assert error(y, u[-1]) < 1e-14
        assert error(x.grad, adjoint.u[-1]) < 1e-13
        found = torch.cat([p.grad.flatten() for p in net.parameters()])
        assert error(found, dw) == pytest.approx(of_weights, rel=5.1e-4, abs=of_states * error_before + 1e-14)
        if residual is not None and net.report.passes[0].iterations == k:
            found = net.report.passes[0].residuals[-1]
            assert found == pytest.approx(residual, rel=1e-9 + 8 * of_states, abs=1e-14)
        error_before = of_weights
    size, done = float(u[m::m].norm()), net.report.forward.iterations
    assert done == k or net.report.forward.exact
    same_residuals([r * size for r in net.report.forward.residuals], row["residuals"][:done], float(u.norm()))
