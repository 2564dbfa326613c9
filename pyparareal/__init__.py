# SPDX-License-Identifier: BSD-3-Clause
"""Serial chains made parallel: parareal, multigrid reduction in time and parareal networks.

``u[i+1] = Phi_i(u[i])`` is cut into slices, all slices advance at once, and a cheap coarse chain
carries the corrections. Importing this package is silent and loads neither torch nor CuPy.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from pyparareal._version import __version__ as __version__

_LAZY = {
    "solve": "pyparareal.solver",
    "serial_solve": "pyparareal.solver",
    "MGRIT": "pyparareal.mgrit",
    "Newton": "pyparareal.newton",
    "Adjoint": "pyparareal.adjoint",
    "Transfer": "pyparareal.hierarchy",
    "TimeGrid": "pyparareal.time_grid",
    "Propagator": "pyparareal.propagators",
    "Solution": "pyparareal.solution",
    "Status": "pyparareal.solution",
    "predicted_speedup": "pyparareal.solution",
    "LocalRuntime": "pyparareal.runtime",
    "GraphRuntime": "pyparareal.runtime",
    "DistributedRuntime": "pyparareal.runtime",
    "distributed": "pyparareal.runtime",
    "verify": "pyparareal.verification",
    "RankCosts": "pyparareal.runtime",
    "per_device": "pyparareal.runtime",
    "PararealError": "pyparareal.errors",
    "CudaError": "pyparareal.errors",
    "ConvergenceError": "pyparareal.errors",
    "RankError": "pyparareal.errors",
}
_MODULES = (
    "arrays",
    "convergence",
    "nn",
    "ops",
    "prediction",
    "problems",
    "profiling",
    "propagators",
    "reference",
    "streams",
    "tableaux",
    "torch_ops",
    "training",
)

__all__ = ["__version__", "get_include", *_LAZY, *_MODULES]


def get_include() -> str:
    """The folder to compile against: ``pyparareal/ops.h`` for C++ and Cython callers of the kernels."""
    return str(Path(__file__).parent / "include")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"pyparareal.{name}")
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pyparareal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


if os.environ.get("PYPARAREAL_TRACE"):
    importlib.import_module("pyparareal.profiling.profiler_ranges").from_environment()
