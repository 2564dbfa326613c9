# SPDX-License-Identifier: BSD-3-Clause
"""Maps made from interface shapes: right shapes, everything seen, within the budget, for networks of any kind."""

import json

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from user_networks import Named, Patches  # noqa: E402

from pyparareal.nn import Partition, automatic_maps, build_parareal, models, partition  # noqa: E402
from pyparareal.nn.cheap_maps import candidates  # noqa: E402

SHAPES = [
    ((3, 8, 8), (5, 8, 8)),
    ((3, 8, 8), (4, 2, 2)),
    ((3, 9, 7), (4, 4, 3)),  # no whole stride
    ((4, 2, 2), (2, 4, 4)),  # finer
    ((2, 4, 4, 4), (3, 2, 2, 2)),
    ((7,), (5,)),
    ((6, 4), (6, 9)),
    ((6, 4), (3, 9)),
    ((3, 9, 9), (5,)),
    ((6, 4), (5,)),
    ((5,), (2, 3, 3)),
]


@pytest.mark.parametrize(("source", "target"), SHAPES)
@pytest.mark.parametrize("signed", [False, True])
def test_every_map_has_the_shape_sees_everything_and_keeps_zero(source, target, signed):
    options = list(candidates(source, target, signed=signed, relu=not signed))
    assert len(options) >= 2
    for what, make in options:
        torch.manual_seed(2)
        module = make().eval()
        x = torch.randn(3, *source, requires_grad=True)
        y = module(x)
        assert y.shape == (3, *target), what
        (gradient,) = torch.autograd.grad((y * torch.randn_like(y)).sum(), x)
        if signed:
            # A linear map, or convolutions and norms that begin without an offset: no residual, no correction.
            assert not module(torch.zeros(1, *source)).any(), what
            assert bool((gradient.abs().sum(0) > 0).all()), what
        else:
            assert not (y < 0).any(), what


@pytest.mark.parametrize(
    ("source", "target"), [((2, 4, 4), (3, 2, 2)), ((2, 4, 4), (2, 4, 4)), ((5,), (5,)), ((4, 3), (4, 3))]
)
def test_coarse_nets_carry_the_correction_on(source, target):
    torch.manual_seed(2)
    r = torch.randn(3, *source)
    carried = r if source == target else F.pad(F.avg_pool2d(r, 2), (0, 0, 0, 0, 0, 1))
    for what, make in candidates(source, target, signed=True):
        net = make()
        assert what.startswith("shortcut + ")
        assert torch.allclose(net(r) - net.inner(r), carried, atol=1e-5)  # a sum of values below 10, and its difference
    assert not any("shortcut" in what for what, _ in candidates(source, target))


def test_signals_are_convolved_and_sequences_mapped_token_by_token():
    kinds = {}
    for channels_first in (True, False):
        kinds[channels_first] = [make() for _, make in candidates((4, 10), (6, 5), channels_first=channels_first)]
    assert any(isinstance(m, nn.Conv1d) for m in kinds[True][0].modules())
    assert not any(isinstance(m, nn.Conv1d) for net in kinds[False] for m in net.modules())
    token = next(make() for _, make in candidates((5, 4), (5, 6)))
    x = torch.randn(2, 5, 4)
    assert torch.allclose(token(x)[:, 2], token(x[:, 2:3])[:, 0], atol=1e-6)  # sums of 4 products, of size 1


