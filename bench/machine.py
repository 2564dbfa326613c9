# SPDX-License-Identifier: BSD-3-Clause
"""What a measurement was taken on: processor, GPU, commit, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def describe() -> dict[str, Any]:
    """Processor, cores this process may use, memory, load before the run, GPUs (empty without a driver)."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "gpus": gpus(),
    }


def cpu_model() -> str:
    """Model name from /proc/cpuinfo."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def gpus() -> list[dict[str, str]]:
    """Name, driver and memory of each GPU, as nvidia-smi tells them."""
    fields = ("name", "driver_version", "memory.total")
    text = _output("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    rows = [line.split(", ") for line in text.splitlines() if line.count(", ") == len(fields) - 1]
    return [dict(zip(("name", "driver", "memory"), row, strict=True)) for row in rows]


def commit() -> str:
    """Commit of the tree, ``-dirty`` if tracked files differ; PYPARAREAL_COMMIT in a copy without git; or "unknown"."""
    if named := os.environ.get("PYPARAREAL_COMMIT"):
        return named
    if _output("git", "-C", str(ROOT), "rev-parse", "--show-toplevel") != str(ROOT):
        return "unknown"  # no git, or a copy inside another repository
    head = _output("git", "-C", str(ROOT), "rev-parse", "HEAD") or "unknown"
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{head}-dirty" if changed else head


def versions() -> dict[str, str]:
    """Python, pyparareal, and the libraries that are installed; nothing is imported for it."""
    found = {"python": platform.python_version()}
    for name in ("pyparareal", "numpy", "torch", "cupy-cuda13x", "cupy-cuda12x", "triton"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    loaded = sys.modules.get("pyparareal")
    found.setdefault("pyparareal", str(getattr(loaded, "__version__", "source tree")))
    return found


def cuda_missing() -> str:
    """Empty if a CUDA device can be used, else the reason in words."""
    if not gpus():
        return "needs a CUDA device: nvidia-smi lists none"
    return ""


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
