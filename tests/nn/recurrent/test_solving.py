# SPDX-License-Identifier: BSD-3-Clause
"""Solving a sequence: exactness, failures, what auto chooses, and the report."""

import math
import warnings

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from recurrence_cells import Linear, Logistic, cells, largest_error, loop  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal import MGRIT, Adjoint, ConvergenceError, Status  # noqa: E402
from pyparareal.nn import Recurrence  # noqa: E402
from pyparareal.nn.recurrent import Settings, choosing  # noqa: E402
from pyparareal.nn.recurrent.choosing import chunk_of, measured  # noqa: E402
from pyparareal.nn.recurrent.settings import tolerance_of  # noqa: E402
from pyparareal.nn.recurrent.solving import serial_states, solve_sequence  # noqa: E402


class Chaos:
    """``u -> 3.9 u (1 - u)``, the same bits in any company."""

    batch_invariant = True

    def step(self, u, points):
        return 3.9 * u * (1 - u)


U0 = torch.tensor([[0.3], [0.6]], dtype=torch.float64)


def chunks(chunk, **options):
    return Settings("hybrid", jacobian="none", chunk=chunk, exponent=False, **options)


# Exactness


@pytest.mark.parametrize(("length", "chunk"), [(40, 5), (43, 5), (64, 2), (37, 36), (37, 37)])
@pytest.mark.parametrize("warm_up", [0, 2])
def test_as_many_passes_as_chunks_are_exact(length, chunk, warm_up):
    # Chaos: nothing is forgotten within 40 steps, so a chunk is exact when those before it are, and not sooner.
    slices = length // chunk
    if warm_up == chunk:
        slices -= 1  # the warm-up of the second chunk is then the first one
    expected = serial_states(Chaos(), U0, length)
    settings = chunks(chunk, tol=0.0, max_iterations=slices, warm_up=warm_up)
    u, report = solve_sequence(Chaos(), U0, length, settings)
    assert torch.equal(u, expected)
    assert report.status is Status.CONVERGED
    assert report.iterations == slices
    if slices > 1:
        fewer = chunks(chunk, tol=0.0, max_iterations=slices - 1, warm_up=warm_up, on_failure="return")
        with pytest.warns(RuntimeWarning, match="the states are used as they are"):
            u, report = solve_sequence(Chaos(), U0, length, fewer)
        assert torch.equal(u[: (slices - 1) * chunk + 1], expected[: (slices - 1) * chunk + 1])
        assert not torch.equal(u, expected)
        assert report.failure is Status.MAX_ITERATIONS
        assert not report.ok


@pytest.mark.parametrize("warm_up", [0, 3, 10])
def test_the_factor_of_a_pass_is_that_of_a_chunk(warm_up):
    # u -> a u + b: a guess that is off by d is off by a^m d after a pass, and so is the next residual. The warm-up
    # from u0 instead of the true state leaves a^w of what the two differ by.
    a, m, length = 0.8, 10, 200
    b = torch.cos(torch.arange(length, dtype=torch.float64))[:, None, None]
    step = Linear(a, b)
    exact = serial_states(step, U0, length)
    _, report = solve_sequence(step, U0, length, chunks(m, tol=1e-12, warm_up=warm_up))
    starts = exact[0:length:m]
    if warm_up:
        first = a**warm_up * (exact[m - warm_up : length - warm_up : m] - U0)[: len(starts) - 1].abs().max()
        assert report.residuals[0] <= float(first) * (1 + a**m) * (1 + 1e-9)
    for before, after in zip(report.residuals[1:-1], report.residuals[2:], strict=False):
        assert after <= a**m * before * (1 + 1e-6) + 1e-15
    needed = math.log(1e-12 / float(exact.abs().max())) / (m * math.log(a))
    assert report.iterations <= needed + 3


def test_only_chunks_that_do_not_fit_are_taken_again():
    # A step that forgets everything, but for the steps 50 to 70, in chunks of 10: what crosses them moves on by a chunk
    # per pass, and all other chunks are right after the first.
    class Mostly:
        batch_invariant = True
        calls = 0

        def step(self, u, points):
            at = torch.arange(points.start, points.stop, points.step)
            Mostly.calls += len(at)
            keeps = ((at >= 50) & (at < 70)).double()[:, None, None]
            return keeps * u + torch.sin(1.0 + at.double())[:, None, None]

    length = 200
    expected = serial_states(Mostly(), U0, length)
    Mostly.calls = 0
    with torch.no_grad():
        u, report = solve_sequence(Mostly(), U0, length, chunks(10, tol=0.0, warm_up=1, max_iterations=20))
    assert torch.equal(u, expected)
    assert 1 < report.iterations <= 4
    assert report.cost == pytest.approx(Mostly.calls / length)
    assert report.cost < 1.4


