# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels, compiled for the host and run thread by thread, give the bits of the CPU kernels.

What needs a GPU is elsewhere; this is the part of the CUDA half that every machine can check: index
arithmetic, packing, masks of shuffles, barriers, aliasing, canaries (``tests/cpp/test_cuda_emulated.cpp``).
"""

import os
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    *sorted(ROOT.glob("csrc/cuda/*.cu")),
    *sorted(ROOT.glob("csrc/*.cpp")),
    *sorted(ROOT.glob("csrc/cpu/*.cpp")),
]
# Each with the fewest checks it makes.
PROGRAMS = {
    "test_cuda_emulated": 10_000,
    "test_cuda_relax": 5_000,
    "test_cuda_mlp": 1_500,
    "test_cuda_gru": 1_000,
    "test_cuda_gru_mma": 1_500,
    "test_cuda_dense": 1_000,
    "test_cuda_dense_mma": 1_500,
    "test_cuda_scan": 3_000,
    "test_cuda_newton": 1_000,
}
# Undefined arithmetic and misaligned packs trap; traps need no sanitizer library.
FLAGS = [
    *("-std=c++17", "-ffp-contract=off"),
    *("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),
    *("-DPYPARAREAL_EMULATE_CUDA", "-DPYPARAREAL_WITH_CUDA=1"),
    *(f"-I{ROOT / folder}" for folder in ("csrc/include", "csrc", "tests/cpp")),
]


def compiler():
    """The C++ compiler as an argument list; skips where there is none."""
    command = shlex.split(os.environ.get("CXX", "c++"))
    if shutil.which(command[0]) is None:
        pytest.skip(f"no C++ compiler: {command[0]} is not found")
    if not (ROOT / "csrc").is_dir():
        pytest.skip("no C++ sources: the tests run outside the source tree")
    return command


def compiled(command, source, folder):
    target = folder / f"{source.name}.o"
    # The emulation runs long; the CPU's tiles compile long: a fifth at -O0, to the same bits.
    level = "-O0" if source.name.startswith("tiles_") else "-O1"
    done = subprocess.run(
        [*command, level, *FLAGS, "-x", "c++", "-c", source, "-o", target], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    command, folder = compiler(), tmp_path_factory.mktemp("objects")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: compiled(command, source, folder), SOURCES))


@pytest.mark.no_sanitize
@pytest.mark.parametrize("name", PROGRAMS)
def test_cuda_kernels_give_the_bits_of_the_cpu_kernels(name, objects, tmp_path):
    command = compiler()
    own = compiled(command, ROOT / f"tests/cpp/{name}.cpp", tmp_path)
    program = tmp_path / name
    subprocess.run([*command, *objects, own, "-o", program], check=True)

    done = subprocess.run([program], capture_output=True, text=True)

    summary = re.search(r"^(\d+) passed, 0 failed$", done.stdout, re.MULTILINE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary, done.stdout
    assert int(summary[1]) > PROGRAMS[name]
