# SPDX-License-Identifier: BSD-3-Clause
"""Histories of an independent program: TorchBraid's implicit GRU, forward and backward, and its acceptance cases."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from pyparareal import MGRIT, Adjoint, TimeGrid, solve  # noqa: E402
from pyparareal.adjoint_step import AdjointStep  # noqa: E402
from pyparareal.nn import ImplicitGRU  # noqa: E402
from pyparareal.nn.recurrent.settings import Settings  # noqa: E402
from pyparareal.nn.recurrent.states import Packing  # noqa: E402
from pyparareal.nn.recurrent.step import CellStep  # noqa: E402

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "sequence.json").read_text())
INPUTS, HIDDEN, STEPS, BATCH = 3, 5, 32, 4
# The order of the stored run: parameter k has the entries 0.4 sin(0.7 k + 0.9 (q + 1)).
NAMES = ["rx0", "br0", "rx1", "br1", "rh0", "rh1", "zx0", "bz0", "zx1", "bz1", "zh0", "zh1",
         "nx0", "bn0", "nx1", "bn1", "nh0", "nh_bias0", "nh1", "nh_bias1"]  # fmt: skip


def stored_network(**options):
    shapes = {name: (HIDDEN, INPUTS if name.endswith("x0") else HIDDEN) for name in NAMES}
    shapes |= {name: (HIDDEN,) for name in NAMES if "b" in name}
    value = {}
    for k, name in enumerate(NAMES):
        q = torch.arange(1, math.prod(shapes[name]) + 1, dtype=torch.float64)
        value[name] = (0.4 * torch.sin(0.7 * k + 0.9 * q)).reshape(shapes[name])
    net = ImplicitGRU(INPUTS, HIDDEN, 2, dtype=torch.float64, **options)
    weights = {}
    for layer in "01":
        weights[f"cell.weight_ih_l{layer}"] = torch.cat([value[f"{gate}x{layer}"] for gate in "rzn"])
        weights[f"cell.weight_hh_l{layer}"] = torch.cat([value[f"{gate}h{layer}"] for gate in "rzn"])
        weights[f"cell.bias_ih_l{layer}"] = torch.cat([value[f"b{gate}{layer}"] for gate in "rzn"])
        weights[f"cell.bias_hn_l{layer}"] = value[f"nh_bias{layer}"]
    net.load_state_dict(weights)
    t, b, i, layer, j = (torch.arange(n, dtype=torch.float64) for n in (STEPS, BATCH, INPUTS, 2, HIDDEN))
    x = torch.sin(0.3 * t[:, None, None] + b[:, None] + 0.5 * i)
    seed = torch.cos(layer[:, None, None] + 0.4 * b[:, None] - 0.2 * j)
    return net, x, seed


def chain(net, x):
    """The recurrence as a propagator on packed states, and the same for each level of a history."""
    packing = Packing(net.cell.initial_state(BATCH, torch.float64, x.device))
    return CellStep(net.cell, [net.cell.project(x).detach()], lambda parts: parts[0], packing)


def relaxed(step, u, m):
    """The C-points after an F- and a C-relaxation of the slices that start from ``u``."""
    ends = u
    for j in range(m):
        ends = step.step(ends, slice(j, STEPS - m + 1 + j, m))
    return torch.cat([u[:1], ends])


def method_of(row):
    return MGRIT(
        levels=row["levels"], nu=row["nu"], min_coarse=1, skip_first_down=False, divergence=1e30, stagnation=None
    )


def iterated(row, k):
    """The network after ``k`` cycles, forward and backward."""
    method = method_of(row)
    backward = Adjoint(method, max_iterations=k, on_failure="return")
    return stored_network(settings=Settings(method, chunk=row["m"], tol=None, max_iterations=k, backward=backward))


def serial():
    net, x, seed = stored_network(method="serial")
    h0 = torch.zeros(2, BATCH, HIDDEN, dtype=torch.float64, requires_grad=True)
    _, last = net(x, h0)
    return last.detach(), torch.autograd.grad(last, h0, seed)[0]


def test_serial_norms():
    last, gradient = serial()
    # Printed with 16 digits: sums of 40 squares and 32 steps that contract.
    assert float(last.norm()) == pytest.approx(GOLDEN["h"], rel=1e-14)
    assert float(gradient.norm()) == pytest.approx(GOLDEN["dh0"], rel=1e-13)
    np.testing.assert_allclose([float(h.norm()) for h in last], GOLDEN["layers"], rtol=1e-12)


@pytest.mark.parametrize("row", GOLDEN["histories"], ids=lambda row: f"{row['levels']}-{row['m']}-{row['nu']}")
def test_forward_history(row):
    # Residuals are printed with 13 digits; they are differences of numbers up to 1, so rounding is some 1e-16 of that
    # for each of 320. Errors are printed with 4 digits, after the relaxation that follows the last cycle.
    exact, _ = serial()
    net, x, _ = iterated(row, len(row["residuals"]))
    net(x)
    np.testing.assert_allclose(net.report.residuals, row["residuals"], rtol=2e-12, atol=1e-15)
    for k, error in enumerate(row["errors"], start=1):
        net, x, _ = iterated(row, k)
        with torch.no_grad():
            u = states_of(net, x)
            last = relaxed(chain(net, x), u[: -1 : row["m"]], row["m"])[-1].reshape(BATCH, 2, HIDDEN).transpose(0, 1)
        got = float((last - exact).norm() / exact.norm())
        assert got == pytest.approx(error, rel=2e-3, abs=1e-15)


def states_of(net, x):
    """All states ``[steps + 1, batch, F]`` of the network's own solve."""
    from pyparareal.nn.recurrent.solving import solve_sequence

    step = chain(net, x)
    u0 = torch.zeros(BATCH, 2 * HIDDEN, dtype=torch.float64)
    return solve_sequence(step, u0, STEPS, net.settings, coarse=net._coarse(step, STEPS), parameters=[])[0]


