# SPDX-License-Identifier: BSD-3-Clause
"""Sharded checkpoints in one process: the same bits come back, and nothing from what is damaged or another's."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'pyparareal[train]'")
pytest.importorskip("torch.distributed.checkpoint.hf_storage", reason="torch is older than 2.9")

from pyparareal.errors import CheckpointError  # noqa: E402
from pyparareal.nn import ShardedCheckpoint  # noqa: E402
from pyparareal.nn.checkpoints import folder as files  # noqa: E402
from pyparareal.nn.checkpoints.plain import decode, encode  # noqa: E402


class Net(torch.nn.Module):
    """Tied weights, a buffer, a number, halves, and an empty parameter."""

    def __init__(self, width=4):
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, width), torch.nn.Linear(width, 3)
        self.tied = torch.nn.Linear(3, width)
        self.tied.weight = self.first.weight
        self.norm = torch.nn.BatchNorm1d(width)
        self.empty = torch.nn.Parameter(torch.empty(0, 2))
        self.register_buffer("short", torch.randn(5).bfloat16())
        self.register_buffer("turned", torch.randn(3, 2).t())

    def forward(self, x):
        return self.second(torch.tanh(self.norm(self.first(x) + self.tied(x))))


def a_run(seed, optimiser="Adam", width=4):
    torch.manual_seed(seed)
    net = Net(width)
    groups = [
        {"params": [net.first.weight], "lr": 0.02},
        {"params": [p for p in net.parameters() if p is not net.first.weight]},
    ]
    kinds = {
        "Adam": lambda: torch.optim.Adam(groups, lr=0.01),
        "SGD": lambda: torch.optim.SGD(groups, lr=0.01, momentum=0.9),
        "RMSprop": lambda: torch.optim.RMSprop(groups, lr=0.01, centered=True),
        "Adafactor": lambda: torch.optim.Adafactor([p for p in net.parameters() if p.numel()], lr=0.01),
    }
    made = kinds[optimiser]()
    return {
        "net": net,
        "optimiser": made,
        "schedule": torch.optim.lr_scheduler.MultiStepLR(made, [2, 5]),
        "draws": torch.Generator().manual_seed(seed),
        "numbers": np.random.default_rng(seed),
        "old numbers": np.random.Generator(np.random.MT19937(seed)),
        "mean": torch.full((2,), float(seed)),
    }


def train(state, steps):
    for _ in range(steps):
        x = torch.randn(8, 3, generator=state["draws"]) * float(
            state["numbers"].random() + state["old numbers"].random()
        )
        state["optimiser"].zero_grad()
        state["net"](x).square().sum().backward()
        state["optimiser"].step()
        state["schedule"].step()
        state["mean"] += x.detach().mean()


def bits(state):
    tensors = {**state["net"].state_dict(), "mean": state["mean"], "draws": state["draws"].get_state()}
    for i, slots in state["optimiser"].state_dict()["state"].items():
        tensors |= {f"{i}.{slot}": value for slot, value in slots.items() if isinstance(value, torch.Tensor)}
    rest = repr([state[n].bit_generator.state for n in ("numbers", "old numbers")]) + repr(
        state["schedule"].state_dict()
    )
    groups = repr(state["optimiser"].state_dict()["param_groups"])
    return {n: t.detach().contiguous().reshape(-1).view(torch.uint8).tolist() for n, t in tensors.items()} | {
        "": rest + groups
    }


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 3 and 6, and the run at step 3."""
    state = a_run(1)
    train(state, 3)
    ShardedCheckpoint(tmp_path / "run").save(3, state, {"epoch": 1, "pair": (1, 2.5)})
    third = bits(state)
    train(state, 3)
    ShardedCheckpoint(tmp_path / "run").save(6, state, {"epoch": 2, "pair": (1, 2.5)})
    return tmp_path / "run", third, bits(state)


@pytest.mark.parametrize("optimiser", ["Adam", "SGD", "RMSprop", "Adafactor"])
def test_a_run_that_stops_and_goes_on_ends_with_the_same_bits(tmp_path, optimiser):
    whole = a_run(1, optimiser)
    train(whole, 7)
    begun = a_run(1, optimiser)
    train(begun, 3)
    ShardedCheckpoint(tmp_path).save(3, begun, progress={"losses": [0.1, float("inf")], "where": ("a", None, True)})
    other = a_run(2, optimiser)
    train(other, 1)
    assert bits(other) != bits(begun)
    found = ShardedCheckpoint(tmp_path).load(other)
    assert (found.step, found.progress, found.skipped) == (
        3,
        {"losses": [0.1, float("inf")], "where": ("a", None, True)},
        {},
    )
    assert bits(other) == bits(begun)
    train(other, 4)
    assert bits(other) == bits(whole)


