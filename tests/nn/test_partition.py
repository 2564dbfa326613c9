# SPDX-License-Identifier: BSD-3-Clause
"""Partitions: optimal among all of them, costs by formula, nothing changed, and the same again from their record."""

import json
from collections import OrderedDict
from itertools import accumulate, combinations, pairwise

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from user_networks import Named  # noqa: E402

from pyparareal.nn import PararealNetwork, Partition, models, partition  # noqa: E402
from pyparareal.nn import costs as cost_module  # noqa: E402
from pyparareal.nn.balance import balanced_sizes  # noqa: E402
from pyparareal.nn.parareal_network import part_sizes  # noqa: E402


def sums(costs, sizes):
    return [sum(costs[a:b]) for a, b in pairwise([0, *accumulate(sizes)])]


def brute_force(costs, parts, allowed=None):
    """The best of all partitions: smallest largest part, smallest sum of squares, longest groups first."""
    cuts = range(1, len(costs)) if allowed is None else sorted(allowed)
    every = [tuple(b - a for a, b in pairwise([0, *chosen, len(costs)])) for chosen in combinations(cuts, parts - 1)]

    def worth(sizes):
        parts = sums(costs, sizes)
        return -max(parts), -sum(p * p for p in parts), sizes

    return max(every, key=worth)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_partition_is_the_best_of_all(data):
    costs = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=9))
    parts = data.draw(st.integers(1, len(costs)))
    assert balanced_sizes(costs, parts) == brute_force(costs, parts)


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 18, 54])
def test_equal_costs_give_equal_parts_the_longer_ones_first(parts):
    assert balanced_sizes([5] * 54, parts) == part_sizes(54, parts)


def test_large_costs_are_compared_exactly():
    big = 2**60  # beyond the integers that float64 tells apart
    assert balanced_sizes([big, 2, big, 1], 2) == (2, 2)
    assert balanced_sizes([big, 1, big, 2], 2) == (2, 2)
    assert balanced_sizes([big, 2, 1, big], 2) == (2, 2)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=4, max_size=7), st.integers(1, 3), st.sampled_from(["params", "flops"]))
def test_partition_of_a_network_is_the_best_of_all(widths, parts, balance):
    blocks = [nn.Linear(a, b) for a, b in pairwise(widths)]
    price = {
        "params": [(a + 1) * b for a, b in pairwise(widths)],
        "flops": [2 * 5 * a * b for a, b in pairwise(widths)],
    }
    cut = partition(blocks, parts, balance, example=torch.empty(5, widths[0]))
    assert cut.sizes == brute_force(price[balance], parts)
    assert {"params": cut.parameters, "flops": cut.flops}[balance] == tuple(price[balance])


def test_costs_and_shapes_by_formula():
    batch = 3
    blocks = [
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 1),
        nn.Flatten(),
        nn.Linear(36, 5),
    ]
    cut = partition(blocks, 3, example=torch.empty(batch, 2, 6, 6))
    convolution, pointwise, linear = 2 * batch * 36 * 6 * 2 * 9, 2 * batch * 9 * 4 * 6, 2 * batch * 36 * 5
    assert cut.flops == (convolution, 0, 0, pointwise, 0, linear)
    assert cut.parameters == (6 * 2 * 9 + 6, 0, 0, 4 * 6 + 4, 0, 36 * 5 + 5)
    assert cut.shapes == ((3, 2, 6, 6), (3, 6, 6, 6), (3, 6, 6, 6), (3, 6, 3, 3), (3, 4, 3, 3), (3, 36), (3, 5))
    # The pooling goes with the cheap blocks behind it or with the dear one before: longest first group.
    assert cut.sizes == (3, 2, 1)
    assert cut.interfaces == ((3, 2, 6, 6), (3, 6, 3, 3), (3, 36), (3, 5))
    assert cut.part_flops == (convolution, pointwise, linear)
    assert cut.groups == (tuple(blocks[:3]), tuple(blocks[3:5]), (blocks[5],))


@pytest.mark.parametrize("balance", ["flops", "params", "time", (3, 1, 5)])
def test_costs_of_the_parts_add_up_to_those_of_the_blocks(balance):
    net = models.build("resnet20", channels=1, classes=10, width=4)
    cut = partition(net, 3, balance, example=torch.randn(2, 1, 8, 8))
    _, body, _ = net.split()
    assert sum(cut.part_parameters) == sum(p.numel() for block in body for p in block.parameters())
    assert sum(cut.part_flops) == sum(cut.flops)
    assert sum(cut.sizes) == 9
    assert (cut.seconds is not None) == (balance == "time")
    if balance == "time":
        assert min(cut.seconds) > 0
        assert sum(cut.part_seconds) == pytest.approx(sum(cut.seconds))


