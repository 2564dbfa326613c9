# SPDX-License-Identifier: BSD-3-Clause
"""What is behind the cases ``devices.*``: processes that work together, ratios of their times, the script for GPUs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "bench").is_dir():
    pytest.skip("bench is not here: run from the tree", allow_module_level=True)
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch was built without gloo", allow_module_level=True)
sys.path.append(str(ROOT))

from bench import cases, ranks  # noqa: E402
from bench.cases import devices_cases  # noqa: E402

pytestmark = pytest.mark.no_sanitize


def on_a_rank(number):
    """Sums over ranks, by a collective; and which thread count and device a rank has."""
    total = torch.tensor([torch.distributed.get_rank() + float(number)])
    torch.distributed.all_reduce(total)
    taken = ranks.in_turn({"a": lambda: None, "b": lambda: None}, 3)
    return [float(total), torch.get_num_threads(), ranks.device(), [len(one.seconds) for one in taken.values()]]


def failing():
    if torch.distributed.get_rank() == 1:
        raise LookupError("nothing here")


@pytest.mark.slow
def test_a_function_runs_on_all_ranks_of_one_group(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert ranks.call("test_bench_devices", "on_a_rank", 2, number=3) == [[7.0, 1, "cpu", [3, 3]]] * 2


@pytest.mark.slow
def test_what_fails_on_a_rank_is_told_by_its_number(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 of 2: .*LookupError: nothing here"):
        ranks.call("test_bench_devices", "failing", 2)


def test_ratios_are_those_of_neighbours_in_time():
    found = devices_cases.ratios({"serial": [1.0, 2.0], "a_1_rank": [8.0, 4.0], "a_3_ranks": [4.0, 2.0]}, 3)
    assert found["a_3_ranks"] == 2.0
    assert found["a_3_ranks_vs_serial"] == (0.25 + 1.0) / 2
    assert found["seconds_a_1_rank"] == 6.0
    assert "serial_3_ranks" not in found


def test_cases_for_several_gpus_are_in_no_suite_but_their_own():
    cases.discover()
    for suite in ("quick", "full", "gpu"):
        assert not [name for name in cases.chosen(suite) if cases.CASES[name].suite == "multi_gpu"]
    assert "devices.scaling.cuda" in cases.chosen("multi_gpu")


@pytest.fixture
def tools(tmp_path):
    """The script in a small tree, with stand-ins for what it calls."""
    (tmp_path / "bench").mkdir()
    shutil.copy(ROOT / "bench" / "multi_gpu.sh", tmp_path / "bench")
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "ranks_one.py").touch()
    made = tmp_path / "tools"
    made.mkdir()

    def make(gpus, broken):
        lines = {
            "nvidia-smi": f'[ "$1" != --list-gpus ] || seq {gpus}',
            "python": f'echo "$@" >> "{tmp_path}/calls"; case "$*" in *"{broken}"*) exit 1;; esac',
        }
        for name, line in lines.items():
            (made / name).write_text(f"#!/bin/bash\n{line}\n")
            (made / name).chmod(0o755)
        environment = os.environ | {"PATH": f"{made}:{os.environ['PATH']}", "PYTHON": str(made / "python")}
        environment.pop("OUT", None)
        command = ["bash", str(tmp_path / "bench" / "multi_gpu.sh")]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")

    return make


@pytest.mark.parametrize("broken", ["pytest", "ranks_one", "--suite"])
def test_the_script_goes_on_after_what_fails_and_says_so(tools, tmp_path, broken):
    done = tools(3, broken)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("failed: ")
    calls = (tmp_path / "calls").read_text()
    assert all(word in calls for word in ("-m pytest", "--nproc-per-node 3 examples/ranks_one.py", "--suite multi_gpu"))


def test_the_script_ends_well_where_everything_does(tools, tmp_path):
    done = tools(2, "nothing of this kind")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout


def test_the_script_refuses_one_gpu(tools, tmp_path):
    done = tools(1, "nothing of this kind")
    assert done.returncode == 2
    assert "needs at least 2 GPUs, nvidia-smi lists 1" in done.stderr
    assert not (tmp_path / "calls").exists()
