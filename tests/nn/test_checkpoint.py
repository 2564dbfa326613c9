# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints: everything comes back, nothing is ever half written, and another run's is refused by name."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'pyparareal[train]'")

import numpy as np  # noqa: E402
from torch import nn  # noqa: E402

from pyparareal.nn.atomic_files import remove_leftovers  # noqa: E402
from pyparareal.nn.training_job import checkpoint  # noqa: E402
from pyparareal.nn.training_job.settings import Settings  # noqa: E402

IDENTITY = {
    "settings": Settings().as_dict(),
    "network": "parareal",
    "partition": {"sizes": [3, 2, 2, 2], "names": [f"layer{i}" for i in range(30)], "seconds": None},
    "maps": [{"name": "C^1", "what": "the network's own"}, {"name": "F^1", "what": "convolution"}],
}
PROGRESS = {"epoch": 3, "loss_sum": 0.1 + 0.2, "history": [{"train_loss": 1e-17}]}


def stack(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


def trained(seed=0, optimiser=torch.optim.SGD, **options):
    torch.manual_seed(seed)
    net = stack()
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


def test_a_file_that_may_grow_no_further_leaves_the_old_checkpoint_whole(tmp_path):
    resource = pytest.importorskip("resource", reason="no limits on this system")
    file = tmp_path / "run.checkpoint"
    checkpoint.save(file, *trained(0), IDENTITY, PROGRESS)
    before = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel stops the write half-way, as it does on a full disk; Python ignores the signal that comes with it.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoint.save(file, *trained(1), IDENTITY, {"epoch": 4})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == [file.name]


SAVES = """
import sys
from pathlib import Path
from pyparareal.nn.training_job import checkpoint
from torch import ones
file, number = Path(sys.argv[1]), 0
while True:
    number += 1
    content = {"x": ones(2_000_000) * number}
    checkpoint.write_tensors(file, content, {"format": checkpoint.FORMATS["weights"], "number": number})
"""


@pytest.mark.no_sanitize
def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(tmp_path):
    file = tmp_path / "run.checkpoint"
    home = str(Path(checkpoint.__file__).parents[3])
    killed_inside = 0
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", SAVES, str(file)], env=os.environ | {"PYTHONPATH": home})
        half = tmp_path / f".{file.name}.{child.pid}.new"
        while not (file.exists() and half.exists()) and child.poll() is None:
            time.sleep(0.0005)
        child.send_signal(signal.SIGKILL)
        assert child.wait(timeout=60) == -signal.SIGKILL
        killed_inside += half.exists()
        tensors, rest = checkpoint.read_tensors(file)
        assert (tensors["x"] == rest["number"]).all()
        remove_leftovers(tmp_path)
        assert os.listdir(tmp_path) == [file.name]
        if killed_inside:
            break
    assert killed_inside, "never inside a save"


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


def partitioned(**values):
    return IDENTITY | {"partition": IDENTITY["partition"] | values}


DIFFERENT = [
    (changed(model="resnet32"), "model: 'resnet20' there, 'resnet32' here"),
    (changed(lr=0.2, seed=5), "lr: 0.1 there, 0.2 here; seed: 0 there, 5 here"),
    (changed(parts=3), "parts: 4 there, 3 here"),
    (changed(threads=2), "threads: 1 there, 2 here"),
    (
        partitioned(sizes=(4, 2, 2, 1)),
        r"partition\.sizes: \[3, 2, 2, 2\] there, \[4, 2, 2, 1\] here$",
    ),
    (
        partitioned(names=[*IDENTITY["partition"]["names"][:29], "fc"]),
        r"partition\.names: 'layer29' at 29 there, 'fc' at 29 here$",
    ),
    (
        IDENTITY | {"maps": [IDENTITY["maps"][0], {"name": "F^1", "what": "linear"}]},
        "maps.1.what: 'convolution' there, 'linear' here$",
    ),
    # A consequence of other settings is not worth the words.
    (changed(parts=3) | {"partition": {}, "maps": []}, "nothing was changed. parts: 4 there, 3 here$"),
    (changed(parts=3, lr=1, seed=1, epochs=1, batch_size=1, threads=2), "; and 2 more$"),
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
    for net, name in (
        (nn.Sequential(nn.Linear(3, 4)), "tensor '1.bias' is unknown here"),
        (nn.Sequential(*stack(), nn.Linear(2, 2)), "tensor '3.bias' is missing there"),
        (stack(5), r"tensor '0.bias' is \[4\] float32 there, \[5\] float32 here"),
        (stack().double(), r"tensor '0.bias' is \[4\] float32 there, \[4\] float64 here"),
    ):
        before = {key: t.clone() for key, t in net.state_dict().items()}
        with pytest.raises(checkpoint.CheckpointError, match=f"of another network, nothing was changed: {name}"):
            checkpoint.load(file, net, torch.optim.SGD(net.parameters()), IDENTITY)
        assert same(before, net.state_dict())


def test_another_optimisers_groups_are_refused(tmp_path):
    file = tmp_path / "run.checkpoint"
    checkpoint.save(file, *trained(0), IDENTITY, PROGRESS)
    net = stack()
    one, *others = net.parameters()
    before = {key: t.clone() for key, t in net.state_dict().items()}
    with pytest.raises(checkpoint.CheckpointError, match=r"groups of \[6\] parameters there, \[1, 5\] here"):
        checkpoint.load(file, net, torch.optim.SGD([{"params": [one]}, {"params": others}]), IDENTITY)
    assert same(before, net.state_dict())


def test_weights_alone_are_no_checkpoint(tmp_path):
    file = tmp_path / "weights.safetensors"
    net, optimiser = trained(0)
    checkpoint.write_tensors(file, net.state_dict(), {"identity": IDENTITY, "format": checkpoint.FORMATS["weights"]})
    with pytest.raises(checkpoint.CheckpointError, match="got weights alone, expected a checkpoint"):
        checkpoint.load(file, net, optimiser, IDENTITY)
