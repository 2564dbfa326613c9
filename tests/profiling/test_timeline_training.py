# SPDX-License-Identifier: BSD-3-Clause
"""Timelines of everything that trains: valid files, nested on the host, forward and backward."""

import json

import pytest
import trace_schema

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from pyparareal import TimeGrid, solve  # noqa: E402
from pyparareal import nn as parallel  # noqa: E402
from pyparareal.profiling import Timeline  # noqa: E402
from pyparareal.training import HalfSquaredError, TrainingRuns  # noqa: E402


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def layer(width=4):
    return torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Tanh())


def network():
    net = parallel.PararealNetwork(
        [layer() for _ in range(3)],
        preprocess=[torch.nn.Identity() for _ in range(3)],
        coarse=[torch.nn.Linear(4, 4) for _ in range(2)],
        head=torch.nn.Linear(4, 2),
    )
    optimiser, x = torch.optim.SGD(net.parameters(), 0.1), torch.randn(5, 4)

    def step():
        net(x).square().sum().backward()
        optimiser.step()

    return step, {"fine[0]", "fine[1]", "fine[2]", "coarse[0]", "coarse[1]", "head"}


def layers():
    net = parallel.LayerParallel([layer() for _ in range(8)], h=0.1, m=2, levels=2)
    return lambda: net(torch.randn(5, 4)).square().sum().backward(), {"relax_dense"}


def recurrence(kind, method, launches):
    def make():
        net = kind(3, 4, method=method)
        return lambda: net(torch.randn(32, 2, 3))[0].square().sum().backward(), launches

    return make


def runs():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    data = torch.rand(8, 3).double(), torch.rand(8, 1).double()
    return TrainingRuns(net, HalfSquaredError(), data, steps=24, lr=0.02, tol=1e-8).run, {"relax_mlp_sgd"}


def adjoint():
    fine, coarse = layer().double(), layer().double()
    u0 = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def work():
        ask = {"m": 2, "tol": 0.0, "deterministic": True}
        solve(fine, u0, TimeGrid(0, 1, 8), coarse=coarse, **ask).u.square().sum().backward()

    return work, {"parareal_update"}


CASES = {
    "a parareal network": network,
    "layers": layers,
    "GRU, serial": recurrence(parallel.GRU, "serial", {"relax_gru", "relax_gru_adjoint"}),
    "GRU, Newton": recurrence(parallel.GRU, "newton", {"relax_gru", "scan_block"}),
    "LSTM, MGRIT": recurrence(parallel.LSTM, "mgrit", {"LSTMStep"}),
    "training runs": runs,
    "a solve and its adjoint": adjoint,
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_a_timeline_of_training_is_valid(tmp_path, make):
    work, launches = make()
    with Timeline("training") as timeline:
        work()
    events = json.loads(timeline.save(tmp_path / "t.json").read_bytes())["traceEvents"]
    assert trace_schema.all_problems(events) == []
    assert {e.name for e in timeline.record.events if e.kind == "launch"} >= launches
    # Nothing on the host's main thread overlaps what it does not lie in: no second row was needed for it.
    threads = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
    assert "main" in threads
    assert "main (2)" not in threads
