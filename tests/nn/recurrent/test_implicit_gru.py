# SPDX-License-Identifier: BSD-3-Clause
"""nn.ImplicitGRU: its formulas, its limits, its interface, and its levels."""

import copy
import itertools

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from recurrence_cells import largest_error  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal import MGRIT, Adjoint, Status  # noqa: E402
from pyparareal.nn import ImplicitGRU  # noqa: E402


def build(layers=2, dt=1.0, seed=0, **options):
    torch.manual_seed(seed)
    return ImplicitGRU(3, 5, layers, dt=dt, dtype=torch.float64, **options)


def by_the_formulas(net, x, h0):
    """The paper's equations, weight by weight and step by step: all states of the last layer, and the last of all."""
    weight = dict(net.cell.named_parameters())
    h, outputs = list(h0), []
    for now in x:
        for k in range(len(h)):
            w_r, w_z, w_n = weight[f"weight_ih_l{k}"].chunk(3)
            u_r, u_z, u_n = weight[f"weight_hh_l{k}"].chunk(3)
            b_r, b_z, b_n = weight[f"bias_ih_l{k}"].chunk(3)
            r = torch.sigmoid(now @ w_r.T + b_r + h[k] @ u_r.T)
            n = torch.tanh(now @ w_n.T + b_n + r * (h[k] @ u_n.T + weight[f"bias_hn_l{k}"]))
            d = net.cell.dt * (1 - torch.sigmoid(now @ w_z.T + b_z + h[k] @ u_z.T))
            h[k] = now = (h[k] + d * n) / (1 + d)
        outputs.append(now)
    return torch.stack(outputs), torch.stack(h)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "serial"},
        {"method": "hybrid", "jacobian": "none"},
        {"method": "mgrit", "levels": 3, "chunk": 4, "nu": 1},
        {"method": "newton", "jacobian": "full"},
        {"method": "auto"},
    ],
    ids=lambda o: o["method"],
)
@pytest.mark.parametrize(("layers", "dt"), [(1, 1.0), (3, 0.25)])
def test_values_and_gradients_are_those_of_the_formulas(options, layers, dt):
    # dt = 0.25 forgets a fifth per step at least: the residual 2e-12 of chunks of 8 grows by less than 10.
    net = build(layers, dt, **options)
    x = torch.randn(66, 2, 3, dtype=torch.float64, requires_grad=True)
    h0 = torch.randn(layers, 2, 5, dtype=torch.float64, requires_grad=True)
    found = []
    for solve in (net, lambda x, h: by_the_formulas(net, x, h)):
        output, last = solve(x, h0)
        assert output.shape == (66, 2, 5)
        assert last.shape == (layers, 2, 5)
        loss = output.sin().sum() + last.square().sum()
        found.append([output, last, *torch.autograd.grad(loss, [x, h0, *net.parameters()])])
    assert largest_error(*found) < 1e-9


def test_the_input_projection_is_one_product_for_all_steps():
    net = build(method="hybrid", jacobian="none")
    calls = []
    linear = nn.functional.linear

    def counted(x, *more):
        calls.append(x.ndim)
        return linear(x, *more)

    nn.functional.linear, before = counted, nn.functional.linear
    try:
        with torch.no_grad():
            net(torch.randn(64, 2, 3, dtype=torch.float64))
    finally:
        nn.functional.linear = before
    assert calls.count(3) == 1  # of [T, batch, input]; all others are of [rows, hidden]


def test_a_coarser_step_is_the_same_equation():
    # n steps of length dt / n from a state approach the solution of the equation for constant inputs, with an error of
    # order 1 / n: halving them halves it.
    net, fine = build(1, 0.5), None
    gates, h = torch.randn(2, 15, dtype=torch.float64), torch.randn(2, 1, 5, dtype=torch.float64)
    with torch.no_grad():
        ends = []
        for n in (1, 2, 4, 8, 1024):
            cell = copy.deepcopy(net.cell)
            cell.dt = 0.5 / n
            fine = h
            for _ in range(n):
                fine = cell(gates, fine)
            ends.append(fine)
            if n > 1:
                assert largest_error([cell.rediscretise(n)(gates, h)], [ends[0]]) < 1e-14
        errors = [float((end - ends[-1]).norm()) for end in ends[:-1]]
    for coarse, finer in itertools.pairwise(errors):
        assert 1.6 < coarse / finer < 2.5


def test_long_steps_are_stable():
    # (h + d n) / (1 + d) lies between h and n, which is between -1 and 1, however long the step: from h = 5 it is at
    # most 1 + 4 / d, and d = 1e6 (1 - z) with z < 0.96 for these weights.
    net = build(2, 1e6)
    with torch.no_grad():
        output, _ = net(torch.randn(40, 2, 3, dtype=torch.float64), 5 * torch.ones(2, 2, 5, dtype=torch.float64))
    assert float(output.abs().max()) <= 1.0 + 1e-4


def test_the_settings_of_the_paper():
    net = build(
        method=MGRIT(levels=3, nu=[0, 1], skip_first_down=True), chunk=4, tol=None, max_iterations=2,
        backward=Adjoint(max_iterations=1, on_failure="return"),
    )  # fmt: skip
    x = torch.randn(128, 4, 3, dtype=torch.float64)
    output, _ = net(x)
    output.sum().backward()
    assert net.report.status is Status.FIXED
    assert (net.report.iterations, net.report.backward[0].iterations) == (2, 1)
    exact, _ = build(method="serial")(x)
    # Two cycles are not the solution; the report says how far from it they are.
    assert 1e-6 < float((output - exact).detach().norm() / exact.detach().norm()) < 0.1
    assert net.report.residuals[-1] > 1e-6


def test_batch_first_lengths_and_state_dict():
    net, other = build(), build(seed=1, batch_first=True)
    other.load_state_dict(net.state_dict())
    x = torch.randn(20, 3, 3, dtype=torch.float64)
    h0 = torch.randn(2, 3, 5, dtype=torch.float64)
    output, last = net(x, h0)
    flipped, flipped_last = other(x.transpose(0, 1), h0)
    # The projection of the inputs is a product with its rows in another order.
    assert largest_error([flipped.transpose(0, 1), flipped_last], [output, last]) < 1e-14
    short, short_last = net(x, h0, lengths=torch.tensor([20, 7, 0]))
    expected, expected_last = net(x[:7], h0)
    assert largest_error([short[:7, 1], short_last[:, 1]], [expected[:, 1], expected_last[:, 1]]) < 1e-14
    assert not short[7:, 1].any()
    assert torch.equal(short_last[:, 2], h0[:, 2])
    assert "3, 5, num_layers=2, dt=1.0" in repr(net)


def test_training():
    # The mean of the inputs so far, to be told at the end: the same weights after four steps, in parallel or not.
    def train(**options):
        net = build(1, seed=3, **options)
        head = nn.Linear(5, 3, dtype=torch.float64)
        optimiser = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.1)
        for k in range(4):
            x = torch.randn(48, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
            loss = (head(net(x)[1][0]) - x.mean(0)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return [p.detach() for p in net.parameters()]

    expected = train(method="serial")
    for options in ({"method": "hybrid", "jacobian": "none"}, {"method": "mgrit", "levels": 3, "chunk": 4}):
        # Gradients to some 1e-11, four steps of 0.1 of them.
        assert largest_error(train(**options), expected) < 1e-9
