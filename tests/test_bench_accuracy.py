# SPDX-License-Identifier: BSD-3-Clause
"""The evidence about accuracy: intervals against formulas and simulation, folds, pairing, records after a kill."""

from __future__ import annotations

import dataclasses
import json
import math

import bench_tree
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'pyparareal[train]'")
pytest.importorskip("scipy", reason="scipy is not installed: pip install 'pyparareal[train]'")

bench_tree.load()

from bench import cross_validation as cv  # noqa: E402
from bench import intervals, steps  # noqa: E402
from bench.cases import accuracy_cases, deep_cases  # noqa: E402
from pyparareal.nn import models  # noqa: E402
from pyparareal.nn.training_job.settings import Settings  # noqa: E402


def test_corrected_interval_by_hand():
    values = [0.0, 1.0, 2.0, 3.0]  # mean 1.5, s = sqrt(5 / 3)
    found = intervals.corrected_t(values, 0.25)
    half = 3.182446305 * math.sqrt(5 / 3 * (1 / 4 + 1 / 4))  # t_{3, 0.975} from a printed table
    assert found.mean == 1.5
    assert found.high - found.mean == pytest.approx(half, rel=1e-8)
    assert found.mean - found.low == pytest.approx(half, rel=1e-8)


def test_naive_interval_is_the_corrected_one_without_correlation_and_shorter():
    values = [0.3, -0.2, 0.5, 0.1, 0.0]
    naive, corrected = intervals.naive_t(values), intervals.corrected_t(values, 0.25)
    assert naive == intervals.corrected_t(values, 0.0)
    # sqrt((1/J + 1/4) / (1/J)) with J = 5
    assert (corrected.high - corrected.low) / (naive.high - naive.low) == pytest.approx(1.5)


def test_corrected_interval_covers_where_the_naive_one_does_not():
    """Samples with the correlation that the correction stands for: rho = 0.2, hence n_test/n_train = rho/(1-rho) = 1/4.

    Coverage over 2,000 draws has a standard error of 0.5 %; four of them are allowed.
    """
    rng = np.random.RandomState(0)
    covered = {0.0: 0, 0.25: 0}
    for _ in range(2000):
        values = math.sqrt(0.2) * rng.normal() + math.sqrt(0.8) * rng.normal(size=15)
        for ratio in covered:
            found = intervals.corrected_t(values, ratio)
            covered[ratio] += found.low <= 0 <= found.high
    assert abs(covered[0.25] / 2000 - 0.95) < 0.02
    assert covered[0.0] / 2000 < 0.75


def test_per_image_interval_takes_the_image_as_unit():
    """A second, equal repetition says nothing new."""
    one = np.array([[1.0, 0, 0, -1, 0, 1]])
    assert intervals.per_image(one) == intervals.per_image(np.repeat(one, 2, axis=0))
    assert intervals.per_image(one).mean == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("values", "ratio", "message"),
    [([1.0], 0.25, "differences"), ([1.0, 2.0], -1.0, "test_over_train: got -1.0, expected 0 or more")],
)
def test_interval_mistakes_are_named(values, ratio, message):
    with pytest.raises(ValueError, match=message):
        intervals.corrected_t(values, ratio)
    with pytest.raises(ValueError, match=r"level: got 1\.0"):
        intervals.corrected_t([1.0, 2.0], 0.0, level=1.0)
    with pytest.raises(ValueError, match="expected \\[repetitions, images\\]"):
        intervals.per_image(np.zeros(3))


def test_within_asks_for_the_whole_interval():
    assert intervals.Estimate(0, -0.5, 0.5).within(0.5)
    assert not intervals.Estimate(0, -0.2, 0.51).within(0.5)
    assert not intervals.Estimate(0, -0.51, 0.2).within(0.5)


@pytest.fixture(scope="module")
def digits():
    return accuracy_cases.digits_study()


def test_every_image_is_held_out_once_in_each_repetition(digits):
    labels = digits.labels
    for repetition in range(cv.REPETITIONS):
        folds = cv.fold_of(labels, cv.FOLDS, repetition)
        sizes = np.bincount(folds)
        assert len(folds) == 1797
        assert sizes.max() - sizes.min() <= 1
        for label in range(10):
            per_fold = np.bincount(folds[labels == label], minlength=cv.FOLDS)
            assert per_fold.max() - per_fold.min() <= 1
    assert (cv.fold_of(labels, 5, 0) != cv.fold_of(labels, 5, 1)).any()


def test_training_and_held_out_images_are_disjoint_and_scaled_by_training_images_alone(digits):
    data = digits.split(1, 3)
    assert torch.equal(data.test.y, torch.from_numpy(digits.labels[digits.test_indices(1, 3)]))
    assert len(data.train) + len(data.test) == 1797
    assert abs(float(data.train.x.mean())) < 1e-5, "float32 mean of 91,968 values of about 1"
    assert float(data.train.x.std()) == pytest.approx(1, abs=1e-5)
    assert abs(float(data.test.x.mean())) > 1e-5, "not scaled by themselves"


