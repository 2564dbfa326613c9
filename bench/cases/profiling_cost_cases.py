# SPDX-License-Identifier: BSD-3-Clause
"""What tracing costs: a range that nobody listens to, and a solve that a timeline records."""

from __future__ import annotations

import sys
from typing import Any

from bench.cases import Result, case

REPEATS = 15  # rounds of solves, of whose ratios the median is taken


@case("profiling.off_cost", suite="quick")
def off_cost() -> Result:
    """Nanoseconds of ``with mark(...)`` that nobody listens to, its loop taken off, beside one of ``nullcontext``."""
    from contextlib import nullcontext

    from pyparareal import _core, _trace, traced_ops
    from pyparareal._timing import interleave

    mark, nothing = _trace.mark, nullcontext()

    def empty(calls: int) -> None:
        for _ in range(calls):
            pass

    def marked(calls: int) -> None:
        for _ in range(calls):
            with mark("a region"):
                pass

    def plainly(calls: int) -> None:
        for _ in range(calls):
            with nothing:
                pass

    found = interleave(
        {"empty": empty, "mark": marked, "nullcontext": plainly}, cold_cache=False, batched=True, min_time=0.5
    )
    loop = found["empty"].min
    # The smallest: what else runs on the machine can only make it longer.
    nanoseconds = {name: (found[name].min - loop) * 1e9 for name in ("mark", "nullcontext")}
    untouched = all(getattr(_core, op).__class__.__name__.startswith("builtin") for op in traced_ops.FORMS)
    return Result(
        metrics={
            "ns_per_range": nanoseconds["mark"],
            "ns_per_range_median": (found["mark"].median - found["empty"].median) * 1e9,
            "ns_per_nullcontext": nanoseconds["nullcontext"],
        },
        checked=_trace.listener is None and untouched,
        samples={name: one.seconds for name, one in found.items()},
        notes=f"Python {sys.version.split()[0]}, one thread; an op costs nothing more: nothing is put around it",
    )


@case("profiling.on_cost", suite="quick")
def on_cost(points: int = 4095, steps: int = 1024, m: int = 8, cycles: int = 60) -> Result:
    """A solve with 10^3 launches, in turns with a Timeline around it and without: heat, MGRIT on three levels."""
    import numpy as np

    from pyparareal import MGRIT, TimeGrid, profiling, solve
    from pyparareal._timing import interleave, ratio
    from pyparareal.implicit import ImplicitEuler

    grid, off = TimeGrid(0.0, 1.0, steps), np.full(points - 1, (points + 1.0) ** 2)
    fine = ImplicitEuler(off, np.full(points, -2 * (points + 1.0) ** 2), off, grid)
    u0 = np.sin(np.linspace(0, 3, points))[None]
    found: dict[str, object] = {}

    def run() -> object:
        return solve(fine, u0, grid, m=m, tol=None, method=MGRIT(levels=3), max_iterations=cycles).u

    def plainly() -> None:
        found["plain"] = run()

    def timed() -> None:
        with profiling.Timeline() as timeline:
            found["timed"] = run()
        found["timeline"] = timeline

    def recorded() -> None:
        timed()
        found["events"] = found["timeline"].record.events  # type: ignore[attr-defined]

    ways = {"plain": plainly, "timed": timed, "recorded": recorded}
    taken = interleave(ways, cold_cache=False, repeats=REPEATS, max_calls=1)
    slower, whole = (ratio(taken[name], taken["plain"]) for name in ("timed", "recorded"))
    events: list[Any] = found["events"]  # type: ignore[assignment]
    launches = sum(event.kind == "launch" for event in events)
    return Result(
        metrics={
            "relative_slowdown": slower.value - 1,
            "relative_slowdown_low": slower.low - 1,
            "relative_slowdown_high": slower.high - 1,
            "relative_slowdown_with_record": whole.value - 1,
            "launches": launches,
            "events": len(events),
            "us_per_launch_untraced": taken["plain"].median / launches * 1e6,
            "us_per_launch_added": (taken["timed"].median - taken["plain"].median) / launches * 1e6,
        },
        checked=bool(np.array_equal(found["plain"], found["timed"])) and launches >= 1000,
        samples={name: one.seconds for name, one in taken.items()},
        notes=f"{steps} steps of {points} points; with_record: and the record is made of the spans "
        "when the solve has ended; the bits of the solves were compared",
    )
