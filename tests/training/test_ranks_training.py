# SPDX-License-Identifier: BSD-3-Clause
"""Theorem: a run over 1, 2, 3 and 4 processes ends with the weights, the history and the cost of one."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch, run_example  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.no_sanitize]
HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "ranks_training_runs.py"
RANKS = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    codes, output = launch(HERE / "training_ranks_worker.py", RANKS, folder, timeout=300)
    assert codes == [0] * RANKS, "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("ranks", range(1, RANKS + 1))
def test_every_rank_ends_with_what_one_process_has(found, ranks):
    for of_rank in found[:ranks]:
        cases = of_rank[str(ranks)]
        assert len(cases) >= 15
        assert {name: what for name, what in cases.items() if what} == {}


@pytest.mark.parametrize("ranks", range(1, RANKS + 1))
def test_without_blocks_of_fixed_size_to_the_tolerance(found, ranks):
    """Both end within 100 tolerances of serial training, as in test_equal_serial, and so within 200 of each other."""
    for of_rank in found[:ranks]:
        apart, status = of_rank[f"{ranks}, to rounding"]
        assert status == "CONVERGED"
        assert apart < 1


def test_a_run_goes_on_with_another_number_of_ranks_to_the_same_bits(found):
    assert found[0]["resumed"] == []


def test_what_differs_between_ranks_is_named_on_all(found):
    says = [of_rank["wrong"] for of_rank in found]
    for rank, said in enumerate(says):
        assert said["lr"] == "ValueError: lr: rank 1 has 0.2, rank 0 has 0.1"
        assert said["weights"].startswith("ValueError: weights: rank 1 has ")
        assert said["loss"] == "ValueError: loss or module: their gradients on rank 1 are not those of rank 0"
        assert said["memory"].startswith("MemoryError: memory: got 1e-05 MB, expected at least ")
        own = rank == 1
        assert said["m"] == (
            "ValueError: m: got 1, expected at least 2"
            if own
            else f"RankError: rank {rank}: rank 1 failed: ValueError: m: got 1, expected at least 2"
        )
        assert said["stop"].startswith("TypeError: stop: got 3" if own else f"RankError: rank {rank}: rank 1 failed")
        assert said["checkpoint"] == "ValueError: checkpoint: rank 1 has a path, rank 0 has none"
        for name, kind in (("broken", "CheckpointError"), ("no folder", "ValueError")):
            assert said[name].startswith(f"{kind}: " if rank == 0 else f"RankError: rank {rank}: rank 0 failed: {kind}")
        assert said["runtime"] == "TypeError: runtime: got str, expected what pyparareal.distributed() returns, or None"
        assert said["windows"] == said["windows alone"] < 200  # the least memory decides for all
        assert said["bits"] == []  # the runtime has survived all that


def test_a_group_without_this_rank_is_refused(found):
    for of_rank in found[1:]:
        assert of_rank["excluded"].startswith("TypeError: mesh_or_group: got ")


def test_a_rank_that_fails_ends_all_and_the_run_goes_on_from_the_last_cycle(found):
    for rank, of_rank in enumerate(found):
        failing = of_rank["failing"]
        expected = "OverflowError: too much" if rank == 2 else f"RankError: rank {rank}: "
        assert failing["error"].startswith(expected)
        assert "too much" in failing["error"]
        assert "this runtime ended with an error" in failing["again"]
        assert failing["seconds"] < 30  # half the limit
        assert failing["first"] in (5, 6)  # the fifth cycle was written if all blocks had come by then
        assert failing["bits"] == []


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the sources are not here: run from outside the tree")
def test_the_example_has_the_bits_of_one_process():
    output = run_example(EXAMPLE)
    assert "the same bits as one process: yes" in output
