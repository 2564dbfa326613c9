# SPDX-License-Identifier: BSD-3-Clause
"""The GPU case of layer-parallel networks, small and on the CPU: that it runs, checks and names what it should."""

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "bench").is_dir():
    pytest.skip("bench/ is not beside tests/", allow_module_level=True)
sys.path.append(str(ROOT))

from bench.cases.depth_gpu_cases import TOLERANCE, DepthSizes, depth_on  # noqa: E402
from pyparareal.nn.layer_parallel import layer_parallel  # noqa: E402

SMALL = DepthSizes(
    dense=((32, 4, 2), (16, 4, 3)),
    main=(32, 4, 2),
    convolution=(16, 2, 4, 2),
    transformer=(16, 8, 3, 2),
    factors=(4,),
    repeats=1,
)


def test_the_table_has_every_way_and_the_errors_are_looked_at(monkeypatch):
    result = depth_on("cpu", SMALL)
    assert result.checked
    for prefix, ways in {
        "": ("eager", "graphed", "fused_serial", "parallel_m4", "parallel_m4_kernel", "parallel_m4_tf32x3"),
        "L16_W4_B3_": ("eager", "graphed", "fused_serial", "parallel_m4", "parallel_m4_kernel", "parallel_m4_tf32x3"),
        "convolution_": ("eager", "graphed", "parallel_m4"),
        "transformer_": ("eager", "graphed", "parallel_m4"),
    }.items():
        assert {f"{prefix}{way}_ms" for way in ways} <= set(result.metrics)
        for way in ways:
            if way.startswith("parallel"):
                assert result.metrics[f"{prefix}{way}_error"] <= TOLERANCE
                assert result.metrics[f"{prefix}{way}_iterations"] >= 1
        assert result.metrics[f"{prefix}vs_graphed"] > 0
    serial = layer_parallel.one_by_one
    monkeypatch.setattr(layer_parallel, "one_by_one", lambda step, u: serial(step, u) * 1.01)
    assert not depth_on("cpu", SMALL).checked
