# SPDX-License-Identifier: BSD-3-Clause
"""The plain C++ program that MGRIT's times are compared with: compiled where it runs, for the processor it runs on."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("yardstick.cpp")
# An ISO -std switches contraction off; without fused multiply-adds the serial chain would be slower than need be.
FLAGS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fopenmp")

Program = Callable[..., dict[str, Any]]


class Missing(RuntimeError):
    """What a comparison needs is not here, so that it was not run."""


@contextlib.contextmanager
def compiled(compiler: str | None = None) -> Iterator[Program]:
    """``run("serial", 16384, 255, 1.0, 5)`` calls the program with these words and returns what it printed.

    ``compiler``: default $CXX, else g++. The program lives in a temporary folder, as long as the context.
    """
    name = compiler or os.environ.get("CXX") or "g++"
    if shutil.which(name) is None:
        raise Missing(f"not run: there is no compiler {name!r} for the C++ yardstick; CXX names another")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "yardstick"
        done = subprocess.run([name, *FLAGS, str(SOURCE), "-o", str(program)], capture_output=True, text=True)
        if done.returncode:
            raise Missing(f"not run: {name} {' '.join(FLAGS)} fails on the C++ yardstick: {done.stderr[-500:].strip()}")

        def run(*words: Any) -> dict[str, Any]:
            text = subprocess.run([str(program), *map(str, words)], capture_output=True, text=True, check=True)
            return json.loads(text.stdout)

        yield run
