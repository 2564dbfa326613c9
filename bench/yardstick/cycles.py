# SPDX-License-Identifier: BSD-3-Clause
"""Seconds of MGRIT cycles of pyparareal, and how much of them its kernels take."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import numpy as np

from . import problems


@dataclass
class Kernels:
    """Calls of the ops in the extension, and steps of a propagator that make none: NumPy's, then, or the user's.

    ``seconds`` and ``calls`` are totals since the start; a call inside another counted one is the one that counts.
    """

    seconds: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    _inner: int = 0

    @contextlib.contextmanager
    def watch(self, phi: Any) -> Iterator[None]:
        """Count from here on, for ``phi`` and all propagators whose ``step`` and ``relax`` come from its classes."""
        from pyparareal import _core, ops

        # What else the extension does is no kernel: the sum over slices, say, by which a cycle is judged.
        places: list[tuple[Any, str, Any]] = [
            (_core, name, value)
            for name, value in vars(_core).items()
            if not name.startswith("_") and callable(value) and hasattr(ops, name)
        ]
        for kind in type(phi).__mro__:
            places += [(kind, name, vars(kind)[name]) for name in ("step", "relax") if name in vars(kind)]
        for owner, name, value in places:
            setattr(owner, name, self._counted(f"{owner.__name__.rpartition('.')[2]}.{name}", value))
        try:
            yield
        finally:
            for owner, name, value in places:
                setattr(owner, name, value)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def counted(*arguments: Any, **named: Any) -> Any:
            before = self._inner
            begin = time.perf_counter()
            result = call(*arguments, **named)
            seconds = time.perf_counter() - begin
            if self._inner == before:  # nothing inside counted
                self.seconds += seconds
                self.calls[name] += 1
            self._inner += 1
            return result

        return counted


@dataclass
class Run:
    """One solve, by its cycles.

    Attributes
    ----------
    setup : seconds from before the grid and the propagators exist until the first cycle begins
    parts : of them, for the problem, for the guess, and within ``solve``
    seconds, residuals : per cycle
    kernel_seconds, calls : per cycle, and of the last one; empty where no kernels were counted
    """

    setup: float
    parts: dict[str, float]
    seconds: list[float]
    kernel_seconds: list[float]
    residuals: list[float]
    calls: dict[str, int]


def run_cycles(
    problem: Callable[[], dict[str, Any]],
    m: int,
    levels: int,
    cycles: int,
    *,
    tol: float = 0.0,
    measure: str = "descent",
    save: str = "coarse",
    kernels: Kernels | None = None,
) -> Run:
    """At most ``cycles`` FCF V-cycles from a guess of zeros behind the initial value, the time of each taken."""
    from pyparareal import MGRIT, LocalRuntime, solve

    begin = time.perf_counter()
    stamps, counts, residuals, calls = [], [], [], []

    runtime = LocalRuntime()

    def first_mark(name: str) -> Any:
        stamp()
        del runtime.mark  # all others are as ever: what is watched is no slower
        return runtime.mark(name)

    runtime.mark = first_mark  # type: ignore[method-assign]

    def stamp() -> None:
        stamps.append(time.perf_counter())
        if kernels:
            counts.append(kernels.seconds)
            calls.append(Counter(kernels.calls))

    def after(k: int, c: Any, residual: float) -> None:
        residuals.append(residual)
        stamp()

    given = problem()
    made = time.perf_counter()
    guess = np.zeros((given["grid"].steps // m + 1, *given["u0"].shape))
    guessed = time.perf_counter()
    # Neither limit of a history may end a run whose length is what is asked for.
    method = MGRIT(levels=levels, measure=measure, stagnation=None)
    with kernels.watch(given["fine"]) if kernels else contextlib.nullcontext():
        solve(
            **given,
            m=m,
            tol=tol,
            method=method,
            initial=guess,
            max_iterations=cycles,
            on_failure="return",
            save=save,
            callback=after,
            runtime=runtime,
        )
    return Run(
        stamps[0] - begin,
        {"problem": made - begin, "guess": guessed - made, "solve": stamps[0] - guessed},
        np.diff(stamps).tolist(),
        np.diff(counts).tolist(),
        residuals,
        dict(calls[-1] - calls[-2]) if kernels else {},
    )


def time_cycles(
    problem: str, numbers: dict[str, Any], m: int, levels: int, cycles: int, repeats: int, **options: Any
) -> dict[str, Any]:
    """``repeats`` runs of ``problems.<problem>(**numbers)`` after one that counts the kernels, and warms up."""

    def made() -> dict[str, Any]:
        return getattr(problems, problem)(**numbers)

    kernels = Kernels()
    counted = run_cycles(made, m, levels, cycles, kernels=kernels, **options)
    runs = [run_cycles(made, m, levels, cycles, **options) for _ in range(repeats)]
    return {
        "seconds": [run.seconds for run in runs],
        "setup": [run.setup for run in runs],
        "setup_parts": [run.parts for run in runs],
        "residuals": runs[-1].residuals,
        "kernel_seconds": counted.kernel_seconds,
        "calls": counted.calls,
    }


def path_of(calls: dict[str, int]) -> str:
    """Which propagation ran, in words, from the calls of one cycle."""
    fused = sorted(name for name in calls if "relax" in name and not name.endswith("c_relax"))
    if any(name.startswith("_core.") for name in fused):
        return f"fused ({', '.join(fused)})"
    return "not fused: steps in NumPy"
