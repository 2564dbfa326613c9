# SPDX-License-Identifier: BSD-3-Clause
"""The steps of a GRU and an LSTM: torch's cells, their Jacobians by autograd, and gates that are held."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from pyparareal.nn.recurrent.cells import GRUStep, LSTMStep  # noqa: E402

STEPS, BATCH, HIDDEN, OUTPUTS = 11, 3, 5, 4
POINTS = slice(1, 8, 3)  # slices that start at 1, 4 and 7
# Sums of 5 products and some ten operations on numbers of size 1, twice in another order
TOLERANCE = 50 * 2.0**-52


def rand(*shape):
    return torch.randn(shape, dtype=torch.float64)


def gru(hold=1, bias=True):
    torch.manual_seed(0)
    return GRUStep(rand(STEPS, BATCH, 3 * HIDDEN), rand(3 * HIDDEN, HIDDEN), rand(HIDDEN) if bias else None, hold)


def lstm(hold=1):
    torch.manual_seed(0)
    return LSTMStep(rand(STEPS, BATCH, 4 * HIDDEN), rand(4 * HIDDEN, HIDDEN), None, hold)


def projected(hold=1):
    torch.manual_seed(0)
    return LSTMStep(rand(STEPS, BATCH, 4 * HIDDEN), rand(4 * HIDDEN, OUTPUTS), rand(OUTPUTS, HIDDEN), hold)


CELLS = {"gru": (gru, HIDDEN), "lstm": (lstm, 2 * HIDDEN), "projected": (projected, OUTPUTS + HIDDEN)}


def close(got, expected, tolerance=TOLERANCE):
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


def states(size):
    torch.manual_seed(1)
    return rand(3, BATCH, size)


@pytest.mark.parametrize("bias", [True, False])
def test_a_gru_step_is_torchs_cell(bias):
    phi, u = gru(bias=bias), states(HIDDEN)
    cell = torch.nn.GRUCell(3 * HIDDEN, HIDDEN, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.eye(3 * HIDDEN))
        cell.weight_hh.copy_(phi.weight)
        for p in (cell.bias_ih, cell.bias_hh) if bias else ():
            p.zero_()
        if bias:
            cell.bias_hh[2 * HIDDEN :] = phi.bias
        expected = [cell(phi.gates[i], u[n]) for n, i in enumerate(range(*POINTS.indices(STEPS)))]
    close(phi.step(u, POINTS), torch.stack(expected))


@pytest.mark.parametrize("outputs", [HIDDEN, OUTPUTS])
def test_an_lstm_step_is_torchs(outputs):
    phi = lstm() if outputs == HIDDEN else projected()
    h, c = rand(3, BATCH, outputs), rand(3, BATCH, HIDDEN)
    one = torch.nn.LSTM(4 * HIDDEN, HIDDEN, proj_size=outputs % HIDDEN, bias=False, dtype=torch.float64)
    with torch.no_grad():
        one.weight_ih_l0.copy_(torch.eye(4 * HIDDEN))
        one.weight_hh_l0.copy_(phi.weight)
        if outputs != HIDDEN:
            one.weight_hr_l0.copy_(phi.projection)
        found = phi.unpacked(phi.step(phi.packed(h, c), POINTS))
        for n, i in enumerate(range(*POINTS.indices(STEPS))):
            _, expected = one(phi.gates[i : i + 1], (h[n : n + 1], c[n : n + 1]))
            for got, right in zip(found, expected, strict=True):
                close(got[n], right[0])


@pytest.mark.parametrize("hold", [1, 2, 7])
@pytest.mark.parametrize("name", CELLS)
def test_jacobians_are_those_of_autograd(name, hold):
    make, size = CELLS[name]
    phi, u = make(hold), states(size)
    all_pairs = torch.autograd.functional.jacobian(lambda v: phi.step(v, POINTS), u)
    expected = torch.stack([torch.stack([all_pairs[n, b, :, n, b] for b in range(BATCH)]) for n in range(3)])
    # Powers of gates have derivatives of size hold, which the sum 1 + f + ... has twice
    tolerance = TOLERANCE * hold**2
    diagonal = expected.diagonal(dim1=-2, dim2=-1)
    wanted = {"full": expected, "diagonal": diagonal}
    if name == "lstm":
        pairs = expected.unflatten(-1, (HIDDEN, 2)).unflatten(-3, (HIDDEN, 2))
        wanted["block"] = pairs.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
        assert phi.block == 2
        assert float(wanted["block"][..., 0, 1].abs().min()) > 0  # what the diagonal lacks
    assert set(phi.jacobians) == wanted.keys()
    for kind, right in wanted.items():
        u_next, found = phi.linearise(u, POINTS, kind)
        assert torch.equal(u_next, phi.step(u, POINTS))
        close(found, right, tolerance)
    with pytest.raises(ValueError, match="kind: got 'some', expected one of full"):
        phi.linearise(u, POINTS, "some")


@pytest.mark.parametrize("name", CELLS)
def test_coarse_steps_hold_the_gates_of_their_first_step(name):
    """The states feed the gates of the fine cell anew; where they do not (W = 0) a coarse step is the fine steps."""
    make, size = CELLS[name]
    phi, m = make(), 3
    phi.weight.zero_()
    coarse = phi.rediscretise(m)
    assert coarse.steps == STEPS // m == len(coarse.gates)
    held = make()
    held.weight.zero_()
    held.gates = phi.gates[: STEPS // m * m : m].repeat_interleave(m, 0)
    u = states(size)
    fine = u
    for j in range(m):
        fine = held.step(fine, slice(j, 7 + j, m))
    close(coarse.step(u, slice(0, 3, 1)), fine, 10 * TOLERANCE)
    assert torch.equal(phi.rediscretise(1).step(u, POINTS), phi.step(u, POINTS))
    assert coarse.rediscretise(2).hold == 2 * m


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("m", [2, 100, 10_000])
def test_a_forget_gate_near_one(m, dtype):
    """``(1 - f^m) / (1 - f)`` where ``f`` is 1 to rounding, and its derivative, against sums in float64."""
    a = torch.tensor([-200.0, -3, 0, 5, 15, 25, 40, 90, 800], dtype=dtype)
    phi = LSTMStep(torch.zeros(1, 1, 4, dtype=dtype), torch.zeros(4, 1, dtype=dtype), None, m)
    a.requires_grad_()
    keep, total = phi._held(a)
    (slope,) = torch.autograd.grad(total.sum(), a)
    wide = a.detach().double()
    powers = torch.exp(torch.nn.functional.logsigmoid(wide)[:, None] * torch.arange(m))
    eps = torch.finfo(dtype).eps
    # The power multiplies the rounding of f by m; the sum, made of 1 - f = s(-a), knows nothing of that
    expected = torch.exp(m * torch.nn.functional.logsigmoid(wide))
    assert torch.allclose(keep.detach().double(), expected, rtol=4 * m * eps, atol=torch.finfo(dtype).tiny)
    assert torch.allclose(total.detach().double(), powers.sum(1), rtol=20 * eps, atol=0)
    assert torch.isfinite(slope).all()


def test_a_gate_that_is_closed_keeps_the_state():
    phi, u = gru(), states(HIDDEN)
    phi.gates[..., HIDDEN : 2 * HIDDEN] = torch.inf
    close(phi.step(u, POINTS), u)
    _, jacobian = phi.linearise(u, POINTS, "full")
    assert torch.equal(jacobian, torch.eye(HIDDEN, dtype=torch.float64).expand_as(jacobian))


@pytest.mark.parametrize("bias", [True, False])
def test_the_kernel_takes_the_steps_of_the_formula(bias):
    """Bit for bit those of single steps; autograd's are the same formula, to rounding, and so are coarse steps."""
    phi, u = gru(bias=bias), states(HIDDEN)
    assert phi.has_kernel
    assert phi.batch_invariant
    end, every = torch.empty_like(u), torch.empty(3, 3, BATCH, HIDDEN, dtype=torch.float64)
    phi.relax(u, POINTS, 3, end, every=every)
    one = u
    for j in range(3):
        points = slice(1 + j, 8 + j, 3)
        close(phi.step(one.clone().requires_grad_(), points).detach(), phi.step(one, points))
        one = phi.step(one, points)
        assert torch.equal(every[:, j], one)
    assert torch.equal(end, one)
    assert all(torch.equal(every[:, j], v) for j, v in enumerate(phi.unroll(u, POINTS, 3)))
    alone = phi.step(u[1:2], slice(4, 5, 1))
    assert torch.equal(alone, phi.step(u, POINTS)[1:2])
    coarse = phi.rediscretise(3)
    assert not coarse.has_kernel
    coarse.relax(u[:1], slice(0, 1, 1), 2, end[:1])
    close(end[:1], coarse.step(coarse.step(u[:1], slice(0, 1, 1)), slice(1, 2, 1)), 0.0)


