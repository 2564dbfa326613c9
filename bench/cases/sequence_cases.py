# SPDX-License-Identifier: BSD-3-Clause
"""Speed of the scans: bytes moved against the copy bandwidth of the same run, shapes that lose among them.

Inputs are drawn afresh each time, outputs are poisoned before timing, and what the timed calls left there is compared
with ``pyparareal.reference``, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.cases import Result, case
from pyparareal import _bandwidth, _timing, reference

# name: steps, lanes, rows of a block (None: scan_diag), dtype, reverse. The first is the goal's: T = 16,384, batch 4,
# hidden 64. Few lanes and blocks lose: their rows do not lie in vectors.
SHAPES = {
    "": (16384, 256, None, "float32", False),
    "_reverse": (16384, 256, None, "float32", True),
    "_float64": (16384, 256, None, "float64", False),
    "_2048_lanes": (8192, 2048, None, "float32", False),
    "_8_lanes": (1 << 18, 8, None, "float32", False),
    "_1_lane": (1 << 20, 1, None, "float32", False),
    "_block2_64_lanes": (16384, 64, 2, "float32", False),
    "_block3_1_lane": (1 << 17, 1, 3, "float64", False),
    "_block4_64_lanes": (8192, 64, 4, "float32", False),
    "_block32_8_lanes": (1024, 8, 32, "float32", False),
}
CHECKED = 4096  # rows; those after a row change none of its bits


@case("sequence.scan", suite="quick")
def scan() -> Result:
    """``scan_diag`` and ``scan_block`` on all cores; the goal is at T = 16,384, 256 lanes, float32."""
    from pyparareal import ops

    return scan_speed(ops, SHAPES)


@case("sequence.scan.cuda", suite="gpu", device="cuda")
def scan_cuda() -> Result:
    """The same on the device, and at 16 times as many lanes, beyond its L2."""
    from pyparareal import ops

    return scan_speed(ops, SHAPES | {"_4096_lanes": (16384, 4096, None, "float32", False)}, device="cuda")


def scan_speed(ops: Any, shapes: dict[str, Any], *, device: str = "cpu", min_time: float = 0.15) -> Result:
    """``bandwidth_fraction`` of every shape: the time of a copy that moves as many bytes over the time of the scan.

    A scan reads ``a`` and ``b`` and writes ``u``; all arrays are out of the caches before each call.
    """
    metrics: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    checked = True
    for name, (steps, lanes, d, dtype, reverse) in shapes.items():
        a, b, u = _arrays(steps, lanes, d, dtype, device)
        moved = a.nbytes + 2 * b.nbytes
        op = "scan_diag" if d is None else "scan_block"
        ways = {"scan": lambda: getattr(ops, op)(a, b, reverse=reverse, out=u, threads=_timing.cores())}  # noqa: B023
        ways |= _bandwidth.copies(moved // 2, device=device)
        taken = _timing.interleave(ways, device=device, min_time=min_time)
        copy = min((way for way in taken if way.startswith("copy_")), key=lambda way: taken[way].median)
        fraction = _timing.ratio(taken[copy], taken["scan"])
        metrics |= {
            f"bandwidth_fraction{name}": fraction.value,
            f"bandwidth_fraction_low{name}": fraction.low,
            f"bandwidth_fraction_high{name}": fraction.high,
            # Fastest against fastest: what a disturbed run can still say.
            f"bandwidth_fraction_fastest{name}": taken[copy].min / taken["scan"].min,
            f"gb_per_s{name}": 1e-9 * moved / taken["scan"].median,
            f"copy_gb_per_s{name}": 1e-9 * moved / taken[copy].median,
        }
        samples |= {f"{way}{name}": s.seconds for way, s in taken.items()}
        checked = checked and agrees(op, a, b, u, reverse)
    return Result(metrics, checked, samples, f"{_timing.cores()} cores; times of one call in seconds")


def agrees(op: str, a: Any, b: Any, u: Any, reverse: bool) -> bool:
    """Whether the rows that come first, of some lanes, have the bits of the reference, and no row is left of before."""
    lanes = sorted({0, b.shape[1] // 3, b.shape[1] - 1})
    rows = slice(-CHECKED, None) if reverse else slice(CHECKED)
    first = (np.ascontiguousarray(x[rows].cpu().numpy()[:, lanes]) for x in (a, b))
    expected = np.ascontiguousarray(getattr(reference, op)(*first, reverse=reverse))
    got = np.ascontiguousarray(u[rows].cpu().numpy()[:, lanes])
    return bool(got.tobytes() == expected.tobytes() and u.isfinite().all())


def _arrays(steps: int, lanes: int, d: int | None, dtype: str, device: str) -> tuple[Any, Any, Any]:
    """``a`` of spectral radius below one, ``b``, and ``u`` of NaN."""
    import torch

    own = () if d is None else (d,)
    kind = getattr(torch, dtype)
    a = torch.randn((steps, lanes, *own, *own), dtype=kind) * (0.5 / (d or 1))
    b = torch.randn((steps, lanes, *own), dtype=kind)
    return a.to(device), b.to(device), torch.full_like(b, float("nan")).to(device)
