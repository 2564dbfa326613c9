# SPDX-License-Identifier: BSD-3-Clause
"""Two processes with a share of the batch each have the gradients of one with all of it: DDP, FSDP2 of the whole."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch  # noqa: E402

HERE = Path(__file__).resolve().parent
RANKS = 2
# float64, three steps of gradient descent through 26 layers, sums of at most 6 * 8 terms: 26 * 48 * 3 * 10 u. One
# that is missing or counted twice errs by about 1.
TOLERANCE = 26 * 48 * 3 * 10 * 2.0**-53


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank wrote. All ranks end within the time, or all are ended."""
    folder = tmp_path_factory.mktemp("layers")
    codes, output = launch(HERE / "layer_parallel_worker.py", RANKS, folder)
    assert codes == [0] * RANKS, "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.no_sanitize
@pytest.mark.parametrize(
    "case",
    [f"ddp{how}" for how in ("", ", recomputed", ", buffers", ", adaptive")]
    + [f"fsdp{how}" for how in ("", ", recomputed", ", buffers", ", resharded")],
)
def test_gradients_are_those_of_one_process_with_the_whole_batch(found, case):
    assert max(of_rank[case] for of_rank in found) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.no_sanitize
def test_sharding_parts_of_the_network_is_refused_by_name(found):
    for of_rank in found:
        assert "weight: got a DTensor, expected a whole parameter" in of_rank["fsdp in parts"]


@pytest.mark.slow
@pytest.mark.no_sanitize
def test_sharded_networks_save_and_refuse_to_load(found):
    for of_rank in found:
        difference, message = of_rank["fsdp, saved and loaded"]
        assert difference == 0
        assert "expected a whole parameter: load_state_dict before fully_shard" in message
