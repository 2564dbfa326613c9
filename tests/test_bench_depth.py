# SPDX-License-Identifier: BSD-3-Clause
"""What is behind ``depth.training`` and ``depth.dense``: data, records, networks, and how they are judged."""

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
pytest.importorskip("sklearn", reason="the digits are scikit-learn's")

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "bench").is_dir():
    pytest.skip("bench is not here: run from the tree", allow_module_level=True)
sys.path.append(str(ROOT))

from bench import depth_data  # noqa: E402
from bench import depth_training as dt  # noqa: E402
from bench.cases import depth_cases, depth_training_cases  # noqa: E402

TASKS = {task.name: task for task in depth_training_cases.tasks()}


def test_peaks_are_five_level_sets_of_one_function():
    data = depth_data.peaks(500, 100, validation=50)
    rng = np.random.default_rng(0)
    x, y = zip(*[next(data.batches(rng)) for _ in range(20)], (data.validation), strict=False)
    x, y = torch.cat(x).double().numpy(), torch.cat(y).numpy()
    z = depth_data.height(x[:, 0], x[:, 1])
    order = np.argsort(z)
    assert (np.diff(y[order]) >= 0).all()  # a level is an interval of heights
    # The highest peak and the deepest dip are known: 8.1062 and -6.5511; sets of equal height between them.
    edges = np.array([z[y == k].max() for k in range(4)])
    np.testing.assert_allclose(edges, -6.5511 + (8.1062 + 6.5511) / 5 * np.arange(1, 5), atol=0.15)


def test_every_batch_of_peaks_has_its_size_and_all_classes_are_as_frequent():
    data = depth_data.peaks(500, 100, validation=50)
    batches = data.batches(np.random.default_rng(1))
    labels = torch.cat([next(batches)[1] for _ in range(5)])
    counted = torch.bincount(torch.cat([labels, data.validation[1]]), minlength=5)
    assert counted.tolist() == [110] * 5


@pytest.mark.parametrize("data", [depth_data.peaks(500, 100, validation=50), depth_data.digits(64)])
def test_what_validates_is_never_trained_on(data):
    batches, seen = data.batches(np.random.default_rng(2)), set()
    for _ in range(60):
        seen |= {tuple(row) for row in next(batches)[0].tolist()}
    assert not seen & {tuple(row) for row in data.validation[0].tolist()}
    assert len(seen) > 400


def test_the_story_subtracts_correctly_and_is_always_the_same():
    lines = depth_data.story(50).splitlines()
    assert len(lines) == 50
    for line in lines:
        has, gives, keeps = map(int, re.findall(r"\d+", line))
        giver, taker = re.match(r"(\w+) has .* to (\w+) and", line).groups()
        assert keeps == has - gives > 0
        assert giver != taker
    assert depth_data.story(50).splitlines() == lines


def test_windows_of_the_text_are_followed_by_what_follows():
    data, characters = depth_data.text(5, 40, lines=400)
    x, y = next(data.batches(np.random.default_rng(0)))
    assert x.shape == y.shape == (5, 40)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert 0 <= int(x.min()) <= int(x.max()) < characters
    x, y = data.validation
    assert torch.equal(x.flatten()[1:], y.flatten()[:-1])


@pytest.mark.parametrize("name", TASKS)
def test_every_mode_starts_from_the_same_network(name):
    task = TASKS[name]
    x, _ = next(task.data.batches(np.random.default_rng(0)))
    with torch.no_grad():
        expected = dt.build(task, "serial", 1)(x)
        for mode in task.parallel:
            found = dt.build(task, mode, 1).serial()(x)
            # The same operations in float32, but for kernels: rounding of 6e-8 in 128 layers that do not contract.
            assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_a_task_is_trained_once_and_its_records_are_kept(tmp_path):
    path = tmp_path / "records.jsonl"
    task = dataclasses.replace(TASKS["peaks"], steps=2, parallel={"exact": {"m": 4, "forward": 5, "backward": 5}})
    records = dt.complete(task, path)
    before = path.read_text()
    assert len(records) == 2 * len(dt.SEEDS) == len(before.splitlines())
    again = dt.complete(task, path)
    assert path.read_text() == before
    assert sorted(map(str, again)) == sorted(map(str, records))
    # 8 slices, two more exact after every cycle but the first: five make the network the serial one.
    for seed in dt.SEEDS:
        one, other = (next(r for r in records if (r.mode, r.seed) == (mode, seed)) for mode in ("serial", "exact"))
        np.testing.assert_allclose(other.loss, one.loss, rtol=1e-5)
        assert other.score == pytest.approx(one.score, rel=1e-4)
        assert other.iterations == [5, 5]
        assert other.backward == [5, 5]


def test_the_gap_is_in_units_of_the_spread():
    rows = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])  # a standard deviation of 1
    for shift in (0.0, 0.25):
        records = [dt.Record("t", "serial", seed, row.tolist()) for seed, row in enumerate(rows)]
        records += [dt.Record("t", "other", seed, (row + shift).tolist()) for seed, row in enumerate(rows)]
        assert dt.largest_gap(records, "other", window=1) == pytest.approx(shift)


def test_the_case_compares_every_way_with_the_serial_trainings(tmp_path, monkeypatch):
    def eight_layers():
        blocks, opening, closing = TASKS["peaks"].make()
        return blocks[:8], opening, closing

    task = dataclasses.replace(TASKS["peaks"], make=eight_layers, steps=20)
    monkeypatch.setattr(depth_training_cases, "tasks", lambda: [task])
    monkeypatch.setenv("PYPARAREAL_DEPTH_RUNS", str(tmp_path / "new" / "records.jsonl"))
    result = depth_training_cases.training()
    assert len(dt.load(tmp_path / "new" / "records.jsonl")) == (1 + len(task.parallel)) * len(dt.SEEDS)
    # Two slices: exact after the first cycle, which only goes up, and another, so that nothing but rounding is left.
    assert result.checked
    assert result.metrics["largest_gap"] == result.metrics["peaks_adaptive_gap"] < 1e-3
    assert all(result.metrics[f"peaks_{mode}_gap"] < 1e-3 for mode in task.parallel)
    assert result.metrics["peaks_fixed_forward_most"] == result.metrics["peaks_fixed_backward_most"] == 2
    assert result.metrics["peaks_fixed_events"] == 0


def test_the_speed_of_dense_layers_comes_with_its_errors():
    result = depth_cases.dense_speed((4,), 64, repeats=1)
    assert result.checked
    assert {"ratio_w4", "fused_serial_w4", "gradient_error"} <= result.metrics.keys()
    # float32 and 64 layers: the loop itself is right to rounding, and two cycles are not.
    assert result.metrics["eager_error_w4"] < 1e-5 < result.metrics["gradient_error"] < 0.5


def test_a_golden_check_that_fails_is_counted_and_named():
    def wrong():
        raise AssertionError("one\ntwo")

    result = depth_cases.run_checks({"right": lambda: None, "wrong": wrong})
    assert result.metrics == {"matched": 1, "total": 2}
    assert not result.checked
    assert result.notes == "wrong: one"
