# SPDX-License-Identifier: BSD-3-Clause
"""How fast MGRIT is: against PyMGRIT, against plain C++, against its own kernels; and how much memory it takes.

A comparison whose other side cannot be had here (no compiler, no PyMGRIT) raises, and so is an entry with an error.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench.cases import Result, case

TIME_POINTS = "PYPARAREAL_BENCH_TIME_POINTS"  # of mgrit.memory; 2e8 where it is not set
CYCLES = "bench.yardstick.cycles"


@dataclass(frozen=True)
class Sizes:
    """``points`` inside the interval; ``nx`` counts its two ends as well."""

    steps: int = 1 << 14
    points: int = 255
    nx: int = 256
    repeats: int = 5


@case("mgrit.vs_pymgrit", suite="full")
def vs_pymgrit(sizes: Sizes = Sizes()) -> Result:
    """PyMGRIT's seconds per cycle over ours: same problem, cycle, guess, tolerance, and so the same residuals."""
    from bench import pymgrit

    runs = _pymgrit_runs(sizes)
    with pymgrit.environment() as python:
        theirs = dict(zip(runs, pymgrit.histories(python, list(runs.values())), strict=True))
    result = compare_with_pymgrit(sizes, theirs)
    metrics, notes = setup_of_longer_solves(sizes)
    return replace(result, metrics=result.metrics | metrics, notes=f"{result.notes}; {notes}")


def compare_with_pymgrit(sizes: Sizes, theirs: dict[str, dict[str, Any]]) -> Result:
    """Our side, and the ratios. ``heat_stock`` is compared with the two-level run, cycle by cycle the same work."""
    metrics, samples, notes, checked = {}, {}, [], True
    for threads in (1, 2):
        ours = {name: _ours(run, sizes, threads) for name, run in _pymgrit_runs(sizes).items() if name != "heat_stock"}
        suffix = "" if threads == 1 else "_2_threads"
        for name, there in theirs.items():
            here = ours["heat_two_level" if name == "heat_stock" else name]
            per_cycle = [sum(seconds) / len(seconds) for seconds in here["seconds"]]
            samples[f"{name}{suffix}"] = per_cycle
            their_cycle = there["solve"] / len(there["residuals"])
            metrics[f"{name}{suffix}"] = their_cycle / statistics.median(per_cycle)
            checked &= same_history(here["residuals"], there["residuals"], all_of_them=name != "heat_stock")
            if threads == 1:
                metrics |= _absolute(name, there, here, their_cycle, statistics.median(per_cycle))
        notes.append(f"{threads} thread(s): " + ", ".join(f"{n} {_path(run)}" for n, run in ours.items()))
    steps = ", ".join(f"{name}: {there['step']}" for name, there in theirs.items())
    notes.append(f"PyMGRIT with one process and thread on {theirs['dahlquist']['versions']}, steps by {steps}")
    notes.append("ratios above 1: pyparareal is faster; samples: our seconds per cycle, one per solve")
    return Result(metrics, checked, samples, "; ".join(notes))


# Times as many steps, in slices as many times as long: what is set up stays of one size.
LONGER = {"heat_two_level": 64, "dahlquist": 2048}


def setup_of_longer_solves(sizes: Sizes) -> tuple[dict[str, float], str]:
    """Our set-up in microseconds, by part, and its share of a longer solve."""
    metrics, parts = {}, []
    for name, times in LONGER.items():
        run = _pymgrit_runs(sizes)[name]
        long = run | {"steps": times * run["steps"], "m": times * run["m"]}
        short, here = _ours(run, sizes, 1), _ours(long, sizes, 1)
        setup, solve = statistics.median(here["setup"]), statistics.median(map(sum, here["seconds"]))
        metrics[f"setup_us_{name}"] = statistics.median(short["setup"]) * 1e6
        metrics[f"setup_share_{name}_{times}_times_as_long"] = setup / (setup + solve)
        shares = {
            part: statistics.median(one[part] for one in short["setup_parts"]) for part in short["setup_parts"][0]
        }
        parts.append(f"{name} " + ", ".join(f"{part} {seconds * 1e6:.0f}" for part, seconds in shares.items()))
    longer = [f"{value:.2%} of {name[12:]}" for name, value in metrics.items() if name.startswith("setup_share_")]
    return metrics, (
        f"set-up in microseconds: {'; '.join(parts)}; solve copies the guess into fresh memory; in as many slices, "
        f"longer ones, set-up is {', '.join(longer)}"
    )


