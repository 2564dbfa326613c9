# SPDX-License-Identifier: BSD-3-Clause
"""Sequences in windows, the memory they take, and the exponent of a recurrence."""

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from recurrence_cells import Linear, cells, largest_error, loop, results  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from pyparareal.nn import Recurrence  # noqa: E402
from pyparareal.nn.recurrent.exponent import exponent_of  # noqa: E402
from pyparareal.nn.recurrent.memory import windows  # noqa: E402
from pyparareal.nn.recurrent.solving import serial_states  # noqa: E402

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
