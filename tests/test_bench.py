# SPDX-License-Identifier: BSD-3-Clause
"""The bench contract: schema, exit codes, a failing case, clean stdout, the GPU ledger and its run script."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import bench_tree
import numpy as np
import pytest

ROOT = bench_tree.load()

from bench import cases, gpu_ledger, gpu_record, machine, run  # noqa: E402
from bench.cases import Result, case  # noqa: E402
from pyparareal import reference  # noqa: E402


@pytest.fixture
def registry(monkeypatch):
    """An empty registry that discovers nothing."""
    monkeypatch.setattr(cases, "CASES", {})
    monkeypatch.setattr(cases, "BROKEN", {})
    monkeypatch.setattr(cases, "discover", lambda: cases.CASES)
    return cases.CASES


def register(name, *, metrics=None, checked=True, **options):
    @case(name, **options)
    def body():
        print("a case may print")
        return Result(metrics if metrics is not None else {"x": 1.5}, checked, {"t": [0.1, 1 / 3]}, "a note")


def results(path):
    entries = json.loads(path.read_text())
    run.validate(entries)
    return entries


def test_entry_has_the_fields_of_the_contract(registry, tmp_path):
    register("a.b", metrics={"x": np.float32(1.5), "n": 3})
    assert run.main(["--case", "a.b", "--json", str(tmp_path / "r.json")]) == 0
    (entry,) = results(tmp_path / "r.json")
    assert set(entry) == {
        *("case", "suite", "device", "commit", "versions", "checked", "metrics", "samples"),
        *("notes", "error", "machine", "date", "command", "seconds"),
    }
    assert (entry["case"], entry["suite"], entry["device"], entry["checked"]) == ("a.b", "quick", "cpu", True)
    assert entry["metrics"] == {"x": 1.5, "n": 3.0}
    assert entry["samples"] == {"t": [0.1, 0.333333]}
    assert {"cpu", "cores", "gpus"} <= set(entry["machine"])
    assert {"python", "numpy", "pyparareal"} <= set(entry["versions"])
    assert entry["command"] == f"bench/run.py --case a.b --json {tmp_path / 'r.json'}"


def test_a_failing_case_is_an_entry_and_the_others_still_run(registry, tmp_path, capsys):
    @case("a.fails")
    def fails():
        raise ZeroDivisionError("told to")

    register("b.runs")
    assert run.main(["--suite", "quick", "--json", str(tmp_path / "r.json")]) == 1
    failed, ran = results(tmp_path / "r.json")
    assert (failed["error"], failed["checked"], failed["metrics"]) == ("ZeroDivisionError: told to", False, {})
    assert ran["error"] == ""
    assert "in fails" in capsys.readouterr().err, "the traceback is on stderr"


def test_a_case_that_differs_from_the_reference_fails_the_run(registry, tmp_path, capsys):
    register("a.b", checked=False)
    assert run.main(["--case", "a.b", "--json", str(tmp_path / "r.json")]) == 1
    assert results(tmp_path / "r.json")[0]["metrics"] == {"x": 1.5}
    assert "a.b: differs from the reference" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (Result({"x": float("nan")}, True), "metrics must be finite: {'x': nan}"),
        (Result({"x": 1.0}, True, samples={"a": [1.0], "b": [1.0, float("inf")]}), "samples must be finite: b"),
        ({"x": 1.0}, "a case returns Result, got dict"),
    ],
)
def test_a_malformed_result_is_an_error_of_that_case(registry, tmp_path, returned, message):
    case("a.b")(lambda: returned)
    assert run.main(["--case", "a.b", "--json", str(tmp_path / "r.json")]) == 1
    assert message in results(tmp_path / "r.json")[0]["error"]


def test_unknown_case_is_refused_with_the_nearest_names(registry, capsys):
    register("ops.parareal_update")
    register("train.digits")
    assert run.main(["--case", "ops.pararel_update"]) == 2
    message = capsys.readouterr().err
    assert "'ops.pararel_update'" in message
    assert "nearest: ops.parareal_update\n" in message


def test_suites(registry):
    for suite in cases.SUITES:
        register(f"in.{suite}", suite=suite)
    assert cases.chosen("quick") == ["in.quick"]
    assert cases.chosen("full") == ["in.full", "in.quick"]
    assert cases.chosen("gpu") == ["in.gpu"]


def test_registration_mistakes_are_named(registry):
    register("a.b")
    with pytest.raises(ValueError, match=r"'a\.b': registered twice"):
        register("a.b")
    with pytest.raises(ValueError, match="suite: got 'slow', expected one of quick, full, gpu, multi_gpu"):
        register("c", suite="slow")
    with pytest.raises(ValueError, match="device: got 'tpu', expected one of cpu, cuda"):
        register("c", device="tpu")


def test_cuda_case_without_a_gpu_says_so(registry, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "gpus", list)
    register("a.cuda", suite="gpu", device="cuda")
    assert run.main(["--suite", "gpu", "--json", str(tmp_path / "r.json")]) == 1
    assert results(tmp_path / "r.json")[0]["error"] == "needs a CUDA device: nvidia-smi lists none"


def test_a_module_that_does_not_import_is_an_entry_of_a_suite(registry, tmp_path):
    register("a.b")
    cases.BROKEN["gone_cases"] = ImportError("no such library")
    assert run.main(["--json", str(tmp_path / "r.json")]) == 1
    assert {e["case"]: e["error"] for e in results(tmp_path / "r.json")} == {
        "gone_cases": "ImportError: no such library",
        "a.b": "",
    }
    assert run.main(["--case", "a.b"]) == 0, "a named case does not depend on other modules"


def test_an_interrupted_run_keeps_what_it_has(registry, tmp_path):
    register("a.done")

    @case("b.interrupted")
    def interrupted():
        raise KeyboardInterrupt

    assert run.main(["--json", str(tmp_path / "r.json")]) == 130
    assert [entry["case"] for entry in results(tmp_path / "r.json")] == ["a.done"]


def test_writing_is_atomic(tmp_path):
    path = tmp_path / "sub" / "r.json"
    run.write_json(path, [1])
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json(path, [float("inf")])
    assert json.loads(path.read_text()) == [1]
    assert os.listdir(path.parent) == ["r.json"], "no temporary file is left"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"checked": 1}, "checked: got 1, expected bool"),
        ({"metrics": {"x": float("nan")}}, "metrics: x: got nan"),
        ({"samples": {"x": [1.0, float("nan")]}}, "samples: x: expected a list of finite numbers"),
        ({"samples": {"x": ["1.0"]}}, "samples: x: expected a list of finite numbers"),
        ({"error": "broken"}, "exclude each other"),
        ({"more": 1}, "unknown fields: more"),
    ],
)
def test_validate_refuses_what_is_not_in_the_schema(registry, change, message):
    register("a.b")
    entry = run.run_case(cases.CASES["a.b"]) | {"commit": "c", "machine": {}, "command": ""}
    run.validate([entry])
    with pytest.raises(ValueError, match=message):
        run.validate([entry | change])


def test_as_a_script_stdout_is_json_alone(tmp_path):
    """A copy of bench/ with one case that prints through Python, C and a child process."""
    shutil.copytree(ROOT / "bench", tmp_path / "bench", ignore=shutil.ignore_patterns("*_cases.py", "results"))
    (tmp_path / "bench" / "cases" / "noisy_cases.py").write_text(
        "import os\nfrom bench.cases import Result, case\n\n\n@case('noisy')\ndef noisy():\n"
        "    print('python')\n    os.write(1, b'descriptor')\n    os.system('echo child')\n"
        "    return Result({'x': 1}, True)\n"
    )
    script = [sys.executable, str(tmp_path / "bench" / "run.py")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}  # another bench on the path must not be taken
    done = subprocess.run(
        [*script, "--case", "noisy", "--json", "-"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)
    assert (entry["case"], entry["checked"]) == ("noisy", True)
    assert all(word in done.stderr for word in ("python", "descriptor", "child"))
    listed = subprocess.run([*script, "--list"], env=env, capture_output=True, text=True, check=False)
    assert (listed.returncode, listed.stdout.split()) == (0, ["noisy", "quick", "cpu"])


def test_commit_of_a_plain_copy(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    monkeypatch.delenv("PYPARAREAL_COMMIT", raising=False)
    assert machine.commit() == "unknown"
    monkeypatch.setenv("PYPARAREAL_COMMIT", "abc123")
    assert machine.commit() == "abc123"


class PlainOps:
    """The ops by their reference, to check the cases themselves; ``error`` is added to the first element."""

    def __init__(self, error=0.0):
        self.error = error

    def parareal_update(self, f_old, g_new, g_old, u_old=None, *, out, jump=None, threads=0):
        import torch

        wide = [np.asarray(x) for x in (f_old, g_new, g_old)]
        u = reference.parareal_update(*wide)
        u.flat[0] += self.error
        out[...] = torch.from_numpy(u) if isinstance(out, torch.Tensor) else u
        if u_old is not None:
            jump[...] = torch.from_numpy(reference.slice_norms(np.asarray(out), np.asarray(u_old)))
        return out


@pytest.fixture
def ops_cases(monkeypatch):
    pytest.importorskip("torch")
    from bench.cases import ops_cases
    from pyparareal import _timing

    interleave = _timing.interleave
    monkeypatch.setattr(_timing, "cache_bytes", lambda: 1 << 12)
    monkeypatch.setattr(_timing, "MIN_SAMPLE", 1e-5)
    monkeypatch.setattr(_timing, "interleave", lambda ways, **o: interleave(ways, **(o | {"repeats": 2})))
    return ops_cases


@pytest.mark.parametrize(("error", "checked"), [(0.0, True), (1e-3, False)])
def test_kernel_cases_check_what_they_time(ops_cases, error, checked):
    for result in (
        ops_cases.update_speed(PlainOps(error), 1 << 14, "float32"),
        ops_cases.host_cost(PlainOps(error), "cpu"),
    ):
        assert result.checked is checked
        assert all(np.isfinite(value) and value > 0 for value in result.metrics.values())


def test_kernel_cases_publish_the_metrics_of_the_contract(ops_cases):
    update = ops_cases.update_speed(PlainOps(), 1 << 14, "float32")
    assert {"bandwidth_fraction", "speedup_vs_torch"} <= set(update.metrics)
    assert "ratio_vs_torch_add" in ops_cases.host_cost(PlainOps(), "cpu").metrics


def test_an_unwritten_slice_is_noticed(ops_cases):
    class Lazy(PlainOps):
        def parareal_update(self, *inputs, out, jump=None, threads=0):
            return super().parareal_update(
                *(x[:-1] for x in inputs), out=out[:-1], jump=jump[:-1] if len(inputs) > 3 else None
            )

    assert not ops_cases.update_speed(Lazy(), 1 << 14, "float32").checked


@pytest.fixture
def tree(tmp_path):
    """``update.cu`` -> ``tile.cuh`` -> ``formula.h``; ``norms.cu`` alone; a vendored header that does not count."""
    files = {
        "csrc/cuda/update.cu": '#include <cuda_runtime.h>\n#include "tile.cuh"\n#include "dlpack/dlpack.h"\n',
        "csrc/cuda/tile.cuh": '#include "pyparareal/formula.h"\n#include "update.cu"\n',
        "csrc/cuda/norms.cu": "int x;\n",
        "csrc/include/pyparareal/formula.h": "int y;\n",
        "csrc/include/pyparareal/host_only.h": "int z;\n",
        "csrc/third_party/dlpack/dlpack.h": "int w;\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def write_run(tree, name="gpu_run.json", **stages):
    record = {
        "kind": "gpu_run",
        "sources": gpu_ledger.content_hashes(tree),
        "stages": dict.fromkeys(gpu_ledger.STAGES, True) | stages,
    }
    run.write_json(tree / "bench" / "results" / name, record)


def open_sources(tree):
    return {entry["source"] for entry in gpu_ledger.uncovered(tree)}


ALL = {
    "csrc/cuda/update.cu",
    "csrc/cuda/tile.cuh",
    "csrc/cuda/norms.cu",
    "csrc/include/pyparareal/formula.h",
}


def test_ledger_lists_everything_without_a_run_and_nothing_after_one(tree):
    assert open_sources(tree) == ALL
    write_run(tree)
    assert open_sources(tree) == set()


def test_ledger_asks_again_for_all_that_see_a_changed_header(tree):
    write_run(tree)
    (tree / "csrc/include/pyparareal/formula.h").write_text("int changed;\n")
    assert open_sources(tree) == ALL - {"csrc/cuda/norms.cu"}
    (tree / "csrc/third_party/dlpack/dlpack.h").write_text("int changed;\n")
    write_run(tree, "second.json")
    assert open_sources(tree) == set()


def test_ledger_covers_kernels_that_are_compiled_at_run_time(tree):
    module = tree / "pyparareal" / "own.py"
    module.parent.mkdir()
    module.write_text('SOURCE = """\n#include "pyparareal/host_only.h"\n__global__ void kernel() {}\n"""\n')
    (module.parent / "other.py").write_text("x = 1\n")
    assert open_sources(tree) == ALL | {"pyparareal/own.py", "csrc/include/pyparareal/host_only.h"}
    write_run(tree)
    (tree / "csrc/include/pyparareal/host_only.h").write_text("int changed;\n")
    assert open_sources(tree) == {"pyparareal/own.py", "csrc/include/pyparareal/host_only.h"}


