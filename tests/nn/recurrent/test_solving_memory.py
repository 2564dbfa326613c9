# SPDX-License-Identifier: BSD-3-Clause
"""Sequences in windows, the memory they take, and the exponent of a recurrence."""

import dataclasses
import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from recurrence_cells import Linear, cells, largest_error, loop, results  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from pyparareal.nn import Recurrence  # noqa: E402
from pyparareal.nn.recurrent import Settings  # noqa: E402
from pyparareal.nn.recurrent.exponent import exponent_of  # noqa: E402
from pyparareal.nn.recurrent.memory import windows  # noqa: E402
from pyparareal.nn.recurrent.solving import serial_states, solve_sequence  # noqa: E402

U0 = torch.tensor([[0.3], [0.6]], dtype=torch.float64)

# Windows and memory


def test_windows_are_about_equal_and_fit():
    for length in (5, 97, 1000):
        for budget in (1, 10, 99, 10_000):
            found = windows(length, 1, budget)
            assert sum(found) == length
            assert max(found) - min(found) <= 1
            assert max(found) <= max(4, budget)


@pytest.mark.parametrize("name", ["gru", "nested"])
def test_windows_have_the_values_and_gradients_of_the_whole(name):
    cell, inputs, h = cells(torch.float64)[name]
    x = inputs(101)
    net = Recurrence(cell, method="hybrid", jacobian="none", memory=20_000)
    got = results(net, x, h, cell)
    assert net.report.windows > 2
    assert "windows of about" in net.report.reason
    assert len(net.report.backward) == net.report.windows
    expected = results(lambda x, h: loop(cell, x, h), x, h, cell)
    assert largest_error(got[0], expected[0]) < 1e-10
    assert largest_error(got[1], expected[1]) < 1e-9


def test_the_window_in_which_differences_grow_most_is_named_in_the_whole_sequence():
    # Differences halve, but in the steps 220 to 240 of 400 they grow by 3: in the second of windows of 200 steps, the
    # chunk of 20 steps that is its second. Without gradients a step takes 3 arrays of 2 numbers of 8 bytes.
    class Burst:
        batch_invariant = True

        def __init__(self, begin=0):
            self.begin = begin

        def step(self, u, points):
            at = self.begin + torch.arange(points.start, points.stop, points.step)
            factor = torch.where((at >= 220) & (at < 240), 3.0, 0.5).double()[:, None, None]
            return factor * u + torch.sin(at.double())[:, None, None]

        def windows(self, lengths):
            return [Burst(sum(lengths[:n])) for n in range(len(lengths))]

    settings = Settings("hybrid", jacobian="none", chunk=20, memory=200 * 3 * 2 * 8)
    u, report = solve_sequence(Burst(), U0, 400, settings)
    assert report.windows == 2
    assert (report.begin, report.worst_step, report.worst_chunk) == (200, 220, 1)
    assert report.worst_exponent == pytest.approx(math.log(3), rel=1e-6)
    assert largest_error([u], [serial_states(Burst(), U0, 400)]) < 1e-10
    with pytest.warns(RuntimeWarning) as told:  # one pass is too few for both windows
        solve_sequence(Burst(), U0, 400, dataclasses.replace(settings, max_iterations=1, warm_up=0))
    first, second = (str(one.message) for one in told)
    assert "most in chunk 0 (from step 0), by exp(" in first
    assert "most in chunk 1 (from step 220) of the window from step 200, by exp(" in second


class Allocations(TorchDispatchMode):
    """Counts tensors of at least so many bytes with memory of their own."""

    def __init__(self, least):
        super().__init__()
        self.least, self.found, self._seen = least, [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self.least:
                place = tensor.untyped_storage().data_ptr()
                if place not in self._seen:
                    self._seen.add(place)
                    self.found.append((str(func), tensor))  # kept, so that no other gets its place
        return out


def test_memory_is_one_array_of_states_forward():
    torch.manual_seed(0)
    cell, x, h = nn.GRUCell(2, 16), torch.randn(2048, 2, 2), torch.zeros(2, 16)
    net = Recurrence(cell, method="hybrid", jacobian="none")
    states_bytes = 2048 * 2 * 16 * 4
    with torch.no_grad(), Allocations(states_bytes // 2) as counted:
        net(x, h)
    assert len(counted.found) == 1, [name for name, _ in counted.found]


def test_memory_kept_for_the_backward_pass_is_the_states():
    # The loop keeps every gate of every step; here it is the states, and inputs and parameters that are there anyway.
    torch.manual_seed(0)
    cell, h = nn.GRUCell(2, 16), torch.zeros(2, 16)
    x = torch.randn(2048, 2, 2, requires_grad=True)
    states_bytes = 2049 * 2 * 16 * 4

    def kept(function):
        places = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            places[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            function()
        known = {t.untyped_storage().data_ptr() for t in (x, *cell.parameters())}
        return sum(size for place, (size, _) in places.items() if place not in known)

    net = Recurrence(cell, method="hybrid", jacobian="none")
    assert kept(lambda: net(x, h)) <= 1.05 * states_bytes
    assert kept(lambda: loop(cell, x, h)) > 3 * states_bytes


def test_no_array_as_long_as_the_sequence_for_every_step_backward():
    # The derivative of a cut of x is an array like x; one cut per step would make 2048 of them. There is one
    # for every pass, and one for the steps that follow the last chunk.
    torch.manual_seed(0)
    cell, h = nn.GRUCell(8, 8), torch.zeros(2, 8)
    x = torch.randn(2048, 2, 8, requires_grad=True)
    states, _ = Recurrence(cell, method="hybrid", jacobian="none")(x, h)
    w = torch.randn_like(states)
    with Allocations(2048 * 2 * 8 * 4) as counted:
        torch.autograd.grad(states, x, w)
    assert len(counted.found) <= 12, [name for name, _ in counted.found]


# The exponent


@pytest.mark.parametrize("a", [0.3, 0.9, 1.0, 1.05])
def test_the_exponent_of_a_linear_recurrence_is_its_logarithm(a):
    # A difference of sqrt(eps) of the state is found to sqrt(eps) of itself.
    length = 300
    step = Linear(a, torch.randn(length, 1, 1, dtype=torch.float64))
    found = exponent_of(step, serial_states(step, U0, length), 20)
    assert found.mean == pytest.approx(math.log(a), abs=1e-6)
    assert found.worst == pytest.approx(math.log(a), abs=1e-6)


def test_the_exponent_of_the_logistic_map():
    # u -> 4 u (1 - u) has the Lyapunov exponent log 2; finite-time values of n steps scatter by about 1 / n, so the
    # mean over 64 chunks of 32 steps, 24 of them taken and 16 counted, is within 0.1.
    class Four:
        batch_invariant = True

        def step(self, u, points):
            return 4 * u * (1 - u)

    u = serial_states(Four(), torch.tensor([[0.2345]], dtype=torch.float64), 2048)
    found = exponent_of(Four(), u, 32, samples=1000)
    assert found.mean == pytest.approx(math.log(2), abs=0.1)


def test_the_exponent_turns_to_the_direction_that_grows_fastest():
    # Diagonal 0.2, 0.9: from any direction, 8 steps leave (0.2 / 0.9)^8 = 6e-6 of the other.
    class Two:
        batch_invariant = True

        def step(self, u, points):
            return u * torch.tensor([0.2, 0.9], dtype=torch.float64)

    u = serial_states(Two(), torch.ones(1, 2, dtype=torch.float64), 100)
    assert exponent_of(Two(), u, 25).mean == pytest.approx(math.log(0.9), abs=1e-5)
