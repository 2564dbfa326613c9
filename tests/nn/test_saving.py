# SPDX-License-Identifier: BSD-3-Clause
"""Saved networks: the same network comes back, nothing is ever half written, what does not fit is refused by name."""

import copy
import errno
import json
import os

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'pyparareal[train]'")

from torch import nn  # noqa: E402
from user_networks import Named  # noqa: E402

from pyparareal.nn import PararealNetwork, build_parareal, load, models, partition, save, saving  # noqa: E402


def blocks(count=4, width=3):
    return [nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Tanh()) for _ in range(count)]


def named():
    return Named()


KINDS = {
    # name: the serial network, how it is cut, an input
    "list": (blocks, {}, (5, 3)),
    "sequential": (lambda: nn.Sequential(*blocks()), {"balance": [1, 3]}, (5, 3)),
    "named body": (named, {"body": "inner.body"}, (5, 4)),
}


def trained(network, shape, steps=2):
    """Some steps, so that parameters and running statistics are nobody's initial values."""
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        network(torch.randn(shape)).square().sum().backward()
        optimiser.step()
    return network


def made(kind, seed=0, **options):
    make, cut, shape = KINDS[kind]
    torch.manual_seed(seed)
    network = build_parareal(make(), 2, example=torch.empty(shape), **cut, **options)
    return trained(network, shape), torch.randn(shape)


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(t, second[n]) and t.dtype == second[n].dtype for n, t in first.items()
    )


@pytest.mark.parametrize("correction", ["residual", "difference"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_users_network_comes_back_around_a_new_serial_one(tmp_path, kind, correction):
    network, x = made(kind, correction=correction, execution="parallel")
    save(network, tmp_path / "net")
    serial = KINDS[kind][0]()
    state = torch.get_rng_state()
    again = load(tmp_path / "net", serial)
    assert torch.equal(state, torch.get_rng_state())
    assert same(network, again)
    assert again.construction == network.construction
    assert (again.correction, again.execution) == (correction, "parallel")
    assert torch.equal(again.eval()(x), network.eval()(x))
    # The caller's modules are in it, and trained.
    whole = nn.ModuleList(serial) if isinstance(serial, list) else serial
    assert {id(p) for p in whole.parameters()} <= {id(p) for p in again.parameters()}
    for name, tensor in again.serial_state_dict().items():
        assert torch.equal(whole.state_dict()[name], tensor)


@pytest.mark.parametrize("of_images", [False, True])
@pytest.mark.parametrize("name", ["resnet8", "preact_resnet11"])
def test_our_models_come_back_by_name(tmp_path, name, of_images):
    torch.manual_seed(0)
    net = models.build(name, channels=1, classes=3, width=4)
    if of_images:
        network = models.build_parareal(net, (1, 8, 8), [1, 2], coarse_units=1, preprocess_units=None)
    else:
        network = build_parareal(partition(net, 2, example=torch.empty(2, 1, 8, 8)), coarse_budget=0.3)
    trained(network, (4, 1, 8, 8)).double()
    save(network, tmp_path)
    again = load(tmp_path)
    assert same(network, again)  # dtypes, too
    assert again.construction == network.construction
    x = torch.randn(2, 1, 8, 8).double()
    assert torch.equal(again.eval()(x), network.eval()(x))
    save(again, tmp_path / "second")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "second" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_supplied_maps_are_supplied_again(tmp_path):
    def maps():
        return [None, nn.Sequential(nn.Linear(3, 3), nn.ReLU())], [nn.Linear(3, 3)]

    network = build_parareal(blocks(), 2, example=torch.empty(2, 3), preprocess=maps()[0], coarse=maps()[1])
    save(network, tmp_path)
    with pytest.raises(ValueError, match=r"C\^2: got the record of 'supplied', expected it to be supplied"):
        load(tmp_path, blocks())
    preprocess, coarse = maps()
    again = load(tmp_path, blocks(), preprocess=preprocess, coarse=coarse)
    assert same(network, again)
    assert again.coarse[0] is coarse[0]


def test_compiled_and_measured_networks_are_saved_as_what_they_are(tmp_path):
    network, x = made("list", execution="auto")
    network(x)
    save(network, tmp_path)
    again = load(tmp_path, blocks())
    assert again.execution == "auto"
    assert again.measured == network.measured != {}
    network.execution = "serial"
    network.fine[0] = torch.compile(network.fine[0], backend="eager")
    save(network, tmp_path)
    network.fine[0] = network.fine[0]._orig_mod
    assert same(load(tmp_path, blocks()), network)


def test_config_is_readable_and_plain(tmp_path):
    from safetensors.torch import load_file

    network, _ = made("list")
    save(network, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["format"], config["version"], config["execution"]) == ("pyparareal-network", 1, "serial")
    assert config["construction"] == network.construction
    assert load_file(tmp_path / "model.safetensors").keys() == network.state_dict().keys()


def files(directory):
    return {name: (directory / name).read_bytes() for name in sorted(os.listdir(directory))}


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
@pytest.mark.parametrize("first", [True, False])
def test_a_failing_save_leaves_the_old_files_whole(tmp_path, monkeypatch, failing, failure, fails_at, first):
    network, _ = made("list")
    if not first:
        save(network, tmp_path)
    before = files(tmp_path)
    calls, real = [], getattr(os, failing)

    def fails(*args):
        calls.append(args)
        if len(calls) == fails_at:
            raise failure
        return real(*args)

    monkeypatch.setattr(os, failing, fails)
    with pytest.raises(type(failure)):
        save(made("list", seed=1)[0], tmp_path)
    monkeypatch.undo()
    assert len(calls) >= fails_at
    assert files(tmp_path) == before
    save(network, tmp_path)
    assert same(load(tmp_path, blocks()), network)


def test_a_save_killed_between_its_files_leaves_a_whole_network(tmp_path):
    old, new = (made("list", seed=seed)[0] for seed in (0, 1))
    save(old, tmp_path / "old")
    save(new, tmp_path / "new")
    for file in ("config.json", "model.safetensors"):
        mixed = tmp_path / f"mixed {file}"
        mixed.mkdir()
        for name, content in files(tmp_path / "old").items():
            (mixed / name).write_bytes(content if name != file else (tmp_path / "new" / file).read_bytes())
        assert same(load(mixed, blocks()), new if file == "model.safetensors" else old)
    (mixed / "config.json").unlink()
    assert same(load(mixed, blocks()), new)


def edited(path, **changes):
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | changes))


