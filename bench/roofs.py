# SPDX-License-Identifier: BSD-3-Clause
"""What a device can do at most, measured in the run that is judged by it: float64 operations and bytes per second.

The kernels multiply and add in two instructions, so that every device gives the same bits; so does this roof. The
figures of vendors count both halves of a fused operation and are twice as high.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyparareal import _bandwidth, _timing

CHAINS = 8  # independent ones per thread
ROUNDS = 4096
FLOPS = 2 * CHAINS * ROUNDS  # of a thread
SOURCE = f"""
extern "C" __global__ void multiply_and_add(double* out, double a, double b) {{
  double x[{CHAINS}];
  for (int k = 0; k < {CHAINS}; ++k) x[k] = threadIdx.x + k;
  #pragma unroll 4
  for (int round = 0; round < {ROUNDS}; ++round)
    #pragma unroll
    for (int k = 0; k < {CHAINS}; ++k) x[k] = __dadd_rn(__dmul_rn(x[k], a), b);
  double sum = 0;
  for (int k = 0; k < {CHAINS}; ++k) sum += x[k];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}}
"""


@dataclass(frozen=True)
class Roof:
    """Most float64 operations and bytes per second, and what they were measured with."""

    flops: float
    bytes: float
    how: str

    def fraction(self, flops: float, nbytes: float, seconds: float) -> float:
        """The shortest time ``flops`` and ``nbytes`` can take, over ``seconds``."""
        return max(flops / self.flops, nbytes / self.bytes) / seconds

    def bound(self, flops: float, nbytes: float) -> str:
        """Which of the two takes longer: "flops" or "bytes"."""
        return "flops" if flops / self.flops >= nbytes / self.bytes else "bytes"


def measure(device: str, *, elements: int = 1 << 22, steps: int = 2048, copied: int = 1 << 30) -> tuple[Roof, bool]:
    """The roof of ``device``, and whether what it was measured with computed the right thing.

    Parameters
    ----------
    elements, steps : of the multiplications by ``relax_diagonal``
    copied : bytes of the copy
    """
    import torch

    from pyparareal import ops

    u = torch.ones(elements, 1, dtype=torch.float64, device=device)
    # 2^-(1/1024) to the power of 2048 is 1/4 but for rounding: no overflow, no subnormals, nothing to optimise away.
    a, out = torch.full((1,), 2.0 ** (-1 / 1024), dtype=torch.float64, device=device), torch.empty_like(u)
    ways: dict[str, Callable[[], Any]] = {"relax_diagonal": lambda: ops.relax_diagonal(u, a, steps, out=out)}
    flops = {"relax_diagonal": float(elements * steps)}
    sums = None
    if device == "cuda" and (made := _multiply_and_add()) is not None:
        ways["multiply_and_add"], sums = made
        flops["multiply_and_add"] = float(FLOPS * sums.size)
    taken = _timing.interleave(ways, device=device, repeats=5, cold_cache=False, max_calls=1)
    best = max(ways, key=lambda way: flops[way] / taken[way].median)
    # Each multiplication rounds by half a unit at most.
    right = bool((out - 2.0 ** (-steps / 1024)).abs().max() <= steps * 2.0**-53)
    if sums is not None:  # x / 2 + 1 ends in 2 exactly
        right &= bool((sums == 2.0 * CHAINS).all())
    roof = Roof(
        flops[best] / taken[best].median,
        _bandwidth.copy_bandwidth(copied, device=device, min_time=0.05),
        f"roof of {best} and of a copy of {copied >> 20} MiB, read and written",
    )
    return roof, right


def _multiply_and_add() -> tuple[Callable[[], Any], Any] | None:
    """A kernel of nothing but multiplications and additions with its output, or None without CuPy."""
    try:
        import cupy
    except ImportError:
        return None
    kernel = cupy.RawKernel(SOURCE, "multiply_and_add")
    blocks, threads = 16 * int(cupy.cuda.Device().attributes["MultiProcessorCount"]), 256
    out = cupy.empty(blocks * threads)
    return lambda: kernel((blocks,), (threads,), (out, 0.5, 1.0)), out
