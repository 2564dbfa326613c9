# SPDX-License-Identifier: BSD-3-Clause
"""The table of what ptxas says: read right, compiled again only where something changed, and true when it fails."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import bench_tree
import pytest

ROOT = bench_tree.load()

from bench import gpu_ledger, ptxas  # noqa: E402

COPY = "_ZN10pyparareal4cuda12_GLOBAL__N_111copy_kernelItLb0EEEvNS_5SpaceE"
TREE = "_ZN10pyparareal4cuda11tree_kernelILNS_4NormE2EEEvPdPKdll"
SAID = f"""ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{TREE}' for 'sm_90'
ptxas info    : Function properties for {TREE}
    64 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 64 bytes cumulative stack size, 1280 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 108.887 ms
ptxas info    : Compiling entry function '{COPY}' for 'sm_90'
ptxas info    : Function properties for {COPY}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 48 registers, used 0 barriers
"""


def test_every_number_of_every_kernel_is_read():
    copy, tree = sorted(ptxas.parse(SAID), key=lambda kernel: kernel.registers)
    assert (copy.registers, copy.barriers, copy.static_shared) == (48, 0, 0)
    assert (copy.stack, copy.spill_stores, copy.spill_loads) == (0, 0, 0)
    assert (tree.registers, tree.barriers, tree.static_shared) == (255, 1, 1280)
    assert (tree.stack, tree.spill_stores, tree.spill_loads) == (64, 12, 16)


def test_older_words_of_ptxas_are_read_too():
    said = (
        f"ptxas info : Compiling entry function '{COPY}' for 'sm_80'\nptxas info : Used 32 registers, 96 bytes smem, 8"
    )
    (kernel,) = ptxas.parse(said)
    assert (kernel.registers, kernel.barriers, kernel.static_shared) == (32, 0, 96)


def test_without_kernels_there_is_nothing():
    assert ptxas.parse("ptxas info    : 0 bytes gmem\n") == []


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt")
def test_names_are_those_of_the_source():
    assert [kernel.kernel for kernel in ptxas.parse(SAID)] == [
        "copy_kernel<unsigned short, false>",
        "tree_kernel<(Norm)2>",
    ]


# 65536 registers in units of 256 a warp: 32 x 32 = 1024 -> 64; 33 x 32 = 1056 -> 1280 -> 51; 255 x 32 -> 8192 -> 8.
@pytest.mark.parametrize(("registers", "warps"), [(1, 64), (32, 64), (33, 51), (40, 51), (128, 16), (255, 8)])
def test_warps_follow_from_registers(registers, warps):
    assert ptxas.warps_for(registers) == warps


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Two sources, and an nvcc that compiles what does not hold the word "broken" and counts its calls."""
    for name in ("a", "b"):
        path = tmp_path / "csrc" / "cuda" / f"{name}.cu"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"int {name};\n")
    (tmp_path / "said").write_text(SAID)
    nvcc = tmp_path / "home" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        f"""#!/bin/bash
[ "$1" = --version ] && {{ echo "Cuda compilation tools, release 13.0, V$(cat "{tmp_path}/version")"; exit; }}
echo "${{@: -1}}" >> "{tmp_path}/calls"
! grep -q broken "${{@: -1}}" && cat "{tmp_path}/said" >&2
"""
    )
    nvcc.chmod(0o755)
    (tmp_path / "version").write_text("13.0.88")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYPARAREAL_COMMIT", "abc")
    monkeypatch.setattr(ptxas, "ROOT", tmp_path)
    return tmp_path


def compiled(tree):
    calls = tree / "calls"
    names = calls.read_text().split() if calls.exists() else []
    calls.write_text("")
    return [Path(name).stem for name in names]


def recorded(tree):
    return json.loads((tree / "bench" / "results" / "ptxas_sm90.json").read_text())


def test_only_what_changed_is_compiled_again(tree, capsys):
    assert ptxas.main([]) == 0
    assert compiled(tree) == ["a", "b"]
    assert ptxas.main([]) == 0
    assert compiled(tree) == []
    (tree / "csrc" / "cuda" / "b.cu").write_text("int other;\n")
    capsys.readouterr()
    assert ptxas.main(["--stale"]) == 0
    assert capsys.readouterr().out == "csrc/cuda/b.cu\n"
    assert compiled(tree) == []
    assert ptxas.main([]) == 0
    assert compiled(tree) == ["b"]
    (tree / "version").write_text("13.1.5")
    assert ptxas.main([]) == 0
    assert compiled(tree) == ["a", "b"], "another compiler"
    assert ptxas.main(["--all"]) == 0
    assert compiled(tree) == ["a", "b"]


def test_the_record_tells_where_it_comes_from(tree):
    ptxas.main([])
    record = recorded(tree)
    assert {key: record[key] for key in ("kind", "nvcc", "arch", "commit")} == {
        **{"kind": "ptxas", "nvcc": "13.0.88", "arch": "90", "commit": "abc"},
    }
    assert "-arch=sm_90" in record["command"]
    assert "-fmad=false" in record["command"]
    hashes = gpu_ledger.content_hashes(tree)
    assert {name: entry["hash"] for name, entry in record["sources"].items()} == hashes
    assert [len(entry["kernels"]) for entry in record["sources"].values()] == [2, 2]


def test_a_spill_shows_in_the_table(tree, capsys):
    ptxas.main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["csrc/cuda/a.cu", "2", *["48", "to", "255", "8", "to", "42", "1280", "1"]]
    assert "12 bytes stored, 16 loaded" in lines[2]


def test_a_source_that_does_not_compile_has_no_record_and_the_others_do(tree, capsys):
    (tree / "csrc" / "cuda" / "a.cu").write_text("broken\n")
    assert ptxas.main([]) == 1
    assert "csrc/cuda/a.cu: does not compile" in capsys.readouterr().err
    assert list(recorded(tree)["sources"]) == ["csrc/cuda/b.cu"]
    assert ptxas.main(["--stale"]) == 0
    assert capsys.readouterr().out == "csrc/cuda/a.cu\n"


def test_without_nvcc_a_record_of_now_is_enough_and_a_stale_one_is_an_error(tree, monkeypatch, capsys):
    ptxas.main([])
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", os.fspath(tree))
    assert ptxas.main([]) == 0
    (tree / "csrc" / "cuda" / "a.cu").write_text("int other;\n")
    assert ptxas.main([]) == 1
    assert "no nvcc" in capsys.readouterr().err


def test_the_ledger_takes_the_record_for_no_run(tree):
    ptxas.main([])
    assert len(gpu_ledger.uncovered(tree)) == 2


def test_flags_are_those_of_the_build():
    """Another flag in setup.py makes other kernels than those in the table."""
    build = (ROOT / "setup.py").read_text()
    assert all(f'"{flag}"' in build for flag in ptxas.FLAGS if not flag.startswith("-DPYPARAREAL"))