@pytest.mark.parametrize("length", [4, 5, 17, 100, 997, 10_007])
def test_chunks_near_the_root_leave_few_steps_over(length):
    m = chunk_of(length)
    root = math.isqrt(length)
    assert max(2, root - root // 4) <= m <= root + root // 4
    assert length % m <= min(length % n for n in range(max(2, root - root // 4), root + root // 4 + 1))


# Backward


@pytest.mark.parametrize("warm_up", [0, 3])
def test_the_backward_pass_is_exact_after_as_many_passes_as_chunks(warm_up):
    # At the exact states the reversed chain is linear, and as chaotic: its Jacobians have a mean of exp(0.5) per step.
    # The gradients come from one more pass after the last iteration.
    torch.manual_seed(0)
    length, chunk = 32, 4
    cell, x = Logistic(), torch.zeros(length, 2, 1, dtype=torch.float64, requires_grad=True)
    gradients = []
    for passes in (6, 7):
        net = Recurrence(
            cell, method="hybrid", jacobian="none", chunk=chunk, tol=0.0, max_iterations=8, warm_up=warm_up,
            backward=Adjoint(tol=0.0, max_iterations=passes, on_failure="return"),
        )  # fmt: skip
        _, last = net(x, U0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gradients.append(torch.autograd.grad(last.sum(), [x, cell.r]))
        assert net.report.backward[0].iterations == passes
    expected = torch.autograd.grad(loop(cell, x, U0)[1].sum(), [x, cell.r])
    # The same products in another order of the sum over steps: rounding, amplified by nothing.
    assert largest_error(gradients[1], expected) < 1e-12
    assert largest_error(gradients[0], expected) > 1e-6


def test_backward_failures():
    torch.manual_seed(0)
    cell = Logistic()

    def run(**backward):
        net = Recurrence(
            cell, method="hybrid", jacobian="none", chunk=4, max_iterations=16, backward=Adjoint(**backward)
        )
        x = torch.zeros(64, 2, 1, dtype=torch.float64, requires_grad=True)
        _, last = net(x, U0)
        return net, torch.autograd.grad(last.sum(), [x])

    _, exact = run(method="serial")
    with pytest.warns(RuntimeWarning, match="the backward pass failed after 2 .* one chunk after the other"):
        net, found = run(max_iterations=2, on_failure="serial")
    assert torch.equal(found[0], exact[0])
    assert net.report.backward[0].failure is Status.MAX_ITERATIONS
    with pytest.warns(RuntimeWarning, match="the gradients are inexact"):
        _, found = run(max_iterations=2, on_failure="return")
    assert not torch.equal(found[0], exact[0])
    with pytest.raises(ConvergenceError, match="the backward pass failed after 2"):
        run(max_iterations=2, on_failure="raise")


# Failures


def test_on_failure():
    length = 1000
    with pytest.raises(ConvergenceError, match=r"hybrid failed after 3 .* in chunk \d+ .* falls back"):
        solve_sequence(Chaos(), U0, length, chunks(10, max_iterations=3, on_failure="raise"))
    with pytest.warns(RuntimeWarning, match=r"in chunk \d+ \(from step \d+\).* solved serially instead"):
        u, report = solve_sequence(Chaos(), U0, length, chunks(10, max_iterations=3))
    assert torch.equal(u, serial_states(Chaos(), U0, length))
    assert report.ok
    assert report.failure is Status.MAX_ITERATIONS
    assert report.worst_chunk == report.worst_step // 10
    assert report.worst_exponent > report.exponent > 0.3


def test_the_chunk_that_is_named_is_the_one_that_grows():
    # Everywhere differences halve, but in the steps 120 to 140 they grow by 3: that is chunk 6 of 20 steps.
    class Burst:
        batch_invariant = True

        def step(self, u, points):
            at = torch.arange(points.start, points.stop, points.step)
            factor = torch.where((at >= 120) & (at < 140), 3.0, 0.5).double()[:, None, None]
            return factor * u + torch.sin(at.double())[:, None, None]

    with pytest.warns(RuntimeWarning, match=r"in chunk 6 \(from step 120\), by exp\(1.1\) per step"):
        _, report = solve_sequence(Burst(), U0, 400, chunks(20, max_iterations=1, warm_up=0))
    # 12 counted steps of a chunk of 20: all of those of chunk 6 grow.
    assert report.worst_exponent == pytest.approx(math.log(3), rel=1e-6)


@pytest.mark.parametrize(
    "method", [{"method": "hybrid", "jacobian": "none"}, {"method": "mgrit"}, {"method": "newton"}]
)
def test_states_that_overflow_are_said_to(method):
    # u -> u^2 from 3 is infinite after ten steps, serially too.
    class Square:
        batch_invariant = True

        def step(self, u, points):
            return u * u

    u0 = torch.full((1, 1), 3.0, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match=r"NaN or infinity; the first of them in chunk \d+ \(from step [04-9]\)"):
        u, report = solve_sequence(Square(), u0, 30, Settings(exponent=False, **method))
    assert report.status is Status.NON_FINITE
    assert not report.ok
    assert torch.equal(u, serial_states(Square(), u0, 30))
    u, report = solve_sequence(Square(), u0, 30, Settings("serial"))
    assert report.status is Status.NON_FINITE


def test_a_tolerance_below_rounding_is_no_endless_loop():
    cell, inputs, h = cells(torch.float32)["gru"]
    x = inputs(400)
    for method in ({"jacobian": "none", "method": "hybrid"}, {"method": "mgrit"}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = Recurrence(cell, tol=1e-30, max_iterations=6, **method)
            states, _ = net(x, h)
        assert largest_error([states], loop(cell, x, h)[0]) < 1e-5


# The choice of "auto"


def gru_step(length, batch=2):
    from pyparareal.nn.recurrent.states import Packing
    from pyparareal.nn.recurrent.step import CellStep

    torch.manual_seed(0)
    cell = nn.GRUCell(3, 8)
    cell.requires_grad_(False)
    u0 = torch.zeros(batch, 8)
    return CellStep(cell, [torch.randn(length, batch, 3)], lambda parts: parts[0], Packing(u0)), u0


def test_auto_is_serial_where_nothing_can_be_gained():
    step, u0 = gru_step(40)
    _, report = solve_sequence(step, u0, 40, Settings())
    assert report.method == "serial"
    assert report.reason == "auto: fewer than 64 steps"
    u, report = solve_sequence(Chaos(), U0, 2000, Settings())  # and no attempt that fails
    assert report.method == "serial"
    assert "chaotic" in report.reason
    assert torch.equal(u, serial_states(Chaos(), U0, 2000))


def test_auto_takes_the_steps_that_a_difference_needs_to_decay():
    # a^L = tol at L = log(1 / tol) / -log(a); the estimate of the decay of a linear recurrence is exact.
    for a in (0.5, 0.9):
        length = 4096
        step = Linear(a, torch.randn(length, 1, 1, dtype=torch.float64))
        tol = tolerance_of(torch.float64)
        chosen, why = measured(step, U0, length, Settings(), tol)
        assert f"exp({math.log(a):.3g})" in why
        memory = 1.3 * math.log(1 / tol) / -math.log(a)
        if chosen.method == "hybrid" and chosen.jacobian == "none":
            assert chosen.warm_up == min(64, math.ceil(memory - 1e-6))
            _, report = solve_sequence(step, U0, length, chosen)
            assert report.status is Status.CONVERGED


def test_auto_chooses_once():
    step, u0 = gru_step(1024)
    choices = {}
    solve_sequence(step, u0, 1024, Settings(), choices=choices)
    (key,) = choices
    choices[key] = (Settings("serial"), "written here")
    _, second = solve_sequence(step, u0, 1024, Settings(), choices=choices)
    assert (second.method, second.reason) == ("serial", "written here")
    solve_sequence(step, u0, 500, Settings(), choices=choices)
    assert len(choices) == 2


def test_auto_stays_serial_after_a_failure():
    choices = {}
    solve_sequence(Linear(0.5, torch.zeros(256, 1, 1, dtype=torch.float64)), U0, 256, Settings(), choices=choices)
    (key,) = choices
    choices[key] = (chunks(16, max_iterations=1), "too hopeful")
    with pytest.warns(RuntimeWarning, match="solved serially instead"):
        solve_sequence(Chaos(), U0, 256, Settings(), choices=choices)
    _, report = solve_sequence(Chaos(), U0, 256, Settings(), choices=choices)
    assert report.method == "serial"
    assert "too hopeful; serial since it failed" in report.reason


@pytest.mark.parametrize(("jacobians", "method"), [(0.2e-3, "newton"), (0.4e-3, "hybrid"), (7.0e-3, "hybrid")])
def test_auto_takes_newton_where_its_ten_iterations_are_the_least(monkeypatch, jacobians, method):
    # By the clock of this test a step takes 1 ms, of 64 chunks side by side 0.1 ms. u -> 0.9 u forgets to 2e-12 in 332
    # steps with the margin: a warm-up of 64 and 1 + ceil(268 / 64) = 6 passes over 64 steps take 44.8 ms, the loop 4 s.
    # Jacobians are timed on half of the steps: ten iterations take twenty times that.
    times = iter([4e-3, 0.4e-3, 10 * jacobians])
    monkeypatch.setattr(choosing, "_seconds", lambda work, u: next(times))
    chosen, why = measured(Linear(0.9, torch.zeros(4096, 1, 1, dtype=torch.float64)), U0, 4096, Settings(), 2e-12)
    assert chosen.method == method
    assert chosen.jacobian == ("full" if method == "newton" else "none")
    assert "their Jacobians take" in why
    # With chunks as asked for it would take their steps one after the other; states of more numbers cost more.
    times = iter([4e-3, 0.4e-3, 0.0])
    given = Settings(chunk=64)
    chosen, _ = measured(Linear(0.9, torch.zeros(4096, 1, 1, dtype=torch.float64)), U0, 4096, given, 2e-12)
    assert chosen.method == "hybrid"


def test_newton_of_auto_is_the_loop():
    # Gates near 1: chunks alone would need as many passes as there are.
    torch.manual_seed(0)
    cell, x = nn.GRUCell(2, 4).double(), torch.randn(1024, 1, 2, dtype=torch.float64)
    with torch.no_grad():
        cell.bias_ih[4:8] += 8.0
    expected, _ = loop(cell, x, torch.zeros(1, 4, dtype=torch.float64))
    net = Recurrence(cell, settings=Settings("newton", jacobian="full", max_iterations=32))
    with torch.no_grad():
        states, _ = net(x)
    assert net.report.status is Status.CONVERGED
    assert net.report.iterations <= 10
    assert largest_error([states], expected) < 1e-8  # tol 2e-12 on the residual, times a memory of 3,000 steps


def test_trust_stops_updates_that_overflow():
    # Linearised from zeros, the chain of tanh(3 W h + ...) grows beyond float32 before its states are known.
    torch.manual_seed(0)
    cell, x = nn.RNNCell(3, 6), torch.randn(512, 2, 3)
    with torch.no_grad():
        cell.weight_hh.mul_(3)
    net = Recurrence(cell, method="newton", jacobian="full")
    assert net.settings.trust == 1.0
    with torch.no_grad():
        net(x)
        assert net.report.status is Status.CONVERGED
        unbounded = Recurrence(cell, method="newton", jacobian="full", trust=None)
        with pytest.warns(RuntimeWarning, match="newton failed"):
            unbounded(x)
    assert unbounded.report.failure is Status.NON_FINITE


# The report


def test_the_report_can_be_read():
    step, u0 = gru_step(600)
    _, report = solve_sequence(step, u0, 600, Settings("hybrid", jacobian="none"))
    text = str(report)
    assert text.startswith("hybrid, 600 steps in chunks of ")
    assert "residual" in text
    assert "exponent -0" in text
    assert report.ok
    assert report.residuals[-1] <= report.tol
    with pytest.raises(ValueError, match="length: got 0"):
        solve_sequence(step, u0, 0, Settings())


def test_mgrit_of_ones_own():
    step, u0 = gru_step(64)
    method = MGRIT(levels=3, nu=1, cycle="F", stagnation=None)
    u, report = solve_sequence(step, u0, 64, Settings(method, chunk=4, tol=1e-4))
    assert report.method == "mgrit"
    assert float((u - serial_states(step, u0, 64)).abs().max()) < 1e-3