@pytest.mark.parametrize("row", GOLDEN["histories"], ids=lambda row: f"{row['levels']}-{row['m']}-{row['nu']}")
def test_backward_history(row):
    # The stored run solves the adjoint from zero, at its states after k cycles; what its coarse levels see are the
    # C-points after the relaxation that follows, which its fine level does not.
    _, exact = serial()
    exact = exact.transpose(0, 1).flatten(1)
    m, method = row["m"], method_of(row)
    for k, (residual, error) in enumerate(zip(row["adjoint_residuals"], row["adjoint_errors"], strict=True), start=1):
        net, x, seed = iterated(row, k)
        step = chain(net, x)
        with torch.no_grad():
            u = states_of(net, x)
            c = relaxed(step, u[:-1:m], m)
        fine = AdjointStep(step, u, STEPS)
        coarse = [
            AdjointStep(step.coarsened(m * every, net.cell.rediscretise(m * every)), c[::every], STEPS // (m * every))
            for every in [m**depth for depth in range(row["levels"] - 1)]
        ]
        w = seed.transpose(0, 1).flatten(1)
        guess = torch.zeros(STEPS // m + 1, *w.shape, dtype=torch.float64)
        solution = solve(
            fine, w, TimeGrid(0, 1, STEPS), m=m, tol=None, coarse=coarse, method=method, max_iterations=k,
            initial=guess, parameters=[],
        )  # fmt: skip
        # As above; 32 products of Jacobians that do not amplify.
        assert solution.residuals[-1] == pytest.approx(residual, rel=1e-8, abs=1e-15)
        got = float((relaxed(fine, solution.u[:-1], m)[-1] - exact).norm() / exact.norm())
        assert got == pytest.approx(error, rel=2e-3, abs=1e-13)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize(("steps", "tolerance"), [(24, 1e-6), (6, 1e-6), (27, 1e-5)])
def test_acceptance_case(levels, steps, tolerance):
    # 20 iterations make the 13 slices of 27 steps exact, so that what remains is rounding; the tolerances are theirs.
    torch.manual_seed(steps)
    reference = ImplicitGRU(28, 20, 2, dtype=torch.float64, method="serial")
    method = MGRIT(levels=levels, skip_first_down=False, min_coarse=1)
    backward = Adjoint(method, max_iterations=20)
    net = ImplicitGRU(
        28, 20, 2, dtype=torch.float64,
        settings=Settings(method, chunk=2, tol=1e-12, max_iterations=20, backward=backward, on_failure="raise"),
    )  # fmt: skip
    net.load_state_dict(reference.state_dict())
    x = torch.randn(steps, 5, 28, dtype=torch.float64)
    found = []
    for one in (reference, net):
        inputs, h0 = x.clone().requires_grad_(), torch.zeros(2, 5, 20, dtype=torch.float64, requires_grad=True)
        output, last = one(inputs, h0)
        loss = output.square().sum() + last.sum()
        found.append([output.detach(), *torch.autograd.grad(loss, [inputs, h0, *one.parameters()])])
    for a, b in zip(*found, strict=True):
        assert float((a - b).abs().max()) <= tolerance * float(a.abs().max())
        assert float((a - b).abs().max()) <= 1e-10 * float(a.abs().max())  # and far below in float64
    assert net.report.method == "mgrit"
    assert len(net.report.backward) == 1