def _pymgrit_runs(sizes: Sizes) -> dict[str, dict[str, Any]]:
    # Tolerances above which rounding leaves the residuals six digits; every stock cycle is like the other.
    common = {"steps": sizes.steps, "max_iter": 30, "tol": 1e-5, "end": 1.0, "nx": sizes.nx, "m": 16, "levels": 2}
    return {
        "heat_two_level": common | {"problem": "heat"},
        "heat_multilevel": common | {"problem": "heat", "m": 4, "levels": 6},
        "heat_stock": common | {"problem": "heat-stock", "max_iter": 2},
        "dahlquist": common | {"problem": "dahlquist", "end": 5.0, "tol": 1e-8},
    }


def _ours(run: dict[str, Any], sizes: Sizes, threads: int) -> dict[str, Any]:
    from bench.yardstick import children

    numbers = {"steps": run["steps"], "end": run["end"]}
    if run["problem"] != "dahlquist":
        numbers["points"] = run["nx"] - 2
    return children.call(
        CYCLES,
        "time_cycles",
        threads=threads,
        problem=run["problem"],
        numbers=numbers,
        m=run["m"],
        levels=run["levels"],
        cycles=run["max_iter"],
        repeats=sizes.repeats,
        tol=run["tol"],
        measure="end",  # as PyMGRIT does: the residual of what a cycle ends with
    )


def _absolute(name: str, there: Any, here: Any, their_cycle: float, our_cycle: float) -> dict[str, float]:
    found = {
        f"pymgrit_ms_{name}": their_cycle * 1e3,
        f"pymgrit_setup_share_{name}": there["setup"] / (there["setup"] + there["solve"]),
    }
    if name == "heat_stock":
        return found
    setup, solve = statistics.median(here["setup"]), our_cycle * len(here["residuals"])
    return found | {f"ms_{name}": our_cycle * 1e3, f"setup_share_{name}": setup / (setup + solve)}


def same_history(ours: Sequence[float], theirs: Sequence[float], *, all_of_them: bool = True) -> bool:
    """Equal to a relative 1e-6, and of one length or, if not all of them, ``theirs`` may end earlier."""
    if len(theirs) < 1 or (len(ours) != len(theirs) if all_of_them else len(ours) < len(theirs)):
        return False
    return bool(np.allclose(ours[: len(theirs)], theirs, rtol=1e-6, atol=0))


@case("mgrit.heat_cycle", suite="quick")
def heat_cycle(sizes: Sizes = Sizes(), cycles: int = 6) -> Result:
    """A cycle over the best serial C++ solve of the whole problem, and over a cycle of a plain C++ loop."""
    from bench.yardstick import children, compiled

    metrics: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    notes, checked = [], True
    numbers = {"steps": sizes.steps, "points": sizes.points, "end": 1.0}
    with compiled() as run:
        ways = run("serial", *numbers.values(), sizes.repeats)
        serial = min(("thomas", "both_ends"), key=lambda way: statistics.median(ways[way]))
        samples["serial_thomas"], samples["serial_both_ends"] = ways["thomas"], ways["both_ends"]
        best = statistics.median(ways[serial])
        checked &= bool(np.allclose(ways["thomas_end"], ways["both_ends_end"], rtol=0, atol=_noise(sizes, 1)))
        for name, m, levels in (("two_level", 16, 2), ("multilevel", 4, 6)):
            for threads in (1, 2):
                what = f"{name}_{threads}_threads" if threads > 1 else name
                options = {"m": m, "levels": levels, "cycles": cycles}
                loop = run("mgrit", *numbers.values(), *options.values(), threads, sizes.repeats)
                ours = children.call(
                    CYCLES, "time_cycles", threads=threads, problem="heat", numbers=numbers, repeats=3, **options
                )
                checked &= same_to_rounding(ours["residuals"], loop["residuals"], sizes, m)
                samples[what] = [s for one in ours["seconds"] for s in one]
                samples[f"cpp_loop_{what}"] = loop["seconds"]
                here, there = statistics.median(samples[what]), statistics.median(loop["seconds"])
                metrics |= {
                    f"us_per_point_{what}": here / sizes.steps * 1e6,
                    f"ratio_to_serial_{what}": here / best,
                    f"ratio_to_cpp_loop_{what}": here / there,
                    f"ms_{what}": here * 1e3,
                    f"ms_cpp_loop_{what}": there * 1e3,
                }
                wins = "pyparareal" if here < there else "the C++ loop"
                notes.append(f"{what}: {_path(ours)}, cycle: {wins} wins, {_against_serial(ours, best, here)}")
    metrics["ratio_to_cpp_loop"] = metrics["ratio_to_cpp_loop_two_level"]
    metrics["ms_serial"] = best * 1e3
    notes.append(
        f"ratios are our seconds per cycle over theirs, below 1 we are faster; {sizes.points} inner points, "
        f"{sizes.steps} steps; the best serial solve on one core, by {serial}, takes {best * 1e3:.3g} ms"
    )
    return Result(metrics, checked, samples, "; ".join(notes))


