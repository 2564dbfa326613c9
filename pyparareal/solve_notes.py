# SPDX-License-Identifier: BSD-3-Clause
"""What a listener is told of a solve: a region around it, and how it ended."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from . import _trace
from .errors import ConvergenceError
from .solution import Solution

Array = Any
Computed = tuple[Solution, Any]


def noted(
    method: Any, m: Any, u0: Array, fine: Any, compute: Callable[[], Computed], tol: float | None = None
) -> Computed:
    """``compute()`` in a region "solve", and a note of its solution, also of one that is raised with an error."""
    name = method if isinstance(method, str) else type(method).__name__.lower()
    start = time.perf_counter_ns()
    found: Solution | None = None
    try:
        with _trace.mark("serial_solve" if name == "serial" else "solve"):
            computed = compute()
        found = computed[0]
        return computed
    except ConvergenceError as error:
        found = error.solution
        raise
    finally:
        if found is not None:
            # By which solves of one propagator are known to be; whether it lives longer than they do is its own matter.
            _trace.note("solve", _about(name, method, m, tol, u0, found, start, id(fine)))


def _about(
    name: str, method: Any, m: Any, tol: float | None, u0: Array, found: Solution, start: int, fine: int
) -> dict[str, Any]:
    """As :class:`.profiling.events.Solve` has it, times in nanoseconds of ``time.perf_counter_ns``."""
    stats = found.stats
    facts = {
        "slices": stats.slices,
        "grid_steps": found.grid.steps,
        "m": [int(one) for one in m] if isinstance(m, Sequence) else int(m),
        "tol": tol,
        "levels": stats.levels,
        "dtype": str(u0.dtype).rpartition(".")[2],
        "shape": list(u0.shape),
        "fine": fine,
        "fine_steps": stats.fine_steps,
        "coarse_steps": stats.coarse_steps,
        "serial_steps": stats.serial_steps,
        "steps_per_level": list(stats.steps_per_level),
        "mode": stats.mode,
        "message": found.status.value,
        "options": _options(method),
    }
    return {
        "method": name,
        "start": start,
        "end": time.perf_counter_ns(),
        "iterations": found.iterations,
        "status": found.status.name,
        "residuals": list(found.residuals),
        "facts": facts,
    }


def _options(method: Any) -> dict[str, Any]:
    """Those of a method that are numbers, words or rows of these."""
    fields = dataclasses.fields(method) if dataclasses.is_dataclass(method) else ()
    values = {field.name: getattr(method, field.name) for field in fields}
    plain = (bool, int, float, str)
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, plain) or (isinstance(value, list | tuple) and all(isinstance(x, plain) for x in value))
    }
