# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints: everything comes back, nothing is ever half written, and another run's is refused by name."""

import errno
import os
import random

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'pyparareal[train]'")

import numpy as np  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.nn.training_job import checkpoint  # noqa: E402
from pyparareal.nn.training_job.settings import Settings  # noqa: E402

IDENTITY = {"settings": Settings().as_dict(), "network": "parareal", "part_sizes": [3, 2, 2, 2]}
PROGRESS = {"epoch": 3, "loss_sum": 0.1 + 0.2, "history": [{"train_loss": 1e-17}]}


def trained(seed=0, optimiser=torch.optim.SGD, **options):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimiser = optimiser(net.parameters(), lr=0.1, **options)
    for _ in range(3):
        optimiser.zero_grad()
        net(torch.randn(8, 3)).square().sum().backward()
        optimiser.step()
    return net, optimiser


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(
    ("optimiser", "options"), [(torch.optim.SGD, {"momentum": 0.9, "nesterov": True}), (torch.optim.Adam, {})]
)
def test_everything_comes_back(tmp_path, optimiser, options):
    file = tmp_path / "run.checkpoint"
    net, first = trained(0, optimiser, **options)
    checkpoint.save(file, net, first, IDENTITY, PROGRESS)
    drawn = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002 - the global stream is what is saved
    other, second = trained(1, optimiser, **options)
    assert checkpoint.load(file, other, second, IDENTITY) == PROGRESS
    assert same(net.state_dict(), other.state_dict())
    assert same(first.state_dict(), second.state_dict())
    again = torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    assert torch.equal(drawn[0], again[0])
    assert (drawn[1] == again[1]).all()
    assert drawn[2] == again[2]


def test_it_is_plain_safetensors(tmp_path):
    from safetensors import safe_open

    file = tmp_path / "run.checkpoint"
    checkpoint.save(file, *trained(momentum=0.9), IDENTITY, PROGRESS)
    with safe_open(file, "pt") as opened:
        assert {"net.0.weight", "optimiser.0.momentum_buffer", "random.torch"} <= set(opened.keys())
    assert checkpoint.read_settings(file) == Settings()
    assert checkpoint.read_progress(file) == PROGRESS


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def killed(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize(("failure", "kind"), [(full_disk, OSError), (killed, KeyboardInterrupt)])
def test_a_failing_write_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch, failing, failure, kind):
    file = tmp_path / "run.checkpoint"
    checkpoint.save(file, *trained(0), IDENTITY, PROGRESS)
    before = file.read_bytes()
    monkeypatch.setattr(os, failing, failure)
    with pytest.raises(kind):
        checkpoint.save(file, *trained(1), IDENTITY, {"epoch": 4})
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == [file.name]
    checkpoint.save(file, *trained(1), IDENTITY, {"epoch": 4})
    assert checkpoint.read_progress(file) == {"epoch": 4}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused_and_changes_nothing(tmp_path, share):
    file = tmp_path / "run.checkpoint"
    checkpoint.save(file, *trained(0), IDENTITY, PROGRESS)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    net, optimiser = trained(1)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with pytest.raises(checkpoint.CheckpointError, match=r"run\.checkpoint: not a "):
        checkpoint.load(file, net, optimiser, IDENTITY)
    assert same(before, net.state_dict())


@pytest.mark.parametrize("content", [b"x" * 100, b"\2\0\0\0\0\0\0\0[]", b"\2\0\0\0\0\0\0\0{}", b"\xff" * 16])
def test_another_kind_of_file_is_refused(tmp_path, content):
    file = tmp_path / "run.checkpoint"
    file.write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError, match="not a pyparareal checkpoint"):
        checkpoint.read_settings(file)


def changed(**settings):
    return IDENTITY | {"settings": Settings(**settings).as_dict()}


DIFFERENT = [
    (changed(model="resnet32"), "model: 'resnet20' there, 'resnet32' here"),
    (changed(lr=0.2, seed=5), "lr: 0.1 there, 0.2 here; seed: 0 there, 5 here"),
    (changed(parts=3), "parts: 4 there, 3 here"),
    (changed(threads=2), "threads: 1 there, 2 here"),
    (IDENTITY | {"part_sizes": [4, 2, 2, 1]}, r"part_sizes: \[3, 2, 2, 2\] there, \[4, 2, 2, 1\] here"),
    (IDENTITY | {"network": "serial"}, "network: 'parareal' there, 'serial' here"),
]


@pytest.mark.parametrize(("identity", "message"), DIFFERENT)
def test_another_runs_checkpoint_is_refused_naming_what_differs(tmp_path, identity, message):
    file = tmp_path / "run.checkpoint"
    checkpoint.save(file, *trained(0), IDENTITY, PROGRESS)
    net, optimiser = trained(1)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.load(file, net, optimiser, identity)
    assert same(before, net.state_dict())


def test_another_networks_tensors_are_refused_by_name(tmp_path):
    file = tmp_path / "run.checkpoint"
    checkpoint.save(file, *trained(0), IDENTITY, PROGRESS)
    for net, name in ((nn.Sequential(nn.Linear(3, 5)), "0.bias|1.bias"), (nn.Linear(3, 4), "0.bias")):
        with pytest.raises(checkpoint.CheckpointError, match=f"tensor '({name})' is missing or has another shape"):
            checkpoint.load(file, net, torch.optim.SGD(net.parameters()), IDENTITY)


def test_weights_alone_are_no_checkpoint(tmp_path):
    file = tmp_path / "weights.safetensors"
    net, optimiser = trained(0)
    checkpoint.write_tensors(file, net.state_dict(), {"identity": IDENTITY, "format": "pyparareal-weights-1"})
    with pytest.raises(checkpoint.CheckpointError, match="got weights alone, expected a checkpoint"):
        checkpoint.load(file, net, optimiser, IDENTITY)
