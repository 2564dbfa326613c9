# SPDX-License-Identifier: BSD-3-Clause
"""What a device can do at most, measured in the run that is judged by it: operations and bytes per second.

Our kernels multiply and add in two instructions where every device has to give the same bits; so does the roof of a
GPU. The figures of vendors count both halves of a fused operation and are twice as high.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .. import _bandwidth, _timing
from .analysis.results import Roof as RoofRow
from .events import Record

CHAINS = 8  # independent ones per thread
ROUNDS = 4096
FLOPS = 2 * CHAINS * ROUNDS  # of a thread
SOURCE = f"""
extern "C" __global__ void multiply_and_add(REAL* out, REAL a, REAL b) {{
  REAL x[{CHAINS}];
  for (int k = 0; k < {CHAINS}; ++k) x[k] = threadIdx.x + k;
  #pragma unroll 4
  for (int round = 0; round < {ROUNDS}; ++round)
    #pragma unroll
    for (int k = 0; k < {CHAINS}; ++k) x[k] = ADD(MULTIPLY(x[k], a), b);
  REAL sum = 0;
  for (int k = 0; k < {CHAINS}; ++k) sum += x[k];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}}
"""
INTRINSICS = {"float64": ("double", "__dadd_rn", "__dmul_rn"), "float32": ("float", "__fadd_rn", "__fmul_rn")}
DTYPES = tuple(INTRINSICS)


@dataclass(frozen=True)
class Roof:
    """Most operations and bytes per second, and what they were measured with."""

    flops: float
    bytes: float
    how: str

    def fraction(self, flops: float, nbytes: float, seconds: float) -> float:
        """The shortest time ``flops`` and ``nbytes`` can take, over ``seconds``."""
        return max(flops / self.flops, nbytes / self.bytes) / seconds

    def bound(self, flops: float, nbytes: float) -> str:
        """Which of the two takes longer: "flops" or "bytes"."""
        return "flops" if flops / self.flops >= nbytes / self.bytes else "bytes"


def measure(
    device: str, dtype: str = "float64", *, elements: int = 1 << 22, steps: int = 2048, copied: int = 1 << 30
) -> tuple[Roof, bool]:
    """The roof of ``device``, and whether what it was measured with computed the right thing; needs torch.

    Parameters
    ----------
    elements, steps : of the multiplications by ``relax_diagonal``
    copied : bytes of the copy
    """
    import torch

    from .. import ops

    kind = getattr(torch, dtype)
    u = torch.ones(elements, 1, dtype=kind, device=device)
    # 2^-(1/1024) to the power of 2048 is 1/4 but for rounding: no overflow, no subnormals, nothing to optimise away.
    a, out = torch.full((1,), 2.0 ** (-1 / 1024), dtype=kind, device=device), torch.empty_like(u)
    ways: dict[str, Callable[[], Any]] = {"relax_diagonal": lambda: ops.relax_diagonal(u, a, steps, out=out)}
    flops = {"relax_diagonal": float(elements * steps)}
    sums = None
    if device == "cuda" and (made := _multiply_and_add(dtype)) is not None:
        ways["multiply_and_add"], sums = made
        flops["multiply_and_add"] = float(FLOPS * sums.size)
    taken = _timing.interleave(ways, device=device, repeats=5, cold_cache=False, max_calls=1)
    best = max(ways, key=lambda way: flops[way] / taken[way].median)
    # Each multiplication rounds by half a unit at most, and so did the factor.
    right = bool((out - float(a[0]) ** steps).abs().max() <= steps * torch.finfo(kind).eps / 2)
    if sums is not None:  # x / 2 + 1 ends in 2 exactly
        right &= bool((sums == 2.0 * CHAINS).all())
    roof = Roof(
        flops[best] / taken[best].median,
        _bandwidth.copy_bandwidth(copied, device=device, min_time=0.05),
        f"roof of {best} and of a copy of {copied >> 20} MiB, read and written",
    )
    return roof, right


def _multiply_and_add(dtype: str = "float64") -> tuple[Callable[[], Any], Any] | None:
    """A kernel of nothing but multiplications and additions with its output, or None without CuPy."""
    try:
        import cupy
    except ImportError:
        return None
    real, add, multiply = INTRINSICS[dtype]
    kernel = cupy.RawKernel(
        SOURCE.replace("REAL", real).replace("ADD", add).replace("MULTIPLY", multiply), "multiply_and_add"
    )
    blocks, threads = 16 * int(cupy.cuda.Device().attributes["MultiProcessorCount"]), 256
    out, half, one = cupy.empty(blocks * threads, dtype), np.dtype(dtype).type(0.5), np.dtype(dtype).type(1.0)
    return lambda: kernel((blocks,), (threads,), (out, half, one)), out


def threads_in_use() -> int:
    """How many threads an op takes here unless it is told: those of torch where it is loaded, else of OpenMP."""
    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.get_num_threads())
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return max(1, int(said)) if said.isdecimal() and int(said) else _timing.cores()


@cache
def quick(dtype: str, threads: int) -> Roof:
    """The roof of this processor in a fraction of a second, kept for the process; needs NumPy alone.

    Operations: the fastest of a chain of multiplications, of dense layers, whose products are fused multiply-adds, and
    of NumPy's product of matrices per second of processor time. Bytes: the fastest copy of more than caches hold.
    """
    best, how = max((rate, name) for name, rate in _rates(dtype, threads).items())
    copied = min(max(1 << 26, 2 * _timing.cache_bytes()), 1 << 28)
    ways = _bandwidth.copies(copied, threads=threads)
    taken = {name: _fastest(call, 3) for name, call in ways.items() if threads > 1 or name != "copy_torch"}
    return Roof(
        best, 2 * copied / min(taken.values()), f"{how}, and a copy of {copied >> 20} MiB, read and written, {threads=}"
    )


def _rates(dtype: str, threads: int) -> dict[str, float]:
    from .. import ops

    many, steps, d, rows = 1 << 16, 256, 64, 64 * threads
    u, a = np.ones((many, 1), dtype), np.full(1, 1 - 2.0**-12, dtype)
    x, weight = np.ones((threads, rows, d), dtype), np.full((threads, 4, d, d), 2.0**-9, dtype)
    one, other, last = np.ones((256, 256), dtype), np.ones((256, 256), dtype), np.empty((256, 256), dtype)
    ends, outs = np.empty_like(u), np.empty_like(x)
    multiply = _fastest(lambda: ops.relax_diagonal(u, a, steps, out=ends, threads=threads), 5)
    dense = _fastest(lambda: ops.relax_dense(x, weight, None, 1e-3, 4, activation="relu", out=outs, threads=threads), 5)
    product = _fastest(lambda: np.matmul(one, other, out=last), 5, time.process_time, calls=8)
    return {
        "relax_diagonal": many * steps / multiply,
        "relax_dense": 4 * threads * rows * d * (2 * d + 2) / dense,
        "a product of matrices": threads * 2 * 256**3 / product,
    }


def _fastest(
    call: Callable[[], Any], repeats: int, clock: Callable[[], float] = time.perf_counter, calls: int = 1
) -> float:
    """Seconds of the fastest call after one that does not count: others may use this machine, too."""
    call()
    best = float("inf")
    for _ in range(repeats):
        begin = clock()
        for _ in range(calls):
            call()
        best = min(best, (clock() - begin) / calls)
    return max(best, 1e-9)


def of_record(record: Record) -> list[RoofRow]:
    """The roofs of the devices and dtypes that ``record`` has launches of, measured here and now.

    To be kept in ``record.about["roofs"]``, for a record that was made on this machine.
    """
    launches = [event for event in record.events if event.kind == "launch"]
    dtypes = sorted({str(event.facts.get("dtype")) for event in launches} & set(DTYPES))
    rows = []
    for dtype in dtypes:
        for threads in sorted({1, threads_in_use()}):
            rows.append(_row("cpu", dtype, threads, quick(dtype, threads)))
        if any(event.device.startswith("cuda") for event in launches) and "torch" in sys.modules:
            rows.append(_row("cuda", dtype, None, _on_gpu(dtype)))
    return rows


@cache
def _on_gpu(dtype: str) -> Roof:
    return measure("cuda", dtype, copied=1 << 28)[0]


def _row(device: str, dtype: str, threads: int | None, roof: Roof) -> RoofRow:
    return RoofRow(
        device=device,
        dtype=dtype,
        threads=threads,
        flops_per_second=roof.flops,
        bytes_per_second=roof.bytes,
        how=roof.how,
    )
