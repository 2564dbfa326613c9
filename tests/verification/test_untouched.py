# SPDX-License-Identifier: BSD-3-Clause
"""What verification is given comes back as it was: parameters, gradients, buffers, modes, attributes, random states."""

import copy
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import pyparareal.nn as pnn  # noqa: E402
from bench.verify import chains  # noqa: E402
from pyparareal import verify  # noqa: E402
from pyparareal.verification.held import Held  # noqa: E402


def states():
    return [random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()]  # noqa: NPY002


class Restless(torch.nn.Module):
    """Counts, draws, keeps its last input, and has a generator, a list and a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))
        self.calls, self.seen, self.last = 0, [], None
        self.generator, self.numbers = torch.Generator().manual_seed(1), np.random.default_rng(2)

    def forward(self, u):
        self.calls += 1
        self.seen.append(self.calls)
        self.last = u
        self.mean += u.detach().mean(0)
        noise = torch.rand(1, generator=self.generator) + self.numbers.random() + random.random()
        return self.linear(u) + 1e-3 * noise + 1e-3 * torch.rand(1)


def network(kind):
    def part():
        return torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.2))

    if kind == "parareal":
        return chains.parareal_network([part() for _ in range(4)])
    if kind == "restless":
        return torch.nn.Sequential(part(), Restless(), torch.nn.Linear(6, 6).eval())
    if kind == "layers":
        return pnn.LayerParallel([torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh()) for _ in range(6)], m=2)
    return pnn.Recurrence(torch.nn.GRUCell(6, 6), method="newton")


@pytest.mark.parametrize("kind", ["parareal", "restless", "layers", "recurrence"])
def test_a_network_is_as_it_was(kind):
    torch.manual_seed(0)
    net = network(kind)
    x = torch.randn(16, 6) if kind != "recurrence" else torch.randn(16, 2, 6)
    for k, p in enumerate(net.parameters()):
        p.grad = torch.full_like(p, k)
    tensors = {name: t.clone() for name, t in net.state_dict().items()}
    grads = [(p.grad, p.grad.clone()) for p in net.parameters()]
    versions = [p._version for p in net.parameters()]
    modes = [m.training for m in net.modules()]
    given, random_before = x.clone(), states()
    attributes = {k: copy.copy(v) for k, v in vars(net[1]).items()} if kind == "restless" else {}
    verify(net, x)
    assert all(torch.equal(t, tensors[name]) for name, t in net.state_dict().items())
    assert all(p.grad is g and torch.equal(g, value) for p, (g, value) in zip(net.parameters(), grads, strict=True))
    assert [p._version for p in net.parameters()] == versions
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(x, given)
    assert states() == random_before
    if kind == "restless":
        block = net[1]
        assert (block.calls, block.seen, block.last) == (0, [], None)
        assert block.generator.get_state().equal(attributes["generator"].get_state())
        assert block.generator.initial_seed() == 1
        assert block.numbers.random() == np.random.default_rng(2).random()


def test_a_solve_is_as_it_was():
    calls, kept, memory = [0], {}, np.zeros(3)

    def step(u):
        calls[0] += 1
        kept[calls[0]] = u.shape
        memory[0] += 1
        return 0.9 * u + 1e-3 * np.random.random()  # noqa: NPY002

    before = states()
    fine, u0, more = chains.solve_of(step)
    given = u0.copy()
    assert not verify(fine, u0, **more).ok
    assert (calls, kept, memory.tolist()) == ([0], {}, [0, 0, 0])
    assert np.array_equal(u0, given)
    assert states() == before


def test_also_when_a_block_raises():
    class Raises(Restless):
        def forward(self, u):
            super().forward(u)
            raise RuntimeError("no")

    net = torch.nn.Sequential(torch.nn.Linear(6, 6), Raises())
    before = states()
    (fault,) = verify(net, torch.zeros(4, 6)).faults
    assert (fault.fault.name, fault.step, net[1].calls) == ("RAISED", 1, 0)
    assert not net[1].mean.any()
    assert states() == before


def test_changes_are_named():
    block = Restless()
    held = Held({"block": block})
    block(torch.zeros(2, 6))
    assert {"block.calls", "block.seen", "block.last"} <= set(held.changes())
    drawn = {"block.generator", "block.numbers", "Python's random", "torch's default generator"}
    assert set(held.drawn()) == drawn
    held.restore()
    assert held.changes() == []
    assert held.drawn() == []


def test_gradients_of_a_solve_leave_none_behind():
    weight = torch.nn.Parameter(0.9 * torch.ones(3, dtype=torch.float64))
    weight.grad = torch.full((3,), 7.0, dtype=torch.float64)
    u0 = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    _, _, more = chains.solve_of(chains.smooth, coarse=lambda u: 0.7 * u)
    result = verify(lambda u: weight * u, u0, **more, parameters=(p for p in [weight]))
    assert [c.what for c in result.comparisons] == ["values", "gradient of u0", "gradient of parameters[0]"]
    assert result.ok, result.text()
    assert u0.grad is None
    assert weight.grad.tolist() == [7, 7, 7]
    assert weight.tolist() == [0.9, 0.9, 0.9]