def test_no_checkpoint_is_none_and_leaves_nothing(tmp_path):
    assert ShardedCheckpoint(tmp_path / "new").load(a_run(1)) is None
    assert not (tmp_path / "new").exists()


def test_the_last_ones_are_kept(tmp_path):
    checkpoint = ShardedCheckpoint(tmp_path, keep=3)
    for step in range(1, 7):
        checkpoint.save(step, {"x": torch.tensor([float(step)])})
    assert checkpoint.steps() == [6, 5, 4]
    x = torch.zeros(1)
    assert checkpoint.load({"x": x}, step=5).step == 5
    assert x == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", *(f"step_{n:09d}" for n in (4, 5, 6))]


def test_plain_values_come_back_as_they_were():
    value = {
        "a": [1, 0.1, -0.0, None, True, "ä"],
        "t": ((), (1,)),
        3: {"$dict": 1},
        "c": Counter({30: 2}),
        "": 1 << 100,
    }
    back = decode(json.loads(json.dumps(encode(value, "here"))))
    assert repr(back) == repr(value)
    with pytest.raises(TypeError, match=r"here\['x'\]\[1\]: got object, expected numbers"):
        encode({"x": [1, object()]}, "here")


# Damage: a later checkpoint that is not whole is skipped, with a word; asked for by name it is refused.


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def of_files(folder, name="*.safetensors"):
    return next((folder / "step_000000006").glob(name))


def rewritten(folder, change, step=6):
    """The manifest with another content, and the sum that belongs to it."""
    path = folder / f"step_{step:09d}" / "manifest.json"
    whole = json.loads(path.read_text())
    change(whole)
    whole["sha256"] = hashlib.sha256(json.dumps(whole["content"]).encode()).hexdigest()
    path.write_text(json.dumps(whole))


def renamed_file(name):
    def change(whole):
        contents = whole["content"]["files"]
        contents[name] = contents.pop(next(iter(contents)))

    return change


