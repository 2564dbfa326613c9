# SPDX-License-Identifier: BSD-3-Clause
"""A function of this package in a process of its own: with a number of threads, and with memory all its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# The tree comes last on the path: an installed pyparareal is what is measured.
START = """
import importlib, json, sys
sys.path.append(sys.argv[1])
module, function, arguments = sys.argv[2:5]
print(json.dumps(getattr(importlib.import_module(module), function)(**json.loads(arguments))))
"""


def call(module: str, function: str, *, threads: int, **arguments: Any) -> Any:
    """``module.function(**arguments)`` with so many OpenMP and BLAS threads; arguments and result pass as JSON."""
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as elsewhere:  # -c puts the working directory first on the path
        done = subprocess.run(
            [sys.executable, "-c", START, str(ROOT), module, function, json.dumps(arguments)],
            cwd=elsewhere,
            env=os.environ | counts,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(f"{module}.{function}({arguments}) failed: {done.stderr[-2000:].strip()}")
    return json.loads(done.stdout.splitlines()[-1])
