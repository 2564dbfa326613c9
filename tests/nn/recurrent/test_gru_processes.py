# SPDX-License-Identifier: BSD-3-Clause
"""In processes of their own: DistributedDataParallel around the layers, and the example."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

from gru_cases import tolerance  # noqa: E402
from processes import launch  # noqa: E402

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parents[2] / "examples" / "sequence_gru.py"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
RANKS = 2


@pytest.mark.slow
@pytest.mark.no_sanitize
@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch without gloo"
)
def test_gradients_of_two_processes_are_those_of_one_with_the_whole_batch(tmp_path):
    codes, output = launch(HERE / "gru_ddp_worker.py", RANKS, tmp_path)
    assert codes == [0] * RANKS, "\n".join(output)
    for rank in range(RANKS):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(found) == 6
        assert max(found.values()) <= tolerance(torch.float64), found


@pytest.mark.slow
@pytest.mark.no_sanitize
@pytest.mark.skipif(not EXAMPLE.exists(), reason="the sources are not here: run from outside the tree")
def test_the_example_agrees_with_torch():
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "100"], capture_output=True, text=True, env=ENVIRONMENT, timeout=180
    )
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines()[3:]}
    assert rows.keys() == {"auto", "hybrid", "mgrit", "newton"}
    for name, row in rows.items():
        assert row[-1] == ("serial" if name == "auto" else "converged")
        assert float(row[5]) <= tolerance(torch.float32)  # of the output