@pytest.mark.parametrize("stage", gpu_ledger.STAGES)
def test_ledger_wants_every_stage_of_one_run(tree, stage):
    write_run(tree, **{stage: False})
    entries = gpu_ledger.uncovered(tree)
    assert {entry["source"] for entry in entries} == ALL
    assert {entry["reason"] for entry in entries} == {f"run failed: {stage}"}
    write_run(tree, "later.json")
    assert open_sources(tree) == set(), "an older failure does not outlive a pass of the same content"


def test_ledger_ignores_results_of_cases_and_unreadable_files(tree, capsys):
    write_run(tree)
    (tree / "bench/results/suite.json").write_text("[]")
    (tree / "bench/results/half.json").write_text('{"kind": "gpu_')
    assert open_sources(tree) == set()
    assert "half.json: not readable" in capsys.readouterr().err


def test_ledger_command_exits_0(tree, monkeypatch, capsys):
    monkeypatch.setattr(gpu_ledger.uncovered, "__defaults__", (tree,))
    assert gpu_ledger.main([]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(ALL)
    assert gpu_ledger.main(["--json"]) == 0
    assert {entry["source"] for entry in json.loads(capsys.readouterr().out)} == ALL
    write_run(tree)
    assert gpu_ledger.main([]) == 0
    assert capsys.readouterr().out == ""


def junit(tests, failures=0, skipped=0):
    return f'<testsuites><testsuite tests="{tests}" failures="{failures}" errors="0" skipped="{skipped}"/></testsuites>'


@pytest.mark.parametrize(
    ("report", "passed"),
    [(junit(3, skipped=1), True), (junit(3, skipped=3), False), (junit(0), False), ("<cut", False), (None, False)],
)
def test_a_run_in_which_no_test_ran_does_not_pass(tmp_path, report, passed):
    if report is not None:
        (tmp_path / "tests.xml").write_text(report)
    stages = [f"{name}=0:1" for name in gpu_ledger.STAGES]
    status = gpu_record.main([str(tmp_path / "r.json"), *stages, "--junit", str(tmp_path / "tests.xml")])
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["stages"]["tests"] is passed
    assert status == (0 if passed else 1)
    assert record["sources"] == gpu_ledger.content_hashes()


@pytest.mark.parametrize("broken", ["", "build", "tests", "memcheck", "racecheck", "suite"])
def test_gpu_script_runs_every_stage_and_tells_the_truth(tree, broken):
    """The real script and the real record in a small tree; the tools it calls are stand-ins, one of which fails."""
    shutil.copytree(ROOT / "bench", tree / "bench", ignore=shutil.ignore_patterns("results", "__pycache__"))
    tools = tree / "tools"
    tools.mkdir()
    real = f'exec "{sys.executable}" "$@"'
    (tools / "python").write_text(
        f"""#!/bin/bash
echo "$@" >> "{tree}/calls"
case "$*" in
  setup.py*) [ "{broken}" != build ] ;;
  -m\\ pytest*)
    for a in "$@"; do
      case $a in --junitxml=*) echo '{junit(2)}' > "${{a#*=}}";; esac
    done
    [ "{broken}" != tests ] ;;
  bench/run.py*) echo '[]' > "${{@: -1}}"; [ "{broken}" != suite ] ;;
  *) {real} ;;
esac
"""
    )
    (tools / "compute-sanitizer").write_text(f'#!/bin/bash\necho "$@" >> "{tree}/calls"\n[ "$2" != "{broken}" ]\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    env = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHON": str(tools / "python"),
        "PYPARAREAL_COMMIT": "abc",
    }
    env.pop("OUT", None)
    done = subprocess.run(
        ["bash", str(tree / "bench" / "gpu.sh")], env=env, capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == (1 if broken else 0), done.stdout + done.stderr
    calls = (tree / "calls").read_text()
    assert all(word in calls for word in ("setup.py", "pytest", "memcheck", "racecheck", "--suite gpu"))
    record = json.loads((tree / "bench" / "results" / "gpu_run.json").read_text())
    assert record["stages"] == {name: name != broken for name in ("build", "tests", "memcheck", "racecheck", "suite")}
    assert record["commit"] == "abc"
    # The suite measures speed; a kernel is covered by build, tests and sanitizer.
    assert open_sources(tree) == (set() if broken in ("", "suite") else ALL)
    assert len(list((tree / "bench" / "results").iterdir())) <= 8