def test_measured_times_decide_and_are_not_measured_again(monkeypatch):
    net = models.build("resnet20", channels=1, classes=10, width=4)
    seconds = (5e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3)
    monkeypatch.setattr(cost_module, "measure_seconds", lambda *_: seconds)
    cut = partition(net, 3, "time", example=torch.randn(2, 1, 8, 8))
    assert cut.sizes == (1, 4, 4)
    monkeypatch.setattr(cost_module, "measure_seconds", None)
    again = Partition.from_config(json.loads(json.dumps(cut.to_config())), net)
    assert again == cut
    assert again.groups == cut.groups


def whole(cut):
    return nn.Sequential(cut.chain.stem, *cut.chain.blocks, cut.chain.head)


def test_named_body_leaves_the_network_as_it_is():
    net = Named()
    x = torch.randn(5, 4)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    cut = partition(net, 2, example=x, body="inner.body", balance="params")
    assert torch.equal(torch.get_rng_state(), state)
    assert cut.names == ("inner.body.0", "inner.body.1", "inner.body.2")
    assert cut.sizes == (2, 1)
    assert torch.equal(whole(cut)(x), net(x))
    assert {id(p) for p in whole(cut).parameters()} == {id(p) for p in net.parameters()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert net.training
    assert net(x, torch.zeros(6)).shape == (5, 3)


@pytest.mark.parametrize("body", ["layer2", ["layer1", "layer2"], ["layer1", "layer2", "layer3"], None])
def test_body_of_a_residual_network(body):
    net = models.build("resnet20", channels=1, classes=10, width=4).eval()
    x = torch.randn(2, 1, 8, 8)
    cut = partition(net, 3, example=x, body=body)
    assert torch.equal(whole(cut)(x), net(x))
    assert [name.split(".")[0] for name in cut.names[::3]] == (
        [body] if isinstance(body, str) else body or ["layer1", "layer2", "layer3"]
    )
    assert Partition.from_config(json.loads(json.dumps(cut.to_config())), net) == cut


def test_body_inside_a_sequential_gives_plain_modules():
    net = nn.Sequential(
        OrderedDict(a=nn.Linear(2, 3), body=nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), c=nn.Linear(3, 1))
    )
    cut = partition(net, 2, example=torch.empty(1, 2), body="body")
    assert [type(m) for m in (cut.chain.stem, cut.chain.head)] == [nn.Sequential, nn.Sequential]
    assert (*cut.chain.stem, *cut.chain.blocks, *cut.chain.head) == (net.a, *net.body, net.c)


def test_split_points_of_torch_give_the_same_cuts_by_name():
    pipelining = pytest.importorskip("torch.distributed.pipelining")
    point = pipelining.SplitPoint
    net = models.build("resnet20", channels=1, classes=10, width=4)
    for spec, sizes in [
        ({"layer2": point.BEGINNING, "layer3.1": point.END}, (3, 5, 1)),
        ({"layer1.0": point.END, "layer2": point.END, "layer3.2": "BEGINNING"}, (1, 5, 2, 1)),
    ]:
        cut = partition(net, example=torch.empty(2, 1, 8, 8), split_spec=spec)
        assert (cut.sizes, cut.balance) == (sizes, "split_spec")