def flipped(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


C, M = "config.json", "model.safetensors"
DAMAGES = [
    (lambda d: edited(d / C, version=2, pyparareal="9.0"), r"config\.json: got version 2 .*by pyparareal 9.0, newer"),
    (lambda d: edited(d / C, version=0), r"config\.json: got version 0 of the format, expected 1$"),
    (lambda d: edited(d / C, format="other"), r"config\.json: not a saved parareal network"),
    (lambda d: edited(d / C, execution="batched"), r"config\.json: edited, execution differ from the record"),
    (lambda d: (d / C).write_text("{"), r"config\.json: not JSON"),
    (lambda d: (d / C).write_text("[]"), r"config\.json: not a saved parareal network"),
    (lambda d: (d / M).write_bytes((d / M).read_bytes()[:-10]), r"model\.safetensors: not a whole safetensors file"),
    (lambda d: (d / M).write_bytes(b""), r"model\.safetensors: not a whole safetensors file"),
    (lambda d: flipped(d / M), r"model\.safetensors: damaged, its content does not match its digest"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_files_are_refused(tmp_path, damage, message):
    save(made("list")[0], tmp_path)
    damage(tmp_path)
    serial = nn.Sequential(*blocks())
    before = copy.deepcopy(serial)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, serial)
    assert same(serial, before)


def test_somebody_elses_tensors_are_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / M)
    with pytest.raises(ValueError, match="not a saved parareal network"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file, expected the tensors"):
        load(tmp_path / "nowhere")


def longer():
    return nn.Sequential(*blocks(5))


def wider():
    return nn.Sequential(*blocks(width=4))


def without_norm():
    return nn.Sequential(*(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)) for _ in range(4)))


def transposed():
    net = nn.Sequential(*blocks())
    net[2][0] = nn.Linear(2, 4)  # as many parameters
    return net


OTHERS = [
    (longer, "of another network, names of block 4: nothing there, .'4',. here"),
    (wider, r"of another network, parameters of block 0: .18,. there, .28,. here"),
    (without_norm, r"of another network, parameters of block 0"),
    (transposed, r"nothing was changed: 'fine.1.1.0.weight': shape \(3, 3\) there, \(4, 2\) here; 'fine.1.1.0.bias'"),
    (lambda: nn.Sequential(*blocks()).double(), "'fine.0.0.0.weight': torch.float32 there, torch.float64 here.*more"),
    (lambda: None, "serial: got None, expected a new serial network"),
]


@pytest.mark.parametrize(("make", "message"), OTHERS)
def test_another_network_is_refused_and_not_changed(tmp_path, make, message):
    save(made("sequential")[0], tmp_path)
    serial = make()
    before = copy.deepcopy(serial)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, serial)
    assert serial is None or same(serial, before)


class Extra(nn.Linear):
    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    by_hand = PararealNetwork(blocks(), 1, preprocess=[nn.Identity()], coarse=[])
    extra = build_parareal([Extra(3, 3), nn.Linear(3, 3)], 2, example=torch.empty(2, 3))
    for network, kind, message in [
        (nn.Linear(3, 3), TypeError, "network: got Linear, expected a PararealNetwork"),
        (by_hand, ValueError, "network: got one put together by hand"),
        (extra, TypeError, r"network: got dict as 'fine.0.0._extra_state', expected tensors only"),
    ]:
        with pytest.raises(kind, match=message):
            save(network, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_a_kind_of_map_that_is_not_known_is_refused(tmp_path, monkeypatch):
    network, _ = made("list")
    network.construction["maps"][1]["what"] = "oracle"
    save(network, tmp_path)
    with pytest.raises(ValueError, match=r"C\^2: got the record of 'oracle', which is no kind of map known here"):
        load(tmp_path, blocks())
    monkeypatch.setattr(saving, "VERSION", 0)
    with pytest.raises(ValueError, match=r"got version 1 of the format, expected 0; written by pyparareal .*, newer"):
        load(tmp_path, blocks())
