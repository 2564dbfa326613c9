# SPDX-License-Identifier: BSD-3-Clause
"""The switches of setup.py: each wrong value stops the build and names the variable, what it got, what is expected."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.no_sanitize,
    pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="no setup.py: run from outside the tree"),
]


SOURCES = {
    "csrc/include/a.h": "#define A 1\n",
    "csrc/a.cpp": '#include "a.h"\nint a() { return A; }\n',
    "csrc/cpu/b.cpp": "int b() { return 2; }\n",
}


def setup(tmp_path, sources=SOURCES, **switches):
    """Runs setup.py in a folder with two tiny sources, one of which reads a header."""
    for name in ("setuptools", "pybind11", "Cython"):
        pytest.importorskip(name)
    (tmp_path / "setup.py").write_text((ROOT / "setup.py").read_text())
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(text)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYPARAREAL_", "CUDA_")) and k != "MAX_JOBS"}
    command = [sys.executable, "setup.py", "-q", "build_ext"]
    return subprocess.run(command, cwd=tmp_path, env=env | switches, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("PYPARAREAL_CUDA", "yes", "auto, 0 or 1"),
        ("PYPARAREAL_CUDA", "2", "auto, 0 or 1"),
        ("PYPARAREAL_CUDA_ARCHS", "sm_90", "numbers such as '80;90;100'"),
        ("PYPARAREAL_CUDA_ARCHS", "80,90", "numbers such as '80;90;100'"),
        ("PYPARAREAL_CUDA_ARCHS", "80;", "numbers such as '80;90;100'"),
        ("PYPARAREAL_DEBUG", "true", "0 or 1"),
        ("MAX_JOBS", "0", "a positive integer"),
        ("MAX_JOBS", "-1", "a positive integer"),
        ("MAX_JOBS", "two", "a positive integer"),
        ("PYPARAREAL_OBJECTS", "build/obj", "an absolute path"),
    ],
)
def test_a_wrong_value_is_refused(tmp_path, name, value, expected):
    done = setup(tmp_path, **{name: value})
    assert done.returncode != 0
    assert f"{name}: got {value!r}, expected {expected}" in done.stderr


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"PYPARAREAL_CUDA": "0", "PYPARAREAL_CUDA_ARCHS": "90", "PYPARAREAL_DEBUG": "1", "MAX_JOBS": "3"},
        {"PYPARAREAL_CUDA": "", "MAX_JOBS": ""},
        {"PYPARAREAL_CUDA_ARCHS": "80;90;120"},
    ],
)
def test_right_values_are_accepted(tmp_path, switches):
    done = setup(tmp_path, **switches)
    assert done.returncode == 0, done.stderr


def test_cuda_wanted_without_nvcc(tmp_path):
    done = setup(tmp_path, PYPARAREAL_CUDA="1", PATH=str(tmp_path))
    assert done.returncode != 0
    assert "PYPARAREAL_CUDA: got 1, expected nvcc in $CUDA_HOME/bin, $CUDA_PATH/bin or $PATH, found none" in done.stderr


def test_only_what_changed_is_compiled_again(tmp_path):
    def objects():
        return {p.name.partition("-")[0]: p.stat().st_mtime_ns for p in (tmp_path / "build" / "obj").glob("*.o")}

    assert setup(tmp_path).returncode == 0
    first = objects()
    assert set(first) == {"a", "b"}
    assert setup(tmp_path).returncode == 0
    assert objects() == first
    (tmp_path / "csrc/include/a.h").write_text("#define A 3\n")
    assert setup(tmp_path).returncode == 0
    changed = objects()
    assert changed["a"] > first["a"]
    assert changed["b"] == first["b"]


def test_objects_are_shared_by_trees_of_the_same_files_alone(tmp_path):
    folder, trees = tmp_path / "objects", [tmp_path / "first", tmp_path / "second"]
    trees[0].mkdir()

    def objects(tree):
        assert setup(tree, PYPARAREAL_OBJECTS=str(folder)).returncode == 0
        assert not (tree / "build" / "obj").exists()
        return {p.name.partition("-")[0]: p.stat().st_mtime_ns for p in folder.glob("*.o")}

    first = objects(trees[0])
    shutil.copytree(trees[0], trees[1])  # keeps times, as an sdist does
    assert objects(trees[1]) == first
    (trees[1] / "csrc/include/a.h").write_text("#define A 3\n")
    changed = objects(trees[1])
    assert changed["a"] > first["a"]
    assert changed["b"] == first["b"]
    # A header that another tree has and this one lacks is no header of this one.
    (trees[1] / "csrc/include/a.h").unlink()
    rest = {name: text for name, text in SOURCES.items() if not name.endswith(".h")}
    done = setup(trees[1], rest, PYPARAREAL_OBJECTS=str(folder))
    assert done.returncode != 0
    assert "a.h" in done.stderr


def test_a_source_that_does_not_compile_stops_the_build(tmp_path):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "a.cpp").write_text("int a() { return }\n")
    done = setup(tmp_path)
    assert done.returncode != 0
    assert "csrc/a.cpp" in done.stderr
    assert not list((tmp_path / "build").glob("obj/a-*.o"))