@pytest.mark.parametrize("points", [POINTS, slice(2, 3, 1), slice(0, 5, 2)])
def test_unrolled_states_have_the_gradients_of_the_steps(points):
    phi = gru()
    u = states(HIDDEN)[: len(range(*points.indices(STEPS)))].requires_grad_()
    for p in phi.parameters:
        p.requires_grad_()
    found, v = phi.unroll(u, points, 3), u
    weights = [rand(*u.shape) for _ in range(3)]
    expected = []
    for j in range(3):
        _, z, n, _, _ = phi._gates(v, slice(points.start + j, points.stop + j, points.step))
        v = n + z * (v - n)
        expected.append(v)
    losses = [sum((a * w).sum() for a, w in zip(many, weights, strict=True)) for many in (found, expected)]
    got, right = (torch.autograd.grad(loss, [u, *phi.parameters]) for loss in losses)
    for one, other in zip(got, right, strict=True):
        close(one, other, 10 * TOLERANCE)


def test_serial_states_and_parts_of_a_sequence():
    phi, u0 = gru(), states(HIDDEN)[0]
    every = phi.serial(u0, STEPS)
    assert every.shape == (STEPS + 1, BATCH, HIDDEN)
    assert torch.equal(every[:5], phi.serial(u0, 4))
    first, second = phi.windows([4, 7])
    joined = torch.cat([first.serial(u0, 4)[:-1], second.serial(every[4], 7)])
    assert torch.equal(joined, every)
    assert [part.steps for part in lstm().windows([4, 7])] == [4, 7]
