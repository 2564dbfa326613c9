# SPDX-License-Identifier: BSD-3-Clause
"""Ranges for other profilers: torch's, and NVIDIA's through NVTX, where the extension was built with its header."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyparareal import MGRIT, TimeGrid, _core, _trace, profiling, solve
from pyparareal.propagators import Map

HERE = Path(__file__).parent
SOLVE = """
import numpy as np
from pyparareal import TimeGrid, ops, solve
from pyparareal.propagators import Map
def halve(u):
    return u / 2
half = Map(halve, batch_invariant=True)
solve(half, np.ones((1, 2)), TimeGrid(0, 1, 8), m=2, tol=0.0, coarse=half)
"""


def run(code, **variables):
    environment = os.environ | variables
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)


def small():
    half = Map(lambda u: u / 2, batch_invariant=True)
    return solve(half, np.ones((1, 2)), TimeGrid(0, 1, 16), m=2, tol=0.0, coarse=half, method=MGRIT())


def test_torch_sees_every_span():
    torch = pytest.importorskip("torch")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        with profiling.ranges(torch=True), profiling.Recorder() as recorder:
            small()
        small()
    found = sorted(e.name for e in seen.events() if e.name.startswith("pyparareal: "))
    titles = [e.name if e.kind in ("region", "launch") else f"{e.kind} {e.name}" for e in recorder.record().events]
    assert found == sorted(f"pyparareal: {title}" for title in titles)
    assert "pyparareal: mgrit.relax.0" in found
    assert _trace.listener is None


def test_wrong_choices():
    with pytest.raises(ValueError, match="neither nvtx=True nor torch=True"), profiling.ranges():
        pass
    with pytest.raises(TypeError, match="torch: got 'yes'"), profiling.ranges(torch="yes"):
        pass
    done = run("import pyparareal", PYPARAREAL_TRACE="torch, nsys")
    assert "ValueError: PYPARAREAL_TRACE: got 'nsys', expected nvtx or torch, or both with a comma" in done.stderr


@pytest.mark.skipif(hasattr(_core, "_nvtx_push"), reason="this build has NVTX")
def test_without_nvtx_it_says_so():
    with pytest.raises(RuntimeError, match="build has no NVTX"), profiling.ranges(nvtx=True):
        pass
    assert _trace.listener is None


def test_the_variable_is_heeded_and_without_it_nothing_is_loaded():
    pytest.importorskip("torch")
    tell = "; from pyparareal import _trace; print(_trace.listener)"
    assert "_TorchRanges" in run("import pyparareal" + tell, PYPARAREAL_TRACE="torch").stdout
    assert run("import pyparareal" + tell, PYPARAREAL_TRACE="").stdout == "None\n"


def nvtx_include():
    """Where the toolkit has the header; nvcc may be a wrapper, so it is asked."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    told = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", told, re.MULTILINE)
    folder = Path(top[1].strip()) / "include" if top else None
    return folder if folder is not None and (folder / "nvtx3/nvToolsExt.h").exists() else None


@pytest.mark.no_sanitize
@pytest.mark.skipif(not hasattr(_core, "_nvtx_push"), reason="built without the header of NVTX")
def test_nvtx_sees_ranges_of_a_domain_of_its_own(tmp_path):
    include, compiler = nvtx_include(), shutil.which("cc")
    if include is None or compiler is None:
        pytest.skip("no header of NVTX, or no C compiler, to build a listener with")
    library, out = tmp_path / "listener.so", tmp_path / "out.txt"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", f"-I{include}", str(HERE / "nvtx_listener.c"), "-o", str(library)],
        check=True,
    )
    done = run(SOLVE, PYPARAREAL_TRACE="nvtx", NVTX_INJECTION64_PATH=str(library), NVTX_LISTENER_OUT=str(out))
    assert done.stderr == ""
    first, *lines = out.read_text().splitlines()
    assert first == "domain pyparareal"
    depth, pushed = 0, []
    for line in lines:
        depth += 1 if line.startswith("push ") else -1
        pushed += [line.removeprefix("push ")] if line.startswith("push ") else []
        assert depth >= 0
    assert depth == 0
    assert not any("elsewhere" in line for line in lines)
    assert {"solve", "parareal.fine", "verb map", "halve", "slice_norms", "parareal_update"} <= set(pushed)
