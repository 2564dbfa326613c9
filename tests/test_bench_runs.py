# SPDX-License-Identifier: BSD-3-Clause
"""The bench of training runs: the paper's rows, their band, and that a run that failed is never a pass."""

from __future__ import annotations

import bench_tree
import pytest

pytest.importorskip("torch")
bench_tree.load()

from bench import runs_tables  # noqa: E402
from bench.cases import runs_cases  # noqa: E402
from pyparareal.training import problems  # noqa: E402


def test_every_row_has_a_count():
    for table in (*runs_tables.XOR.values(), *runs_tables.ADDER.values()):
        assert len(table.steps) == len(table.iterations)
    assert sum(len(table.steps) for table in runs_tables.XOR.values()) == 45


@pytest.mark.parametrize(
    ("found", "paper", "inside"),
    [(4, 6, True), (8, 6, True), (9, 6, False), (26, 20, True), (27, 20, False), (50, 51, True), (30, 51, False)],
)
def test_the_band(found, paper, inside):
    assert runs_tables.in_band(found, paper) is inside


def test_a_row_that_does_not_converge_counts_as_51():
    assert runs_tables.count(problems.xor(), runs_tables.XOR["T1"], 3200) == 50
    assert runs_tables.count(problems.xor(), runs_tables.XOR["T1"], 6400) == runs_tables.NOT
    assert runs_tables.count(problems.xor(), runs_tables.XOR["T2"], 100) == 6


def test_equal_serial():
    result = runs_cases.equal_serial()
    assert result.checked
    assert result.metrics["bitwise"] == 1
    assert 0 < result.metrics["max_abs_diff"] < 1e-6


def test_a_fallback_is_no_pass(monkeypatch):
    """Its weights are the serial ones, but not by the method."""
    from pyparareal.training import TrainingRuns

    class Impatient(TrainingRuns):
        def __init__(self, *args, **options):
            super().__init__(*args, **{**options, "max_iterations": 1})

    monkeypatch.setattr("pyparareal.training.TrainingRuns", Impatient)
    assert not runs_cases.equal_serial().checked
