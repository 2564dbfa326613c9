# SPDX-License-Identifier: BSD-3-Clause
"""Theorem: a run of which ranks are killed, and that torchrun restarts, ends with the bits of an undisturbed run.

Each launch is killed two or three times, at places and on ranks that differ; the last test goes on with fewer ranks.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install 'pyparareal[train]'")
pytest.importorskip("torch.distributed.checkpoint.hf_storage", reason="torch is older than 2.9")

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.no_sanitize]

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]


def torchrun(ranks, folder, job, *places, restarts=3):
    """The exit code and what was printed; nothing hangs, or this raises."""
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(HERE.parents[1])]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": paths}
    done = subprocess.run(
        [*TORCHRUN, "--nproc-per-node", str(ranks), "--max-restarts", str(restarts), HERE / "fault_jobs.py",
         folder, job, ",".join(places)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def ended(folder, ranks):
    """The bits of all ranks, which are those of the undisturbed run."""
    found = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
    for one in found:
        assert one["bits"] == one["undisturbed"]
    return {name: bits for one in found for name, bits in one["bits"].items()}


def died(folder):
    return [path.name.split(" ", 2)[2] for path in sorted(folder.glob("died *"))]


# Name, ranks, job, where they die, the step that each start goes on from: it is that of the last complete checkpoint.
DEATHS = [
    # A checkpoint after every second batch. A pass forward goes through two parts on each of three ranks, and back.
    ("in an epoch", 3, "train", ["step#3:1", "backward#7:2"], [0, 2, 4]),
    ("in a checkpoint", 2, "train", ["before publish#2:0", "after describe#2:1", "after publish#1:0"], [0, 2, 4, 6]),
    # One after every window of 12 slices; six of them are this rank's, each of two steps.
    ("in a solve", 2, "windows", ["fine step#60:1", "before write_manifest#2:0", "fine step#40:0"], None),
    ("in training runs", 2, "runs", ["cycle#2:0", "cycle#2:1"], [0, 1, 1]),
]


@pytest.mark.parametrize(
    ("ranks", "job", "places", "starts"), [case[1:] for case in DEATHS], ids=[c[0] for c in DEATHS]
)
def test_what_is_killed_ends_with_the_bits_of_what_is_not(tmp_path, ranks, job, places, starts):
    code, output = torchrun(ranks, tmp_path, job, *places)
    assert code == 0, output
    assert died(tmp_path) == [place.replace(":", " ") for place in places]
    ended(tmp_path, ranks)
    found = [int(step) for step in (tmp_path / "starts").read_text().split()]
    assert found == (starts or sorted(found))
    assert found[-1] > 0, "the last start went on from a checkpoint"


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    code, _ = torchrun(3, tmp_path, "train", "step#5:2", restarts=0)
    assert code != 0
    assert not list(tmp_path.glob("*.json"))
    code, output = torchrun(2, tmp_path, "train", "never:0")
    assert code == 0, output
    bits = ended(tmp_path, 2)
    assert (tmp_path / "starts").read_text().split() == ["0", "4"]
    assert len(bits) > 6 * 4 * 4