def test_cluttered_images_of_a_fold():
    study = accuracy_cases.cluttered_study()
    data = study.split(0, 2)
    index = study.test_indices(0, 2)
    assert torch.equal(data.test.y, torch.from_numpy(study.labels[index]))
    assert (len(data.train), data.image_shape) == (accuracy_cases.COPIES * (1797 - len(index)), (1, 16, 16))
    assert study.split(0, 2) is data


def test_scenes_of_a_fold():
    study = accuracy_cases.curves_study()
    data = study.split(0, 2)
    index = study.test_indices(0, 2)
    assert torch.equal(data.test.y, torch.from_numpy(study.labels[index]))
    assert (len(data.train), len(data.test), data.image_shape) == (19200, 4800, (2, 16, 16))
    assert {study.settings(network, 0, 2).width for network in study.networks} == {4}


def test_the_recipe_is_the_default_of_pyparareal_train():
    defaults = Settings()
    different = {name for name, value in cv.RECIPE.items() if getattr(defaults, name) != value}
    assert different <= {"width"}
    own = sum(p.numel() for p in models.build("resnet20", channels=1, classes=10).parameters())
    named = models.build("resnet20", channels=1, classes=10, width=cv.RECIPE["width"])
    assert own == sum(p.numel() for p in named.parameters())


def test_all_networks_of_a_fold_start_from_one_body(digits):
    data, networks = digits.split(0, 0), ("serial", "parareal-2", "parareal-6", "uncorrected-4")
    built = {name: cv.build(name, digits.settings(name, 0, 0), data) for name in networks}
    body = [block.state_dict() for block in built["serial"].split()[1]]
    for parts in (2, 6):
        blocks = [block.state_dict() for part in built[f"parareal-{parts}"].fine for block in part]
        assert len(blocks) == len(body)
        for ours, theirs in zip(blocks, body, strict=True):
            assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    last = [block.state_dict() for block in built["uncorrected-4"][1]]
    for ours, theirs in zip(last, body[-len(last) :], strict=True):
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    seeds = {digits.settings("serial", r, f).seed for r in range(3) for f in range(5)}
    assert len(seeds) == 15
    assert digits.settings("parareal-4", 1, 2).seed == digits.settings("serial", 1, 2).seed


def test_uncorrected_is_the_parareal_network_with_zero_coarse_nets(digits):
    """Dropping the coarse chain leaves ``h(y_N)``: value and gradients of the whole network with F = 0."""

    class Zero(torch.nn.Module):
        def __init__(self, like):
            super().__init__()
            self.like = like

        def forward(self, u):
            return self.like(u) * 0.0

    settings, data = digits.settings("parareal-3", 0, 0), digits.split(0, 0)
    whole, last = cv.build("parareal-3", settings, data), cv.build("uncorrected-3", settings, data)
    whole.coarse = torch.nn.ModuleList(Zero(f) for f in whole.coarse)
    x = data.train.x[:16]
    assert torch.equal(whole(x), last(x))
    whole(x).square().sum().backward()
    last(x).square().sum().backward()
    theirs = dict(whole.fine[2].named_parameters())
    assert all(torch.equal(p.grad, theirs[name].grad) for name, p in last[1].named_parameters())
    assert all(not p.grad.any() for p in whole.fine[0].parameters())


def test_other_networks(digits):
    data, settings = digits.split(0, 0), digits.settings("serial", 0, 0)
    assert cv.build("linear", settings, data)(data.test.x[:3]).shape == (3, 10)
    assert len(cv.build("resnet8", settings, data).split()[1]) == 3
    wide = cv.build("wide_resnet8", settings, data)
    assert wide.model_arguments == {"name": "resnet8", "channels": 1, "classes": 10, "width": 32}
    plain, unit = (cv.build(f"{kind}-3", settings, data) for kind in ("parareal", "unit_coarse"))
    assert [len(net) - 2 for net in plain.coarse] == [0, 0]  # a convolution and its BatchNorm, both linear
    assert all(len(more) > len(less) for more, less in zip(unit.coarse, plain.coarse, strict=True))
    with pytest.raises(ValueError, match="network: got 'other-3', expected 'parareal-N', 'unit_coarse-N' or 'unc"):
        cv.build("other-3", settings, data)


@pytest.fixture
def quick(digits):
    """A study of a minute's part: linear models, one epoch."""
    return dataclasses.replace(
        digits, name="quick", networks=("linear",), recipe=cv.RECIPE | {"epochs": 1}, repetitions=1
    )


