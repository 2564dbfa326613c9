# SPDX-License-Identifier: BSD-3-Clause
"""Theorem: parallel layers over 1, 2, 3 and 4 processes have the values, gradients and reports of one process."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from layer_parallel_nets import ROUNDING  # noqa: E402
from layer_parallel_ranks_worker import BITS, NEAR  # noqa: E402
from processes import launch, run_example  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.no_sanitize]
HERE = Path(__file__).parent
EXAMPLE = HERE.parents[2] / "examples" / "ranks_layer_parallel.py"
RANKS = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    codes, output = launch(HERE / "layer_parallel_ranks_worker.py", RANKS, folder, timeout=300)
    assert codes == [0] * RANKS, "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("ranks", range(1, RANKS + 1))
@pytest.mark.parametrize("name", BITS)
def test_kernels_have_the_bits_of_one_process(found, ranks, name):
    """Two steps of training: values, gradients, reports with residuals and decisions of the policy.

    Every layer's gradient is that of one rank, to which the others add zeros.
    """
    for of_rank in found[:ranks]:
        case = of_rank[str(ranks)][name]
        assert case["bits"]
        assert case["gradients"]
        assert case["differs"] == ""
        assert case["sum"] == found[0][str(ranks)][name]["sum"]  # all ranks have the same


@pytest.mark.parametrize("ranks", range(1, RANKS + 1))
@pytest.mark.parametrize("name", NEAR)
def test_layers_of_torch_are_near_one_process(found, ranks, name):
    """Iterated until all is exact, with running statistics and what is dropped among it: to rounding."""
    for of_rank in found[:ranks]:
        case = of_rank[str(ranks)][name]
        assert case["apart"] < ROUNDING
        assert case["sum"] == found[0][str(ranks)][name]["sum"]


def test_replicas_on_a_mesh_have_the_gradients_of_the_whole_batch(found):
    """Half of the batch on two ranks each: means of 8 rows in two parts, to the rounding of the layers."""
    for of_rank in found:
        assert len(of_rank["mesh"]) == 3
        assert max(of_rank["mesh"]) < ROUNDING


def test_what_differs_between_ranks_is_named_on_all(found):
    starts = {
        "input": "ValueError: input of the layers: rank 1 has ",
        "weights": "ValueError: input of the layers: rank 1 has ",  # those of the opening
        "weights of blocks": "ValueError: parameters or buffers: rank 1 has ",
        "iterations": "ValueError: forward: rank 1 has Settings(iterations=3",
        "m": "ValueError: m: rank 1 has 8, rank 0 has 4",
        "masks": "ValueError: random numbers of the layers: rank 1 has ",
        "gradient": "ValueError: gradient: rank 1 has ",
        "not finite": "ValueError: operation: rank 1 has None, rank 0 has parallel layers",
        "raises": "ConvergenceError: layer-parallel: ",
        "runtime": "TypeError: runtime: got str, expected what pyparareal.distributed() returns, or None",
    }
    for rank, of_rank in enumerate(found):
        said = of_rank["wrong"]
        assert {name: said[name] for name in starts if not said[name].startswith(starts[name])} == {}
        assert said["type"].startswith("TypeError" if rank == 1 else f"RankError: rank {rank}: rank 1 failed: TypeErr")
        assert said["bits"]  # the runtime has survived all that


def test_copies_have_the_runtime_and_files_have_not(found):
    for of_rank in found:
        assert of_rank["copies"] == [True] * 6


def test_a_block_that_fails_on_one_rank_fails_on_all(found):
    for rank, of_rank in enumerate(found):
        first, again = of_rank["failing"]
        assert first.startswith("OverflowError" if rank == 1 else f"RankError: rank {rank}: ")
        assert first.endswith("too much")
        assert "this runtime ended with an error" in again


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the sources are not here: run from outside the tree")
def test_the_example_has_the_bits_of_one_process():
    output = run_example(EXAMPLE)
    assert "the same bits as one process: yes" in output