def _against_serial(ours: dict[str, Any], serial: float, cycle: float) -> str:
    """Who has the solution first, if 1e-5 of the first residual is enough."""
    needed = [k for k, r in enumerate(ours["residuals"], 1) if r <= 1e-5 * ours["residuals"][0]]
    if not needed:
        return "a residual of 1e-5 of the first is not reached"
    total = cycle * needed[0]
    winner = "pyparareal" if total < serial else "the serial solve"
    return f"to 1e-5 of the first residual {needed[0]} cycles, {total * 1e3:.3g} ms: {winner} wins"


def _noise(sizes: Sizes, slices: int) -> float:
    """Rounding in a 2-norm over ``slices`` states whose numbers are at most 1, eight units in the last place each."""
    return 8 * 2.0**-53 * (slices * sizes.points) ** 0.5


def same_to_rounding(ours: Sequence[float], theirs: Sequence[float], sizes: Sizes, m: int) -> bool:
    """Equal but for rounding: of the states (absolute), and of the many steps a residual has behind it (1e-9)."""
    noise = _noise(sizes, sizes.steps // m)
    return len(ours) == len(theirs) > 0 and bool(np.allclose(ours, theirs, rtol=1e-9, atol=noise))


@case("mgrit.overhead", suite="quick")
def overhead(steps: int = 1024, points: int = 255) -> Result:
    """What a two-level cycle of a short problem spends outside kernels and steps, and how often it calls them."""
    from bench.yardstick import children

    metrics: dict[str, float] = {}
    samples: dict[str, list[float]] = {}
    notes, checked = [], True
    heat = {"steps": steps, "points": points}
    for name, numbers in (("heat", heat), ("dahlquist", {"steps": steps})):
        found = children.call(
            CYCLES, "time_cycles", threads=1, problem=name, numbers=numbers, m=16, levels=2, cycles=8, repeats=9
        )
        # The first cycle factorises matrices; kernel seconds are of a run that was watched, all others of runs that
        # were not, so that watching is no overhead.
        cycles = [s for one in found["seconds"] for s in one[1:]]
        kernels = statistics.median(found["kernel_seconds"][1:])
        outside = 1 - kernels / statistics.median(cycles)
        tail = "" if name == "heat" else f"_{name}"
        metrics |= {
            f"outside_kernels_fraction{tail}": outside,
            f"launches_per_cycle{tail}": sum(found["calls"].values()),
            f"us_per_cycle{tail}": statistics.median(cycles) * 1e6,
        }
        samples[name] = cycles
        residuals = found["residuals"]
        checked &= len(residuals) == 8 and residuals[-1] < 1e-3 * residuals[0]
        notes.append(f"{name}: {_path(found)}, calls of a cycle: {_listed(found['calls'])}")
    notes.append(
        "a step in NumPy counts as a kernel, with all that NumPy does in it; fractions can be a little below 0"
    )
    return Result(metrics, checked, samples, "; ".join(notes))


@case("mgrit.memory", suite="full")
def memory() -> Result:
    """2e8 time points of 16 float64 numbers, only C-points kept: peak memory of a process that does nothing else."""
    from bench.yardstick import children
    from pyparareal import _timing

    steps = int(float(os.environ.get(TIME_POINTS, "2e8")))
    found = children.call("bench.yardstick.memory", "solve_long", threads=_timing.cores(), steps=steps)
    names = ("c_point_bytes", "all_points_bytes", "peak_rss_bytes", "rss_bytes_before", "cycles", "levels")
    metrics = {name: float(found[name]) for name in names}
    grown = found["peak_rss_bytes"] - found["rss_bytes_before"]
    metrics |= {
        "time_points": float(steps),
        "peak_over_c_points": grown / found["c_point_bytes"],
        "error": found["error"],
        "error_bound": found["bound"],
    }
    return Result(
        metrics,
        checked=found["status"] == "CONVERGED" and found["error"] <= found["bound"],
        samples={"solve": [found["seconds"]]},
        notes=f"m = 16, {found['status']}; {TIME_POINTS} sets the number of time points; error at up to 1000 C-points "
        "against the eigenvector solution of the same scheme",
    )


def _path(found: dict[str, Any]) -> str:
    from bench.yardstick.cycles import path_of

    return path_of(found["calls"])


def _listed(calls: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(calls.items()))
