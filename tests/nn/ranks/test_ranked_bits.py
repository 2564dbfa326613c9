# SPDX-License-Identifier: BSD-3-Clause
"""Theorem: a parareal network over 1, 2, 3 and 4 processes trains with the bits of one, whatever is done to it."""

import json
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

from processes import launch, run_example  # noqa: E402
from ranked_cases import CASES  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.no_sanitize]
RANKS = 4
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "ranks_parareal_network.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    codes, output = launch(Path(__file__).parent / "ranked_worker.py", RANKS, folder, timeout=300)
    assert codes == [0] * RANKS, "\n".join(output)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ranks", range(1, RANKS + 1))
def test_training_over_ranks_has_the_bits_of_one_process(found, ranks, name):
    """Outputs, losses, gradients of the input, and at the end all weights and statistics, on every rank."""
    assert [of_rank[str(ranks)][name] for of_rank in found[:ranks]] == [[]] * ranks


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the sources are not here: run from outside the tree")
def test_the_example_has_the_bits_of_one_process():
    output = run_example(EXAMPLE, "1")
    assert "the same bits as one process, loss and weights: yes" in output
    sent = re.findall(r"(\d+) \(formula (\d+)\)", output)
    assert len(sent) == 4
    assert [int(counted) for counted, _ in sent] == [int(formula) for _, formula in sent]
    assert int(sent[0][0]) > 0
