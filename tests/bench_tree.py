# SPDX-License-Identifier: BSD-3-Clause
"""``bench`` by its place beside ``tests``: the tree must not come before an installed pyparareal."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load() -> Path:
    """Make ``import bench`` work and return the root of the tree; skips the test file where there is no tree."""
    if not (ROOT / "bench" / "run.py").exists():
        pytest.skip("bench/ is not beside tests/", allow_module_level=True)
    if "bench" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "bench", ROOT / "bench" / "__init__.py", submodule_search_locations=[str(ROOT / "bench")]
        )
        sys.modules["bench"] = importlib.util.module_from_spec(spec)
    return ROOT
