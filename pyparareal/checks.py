# SPDX-License-Identifier: BSD-3-Clause
"""The arguments of a solve, checked before any step is taken: each error names the argument, what it got, what fits."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from . import arrays, ops
from .propagators import Blocked, Blocks, Map, Propagator
from .runtime import LocalRuntime, Runtime
from .time_grid import TimeGrid

Array = Any


def propagator(name: str, phi: Any, grid: TimeGrid, deterministic: bool, block: int = 8) -> Propagator:
    """``phi`` as a propagator on ``grid``; ``deterministic``: in blocks of so many slices if it needs them."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(phi, torch.nn.Module):
        phi = Blocks(phi)
    elif not hasattr(phi, "step") and callable(phi):
        phi = Map(phi)
    if not (hasattr(phi, "step") and hasattr(phi, "batch_invariant")):  # isinstance takes 30 times as long
        raise TypeError(
            f"{name}: got {type(phi).__name__}, expected a callable u -> u_next or an object with "
            "step(u, points) and batch_invariant"
        )
    if (own := getattr(phi, "grid", None)) is not None and own != grid:
        raise ValueError(f"{name}: lives on {own}, expected {grid}")
    if (steps := getattr(phi, "steps", None)) is not None and steps != grid.steps:
        raise ValueError(f"{name}: has {steps} steps, expected the {grid.steps} of {grid}")
    if not deterministic or phi.batch_invariant:
        return phi
    for method in ("residual", "step_from"):
        if hasattr(phi, method):
            raise ValueError(
                f"deterministic: got True for a {type(phi).__name__} with {method}(), expected only step()"
            )
    return Blocked(phi, grid.steps, block=block)


def initial_value(u0: Any) -> Array:
    if isinstance(u0, (int, float, list, tuple)):
        u0 = np.asarray(u0, dtype=np.float64)
    if not hasattr(u0, "dtype") or not hasattr(u0, "shape"):
        raise TypeError(f"u0: got {type(u0).__name__}, expected an array")
    if "float" not in str(u0.dtype):
        raise TypeError(f"u0: got dtype {u0.dtype}, expected a floating point dtype")
    if not finite(arrays.detached(u0)[None]):
        raise ValueError("u0: got NaN or infinity, expected finite values")
    return u0


def grid(grid: Any) -> TimeGrid:
    if not isinstance(grid, TimeGrid):
        raise TypeError(f"grid: got {type(grid).__name__}, expected a TimeGrid")
    return grid


def tolerance(tol: Any) -> float:
    if isinstance(tol, bool) or not isinstance(tol, (int, float, np.floating)):
        raise TypeError(f"tol: got {tol!r}, expected a number")
    if not 0 <= tol < math.inf:
        raise ValueError(f"tol: got {tol}, expected a finite number of at least 0")
    return float(tol)


def iterations(max_iterations: Any, slices: int) -> int:
    if max_iterations is None:
        return slices
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, (int, np.integer)):
        raise TypeError(f"max_iterations: got {max_iterations!r}, expected an integer or None")
    if max_iterations < 1:
        raise ValueError(f"max_iterations: got {max_iterations}, expected at least 1")
    return int(max_iterations)


def choose(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(choices)}")


def finite(u: Array) -> bool:
    return bool(np.isfinite(arrays.to_numpy(ops.slice_norms(u, norm="max_abs"))).all())


def runtime(given: Any, u0: Array) -> Runtime:
    """``given``, or a :class:`.LocalRuntime` for None; one that takes not all states says so of ``u0``."""
    if given is None:
        return LocalRuntime()
    missing = [
        verb
        for verb in (
            "map",
            "do",
            "shift",
            "chain",
            "scan",
            "largest",
            "reduce",
            "in_all",
            "left_of",
            "gather",
            "mark",
            "repeat",
            "seconds",
        )
        if not hasattr(given, verb)
    ]
    if missing:
        raise TypeError(f"runtime: got {type(given).__name__} without {', '.join(missing)}, expected a Runtime or None")
    if hasattr(given, "accept"):
        given.accept(u0)
    return given
