# SPDX-License-Identifier: BSD-3-Clause
"""The trainings behind ``sequence.training``: their data, records and the gap they are judged by."""

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
pytest.importorskip("sklearn", reason="the digits are scikit-learn's")

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "bench").is_dir():
    pytest.skip("bench is not here: run from the tree", allow_module_level=True)
sys.path.append(str(ROOT))

from bench import sequence_training as st  # noqa: E402
from bench.cases.sequence_training_cases import tasks  # noqa: E402


def test_the_adding_problem_is_the_sum_of_one_number_of_each_half():
    x, y = next(st.adding(5, 40)(np.random.default_rng(1)))
    assert x.shape == (40, 5, 2)
    assert (x[:20, :, 1].sum(0) == 1).all()
    assert (x[20:, :, 1].sum(0) == 1).all()
    for lane in range(5):
        marked = x[:, lane, 0][x[:, lane, 1] == 1]
        assert float(y[lane]) == pytest.approx(float(marked.sum()), rel=1e-6)


def test_permuted_rows_are_the_rows_of_the_same_digits():
    plain, labels = next(st.digits(7, 28)(np.random.default_rng(0)))
    permuted, same = next(st.digits(7, 28, rows_permuted=True)(np.random.default_rng(0)))
    assert torch.equal(labels, same)
    for lane in range(7):
        rows, moved = (x[:, lane, 0].reshape(28, 28) for x in (plain, permuted))
        assert not torch.equal(rows, moved)
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, moved.tolist()))


def test_a_task_is_trained_once_and_its_records_are_kept(tmp_path):
    path = tmp_path / "records.jsonl"
    task = dataclasses.replace(tasks()[0], steps=2)
    records = st.complete(task, path)
    before = path.read_text()
    assert task.modes == ("serial", "parallel", "torch")
    assert len(records) == 3 * len(st.SEEDS) == len(before.splitlines())
    again = st.complete(task, path)
    assert path.read_text() == before
    assert sorted(map(str, again)) == sorted(map(str, records))
    # The residual of float32 states is 6e-6 of the largest; the loss of two steps amplifies that little.
    for mode in ("parallel", "torch"):
        np.testing.assert_allclose(st.losses(records, mode), st.losses(records, "serial"), rtol=1e-4)
    assert all(len(r.iterations) == 2 and min(r.iterations) > 0 for r in records if r.mode == "parallel")


def test_the_gap_is_in_units_of_the_spread():
    rows = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])  # a standard deviation of 1
    for shift in (0.0, 0.25):
        records = [st.Record("t", "serial", seed, row.tolist()) for seed, row in enumerate(rows)]
        records += [st.Record("t", "parallel", seed, (row + shift).tolist()) for seed, row in enumerate(rows)]
        records += [st.Record("t", "torch", seed, (row - 3 * shift).tolist()) for seed, row in enumerate(rows)]
        assert st.largest_gap(records, window=1) == pytest.approx(shift)
        assert st.largest_gap(records, window=1, mode="torch") == pytest.approx(3 * shift)


def test_memory_of_gates_is_up_to_so_many_steps():
    rnn = torch.nn.GRU(2, 400)
    st.remember(rnn, 1000)
    z = torch.sigmoid(rnn.bias_ih_l0.detach()[400:800] + rnn.bias_hh_l0.detach()[400:800])
    steps = 1 / (1 - z)
    assert float(steps.min()) > 1.9
    assert float(steps.max()) < 1001
    assert float(steps.max()) > 900  # of 400 numbers up to 1,000


def test_a_task_may_have_a_cell_of_its_own_and_fallbacks_are_counted(tmp_path):
    by_name = {task.name: task for task in tasks()}
    with_cell = dataclasses.replace(by_name["adding_cell"], batches=st.adding(2, 64), steps=2)
    record = st.train(with_cell, "parallel", 0)
    assert record.fallbacks == 0
    np.testing.assert_allclose(record.loss, st.train(with_cell, "serial", 0).loss, rtol=1e-4)
    hopeless = dataclasses.replace(
        by_name["adding_long_chunks"],
        batches=st.adding(2, 64),
        steps=2,
        parallel={"method": "hybrid", "max_iterations": 1},
    )
    record = st.train(hopeless, "parallel", 0)
    assert record.fallbacks == 2
    assert record.loss == st.train(hopeless, "serial", 0).loss


def test_the_compiler_has_so_long():
    from bench.cases.recurrent_cases import _alarm

    with pytest.raises(TimeoutError, match=r"0\.05 s"), _alarm(0.05):
        time.sleep(20)
    with _alarm(60):
        pass
