# SPDX-License-Identifier: BSD-3-Clause
"""From a trained serial network to a parareal one and back: the serial names, strictly, and the warm start."""

import copy
import pickle

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from torch import nn  # noqa: E402
from user_networks import Named, Patches  # noqa: E402

from pyparareal.nn import PararealNetwork, build_parareal, models  # noqa: E402


def blocks():
    return [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh()) for _ in range(4)]


class Spare(Named):
    """With a layer that has no influence on the output."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Counts(nn.Linear):
    """A layer with state that is no tensor of fixed size."""

    seen = 0

    def get_extra_state(self):
        return torch.tensor(self.seen)

    def set_extra_state(self, state):
        self.seen = int(state)


def tied():
    net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    net[1].weight = net[0].weight
    return net


SERIAL = {
    "list": (blocks, None, {}, (5, 3)),
    "sequential": (lambda: nn.Sequential(*blocks()), None, {}, (5, 3)),
    "module list": (lambda: nn.ModuleList(blocks()), None, {}, (5, 3)),
    "named body": (Named, "inner.body", {}, (5, 4)),
    "patches": (Patches, "body", {}, (2, 1, 8, 8)),
    "resnet": (lambda: models.build("resnet8", channels=1, classes=3, width=4), None, {}, (2, 1, 8, 8)),
    "vgg": (lambda: models.build("vgg16_bn", channels=1, classes=3, width=2), None, {}, (2, 1, 32, 32)),
    "extra state": (lambda: nn.Sequential(*(Counts(3, 3) for _ in range(4))), None, {}, (5, 3)),
    "tied": (tied, None, {"balance": [2, 2]}, (5, 3)),
}


def cut(kind, net, **options):
    _, body, how, shape = SERIAL[kind]
    return build_parareal(net, 2, example=torch.empty(shape), body=body, **how, **options)


def whole(net):
    return nn.Sequential(*net) if isinstance(net, list | nn.ModuleList) else net


def changed(module):
    """Every parameter and statistic another one, so that a tensor under a wrong name shows."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    for m in module.modules():
        if isinstance(m, Counts):
            m.seen = int(torch.randint(1000, ()))


@pytest.mark.parametrize("mode", ["serial", "batched", "parallel"])
@pytest.mark.parametrize("kind", SERIAL)
def test_the_serial_network_is_recovered_under_its_own_names(kind, mode):
    make = SERIAL[kind][0]
    network = cut(kind, make())
    if mode != "batched" or kind not in ("named body", "resnet", "vgg"):  # no two parts of these are congruent
        network.execution = mode
    changed(network)
    for other in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        fresh = whole(make())
        fresh.load_state_dict(other.serial_state_dict(), strict=True)
        x = torch.randn(SERIAL[kind][3])
        assert torch.equal(fresh.eval()(x), network.serial().eval()(x))
    if kind == "extra state":
        assert [m.seen for m in fresh] == [m.seen for part in network.fine for m in part]


@pytest.mark.parametrize("kind", SERIAL)
def test_a_trained_serial_network_is_taken_over_by_name_or_by_sharing(kind):
    make = SERIAL[kind][0]
    trained = whole(make())
    changed(trained)
    network = cut(kind, make())
    maps = {n: t.clone() for n, t in network.state_dict().items() if n.startswith(("preprocess.1", "coarse"))}
    assert len(maps) >= 2
    network.load_serial_state_dict(trained.state_dict())
    x = torch.randn(SERIAL[kind][3])
    expected = trained.eval()(x)
    assert torch.equal(network.serial().eval()(x), expected)
    for n, t in maps.items():
        assert torch.equal(network.state_dict()[n], t)
    shared = cut(kind, make() if kind == "list" else trained)
    if kind != "list":
        assert torch.equal(shared.serial().eval()(x), expected)
        assert {id(p) for p in trained.parameters()} <= {id(p) for p in shared.parameters()}


def test_names_survive_compiled_parts():
    network = cut("sequential", whole(blocks()))
    expected = {n: t.clone() for n, t in network.serial_state_dict().items()}
    network.fine[1] = torch.compile(network.fine[1], backend="eager")
    assert list(network.serial_state_dict()) == list(expected)
    changed(network)
    network.load_serial_state_dict(expected)
    assert all(torch.equal(t, expected[n]) for n, t in network.serial_state_dict().items())


def test_tensors_without_influence_are_left_out_aloud():
    net = Spare()
    network = build_parareal(net, 2, example=torch.empty(5, 4), body="inner.body")
    with pytest.raises(ValueError, match=r"got none of the tensors 'spare.weight', 'spare.bias' of the serial network"):
        network.serial_state_dict()
    fresh = Spare()
    missing, unexpected = fresh.load_state_dict(network.serial_state_dict(strict=False), strict=False)
    assert (missing, unexpected) == (["spare.weight", "spare.bias"], [])
    network.load_serial_state_dict(Spare().state_dict())  # they may be there


def test_a_supplied_stem_replaces_that_of_the_serial_network():
    network = build_parareal(
        Named(), 2, example=torch.empty(5, 4), body="inner.body", preprocess=[nn.Linear(4, 6), None]
    )
    with pytest.raises(ValueError, match=r"got none of the tensors 'before', 'first.weight', 'first.bias'"):
        network.serial_state_dict()


WRONG = [
    (lambda s: s.pop("last.bias"), r"of another network, nothing was changed: 'last.bias' missing"),
    (lambda s: s.update(more=s["before"]), r"nothing was changed: 'more' unknown"),
    (lambda s: s.update(before=torch.zeros(7)), r"got shape \(7,\) of 'before', expected \(6,\); nothing was changed"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_another_networks_state_is_refused_and_nothing_changed(spoil, message):
    network = cut("named body", Named())
    before = {n: t.clone() for n, t in network.state_dict().items()}
    state = Named().state_dict()
    spoil(state)
    with pytest.raises(ValueError, match=message):
        network.load_serial_state_dict(state)
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())
    if "shape" not in message:
        network.load_serial_state_dict(state, strict=False)
        assert torch.equal(network.serial_state_dict()["first.weight"], state["first.weight"])


def test_a_network_put_together_by_hand_has_no_serial_names():
    network = PararealNetwork(blocks(), 1, preprocess=[nn.Identity()], coarse=[])
    for call in (network.serial_state_dict, lambda: network.load_serial_state_dict({})):
        with pytest.raises(ValueError, match="got one put together by hand"):
            call()
