# SPDX-License-Identifier: BSD-3-Clause
"""The GPU case of sequences, small and on the CPU: that it runs, checks and names what it should."""

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'pyparareal[torch]'")

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "bench").is_dir():
    pytest.skip("bench/ is not beside tests/", allow_module_level=True)
sys.path.append(str(ROOT))

from bench.cases.sequence_gpu_cases import (  # noqa: E402
    GruSizes,
    NewtonSizes,
    Precisions,
    PrecisionSizes,
    Ways,
    gru_on,
    newton_step_on,
    precision_on,
)
from pyparareal.nn.recurrent.cells import GRUStep  # noqa: E402


@pytest.mark.filterwarnings("ignore:recurrence")  # a way that fails is in the table
def test_the_table_has_every_way_and_the_errors_are_looked_at(monkeypatch):
    sizes = GruSizes(table=((48,), (1, 2), (4,)), main=(48, 2, 4), trained=(2, 2, 10), repeats=1)
    result = gru_on("cpu", sizes)
    assert result.checked
    ways = ("cudnn", "serial_kernel", "chunks_hybrid", "chunks_hybrid_kernel", "chunks_mgrit", "chunks_mgrit_kernel")
    for prefix in ("", "T48_B1_H4_"):
        for kind in ("inference", "training"):
            some = [way for way in ways if kind == "inference" or "mgrit" not in way]
            assert {f"{prefix}{way}_{kind}_ms" for way in some} <= set(result.metrics)
            assert result.metrics[f"{prefix}{kind}_vs_cudnn"] > 0
    wrong = Ways._serial
    monkeypatch.setattr(Ways, "_serial", lambda self, x: wrong(self, x) * 1.001)
    assert not gru_on("cpu", sizes).checked


def test_the_fused_newton_step_is_compared_with_its_parts(monkeypatch):
    sizes = NewtonSizes(shapes=((40, 2, 4),), repeats=1)
    result = newton_step_on("cpu", sizes)
    assert result.checked
    assert {f"T40_B2_H4_newton_{way}_ms" for way in ("fused", "unfused")} <= set(result.metrics)
    assert result.metrics["T40_B2_H4_fused_vs_unfused"] > 0
    assert "wins" in result.notes
    right = GRUStep.newton_step

    def wrong(*args, out, **more):
        norms = right(*args, out=out, **more)
        out += 1e-3
        return norms

    monkeypatch.setattr(GRUStep, "newton_step", wrong)
    assert not newton_step_on("cpu", sizes).checked


def test_the_precisions_are_compared_with_cudnn_and_with_float64(monkeypatch):
    # On the CPU there is but one.
    sizes = PrecisionSizes(table=((1, 20, 2, 4), (3, 5, 2, 6)), precisions=("exact",), repeats=1)
    result = precision_on("cpu", sizes)
    assert result.checked
    for prefix in ("N1_m20_B2_H4_", "N3_m5_B2_H6_"):
        assert result.metrics[f"{prefix}exact_max_rel_err"] <= 1e-5
        assert {f"{prefix}{name}_ms" for name in ("cudnn", "forward_exact", "adjoint_exact")} <= set(result.metrics)
        assert result.metrics[f"{prefix}adjoint_exact_vs_exact"] == 1
    wrong = Precisions._forward
    monkeypatch.setattr(Precisions, "_forward", lambda self, p: wrong(self, p).mul_(1.001))
    assert not precision_on("cpu", sizes).checked
