# SPDX-License-Identifier: BSD-3-Clause
"""PyMGRIT 1.0.6 in a virtual environment of its own: it needs an older NumPy, and an MPI."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.yardstick import Missing

CACHE = "PYPARAREAL_BENCH_CACHE"
# np.in1d, which PyMGRIT calls, is gone from NumPy 2.4. MPI comes as a wheel.
PINS = ("pymgrit==1.0.6", "numpy==1.26.4", "scipy==1.14.1", "matplotlib==3.8.4", "mpi4py==4.1.2", "mpich==5.0.2")
CHECK = "import pymgrit; from mpi4py import MPI; print(MPI.Get_library_version().split(chr(10))[0])"
SCRIPT = Path(__file__).with_name("histories.py")


@contextlib.contextmanager
def environment(pins: Sequence[str] = PINS) -> Iterator[Path]:
    """The Python interpreter of an environment that has ``pins``; Missing says what could not be had.

    It is made in the folder $PYPARAREAL_BENCH_CACHE and found there again, or in a temporary one and removed.
    """
    cache = os.environ.get(CACHE)
    with contextlib.nullcontext(cache) if cache else tempfile.TemporaryDirectory() as folder:
        key = hashlib.sha256("\n".join([sys.version, *pins]).encode()).hexdigest()[:16]
        home = Path(folder) / f"pymgrit-{key}"
        complete = home / "complete"
        python = home / "bin" / "python"
        if not complete.exists():
            _make(home, python, pins)
            complete.touch()
        yield python


def _make(home: Path, python: Path, pins: Sequence[str]) -> None:
    for what, command in (
        ("python -m venv", [sys.executable, "-m", "venv", "--clear", str(home)]),
        ("pip install", [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *pins]),
        ("import", [str(python), "-c", CHECK]),
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Missing(
                f"not run: PyMGRIT needs {', '.join(pins)} (or another MPI for mpi4py in place of mpich); "
                f"{what} fails: {_last_lines(done.stderr or done.stdout)}"
            )


def histories(python: Path, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What ``histories.py`` measures for each of ``runs``, in one process on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        done = subprocess.run(
            [str(python), str(SCRIPT), json.dumps(list(runs)), str(out)],
            capture_output=True,
            text=True,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | one,
        )
        if done.returncode:
            raise RuntimeError(f"PyMGRIT: {_last_lines(done.stderr or done.stdout)}")
        return json.loads(out.read_text())


def _last_lines(text: str, count: int = 3) -> str:
    return " | ".join(line.strip() for line in text.strip().splitlines()[-count:])
