# SPDX-License-Identifier: BSD-3-Clause
"""What the memory of this machine gives to a copy: the ceiling that kernels are held against."""

from __future__ import annotations

import ctypes
import sys

import numpy as np

from . import _timing
from ._timing import Call

_memmove = ctypes.CDLL(None).memmove
_memmove.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memmove.restype = ctypes.c_void_p


def copies(nbytes: int, *, threads: int = 0, device: str = "cpu") -> dict[str, Call]:
    """Ways to copy ``nbytes`` bytes, to be interleaved with a kernel; each moves ``2 * nbytes`` (read + written).

    CPU: memmove and NumPy cut over ``threads`` threads (0: all cores), and torch where it is loaded.
    CUDA: the framework's device-to-device copy.
    """
    if device == "cuda":
        found: dict[str, Call] = _timing._cuda_backend().copies(nbytes)
        return found
    team = _timing.Team(threads or _timing.cores())
    source = np.random.default_rng(0).integers(0, 256, nbytes, dtype=np.uint8)
    target = np.zeros_like(source)
    parts = [slice(i * nbytes // team.size, (i + 1) * nbytes // team.size) for i in range(team.size)]
    # glibc's memmove stores past the cache above a threshold: no read for ownership, the fastest plain copy.
    moves = [(target[p].ctypes.data, source[p].ctypes.data, p.stop - p.start) for p in parts]
    found = {
        "copy_memmove": lambda: team.run(lambda i: _memmove(*moves[i])),
        "copy_numpy": lambda: team.run(lambda i: np.copyto(target[parts[i]], source[parts[i]])),
    }
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        t_target, t_source = torch.from_numpy(target), torch.from_numpy(source)
        found["copy_torch"] = lambda: t_target.copy_(t_source)
    return found


def copy_bandwidth(nbytes: int, threads: int = 0, *, device: str = "cpu", min_time: float = 0.3) -> float:
    """Bytes per second, read + written, of the fastest copy of ``nbytes`` bytes: the ceiling of every kernel."""
    taken = _timing.interleave(copies(nbytes, threads=threads, device=device), device=device, min_time=min_time)
    return 2 * nbytes / min(samples.median for samples in taken.values())