def test_a_stopped_study_continues_with_what_is_missing(quick, tmp_path):
    file = tmp_path / "quick.jsonl"
    told = []
    assert cv.run(quick, cv.Records(file), told.append) == 5
    assert len(told) == 5
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:50])  # killed while writing the fourth
    again = cv.Records(file)
    assert len(again.found) == 3
    assert cv.run(quick, again) == 2
    fresh = cv.Records(file)
    assert cv.run(quick, fresh) == 0
    first = {json.loads(line)["key"]: json.loads(line) for line in lines}
    assert fresh.found.keys() == first.keys()
    for key, record in fresh.found.items():  # a repeated training has the same bits
        assert {**record, "seconds": 0} == {**first[key], "seconds": 0}
    assert cv.repeats(quick, fresh, ["linear"]) == 0


def test_records_of_another_recipe_do_not_count(quick, tmp_path):
    records = cv.Records(tmp_path / "quick.jsonl")
    cv.run(quick, records)
    other = dataclasses.replace(quick, recipe=quick.recipe | {"lr": 0.05})
    assert not {other.key(*job) for job in other.trainings()} & records.found.keys()
    assert len({quick.key(n, r, f) for n in ("a", "b") for r in range(3) for f in range(5)}) == 30


def test_outcomes_belong_to_their_images(quick, tmp_path):
    records = cv.Records(tmp_path / "quick.jsonl")
    cv.run(quick, records)
    hits = cv.outcomes(quick, records, "linear")
    assert hits.shape == (1, 1797)
    ends = cv.curves(quick, records, "linear", "test_accuracy")[:, -1]
    assert ends == pytest.approx(cv.fold_accuracies(quick, hits), abs=5e-6), "kept with five digits"
    record = records.found[quick.key("linear", 0, 1)]
    record["right"] = record["right"][1:]
    with pytest.raises(ValueError, match="linear: got 359 outcomes in fold 1, expected 360"):
        cv.outcomes(quick, records, "linear")


def test_gaps_by_hand(quick):
    """Two networks that differ on known images."""
    base = np.ones((1, 1797), dtype=bool)
    hits = base.copy()
    hits[0, quick.test_indices(0, 0)[:9]] = False
    found = accuracy_cases._gaps(quick, "parareal-4", hits, base, 0.25)
    assert found["accuracy_gap_pp"] == found["accuracy_gap_pp_4"] == pytest.approx(-900 / 1797)
    fold = -900 / len(quick.test_indices(0, 0))
    expected = intervals.corrected_t([fold, 0, 0, 0, 0], 0.25)
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((expected.low, expected.high))
    without = accuracy_cases._gaps(quick, "uncorrected-4", hits, base, 0.25)
    assert without["gap_without_correction_pp"] == pytest.approx(-900 / 1797)
    assert "accuracy_gap_pp" not in without


def test_parts_of_a_stage_share_it():
    assert steps.stage_sizes(333, 18) == [19, 19, 19, 18, 18, 18] * 3
    assert steps.stage_sizes(54, 3) == [18, 18, 18]
    with pytest.raises(ValueError, match="parts: got 4 for 54 blocks, expected multiples of 3"):
        steps.stage_sizes(54, 4)


def test_cases_of_deep_networks_on_a_small_one(monkeypatch):
    """Every alternative runs and agrees; the GPU's way, too, as far as a CPU can go it."""
    found = deep_cases.on_cpu("resnet8", (3,), width=4, rounds=1)
    assert found.checked
    assert found.samples.keys() == {"network", "serial_3", "parallel_3"}
    assert "refused: batched with 3 parts" in found.notes
    monkeypatch.setattr(deep_cases, "COMPILE_SECONDS", 1e9)
    found = deep_cases.on_gpu("resnet20", device="cpu", budget=1e6, parts=(9,), batches=(4,), width=4)
    assert found.checked
    assert {"network_graphed_b4", "batched_graphed_n9_b4", "parallel_eager_n9_b4"} <= found.samples.keys()
    assert "network_compiled_b4: no time" in found.notes


def test_a_step_that_differs_is_seen():
    x, y = steps.batch(4, "cpu")
    step, other = (steps.Step(steps.build("resnet8", None, "cpu", width=4), x, y) for _ in range(2))
    step()
    other()
    assert steps.difference(step.found(), other.found()) == 0
    with torch.no_grad():
        other.net.fc.weight[0, 0] += 0.5
    other()
    assert steps.difference(other.found(), step.found()) > deep_cases.TOLERANCE


def test_counts_from_the_environment(monkeypatch):
    monkeypatch.delenv("PYPARAREAL_BENCH_PARTS", raising=False)
    assert deep_cases.counts((3, 6)) == (3, 6)
    monkeypatch.setenv("PYPARAREAL_BENCH_PARTS", "9,18")
    assert deep_cases.counts((3, 6)) == (9, 18)
