# SPDX-License-Identifier: BSD-3-Clause
"""Replicas of parts: DistributedDataParallel and FSDP2 around a network over ranks, on a mesh of 2 x 2 processes."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.no_sanitize]
RANKS = 4
# float64, three steps of gradient descent: the mean of two halves' gradients is added up in another order, at most
# 16 terms through about 16 layers, and grows by at most 100 from step to step, as in tests/nn/test_ddp.py:
# 16 * 16 * 10 * 100 u = 2.8e-11. A gradient of one half only errs by about 1.
TOLERANCE = 16 * 16 * 10 * 100 * 2.0**-53


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    codes, output = launch(Path(__file__).parent / "ranked_replicas_worker.py", RANKS, folder)
    assert codes == [0] * RANKS, "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("name", ["DDP", "DDP, batch norm", "FSDP", "FSDP, batch norm"])
def test_two_replicas_have_the_gradients_of_the_whole_batch(found, name):
    """And the norm, the clipped gradients, the weights; statistics are those of the first replica's half."""
    for of_rank in found:
        case = of_rank[name]
        assert max(case["gradients"], case["weights"], case["buffers"]) <= TOLERANCE
    # Two ranks have all parameters between them: 10 blocks of 4, 5 guesses, 4 coarse nets and the head of 2 each.
    assert found[0][name]["compared"] + found[1][name]["compared"] == 10 * 4 + (5 + 4 + 1) * 2
