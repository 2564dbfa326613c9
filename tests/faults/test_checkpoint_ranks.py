# SPDX-License-Identifier: BSD-3-Clause
"""Theorem: what 1, 2, 3 or 4 ranks saved, 1, 2, 3 or 4 load to the bit; what goes wrong is raised on all of them.

In the last case one of the ranks dies while a checkpoint is written.
"""

import json
import signal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'pyparareal[train]'")
pytest.importorskip("torch.distributed.checkpoint.hf_storage", reason="torch is older than 2.9")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.no_sanitize]

RANKS = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    codes, output = launch(Path(__file__).with_name("checkpoint_worker.py"), RANKS, folder)
    assert codes == [0] * (RANKS - 1) + [-signal.SIGKILL], "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


def test_every_rank_has_the_bits_that_were_saved_and_read_no_more(found):
    # Two cases for each number of ranks that saved (4, and 1 with fewer parts than ranks) and that loaded.
    counts = [sum(" ranks" in name for name in of_rank) for of_rank in found]
    assert counts == [2 * (4 * 4 + 2), 2 * (4 * 3 + 1), 2 * (4 * 2 + 1), 2 * (4 * 1 + 1)]
    assert [{name: what for name, what in of_rank.items() if what and " ranks" in name} for of_rank in found] == [
        {}
    ] * 4


def test_what_goes_wrong_is_raised_on_all_ranks_and_nothing_is_lost(found):
    for of_rank in found[:3]:
        rest = {name: what for name, what in of_rank.items() if " ranks" not in name}
        assert len(rest) == 12 + 7 + 1 + 3
        assert {name: what for name, what in rest.items() if what} == {}
    assert found[3]["in one"] == found[3]["alive"] == ""
