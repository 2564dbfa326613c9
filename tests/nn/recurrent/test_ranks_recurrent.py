# SPDX-License-Identifier: BSD-3-Clause
"""Theorem: recurrences over 1, 2, 3 and 4 processes have the states, gradients and reports of one process."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch, run_example  # noqa: E402
from recurrent_ranks_worker import BITS, NEAR  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.no_sanitize]
HERE = Path(__file__).parent
EXAMPLE = HERE.parents[2] / "examples" / "ranks_sequence.py"
RANKS = 4
# Sums of 123 steps times 2 sequences in another order: half a unit in the last place for each of 246 additions, and a
# factor 4 for terms that cancel.
SUMS = 4 * 246 * 2.0**-53
# Both solutions are within tol = eps^(3/4) times the growth of differences, below 10 for these cells that forget.
NEARBY = 2 * 10 * 2.0 ** (-52 * 0.75)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    codes, output = launch(HERE / "recurrent_ranks_worker.py", RANKS, folder, timeout=300)
    assert codes == [0] * RANKS, "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("ranks", range(1, RANKS + 1))
@pytest.mark.parametrize("name", BITS)
def test_chunks_by_the_kernel_have_the_bits_of_one_process(found, ranks, name):
    """States, gradients of the inputs, and reports; gradients of weights are added up in another order."""
    for of_rank in found[:ranks]:
        case = of_rank[str(ranks)][name]
        assert case["bits"]
        assert case["went"]
        assert case["weights"] <= (SUMS if ranks > 1 else 0)
        assert case["sum"] == found[0][str(ranks)][name]["sum"]  # all ranks have the same


@pytest.mark.parametrize("ranks", range(1, RANKS + 1))
@pytest.mark.parametrize("name", NEAR)
def test_other_steps_are_near_one_process(found, ranks, name):
    for of_rank in found[:ranks]:
        case = of_rank[str(ranks)][name]
        assert case["status"] in (["CONVERGED"], ["SERIAL"])  # "auto" may find that best
        assert max(case["apart"], case["weights"]) < NEARBY
        assert case["sum"] == found[0][str(ranks)][name]["sum"]


def test_failures_were_among_the_cases(found):
    cases = found[0]["4"]
    assert cases["fails"]["status"] == ["SERIAL_FALLBACK"]
    assert cases["fails, returned"]["status"] == ["MAX_ITERATIONS"]
    assert cases["fixed"]["status"] == ["FIXED"]


@pytest.mark.parametrize("ranks", range(1, RANKS + 1))
def test_sequences_of_several_lengths(found, ranks):
    assert all(of_rank[f"{ranks}, packed"] for of_rank in found[:ranks])


def test_a_pass_sends_one_state_to_the_next_rank(found):
    assert [of_rank["sent"] for of_rank in found] == [5, 5, 5, 0]  # five passes


def test_what_differs_between_ranks_is_named_on_all(found):
    for rank, of_rank in enumerate(found):
        said = of_rank["wrong"]
        assert said["inputs"].startswith("ValueError: inputs or weights: rank 1 has ")
        assert said["weights"].startswith("ValueError: inputs or weights: rank 1 has ")
        assert said["trained"].startswith("ValueError: trained: rank 1 has ")
        assert said["steps"] == "ValueError: length: rank 1 has 122, rank 0 has 123"
        assert said["settings"].startswith(
            "ValueError: settings: rank 1 has Settings(method='hybrid', chunk=7, tol=0.001"
        )
        assert said["h"].startswith("ValueError: initial state: rank 1 has ")
        assert said["backward"].startswith("ValueError: gradient of the output: rank 1 has ")
        own = "ValueError: input: got 0 steps, expected at least 1"
        assert said["length"] == (own if rank == 1 else f"RankError: rank {rank}: rank 1 failed: {own}")
        assert said["diverges"].startswith("ConvergenceError: recurrence: hybrid failed after 2 iterations")
        for name, kind in (("runtime", "str"), ("runtime of a cell", "int")):
            expected = f"TypeError: runtime: got {kind}, expected what pyparareal.distributed() returns, or None"
            assert said[name] == expected
        assert said["bits"]  # the runtime has survived all that


def test_copies_have_the_runtime_and_files_have_not(found):
    names = ["bias_hh_l0", "bias_ih_l0", "weight_hh_l0", "weight_ih_l0"]
    for of_rank in found:
        assert of_rank["copies"] == [True, True, True, True, names]


def test_a_step_that_fails_on_one_rank_fails_on_all(found):
    for rank, of_rank in enumerate(found):
        first, again = of_rank["failing"]
        assert first.startswith("OverflowError" if rank == 1 else f"RankError: rank {rank}: ")
        assert first.endswith("too much")
        assert "this runtime ended with an error" in again


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the sources are not here: run from outside the tree")
def test_the_example_has_the_bits_of_one_process():
    output = run_example(EXAMPLE)
    assert "the same bits as one process: yes" in output