DAMAGE = {
    "a byte of a tensor": (lambda f: flip(of_files(f), -3), "its SHA-256 is another than when it was written"),
    "a byte of a header": (lambda f: flip(of_files(f), 20), "its SHA-256 is another than when it was written"),
    "a file too short": (lambda f: os.truncate(of_files(f), 1000), "it has 1000 bytes, expected"),
    "an empty file": (lambda f: os.truncate(of_files(f), 0), "it has 0 bytes, expected"),
    "a file missing": (lambda f: of_files(f).unlink(), r"safetensors: missing"),
    "a file too many": (
        lambda f: (of_files(f).parent / "x.safetensors").touch(),
        "x.safetensors: unknown to the manifest",
    ),
    "no manifest": (lambda f: of_files(f, "manifest.json").unlink(), "it is no regular file"),
    "half a manifest": (lambda f: os.truncate(of_files(f, "manifest.json"), 200), "not a whole manifest"),
    "a byte of the manifest": (lambda f: flip(of_files(f, "manifest.json"), -40), "not a whole manifest"),
    "a number in the manifest": (
        lambda f: of_files(f, "manifest.json").write_text(
            of_files(f, "manifest.json").read_text().replace('"epoch": 2', '"epoch": 7')
        ),
        "its SHA-256 is another",
    ),
    "another format": (lambda f: rewritten(f, lambda w: w.update(format="theirs")), "its format is not"),
    "deep JSON": (lambda f: of_files(f, "manifest.json").write_text("[" * 200_000), "not a whole manifest"),
    "no tensors": (lambda f: rewritten(f, lambda w: w["content"].pop("tensors")), "KeyError: 'tensors'"),
    "a path upwards": (
        lambda f: rewritten(f, renamed_file("../../../etc/passwd")),
        "'../../../etc/passwd' is no name of a",
    ),
    "an absolute path": (
        lambda f: rewritten(f, renamed_file("/etc/passwd")),
        "'/etc/passwd' is no name of a file of ours",
    ),
    "a pickle": (lambda f: rewritten(f, renamed_file(".metadata")), "'.metadata' is no name of a file of ours"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_skipped_for_the_one_before(saved, damage):
    folder, third, _ = saved
    act, says = DAMAGE[damage]
    act(folder)
    state = a_run(2)
    before = bits(state)
    with pytest.raises(CheckpointError, match=says):
        ShardedCheckpoint(folder).load(state, step=6)
    assert bits(state) == before
    with pytest.warns(RuntimeWarning, match="going on from step 3; step 6 was skipped") as warned:
        found = ShardedCheckpoint(folder).load(state)
    assert len(warned) == 1
    assert (found.step, list(found.skipped), found.progress["epoch"]) == (3, [6], 1)
    assert bits(state) == third
    # The run comes to step 6 again; what was damaged is put aside.
    ShardedCheckpoint(folder).save(6, state)
    assert ShardedCheckpoint(folder).load(a_run(3)).step == 6
    assert (folder / "step_000000006.damaged").is_dir()


def test_a_link_to_elsewhere_is_refused(saved, tmp_path):
    folder, *_ = saved
    file = of_files(folder)
    (tmp_path / "elsewhere").write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="no regular file"):
        ShardedCheckpoint(folder).load(a_run(2), step=6)


def test_if_all_are_damaged_that_is_an_error(saved):
    folder, *_ = saved
    for path in folder.glob("step_*/*.safetensors"):
        flip(path, -1)
    state = a_run(2)
    before = bits(state)
    with pytest.raises(CheckpointError, match=r"step_000000006.*SHA-256.*step_000000003.*SHA-256"):
        ShardedCheckpoint(folder).load(state)
    assert bits(state) == before


def test_a_later_version_is_an_error_and_is_left_alone(saved):
    folder, *_ = saved
    rewritten(folder, lambda whole: whole.update(version=2))
    for act in (lambda c: c.load(a_run(2)), lambda c: c.load(a_run(2), step=6), lambda c: c.save(5, a_run(2))):
        with pytest.raises((CheckpointError, ValueError), match="got version 2, expected at most 1"):
            act(ShardedCheckpoint(folder))
    assert of_files(folder).exists()


@pytest.mark.parametrize("left", ["step_000000009.partial", "step_000000006.old"])
def test_what_dead_runs_left_is_no_checkpoint_and_goes(saved, left):
    folder, _, sixth = saved
    (folder / left).mkdir()
    (folder / left / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
    state = a_run(2)
    assert ShardedCheckpoint(folder).load(state).step == 6
    assert bits(state) == sixth
    ShardedCheckpoint(folder).save(7, state)
    assert not (folder / left).exists()


# A checkpoint of something else: the first difference is named, nothing is changed.


def without(state, *names):
    return {name: thing for name, thing in state.items() if name not in names}


def other_group(state):
    first = [p for p in state["net"].parameters() if p is not state["net"].first.bias]
    return state | {"optimiser": torch.optim.Adam([{"params": [state["net"].first.bias]}, {"params": first}])}


OTHERS = {
    "shape": (
        lambda: a_run(2, width=5),
        r"tensor 'net.short'|tensor 'net.first.weight' is \[4, 3\] float32 there, \[5, 3\]",
    ),
    "dtype": (
        lambda: (lambda s: s | {"net": s["net"].double()})(without(a_run(2), "optimiser")),
        "float32 there, .*float64 here",
    ),
    "a tensor more": (lambda: a_run(2) | {"more": torch.zeros(2)}, "tensor 'more' is missing there"),
    "a tensor less": (lambda: without(a_run(2), "mean"), "'mean' is unknown here"),
    "no optimiser": (lambda: without(a_run(2), "optimiser"), "'optimiser.*' is unknown here"),
    "another optimiser": (lambda: a_run(2, "SGD"), "'optimiser' is Adam with 2 groups of parameters there, SGD with 2"),
    "another group": (lambda: other_group(a_run(2)), "parameter 'net.first.bias' is in another group there than 0"),
    "another generator": (
        lambda: a_run(2) | {"old numbers": np.random.default_rng(2)},
        "'old numbers' is no state of PCG64",
    ),
    "a schedule less": (lambda: without(a_run(2), "schedule"), "'schedule' is unknown here"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_something_else_is_refused_by_name(saved, other):
    folder, *_ = saved
    make, says = OTHERS[other]
    state = make()
    tensors = [t.clone() for t in state["net"].state_dict().values()]
    with pytest.raises(CheckpointError, match=f"of another run, nothing was changed: .*({says})"):
        ShardedCheckpoint(folder).load(state)
    assert all(map(torch.equal, tensors, state["net"].state_dict().values()))


def test_a_slot_of_another_shape_is_refused_before_it_is_made(saved):
    folder, *_ = saved
    rewritten(folder, lambda w: w["content"]["tensors"]["optimiser.net.first.bias.exp_avg"].update(shape=[1 << 50]))
    with pytest.raises(CheckpointError, match=r"exp_avg' is \[1125899906842624\] there, more than the files have"):
        ShardedCheckpoint(folder).load(a_run(2))


# Wrong arguments


def boom(*_):
    raise AssertionError("written in spite of the mistake")


MISTAKES = {
    "step": (lambda c: c.save(-1, {}), ValueError, "step: got -1, expected a number of at least 0"),
    "step true": (lambda c: c.save(True, {}), ValueError, "step: got True"),
    "step of another type": (lambda c: c.load({}, step="last"), TypeError, "step: got str, expected an int or None"),
    "a step that is not there": (
        lambda c: c.load({}, step=5),
        CheckpointError,
        r"step: got 5, of which .* no checkpoint; it has \[6, 3\]",
    ),
    "an earlier step": (
        lambda c: c.save(4, {}),
        ValueError,
        "step: got 4, but .* has a checkpoint of step 6; expected a later step",
    ),
    "the same step": (lambda c: c.save(6, {}), ValueError, "step: got 6, but .* has a checkpoint of step 6"),
    "a list": (lambda c: c.save(9, [torch.zeros(1)]), TypeError, "state: got list, expected a dict of names"),
    "no name": (lambda c: c.save(9, {3: torch.zeros(1)}), ValueError, "state: got the name 3, expected a text"),
    "two of a name": (
        lambda c: c.save(9, {"a": torch.nn.ParameterDict({"b": torch.zeros(1)}), "a.b": torch.zeros(1)}),
        ValueError,
        "state: two things are named 'a.b'",
    ),
    "a thing": (lambda c: c.save(9, {"f": boom}), TypeError, "state: f: got function, expected a tensor, a module"),
    "a dtype": (
        lambda c: c.save(9, {"z": torch.zeros(1, dtype=torch.complex128)}),
        TypeError,
        "state: z: got torch.complex128, which safetensors files do not hold",
    ),
    "progress": (lambda c: c.save(9, {}, {"at": boom}), TypeError, r"progress\['at'\]: got function, expected numbers"),
    "a foreign parameter": (
        lambda c: c.save(9, {"o": torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)}),
        ValueError,
        "state: o: a parameter of group 0 belongs to no module in state",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_before_anything_is_written(saved, mistake):
    folder, _, sixth = saved
    act, kind, says = MISTAKES[mistake]
    before = sorted(folder.rglob("*"))
    with pytest.raises(kind, match=says):
        act(ShardedCheckpoint(folder))
    assert sorted(folder.rglob("*")) == before
    state = a_run(2)
    assert ShardedCheckpoint(folder).load(state).step == 6
    assert bits(state) == sixth


def test_the_folder_must_be_one(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"folder: got .*file, which is no folder"):
        ShardedCheckpoint(tmp_path / "file")
    with pytest.raises(TypeError, match="folder: got int, expected a path"):
        ShardedCheckpoint(3)
    with pytest.raises(ValueError, match="keep: got 0, expected a number of checkpoints of at least 1"):
        ShardedCheckpoint(tmp_path, keep=0)
    with pytest.raises(TypeError, match=r"runtime: got str, expected pyparareal.distributed\(\) or None"):
        ShardedCheckpoint(tmp_path, "gloo")
    with pytest.raises(OSError, match=r"folder: .* cannot be written"):
        ShardedCheckpoint("/proc/nowhere").save(1, {"x": torch.zeros(1)})


def test_a_disk_that_is_full_leaves_what_was_there(saved, monkeypatch):
    folder, _, sixth = saved

    def full(*_):
        raise OSError(28, "No space left on device")

    for place in ("write_manifest", "publish", "describe"):
        with monkeypatch.context() as patch:
            module = sys.modules["pyparareal.nn.checkpoints.sharded"] if place == "describe" else files
            patch.setattr(module, place, full)
            with pytest.raises(OSError, match="No space left"):
                ShardedCheckpoint(folder).save(9, a_run(3))
        state = a_run(2)
        assert ShardedCheckpoint(folder).load(state).step == 6
        assert bits(state) == sixth
        assert not list(folder.glob("*.partial"))


OTHER_RUN = """
import sys, torch
from pyparareal.nn import ShardedCheckpoint
try:
    ShardedCheckpoint(sys.argv[1]).save(9, {"x": torch.zeros(1)})
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.no_sanitize
def test_two_runs_do_not_write_into_one_folder(saved):
    folder, *_ = saved
    done = subprocess.run([sys.executable, "-c", OTHER_RUN, str(folder)], capture_output=True, text=True)
    assert f"folder: got {folder}, into which another run is writing" in done.stdout, done.stderr
    assert ShardedCheckpoint(folder).steps() == [6, 3]


def test_nothing_here_can_unpickle():
    for path in Path(files.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert not any(word in text for word in ("import pickle", "torch.load", "torch.save", "allow_pickle=True"))
