# SPDX-License-Identifier: BSD-3-Clause
"""Learning rate and examples of every level, as in the paper's variants."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from networks import examples, mlp  # noqa: E402
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset  # noqa: E402

from pyparareal.training import PRESETS, Rules, TrainingRuns  # noqa: E402
from pyparareal.training.data import Examples, read  # noqa: E402


def test_learning_rates():
    def rates(rules, m=2, base=1.0):
        return [rules.alpha(base, level, m**level) for level in range(5)]

    assert rates(PRESETS["naive"]) == [1, 1, 1, 1, 1]
    assert rates(PRESETS["solver1"]) == rates(PRESETS["solver2"]) == [1, 2, 4, 8, 16]
    assert rates(PRESETS["slow"]) == [1.25**level for level in range(5)]
    assert rates(dataclasses.replace(PRESETS["solver1"], alpha_max=6.0)) == [1, 2, 4, 6, 6]
    assert rates(PRESETS["solver1"], m=3) == [1, 3, 9, 27, 81]
    assert rates(Rules(growth=2.0, alpha_max=1.0), m=3, base=0.5) == [0.5, 1, 1, 1, 1]


# Fine steps see batches 0 1 2 | 0 1 2 | ...; points 0, 1, 2, 3, 4 of a level with two fine steps per step.
@pytest.mark.parametrize(
    ("data", "expected"),
    [("serial", [0, 1, 2, 0, 1]), ("injected", [0, 2, 1, 0, 2]), ("averaged", [0.5, 1, 1.5, 0.5, 1])],
)
def test_data_of_a_coarse_level(data, expected):
    x = torch.tensor([[0.0], [1], [2]])
    found = read((x, x), Rules(data=data), 12)
    inputs, targets, own = found.batch(Rules(data=data), 1, range(0, 5), 2, 0)
    assert own
    assert inputs.shape == targets.shape == (5, 1, 1)
    assert inputs.flatten().tolist() == targets.flatten().tolist() == expected


@pytest.mark.parametrize("data", ["serial", "injected", "averaged"])
@pytest.mark.parametrize("offset", [0, 4])
def test_all_rules_agree_on_the_finest_level(data, offset):
    x = torch.arange(7.0)[:, None]
    rules = Rules(data=data, batch=2)
    inputs, _, _ = read((x, x), rules, 12).batch(rules, 0, range(1, 8, 3), 1, offset)
    # Batches (0 1) (2 3) (4 5); example 6 is in none.
    assert inputs.flatten().tolist() == [
        x for i in (1, 4, 7) for x in ((2 * (i + offset)) % 6, (2 * (i + offset)) % 6 + 1)
    ]


def test_a_rule_of_ones_own_sees_levels_points_and_strides():
    seen = []

    def rule(level, points, stride):
        seen.append((level, points.tolist(), stride))
        return [[int(i) % 4, 3] for i in points]

    x, y = examples(4)
    inputs, _, own = Examples(x, y).batch(Rules(data=rule), 2, range(0, 8, 4), 4, 8)
    assert own
    assert seen == [(2, [2, 6], 4)]
    assert torch.equal(inputs, x[torch.tensor([[2, 3], [2, 3]])])


@pytest.mark.parametrize("answer", [[0, 1], [[0.5], [1.0]], [[0], [4]], [[0]]])
def test_a_wrong_rule_is_refused(answer):
    runs = TrainingRuns(mlp(), torch.nn.MSELoss(), examples(4), steps=8, lr=0.1, rules="solver1")
    with pytest.raises(ValueError, match="data: the rule returned"):
        runs.examples.batch(Rules(data=lambda *_: answer), 0, range(2), 1, 0)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            lambda level, points, stride: torch.arange(len(points))[:, None] % 4,
            "point 1 of level 0 when asked again or",
        ),
        (lambda level, points, stride: torch.randint(4, (len(points), 30)), "point 0 of level 0 when asked again or"),
        (lambda level, points, stride: [[len(points) * level % 4] for _ in points], "point 0 of level 1 when asked"),
        (lambda level, points, stride: None, "the rule returned NoneType, expected int64"),
        (lambda level, points, stride: [["a"]] * len(points), "the rule returned list, expected int64"),
        (
            lambda level, points, stride: torch.zeros(len(points), 0, dtype=torch.int64),
            r"returned torch.int64 \[16, 0\]",
        ),
    ],
)
def test_a_rule_that_is_no_function_of_the_point_is_refused(rule, said):
    """Serial training asks for one point at a time, the solver for many: they would see other examples."""
    with pytest.raises(ValueError, match=f"data: .*{said}"):
        TrainingRuns(mlp(), torch.nn.MSELoss(), examples(4), steps=40, lr=0.1, rules=Rules(data=rule))


def test_a_loader_is_read_in_its_own_order():
    x, y = examples(12)

    def loader():
        generator = torch.Generator().manual_seed(3)
        return DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=generator)

    given, twin = loader(), loader()
    found = read(given, Rules(data="injected"), 7)
    batches = [batch for _ in range(3) for batch in twin]  # three epochs of three batches hold seven steps
    for i, (a, b) in enumerate(batches):
        inputs, targets, _ = found.batch(Rules(data="injected"), 0, range(i, i + 1), 1, 0)
        assert torch.equal(inputs[0], a)
        assert torch.equal(targets[0], b)
    assert torch.equal(given.generator.get_state(), twin.generator.get_state())


def test_loaders_whose_order_cannot_be_had_again_are_refused():
    pairs, more = TensorDataset(*examples(12)), {"steps": 6, "lr": 0.1, "rules": "solver2"}

    def refused(loader, said, **options):
        with pytest.raises(ValueError, match=said):
            TrainingRuns(mlp(), torch.nn.MSELoss(), loader, **{**more, **options})

    refused(DataLoader(pairs, batch_size=4, shuffle=True), "shuffles without a generator")
    sampler = torch.utils.data.WeightedRandomSampler(torch.ones(12), 12)
    refused(DataLoader(pairs, batch_size=4, sampler=sampler), "WeightedRandomSampler, whose order")
    refused(DataLoader(pairs, batch_size=5), "drop_last=True")
    refused(DataLoader(pairs, batch_size=4), "DataLoader for the rule 'full'", rules="solver1")
    refused(DataLoader(pairs, batch_sampler=BatchSampler(RandomSampler(pairs), 4, True)), "without a generator")
    refused(DataLoader(pairs, batch_sampler=[[0, 1], [2, 3]]), "DataLoader with list, whose order")
    refused(DataLoader(pairs, batch_size=None), "batch_size=None")
    runs = TrainingRuns(mlp(), torch.nn.MSELoss(), DataLoader(pairs, batch_size=4), **more)
    assert runs.examples.order.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_a_batch_sampler_of_a_generator_gives_its_order():
    pairs = TensorDataset(*examples(12))

    def loader():
        sampler = RandomSampler(pairs, generator=torch.Generator().manual_seed(3))
        return DataLoader(pairs, batch_sampler=BatchSampler(sampler, 4, True))

    found = read(loader(), Rules(data="serial"), 3)
    for chosen, (x, _) in zip(found.order, loader(), strict=True):
        assert torch.equal(found.x[chosen], x)


class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        return torch.randn(3), torch.zeros(2)


class Rare(torch.utils.data.Dataset):
    """Random in its last example alone."""

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return torch.randn(3) if i == 11 else torch.ones(3), torch.zeros(2)


def centred(batch):
    x, y = (torch.stack(part) for part in zip(*batch, strict=True))
    return x - x.mean(0), y


@pytest.mark.parametrize(
    ("dataset", "more"), [(Noisy(), {}), (Rare(), {}), (TensorDataset(*examples(12)), {"collate_fn": centred})]
)
def test_examples_that_are_not_fixed_are_refused(dataset, more):
    with pytest.raises(ValueError, match="data: got a DataLoader whose examples are others"):
        read(DataLoader(dataset, batch_size=4, **more), Rules(data="serial"), 6)


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"rules": "solver3"}, ValueError, "rules: got 'solver3', expected Rules or one of naive, solver1"),
        ({"rules": 1}, TypeError, "rules: got int"),
        ({"data": [1, 2, 3]}, TypeError, "data: got list"),
        ({"data": (torch.zeros(3, 3), torch.zeros(2, 2))}, ValueError, "expected as many"),
        ({"rules": Rules(data="serial", batch=17)}, ValueError, "batch: got 17, expected at most the 16"),
    ],
)
def test_wrong_data_and_rules_are_refused(wrong, error, said):
    options = {"data": examples(), "rules": "solver2"} | wrong
    with pytest.raises(error, match=said):
        TrainingRuns(mlp(), torch.nn.MSELoss(), options.pop("data"), steps=4, lr=0.1, **options)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_data_that_are_not_finite_are_no_fault_of_the_learning_rate(part, value):
    data = examples(12)
    data[part][7, 1] = value
    said = f"data: got {('inputs', 'targets')[part]} with NaN or infinity, first in example 7"
    for given in (data, DataLoader(TensorDataset(*data), batch_size=4)):
        with pytest.raises(ValueError, match=said):
            TrainingRuns(mlp(), torch.nn.MSELoss(), given, steps=4, lr=0.1, rules="solver2")


def test_classes_are_not_averaged():
    data, loss = (examples(12)[0], torch.arange(12) % 2), torch.nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match="data: got int64 targets for the rule 'averaged', but the mean of classes"):
        TrainingRuns(mlp(), loss, data, steps=8, lr=0.1, rules=Rules(data="averaged", batch=4))
    runs = TrainingRuns(mlp(), loss, data, steps=8, lr=0.1, rules=Rules(data="injected", batch=4))
    assert runs.run().status.ok
    words = (torch.arange(12)[:, None] % 5, examples(12)[1])
    net = torch.nn.Sequential(torch.nn.Embedding(5, 2), torch.nn.Flatten()).double()
    with pytest.raises(
        ValueError, match="data: got int64 inputs for the rule 'averaged', but the mean of such numbers"
    ):
        TrainingRuns(net, torch.nn.MSELoss(), words, steps=8, lr=0.1, rules=Rules(data="averaged", batch=4))


def test_sparse_data_are_refused():
    x, y = examples(12)
    with pytest.raises(ValueError, match="data: got a sparse tensor, expected dense ones"):
        TrainingRuns(mlp(), torch.nn.MSELoss(), (x.to_sparse(), y), steps=8, lr=0.1)


def test_the_data_are_the_runs_own():
    data = examples(12)
    before = [part.clone() for part in data]
    runs = TrainingRuns(mlp(), torch.nn.MSELoss(), data, steps=4, lr=0.1)
    for part in data:
        part.zero_()
    assert torch.equal(runs.examples.x, before[0])
    assert torch.equal(runs.examples.y, before[1])


@pytest.mark.parametrize(
    "wrong",
    [{"growth": 0.0}, {"growth": "m"}, {"alpha_max": 0.0}, {"alpha_max": "8"}, {"data": "random"}, {"batch": 0}],
)
def test_wrong_rules_are_refused(wrong):
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        Rules(**wrong)
