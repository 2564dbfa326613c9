# SPDX-License-Identifier: BSD-3-Clause
"""Records for the tests of the report."""

import math

from pyparareal.profiling.analysis.results import Finding, Point, Predicted, Priced, RegionPrediction, Roof, Roofline
from pyparareal.profiling.events import Event, RankClock, Record, Sample, Solve

HOSTILE = '</script><img src=x onerror="window.hacked=1">\'&amp;<b>'


def two_ranks(cycles=3, slices=4):
    """MGRIT as two ranks might run it: regions around verbs around launches, a message per cycle, residuals."""
    events, samples, residuals = [], [], []
    for rank in (0, 1):
        now = 0.0
        for cycle in range(cycles):
            for level, seconds in ((0, 1e-3), (1, 4e-4)):
                begin, region = now, f"mgrit.relax.{level}"
                now += 1e-5
                verb = now
                for _ in range(slices):
                    facts = {"dtype": "float64", "shape": [slices, 8], "cycle": cycle}
                    events.append(
                        Event(
                            "launch",
                            "relax_diagonal",
                            now,
                            now + seconds,
                            rank,
                            level=level,
                            region=region,
                            facts=facts,
                        )
                    )
                    now += seconds + 1e-5
                events.append(Event("verb", "map", verb, now, rank, level=level, region=region))
                now += 1e-5
                events.append(Event("region", region, begin, now, rank, level=level, region=region))
            kind, name = ("message", "send state") if rank == 0 else ("wait", "receive state")
            events.append(Event(kind, name, now, now + 2e-4, rank, flow=f"state {cycle}", facts={"bytes": 2048}))
            now += 3e-4
            if rank == 0:
                residuals.append(10.0 ** (-2 * cycle))
                samples.append(Sample("residual", now, residuals[-1]))
            samples.append(Sample("resident bytes", now, 1e8 + 1e6 * cycle, rank))
    clocks = [RankClock(0), RankClock(1, -2e-3, 4e-5, "messages both ways")]
    solve = Solve("mgrit", 0.0, now, cycles, "CONVERGED", residuals, {"tol": 1e-4, "slices": slices})
    return Record(events, samples, clocks, [solve], {"title": "heat-1d", "command": "pyparareal profile heat-1d"})


def many(count):
    """That many events of 1 µs in one track, a region around each hundred."""
    events = [
        Event("launch", f"op {k % 7}", 2e-6 * k, 2e-6 * k + 1e-6, level=k % 3, region="relax", facts={"call": k % 50})
        for k in range(count - count // 100)
    ]
    events += [Event("region", "relax", 2e-4 * k, 2e-4 * k + 1.99e-4) for k in range(count // 100)]
    return Record(events)


def degenerate():
    """Records that lack something, or have too much of it, by name."""
    nan, inf = math.nan, math.inf
    one = Event("launch", "step", 1.0, 1.0 + 1e-3)
    ranks = [Event("launch", f"op {r}", 1e-3 * r, 1e-3 * r + 2e-3, r, flow="all") for r in range(64)]
    return {
        "nothing": Record(),
        "one": Record([one]),
        "one moment": Record([Event("launch", "step", 5.0, 5.0)] * 3),
        "no time": Record([Event("launch", "a", nan, 1.0), Event("launch", "b", 0.0, inf), one]),
        "backwards": Record([Event("launch", "a", 2.0, 1.0), one]),
        "not finite": Record([one], [Sample("resident bytes", 1.0, nan)], solves=[
            Solve("mgrit", 1, 2, 3, "DIVERGED", [nan, inf, 0.0]), Solve("p", 1, 2, 0, "", [])]),
        "extreme": Record([one], solves=[Solve("mgrit", 0, 1, 4, "", [1e308, 1.0, 1e-308, 5e-324], {"tol": 1e-320})]),
        "64 ranks": Record(ranks, clocks=[RankClock(r, -1e-3 * r, nan) for r in range(64)]),
        "unicode": Record([Event("region", "Φ·Δt 🚀 שלום", 0, 1),
                           Event("launch", "half \ud800", 0, 1, facts={"名": "值"})]),
        "unknown kind": Record([Event("other", "x", 0, 1, stream="", device="cuda:0")]),
        "facts": Record([Event("launch", "x", 0, 1, facts={"a": nan, "b": object, "c": [inf, None], "d": {1: 2}})]),
    }  # fmt: skip


def told(analysis):
    """Add to an analysis what only other modules find: findings, a roofline and predictions."""
    roof = Roof(device="cpu", dtype="float64", threads=1, flops_per_second=2e10, bytes_per_second=1e10, how="test")
    point = Point(op="relax_diagonal", device="cpu", dtype="float64", calls=24, seconds=0.01, intensity=0.25, threads=1,
                  flops_per_second=1e9, bytes_per_second=4e9, bound="bytes", fraction=0.4, in_caches=False)  # fmt: skip
    analysis.roofline = Roofline(roofs=[roof], points=[point], unknown=["Dense"])
    priced = [
        Priced(change="as it is", processors=p, m=[4], levels=2, seconds=1 / p, serial_seconds=0.5, speedup=0.5 * p,
               coarse_share=0.1)
        for p in (1, 2, 4)
    ]  # fmt: skip
    regions = [RegionPrediction(region="mgrit.relax.0", predicted=0.01, measured=None)]
    analysis.predicted = [
        Predicted(solve=0, what="mgrit", unit="seconds", measured_seconds=1.2, model_seconds=1.0, ratio=1.2, costs=[],
                  regions=regions, processors=priced, what_if=priced[1:], serial_seconds=0.5, serial_wins=False,
                  reason=None),
        Predicted(solve=-1, what="network", unit="FLOPs", measured_seconds=1.0, model_seconds=None, ratio=None,
                  costs=[], regions=[], processors=[], what_if=[], serial_seconds=None, serial_wins=None,
                  reason="no plan"),
    ]  # fmt: skip
    analysis.findings = [
        Finding(rule="coarse", severity="serious", title="The coarse chain is long", words="2 ms of 3 ms.",
                evidence={"seconds": 0.002}, suggestion="A larger m.", seconds=0.002),
        Finding(rule="good", severity="good", title="It converged", words="Yes.", evidence={}, suggestion="",
                seconds=None),
    ]  # fmt: skip
    return analysis
