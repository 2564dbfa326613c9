# SPDX-License-Identifier: BSD-3-Clause
"""nn.Recurrence: the states and gradients of the loop over the cell, for any cell, dtype, length and method."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from recurrence_cells import METHODS, Logistic, MatrixCell, NestedCell, cells, flat, largest_error, loop, results  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal import MGRIT, Adjoint, Status  # noqa: E402
from pyparareal.nn import Recurrence  # noqa: E402
from pyparareal.nn.recurrent import Settings  # noqa: E402
from pyparareal.nn.recurrent.settings import tolerance_of  # noqa: E402

NAMES = ["gru", "lstm", "rnn", "matrix", "nested"]
# A residual of tol at the end of every chunk makes an error of tol / (1 - |J|) in the states: these cells contract by
# a half or more per step, so that is less than 10 tol; gradients are sums of T <= 200 terms with such errors, of either
# sign. Diagonal Jacobians converge linearly and stop at tol itself, the others far below.
FACTOR = 50


def compare(name, dtype, steps, options, batch=2):
    cell, inputs, h = cells(dtype, batch)[name]
    x = inputs(steps)
    net = Recurrence(cell, **options)
    got = results(net, x, h, cell)
    expected = results(lambda x, h: loop(cell, x, h), x, h, cell)
    tol = FACTOR * tolerance_of(dtype)
    assert largest_error(got[0], expected[0]) < tol
    assert largest_error(got[1], expected[1]) < 4 * tol
    return net


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_the_loop(name, method):
    net = compare(name, torch.float64, 97, METHODS[method])
    assert net.report.status is Status.CONVERGED or method == "auto"
    assert net.report.exponent < -0.05 or net.report.method == "serial"


@pytest.mark.parametrize("method", ["chunks", "hybrid", "newton", "mgrit"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 16, 64, 101])
def test_lengths(steps, method):
    net = compare("gru", torch.float64, steps, METHODS[method], batch=1)
    assert net.report.length == steps
    assert (net.report.method == "serial") == (steps < 4)


@pytest.mark.parametrize("chunk", [2, 3, 10, 31, 32, 33, 1000])
def test_chunks_of_any_size(chunk):
    net = compare("lstm", torch.float64, 32, {"method": "hybrid", "jacobian": "none", "chunk": chunk})
    assert net.report.chunk == min(chunk, 32)


@pytest.mark.parametrize("method", ["chunks", "mgrit", "newton"])
@pytest.mark.parametrize("name", ["gru", "nested"])
def test_float32(name, method):
    compare(name, torch.float32, 97, METHODS[method])


def test_float32_of_a_long_sequence():
    torch.manual_seed(0)
    cell, x = nn.GRUCell(2, 4), torch.randn(20_011, 1, 2)
    net = Recurrence(cell, method="hybrid", jacobian="none")
    with torch.no_grad():
        states, last = net(x)
        h, worst = torch.zeros(1, 4), 0.0
        for i in range(0, 20_011):
            h = cell(x[i], h)
            worst = max(worst, float((states[i] - h).abs().max()))
    assert worst < 10 * tolerance_of(torch.float32)
    assert torch.equal(states[-1], last)
    assert net.report.iterations <= 3
    assert net.report.cost < 3.5


def test_gradcheck():
    torch.manual_seed(0)
    x, h, w = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((11, 2, 3), (2, 3), (3, 3)))

    def function(x, h, w):
        net = Recurrence(lambda x, h: torch.tanh(x + 0.3 * h @ w), method="hybrid", jacobian="none", chunk=4, tol=1e-14)
        return net(x, h)

    assert torch.autograd.gradcheck(function, (x, h, w))


def test_only_the_gradients_asked_for():
    cell, inputs, h = cells(torch.float64)["gru"]
    net = Recurrence(cell, method="hybrid", jacobian="none")
    x = inputs(40).detach()
    cell.requires_grad_(False)
    states, _ = net(x, h.detach())
    assert not states.requires_grad
    assert net.report.backward == []
    states, _ = net(x, h)
    (gradient,) = torch.autograd.grad(states.sum(), h)
    (expected,) = torch.autograd.grad(loop(cell, x, h)[0][0].sum(), h)
    assert largest_error([gradient], [expected]) < 1e-10
    with torch.no_grad():
        assert not net(x, h)[0].requires_grad


@pytest.mark.parametrize("method", ["chunks", "mgrit", "newton", "auto"])
def test_an_input_computed_from_what_the_cell_uses_too(method):
    # x = W x0 with the W that the cell multiplies its state with: its gradient is the sum of both ways, each once.
    torch.manual_seed(0)
    weight = (0.3 * torch.randn(4, 4, dtype=torch.float64)).requires_grad_()
    x0 = torch.randn(70, 2, 4, dtype=torch.float64)
    h = torch.zeros(2, 4, dtype=torch.float64)

    def cell(x, h):
        return torch.tanh(x + h @ weight)

    states, _ = Recurrence(cell, **METHODS[method])(x0 @ weight, h)
    (gradient,) = torch.autograd.grad(states.sum(), weight)
    (expected,) = torch.autograd.grad(loop(cell, x0 @ weight, h)[0][0].sum(), weight)
    assert largest_error([gradient], [expected]) < 1e-9


def test_gradients_flow_on_to_what_x_and_h0_were_computed_from():
    torch.manual_seed(0)
    cell = nn.LSTMCell(3, 5, dtype=torch.float64)
    before, after = nn.Linear(2, 3, dtype=torch.float64), nn.Linear(5, 1, dtype=torch.float64)
    start = nn.Parameter(torch.randn(2, 5, dtype=torch.float64))
    x = torch.randn(60, 2, 2, dtype=torch.float64)
    net = Recurrence(cell, method="hybrid", jacobian="none")
    parameters = [*before.parameters(), *cell.parameters(), start, *after.parameters()]
    found = []
    for solve in (net, lambda x, h: loop(cell, x, h)):
        states, last = solve(before(x), (start.tanh(), start))
        found.append(torch.autograd.grad(after(flat(states)[0]).sum() + flat(last)[1].sum(), parameters))
    assert largest_error(*found) < 1e-9


def test_batch_first_is_the_transposed():
    cell, inputs, h = cells(torch.float64)["lstm"]
    x = inputs(30)
    states, last = Recurrence(cell, method="hybrid", jacobian="none")(x, h)
    other, other_last = Recurrence(cell, batch_first=True, method="hybrid", jacobian="none")(x.transpose(0, 1), h)
    for a, b in zip(flat(states), flat(other), strict=True):
        assert torch.equal(a, b.transpose(0, 1))
    for a, b in zip(flat(last), flat(other_last), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", ["serial", "chunks", "mgrit", "newton"])
@pytest.mark.parametrize("masked", [False, True])
def test_sequences_of_different_lengths(method, masked):
    torch.manual_seed(0)
    cell = nn.LSTMCell(3, 5, dtype=torch.float64)
    lengths = torch.tensor([40, 0, 17, 1, 39])
    x = torch.randn(40, 5, 3, dtype=torch.float64)
    padding = torch.arange(40)[:, None] >= lengths
    x[padding] = float("nan")  # what follows the end of a sequence must not matter
    x.requires_grad_()
    h = tuple(torch.randn(5, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    options = METHODS.get(method, {"method": "serial"})
    kind = {"mask": ~padding} if masked else {"lengths": lengths}
    states, last = Recurrence(cell, **options)(x, h, **kind)
    gradients = torch.autograd.grad(sum(s.sin().sum() for s in [*states, *last]), [x, *h, *cell.parameters()])
    loss = 0.0
    for b, length in enumerate(lengths.tolist()):
        start = tuple(part[b : b + 1] for part in h)
        expected, end = loop(cell, x[:length, b : b + 1], start) if length else (None, start)
        for which in range(2):
            assert not states[which][length:, b].any()
            if length:
                assert largest_error([states[which][:length, b]], [expected[which][:, 0]]) < 1e-10
                loss = loss + expected[which].sin().sum()
            assert float((last[which][b] - end[which][0]).detach().abs().max()) < 1e-10
            loss = loss + end[which].sin().sum()
    wanted = torch.autograd.grad(loss, [x, *h, *cell.parameters()])
    assert largest_error([g.nan_to_num() for g in gradients], [g.nan_to_num() for g in wanted]) < 1e-9
    assert not gradients[0][padding].any()


def test_lengths_that_are_all_the_whole_sequence_change_nothing():
    cell, inputs, h = cells(torch.float64)["gru"]
    net, x = Recurrence(cell, method="hybrid", jacobian="none"), inputs(30)
    assert torch.equal(net(x, h)[0], net(x, h, lengths=torch.tensor([30, 30]))[0])


def test_default_initial_states():
    x = torch.randn(9, 2, 3)
    for cell, zeros in (
        (nn.GRUCell(3, 4), torch.zeros(2, 4)),
        (nn.LSTMCell(3, 4), (torch.zeros(2, 4), torch.zeros(2, 4))),
        (MatrixCell(), torch.zeros(2, 4, 3)),
    ):
        net = Recurrence(cell, method="serial")
        for a, b in zip(flat(net(x)[0]), flat(net(x, zeros)[0]), strict=True):
            assert torch.equal(a, b)
    net = Recurrence(NestedCell(), method="serial")
    assert [tuple(s.shape) for s in flat(net((x, torch.randn(9, 2, 2)))[1])] == [(2, 4), (2, 2), (2, 1, 3)]


@pytest.mark.parametrize("own", [True, False])
def test_a_coarse_cell(own):
    # dh/dt = x - h / 20 by implicit Euler. A chunk of 8 steps multiplies by 1.05^-8 = 0.677, the coarse step by
    # 1 / 1.4 = 0.714: |0.677 - 0.714| / (1 - 0.714) = 0.13 is the factor of a cycle, and 10 of them make it 1e-9.
    # Without a coarse level a cycle corrects by 0.677 at best, and it takes all 16 chunks.
    class Slow(nn.Module):
        def __init__(self, dt=1.0):
            super().__init__()
            self.dt = dt

        def forward(self, x, h):
            return (h + self.dt * x) / (1 + self.dt / 20)

    class Rediscretised(Slow):
        def rediscretise(self, m):
            return Rediscretised(m * self.dt)

    x = torch.sin(0.02 * torch.arange(128.0, dtype=torch.float64))[:, None, None]
    h = torch.ones(1, 1, dtype=torch.float64)
    options = {"method": MGRIT(nu=0, stagnation=None), "chunk": 8, "tol": 1e-9}
    plain = Recurrence(Slow(), **options)
    expected = plain(x, h)[0]
    net = (
        Recurrence(Rediscretised(), **options) if own else Recurrence(Slow(), lambda x, h, m: Slow(m)(x, h), **options)
    )
    assert largest_error([net(x, h)[0]], [expected]) < 1e-8
    assert net.report.iterations <= 12 < 16 <= plain.report.iterations


def test_a_fixed_number_of_iterations():
    torch.manual_seed(0)
    cell, x = nn.GRUCell(3, 5, dtype=torch.float64), torch.randn(64, 2, 3, dtype=torch.float64)
    for options in ({"method": "hybrid", "jacobian": "none"}, {"method": "mgrit"}, {"method": "newton"}):
        net = Recurrence(
            cell, chunk=1 if options["method"] == "newton" else 4, tol=None, max_iterations=2,
            backward=Adjoint(max_iterations=1, on_failure="return"), **options,
        )  # fmt: skip
        states, _ = net(x)
        states.sum().backward()
        assert net.report.status is Status.FIXED
        assert net.report.iterations == 2
        assert net.report.backward[0].iterations == 1


def test_the_report_says_what_solves_the_same_again():
    cell, inputs, h = cells(torch.float64)["gru"]
    net = Recurrence(cell)
    x = inputs(600)
    first = net(x, h)[0]
    assert net.report.reason.startswith("auto: one step")
    again = Recurrence(cell, settings=net.report.settings)
    assert torch.equal(again(x, h)[0], first)
    assert len(net.choices) == 1
    net(x[:513], h)  # another length up to the same power of two
    assert len(net.choices) == 1


def test_settings_are_given_once():
    assert Recurrence(nn.GRUCell(2, 2), settings=Settings("serial")).settings.method == "serial"
    with pytest.raises(ValueError, match="settings: got them and method besides"):
        Recurrence(nn.GRUCell(2, 2), settings=Settings(), method="serial")


def test_chaos_falls_back_with_a_warning_that_names_the_chunk():
    cell = Logistic()
    x, h = torch.zeros(1000, 2, 1, dtype=torch.float64), torch.tensor([[0.3], [0.4]], dtype=torch.float64)
    net = Recurrence(cell, method="hybrid", jacobian="none", chunk=20)
    with pytest.warns(RuntimeWarning, match=r"differences grow most in chunk \d+ \(from step \d+\)"):
        states, last = net(x, h)
    expected, _ = loop(cell, x, h)
    assert torch.equal(states, expected[0])
    assert net.report.status is Status.SERIAL_FALLBACK
    assert net.report.failure is Status.MAX_ITERATIONS
    assert net.report.exponent > 0.3
    # The serial solution is differentiable, one step after the other; 1000 chaotic steps amplify beyond any use.
    (gradient,) = torch.autograd.grad(last[0, 0] * 0 + states[10, 0, 0], cell.r)
    (wanted,) = torch.autograd.grad(loop(cell, x, h)[0][0][10, 0, 0], cell.r)
    assert largest_error([gradient], [wanted]) < 1e-12