def test_a_network_without_meta_functions_is_followed_with_values_and_left_as_it_is():
    class NeedsValues(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x) * float(x.abs().max())

    blocks = [nn.Linear(3, 4), NeedsValues(4), nn.Dropout(), nn.Linear(4, 5)]
    x = torch.randn(6, 3)
    state = torch.get_rng_state()
    cut = partition(blocks, 2, example=x)
    assert cut.shapes == ((6, 3), (6, 4), (6, 4), (6, 4), (6, 5))
    assert cut.flops == (2 * 6 * 3 * 4, 0, 0, 2 * 6 * 4 * 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert blocks[1].num_batches_tracked == 0


def tied(first, second, count=5):
    """Linear blocks of which two have one weight."""
    blocks = [nn.Linear(3, 3) for _ in range(count)]
    blocks[second].weight = blocks[first].weight
    return blocks


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_tied_blocks_stay_in_one_part(parts):
    cut = partition(tied(1, 3), parts, "params", example=torch.empty(2, 3))
    assert not {2, 3} & set(accumulate(cut.sizes))
    # The shared weight is counted once: bias alone in block 3.
    assert cut.parameters == (12, 12, 12, 3, 12)
    assert cut.sizes == brute_force(cut.parameters, parts, allowed={1, 4})


def same_memory():
    blocks = [nn.Linear(3, 3) for _ in range(3)]
    blocks[2].weight = nn.Parameter(blocks[0].weight.data)
    return blocks


def same_buffer():
    blocks = [nn.BatchNorm1d(3) for _ in range(3)]
    blocks[2].running_mean = blocks[0].running_mean
    return blocks


def same_block():
    block = nn.Linear(3, 3)
    return [block, nn.Linear(3, 3), block]


@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda: tied(0, 2, 3), "weight"), (same_memory, "weight"), (same_buffer, "running_mean"), (same_block, "weight")],
)
def test_tied_blocks_that_would_be_separated_are_refused_naming_both(make, name):
    words = rf"'block 0: {name}' and 'block 2: {name}' are one tensor"
    with pytest.raises(ValueError, match=rf"parts: got 2, expected at most 1 .*{words}"):
        partition(make(), 2, "params", example=torch.empty(2, 3))
    with pytest.raises(ValueError, match=rf"part 2: got block number 1 as its first.*{words}"):
        partition(make(), 2, [1, 2], example=torch.empty(2, 3))


def test_a_head_tied_to_the_stem_leaves_one_part():
    net = Named()
    net.after = net.before
    with pytest.raises(ValueError, match="'stem: before' and 'head: before' are one tensor"):
        partition(net, 2, example=torch.empty(2, 4), body="inner.body")


def row(inplace):
    torch.manual_seed(3)
    relu = nn.ReLU(inplace)
    return [nn.Linear(3, 4), nn.Flatten(), relu, nn.Linear(4, 4), nn.Linear(4, 2)]


def network(blocks, sizes):
    torch.manual_seed(4)
    guesses = [nn.Linear(3, 4) for _ in sizes[1:]]
    coarse = [nn.Linear(4, 4) for _ in sizes[2:]] + [nn.Linear(4, 2)]
    return PararealNetwork(blocks, sizes, preprocess=[nn.Identity(), *guesses], coarse=coarse)


def test_where_a_part_must_not_begin_in_place_the_partition_cuts_elsewhere():
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="changes its input in place"):
        network(row(True), (2, 3))(x)
    sizes = partition(row(True), 2, example=x).sizes
    assert torch.equal(network(row(True), sizes)(x), network(row(False), sizes)(x))


def test_no_part_begins_in_place_neither_directly_nor_through_a_view():
    example = torch.empty(2, 3)
    price = [2 * 2 * 3 * 4, 0, 0, 2 * 2 * 16, 2 * 2 * 8]
    for parts in (1, 2, 3):
        assert partition(row(True), parts, example=example).sizes == brute_force(price, parts, allowed={3, 4})
        assert partition(row(False), parts, example=example).sizes == brute_force(price, parts)
    for sizes, block in [((2, 3), r"2 \(ReLU\)"), ((1, 4), r"1 \(Flatten\)")]:
        with pytest.raises(
            ValueError, match=rf"begins with block {block} overwrites its input in place.*inplace=False"
        ):
            partition(row(True), None, sizes, example=example)
    assert partition(row(False), None, (1, 1, 3), example=example).parts == 3


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True))])
def test_a_first_part_that_overwrites_the_raw_input_is_refused(first):
    blocks = [first, nn.Linear(3, 3), nn.Linear(3, 3)]
    assert partition(blocks, 1, example=torch.empty(2, 3)).parts == 1
    with pytest.raises(ValueError, match="stem: overwrites the raw input in place"):
        partition(blocks, 2, example=torch.empty(2, 3))


def test_table_names_what_every_part_costs():
    net = models.build("resnet20", channels=1, classes=10, width=4)
    cut = partition(net, 3, example=torch.empty(2, 1, 8, 8), body=["layer1", "layer2", "layer3"])
    header, *rows, note = str(cut).splitlines()
    assert header.split() == [
        "part",
        "blocks",
        "first",
        "..",
        "last",
        "parameters",
        "MFLOP",
        "of",
        "largest",
        "ms",
        "output",
    ]
    for j, line in enumerate(rows):
        cells = line.split()
        assert cells[:2] == [str(j + 1), str(cut.sizes[j])]
        assert f"{cut.part_parameters[j]:,}" in cells
        assert f"{cut.part_flops[j] / 1e6:,.3f}" in cells
    assert len(rows) == 3
    assert note == "balanced by flops; forward FLOPs of a batch of 2"
