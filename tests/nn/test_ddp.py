# SPDX-License-Identifier: BSD-3-Clause
"""DistributedDataParallel around a network in every mode: two processes, one gradient."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch  # noqa: E402

RANKS = 2
# float64, three steps of gradient descent on sums of at most 16 * 7 terms through about 12 layers: as in
# execution_nets, 12 * 112 * 10 * 100 u = 1.5e-10. A gradient that is missing or counted twice errs by about 1.
TOLERANCE = 12 * 112 * 10 * 100 * 2.0**-53
SETUPS = ("", ", static graph", ", many buckets", ", unused looked for", ", accumulated", ", batch norm")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank wrote. All ranks end within the time, or all are ended."""
    folder = tmp_path_factory.mktemp("ddp")
    codes, output = launch(Path(__file__).parent / "ddp_worker.py", RANKS, folder)
    assert codes == [0] * RANKS, "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.no_sanitize
@pytest.mark.parametrize("setup", SETUPS)
@pytest.mark.parametrize("mode", ["serial", "batched", "parallel", "auto"])
def test_gradients_are_those_of_one_process_with_the_whole_batch(found, mode, setup):
    for of_rank in found:
        case = of_rank[f"{mode}{setup}"]
        assert case["executed"] == mode or mode == "auto"
        assert case["error"] <= TOLERANCE