class Tokens(nn.Module):
    """A small transformer encoder of token numbers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(4)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        u = self.embedding(x)
        for layer in self.layers:
            u = layer(u)
        return self.head(u.mean(1))


def image_classifier():
    convolutions = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(True)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 3))


def signal_classifier():
    layers = [nn.Conv1d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 6, 3, 2, 1), nn.ReLU(), nn.Conv1d(6, 8, 3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3))


def decoder():
    return nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Unflatten(1, (2, 4, 4)), nn.ConvTranspose2d(2, 3, 2, 2))


NETWORKS = {
    "vectors": (lambda: nn.Sequential(*(nn.Linear(9, 9) for _ in range(6))), lambda: torch.randn(4, 9), {}),
    "named body": (Named, lambda: torch.randn(4, 4), {"body": "inner.body"}),
    "tokens": (Tokens, lambda: torch.randint(11, (4, 6)), {"body": "layers"}),
    "images": (image_classifier, lambda: torch.randn(4, 1, 8, 8), {}),
    "patches": (Patches, lambda: torch.randn(4, 1, 8, 8), {"body": "body"}),
    "signals": (signal_classifier, lambda: torch.randn(4, 2, 12), {}),
    "decoder": (decoder, lambda: torch.randn(4, 5), {}),
    "resnet": (
        lambda: models.build("resnet20", channels=1, classes=3, width=4),
        lambda: torch.randn(4, 1, 8, 8),
        {"balance": "params"},
    ),
}


@pytest.mark.parametrize("correction", ["residual", "difference"])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("kind", NETWORKS)
def test_any_network_gets_a_parareal_version_that_trains(kind, parts, correction):
    make, draw, options = NETWORKS[kind]
    torch.manual_seed(1)
    net, x = make(), draw()
    parareal = build_parareal(net, parts, example=x, correction=correction, **options)
    own, of_both = ({id(p) for p in m.parameters()} for m in (net, parareal))
    assert own <= of_both
    assert torch.equal(parareal.serial().eval()(x), net.eval()(x))
    assert parareal.parts == parts
    parareal.train()
    y = parareal(x)
    assert y.shape == net(x).shape
    (y * torch.randn_like(y)).sum().backward()
    unused = [name for name, p in parareal.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert unused == []


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("budget", [0.02, 0.2, 2.0])
def test_costs_are_those_of_the_maps_and_within_the_budget_where_that_is_possible(kind, budget):
    make, draw, options = NETWORKS[kind]
    x = draw()
    cut = partition(make(), 3, example=x, **options)
    maps = automatic_maps(cut, budget=budget)
    mean = sum(cut.part_flops) / 3
    states = [torch.randn(shape) for shape in cut.interfaces]
    calls = [(c, x) for c in maps.preprocess] + list(zip(maps.coarse, states[1:], strict=False))
    assert [cost.name for cost in maps.costs] == ["C^1", "C^2", "C^3", "F^1", "F^2"]
    for cost, (module, u) in zip(maps.costs, calls, strict=True):
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            y = module(u)
        assert counter.get_total_flops() == cost.flops
        assert sum(p.numel() for p in module.parameters()) == cost.parameters
        assert cost.relative == pytest.approx(cost.flops / mean)
        assert (cost.source, cost.target) == (tuple(u.shape[1:]), tuple(y.shape[1:]))
    over = {cost.name for cost in maps.costs[1:] if cost.relative > budget}
    for j, cost in enumerate(maps.costs[3:], start=1):
        signals = kind == "signals"
        options_j = candidates(cost.source, cost.target, channels_first=signals, signed=True)
        every = [flops_of(make_j(), states[j]) for _, make_j in options_j]
        fitting = [flops for flops in every if flops <= budget * mean]
        assert cost.flops == (fitting[0] if fitting else min(every))
        assert (cost.name in over) == (not fitting)
    assert str(maps).count("(over budget)") == len(over)


def flops_of(module, x):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(x)
    return counter.get_total_flops()


def test_a_linear_network_with_supplied_ideal_coarse_nets_is_the_serial_network():
    torch.manual_seed(0)
    blocks = [nn.Linear(a, b, bias=False) for a, b in ((5, 5), (5, 6), (6, 4))]
    x = torch.randn(3, 5)
    net = build_parareal(blocks, 3, example=x, coarse=blocks[1:])
    assert list(net.coarse) == blocks[1:]
    # Sums of at most 3 * 6 terms of size 1 in float32: 18 * 2**-24 = 1e-6, ten times that for their order.
    assert torch.allclose(net(x), net.serial()(x), atol=1e-5)
    guess = nn.Linear(5, 5)
    net = build_parareal(blocks, 3, example=x, preprocess=[None, guess, None])
    assert net.preprocess[1] is guess


def test_guesses_end_with_relu_exactly_where_the_part_before_does():
    for name, expected in [("resnet29", False), ("resnet20", True)]:
        net = models.build(f"preact_{name}" if not expected else name, channels=1, classes=3, width=4)
        guess = build_parareal(net, 3, example=torch.empty(2, 1, 8, 8)).preprocess[1]
        assert isinstance(list(guess.modules())[-1], nn.ReLU) == expected
        assert any(isinstance(m, nn.ReLU) for m in guess) == expected


def test_a_guess_of_another_kind_than_the_input_has_a_stem_of_its_own():
    net = Patches()
    maps = automatic_maps(partition(net, 2, example=torch.empty(2, 1, 8, 8), body="body"), budget=0.5)
    stem, guess = maps.preprocess
    assert maps.costs[1].what.startswith("copy of the stem, linear")
    assert sorted(stem.state_dict()) == sorted(guess[0].state_dict())
    assert not {id(p) for p in net.parameters()} & {id(p) for p in guess.parameters()}


def test_record_is_json_and_makes_the_same_network_again():
    net = models.build("resnet20", channels=1, classes=3, width=4)
    torch.manual_seed(3)
    first = build_parareal(net, 3, example=torch.empty(2, 1, 8, 8, device="meta"))
    record = json.loads(json.dumps(first.construction))
    torch.manual_seed(3)
    second = build_parareal(Partition.from_config(record["partition"], net), coarse_budget=record["budget"])
    assert second.construction == first.construction
    assert [cost["name"] for cost in record["maps"]] == ["C^1", "C^2", "C^3", "F^1", "F^2"]
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(first(x), second(x))


def test_maps_have_the_dtype_of_the_network():
    net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4))).double()
    parareal = build_parareal(net, 2, example=torch.empty(2, 3).double())
    assert {p.dtype for p in parareal.parameters()} == {torch.float64}


def linears():
    return [nn.Linear(3, 3) for _ in range(4)]


X = torch.empty(2, 3)
WRONG = [
    ({"example": None}, TypeError, "example: got None, expected a tensor"),
    ({"coarse_budget": 0}, ValueError, "budget: got 0, expected a positive share"),
    ({"coarse": []}, ValueError, "coarse: got 0 maps, expected 1, None where one is to be made"),
    ({"preprocess": [None]}, ValueError, "preprocess: got 1 maps, expected 2"),
    ({"coarse": ["linear"]}, TypeError, r"coarse\[0\]: got str, expected a torch.nn.Module or None"),
    (
        {"coarse": [nn.Linear(3, 1)]},
        ValueError,
        r"F\^1: output of the supplied map: got shape \(2, 1\), expected \(2, 3\)",
    ),
    ({"preprocess": [None, nn.Linear(3, 2)]}, ValueError, r"C\^2: output of the supplied map: got shape \(2, 2\)"),
    ({"correction": "newton"}, ValueError, "correction: got 'newton'"),
    (
        {"module": nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 3)), "balance": "params", "example": X.long()},
        ValueError,
        r"C\^2: got states of torch.int64 before the first part.*embedding part of the stem",
    ),
]


@pytest.mark.parametrize(("changed", "kind", "message"), WRONG)
def test_wrong_argument(changed, kind, message):
    usual = {"module": linears(), "parts": 2, "example": X}
    with pytest.raises(kind, match=message):
        build_parareal(**(usual | changed))


def test_partition_together_with_parts_is_refused():
    cut = partition(linears(), 2, example=X)
    with pytest.raises(ValueError, match="module: got a Partition, expected no parts"):
        build_parareal(cut, 2)
