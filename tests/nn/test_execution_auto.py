# SPDX-License-Identifier: BSD-3-Clause
"""Automatic choice: measured once per kind of input, without a trace; recorded, saved and reused."""

import dataclasses
import json

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from execution_nets import build, dropout_net, require_close, require_equal, step  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal._timing import Samples  # noqa: E402
from pyparareal.nn import PararealNetwork  # noqa: E402
from pyparareal.nn.execution import auto  # noqa: E402

TRAINING = "forward and backward [6, 1, 6, 6] torch.float32 cpu"
EVALUATION = "forward [6, 1, 6, 6] torch.float32 cpu"


@pytest.fixture
def clock(monkeypatch):
    """Times as a test wants them; ``clock.runs`` lists what was measured."""

    class Clock:
        runs, seconds = [], {"serial": 3.0, "batched": 1.0, "parallel": 2.0}

        def interleave(self, calls, **options):
            self.runs.append(list(calls))
            for call in calls.values():
                call()
            return {name: Samples([self.seconds[name]]) for name in calls}

    clock = Clock()
    clock.runs = []
    clock.seconds = dict(Clock.seconds)
    monkeypatch.setattr(auto, "interleave", clock.interleave)
    return clock


def test_measured_once_for_each_kind_of_input(clock):
    net, x = build("residual", execution="auto")
    assert net.measured == {}
    step(net, x)
    assert net.executed == "batched"
    clock.seconds["serial"] = 0.5
    net.eval()
    with torch.no_grad():
        net(x)
        assert net.executed == "serial"
        net(x)
    step(net, x)
    assert net.executed == "batched"
    assert clock.runs == [["serial", "batched", "parallel"]] * 2
    with torch.no_grad():
        net(x[:3])
    assert len(clock.runs) == 3
    seconds = {"serial": 3.0, "batched": 1.0, "parallel": 2.0}
    assert net.measured[TRAINING] == {"mode": "batched", "seconds": seconds, "refused": {}}
    assert net.measured[EVALUATION]["mode"] == "serial"


@pytest.mark.parametrize("fastest", ["serial", "batched", "parallel"])
def test_the_result_is_that_of_serial_and_the_measurement_leaves_no_trace(clock, fastest):
    clock.seconds[fastest] = 0.1
    net, x = build("residual", execution="auto")
    twin, _ = build("residual", execution=fastest)
    calls = []
    net.fine[0].register_forward_hook(lambda *_: calls.append(1))
    if fastest == "batched":
        twin.fine[0].register_forward_hook(lambda *_: None)  # runs by itself, too
    for _ in range(2):
        before = [p.grad for p in net.parameters()]
        require_equal(step(net, x), step(twin, x))
        assert net.executed == fastest
    assert before
    assert len(calls) == 2


def test_random_streams_do_not_notice(clock):
    torch.manual_seed(0)
    net, twin = dropout_net(execution="auto"), dropout_net()
    twin.load_state_dict(net.state_dict())
    clock.seconds["serial"] = 0.1
    x = torch.randn(4, 5)
    for _ in range(2):
        require_equal(step(net, x), step(twin, x))
        state = torch.get_rng_state()
        step(twin, x)
        assert torch.equal(state, torch.get_rng_state())


def test_modes_that_cannot_run_are_recorded_with_the_reason(clock):
    parts = [nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh())]
    net = PararealNetwork(
        parts, preprocess=[nn.Linear(4, 4), nn.Linear(4, 4)], coarse=[nn.Linear(4, 4)], execution="auto"
    )
    net(torch.randn(2, 4))
    (entry,) = net.measured.values()
    assert list(entry["seconds"]) == ["serial", "parallel"]
    assert "no two have equal structure" in entry["refused"]["batched"]
    assert net.executed == "parallel"


class Fails(nn.Module):
    def forward(self, x):
        raise ValueError("mine")


def test_an_error_of_the_network_is_the_networks(clock):
    net = PararealNetwork(
        [nn.Linear(4, 4), Fails()],
        preprocess=[nn.Linear(4, 4), nn.Linear(4, 4)],
        coarse=[nn.Linear(4, 4)],
        execution="auto",
    )
    with pytest.raises(ValueError, match=r"^mine$"):
        net(torch.randn(2, 4))
    assert net.measured == {}


def test_state_carries_the_choice(clock, tmp_path):
    net, x = build("residual", execution="auto")
    assert "_extra_state" not in net.state_dict()
    step(net, x)
    state = net.state_dict()
    assert state["_extra_state"].dtype == torch.uint8
    assert json.loads(bytes(state["_extra_state"].tolist())) == net.measured
    torch.save(state, tmp_path / "state")
    clock.seconds["serial"] = 0.01
    other, _ = build("residual", seed=5, execution="auto")
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    require_equal(step(other, x), step(net, x))
    assert other.executed == "batched"
    assert len(clock.runs) == 1
    serial, _ = build("residual")
    serial.load_state_dict(state)  # another mode needs nothing of it
    assert serial.measured == {}
    other.load_state_dict(serial.state_dict())  # and does without
    assert other.measured == net.measured
    state["_extra_state"] = torch.tensor(list(b'{"forward": {"mode": "warp"}}'), dtype=torch.uint8)
    with pytest.raises(ValueError, match="extra state: got mode 'warp', expected one of serial, batched, parallel"):
        other.load_state_dict(state)


def test_really_measured():
    net, x = build("residual", execution="auto")
    torch.set_num_threads(2)
    step(net, x)
    (entry,) = net.measured.values()
    assert net.executed == entry["mode"] == min(entry["seconds"], key=entry["seconds"].get)
    assert all(s > 0 for s in entry["seconds"].values())
    twin, _ = build("residual")
    step(twin, x)
    require_close(step(net, x), step(twin, x), 1e-3)  # float32: 1e-10 of the float64 networks, times 2**29, is less


@pytest.mark.parametrize("execution", ["parallel", "batched", "auto"])
def test_the_training_job_takes_and_records_it(tmp_path, execution, clock):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'pyparareal[train]'")
    from pyparareal.nn import data
    from pyparareal.nn.training_job import checkpoint, job, loop
    from pyparareal.nn.training_job.settings import Settings

    settings = Settings(model="resnet20", parts=9, width=2, batch_size=64, execution=execution, threads=2)
    assert settings.arguments()[-2:] == ["--threads", "2"]
    assert "--execution" in settings.arguments()
    images = data.load("digits")
    net, _, identity = job._build("parareal", settings, images, tmp_path / "a")
    assert net.execution == execution
    assert identity["settings"]["execution"] == execution
    optimiser = loop.make_optimiser(net, settings)
    x = images.train.x[:8]
    net(x).sum().backward()
    optimiser.step()
    file = tmp_path / "run.checkpoint"
    checkpoint.save(file, net, optimiser, identity, {})
    other, _, _ = job._build("parareal", settings, images, tmp_path / "b")
    checkpoint.load(file, other, loop.make_optimiser(other, settings), identity)
    assert other.measured == net.measured
    with torch.no_grad():
        other.eval()(x), net.eval()(x)
    assert other.executed == net.executed
    serial = dataclasses.replace(settings, execution="serial").as_dict()
    with pytest.raises(checkpoint.CheckpointError, match=f"execution: '{execution}' there, 'serial' here"):
        checkpoint.load(file, other, optimiser, identity | {"settings": serial})
    with pytest.raises(ValueError, match="execution: got 'fast', expected one of serial, batched"):
        Settings(execution="fast")
