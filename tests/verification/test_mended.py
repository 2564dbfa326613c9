# SPDX-License-Identifier: BSD-3-Clause
"""Faults in the words of users that once got no name or a wrong one, and sound chains that once got an alarm."""

import numpy as np
import pytest

from pyparareal import TimeGrid, verify
from pyparareal.propagators import Map
from pyparareal.verification import Fault

GRID = TimeGrid(0, 1.6, 32)
U0 = np.random.default_rng(0).standard_normal((2, 3))


def still(u):
    return u * 1.0


def names(result):
    return {f.fault for f in result.findings}


@pytest.mark.parametrize("convert", [lambda u: u.astype(np.float16), lambda u: np.array(u, dtype=np.float16)])
def test_a_part_in_float16_beside_one_that_is_not(convert):
    """The result is no float16 number and reacts to any change: only its jumps tell."""
    weights = np.random.default_rng(0).standard_normal((3, 3)) * 0.3

    def step(u):
        return u + 0.1 * np.tanh(convert(u) @ weights)

    result = verify(step, U0, grid=GRID, m=4, coarse=still)
    assert [f.fault for f in result.faults] == [Fault.NARROWED_DTYPE]


def test_kinks_and_branches_are_not_rounding():
    kinks = np.random.default_rng(0).standard_normal((2, 200))
    assert verify(lambda u: u + 0.1 * np.abs(np.sin(40 * u)), kinks, grid=GRID, m=4, coarse=still).ok
    assert verify(lambda u: np.where(u > 0.3, 0.9 * u, u + 0.01), kinks, grid=GRID, m=4, coarse=still).ok


def test_no_coarse_step_is_refused_before_any_work():
    def never(u):
        raise AssertionError("called")

    with pytest.raises(TypeError, match="coarse: not given"):
        verify(never, U0, grid=GRID, m=4)


def test_growth_is_named_beside_a_solve_that_failed():
    """``u -> 4 u (1 - u)`` doubles differences at every step; to do nothing is no coarse step for it."""
    chaotic = Map(lambda u: 4 * u * (1 - u), batch_invariant=True)
    result = verify(chaotic, np.array([[0.3, 0.4]]), grid=GRID, m=4, coarse=still, tol=1e-10, max_iterations=3)
    assert not result.ok
    assert {Fault.NOT_CONVERGED, Fault.CHAOS} <= names(result)


def test_empty_states_are_refused():
    with pytest.raises(ValueError, match="u0: got shape"):
        verify(still, np.ones((0, 2)), grid=GRID, m=4, coarse=still)


torch = pytest.importorskip("torch")

import pyparareal.nn as pnn  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Residual(torch.nn.Module):
    def __init__(self, d=6):
        super().__init__()
        self.linear = torch.nn.Linear(d, d)

    def forward(self, u):
        return u + 0.1 * torch.tanh(self.linear(u))


class Noisy(Residual):
    def forward(self, u):
        return super().forward(u) + 1e-3 * torch.randn_like(u)


class Threshold(Residual):
    """Its threshold is that of the whole batch, and there is none in a batch of one."""

    def forward(self, u):
        return u + 0.1 * self.linear(torch.where(u.abs() >= u.abs().flatten().topk(8).values[-1], u, 0))


class Saturated(torch.nn.Module):
    def __init__(self, d, std):
        super().__init__()
        self.linear = torch.nn.Linear(d, d)
        torch.nn.init.normal_(self.linear.weight, std=std)

    def forward(self, u):
        return torch.tanh(self.linear(u))


def test_what_a_block_draws_is_no_rounding_and_no_neighbour():
    layers = [Residual(), Noisy(), Residual(), Noisy(), Residual(), Residual()]
    result = verify(pnn.LayerParallel(layers, m=2), torch.randn(4, 6))
    assert names(result) == {Fault.UNFIXED_RANDOMNESS}
    assert result.faults[0].step == 1
    listed = verify(layers, torch.randn(4, 6))
    assert listed.ok
    assert names(listed) == {Fault.UNFIXED_RANDOMNESS}


def test_a_block_that_cannot_take_one_row_and_mixes_rows():
    result = verify([Residual(), Threshold()], torch.randn(8, 6))
    assert names(result) == {Fault.BATCH_NEIGHBOURS}
    assert "alone it raises RuntimeError" in result.faults[0].evidence


def test_chaos_is_said_of_networks_and_recurrences():
    deep = pnn.LayerParallel([Saturated(16, 1.5) for _ in range(64)], m=2)
    assert {Fault.CHAOS, Fault.NOT_CONVERGED} == names(verify(deep, torch.randn(4, 16)))

    class Cell(Saturated):
        def forward(self, x, h):
            return torch.tanh(self.linear(h) + x)

    found = verify(pnn.Recurrence(Cell(16, 2.0)), (torch.randn(64, 2, 16), 0.1 * torch.randn(2, 16)))
    assert names(found) == {Fault.CHAOS}


def test_rounding_within_a_network_is_allowed_what_it_makes_of_it():
    """The first layers saturate: a change of the input dies out, one of a later layer's sums does not."""
    blocks = [Saturated(6, 3.0) for _ in range(40)]
    maps = [torch.nn.Linear(6, 6) for _ in range(2)]
    net = pnn.PararealNetwork(blocks, 2, preprocess=maps, coarse=[Residual()], head=torch.nn.Linear(6, 3))
    result = verify(net, torch.as_tensor(np.random.default_rng(1).standard_normal((4, 6))).float())
    assert result.ok, result.text()


def test_a_refusal_for_a_fault_that_is_named_is_no_second_fault():
    class Cell(torch.nn.GRUCell):
        def forward(self, x, h):
            y = super().forward(x, h)
            return y - 0.1 * y.mean(0)

    result = verify(pnn.Recurrence(Cell(3, 5)), (torch.randn(16, 2, 3), 0.1 * torch.randn(2, 5)))
    assert names(result) == {Fault.BATCH_NEIGHBOURS}
    assert "rows" in result.facts["refused"]


def test_a_backward_pass_with_the_tolerance_of_large_states():
    def step(u):
        return u + 0.05 * (1e-60 * u**3 - u)

    u0 = torch.as_tensor(1e30 * U0).requires_grad_()
    result = verify(step, u0, grid=GRID, m=4, coarse=lambda u: u + 0.2 * (1e-60 * u**3 - u), tol=1e18)
    assert names(result) == {Fault.NOT_CONVERGED}
    assert "adjoint=Adjoint(tol=" in str(result.faults[0])


@pytest.mark.parametrize("data", [torch.ones(0, 6), torch.full((2, 6), float("nan"))])
def test_data_without_numbers_are_refused(data):
    with pytest.raises(ValueError, match="data: got"):
        verify([Residual()], data)
