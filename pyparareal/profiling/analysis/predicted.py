# SPDX-License-Identifier: BSD-3-Clause
"""*Predicted* beside measured: the price of the schedule of every solve, with what its own launches cost."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ... import prediction
from ...mgrit import MGRIT
from ...runtime.model import StepCost
from ...time_grid import TimeGrid
from ..events import Record, Solve
from . import intervals
from .critical import is_coarse
from .results import Predicted, Priced, RegionPrediction
from .step_costs import calls_of, costs_of
from .work import Work

MOST_SOLVES = 8  # that are priced, the longest ones
MOST_LINKS = 200_000  # of a serial chain in all schedules priced: what takes about a second
MOST_PROCESSORS = 1024


def predicted(record: Record, work: Work) -> list[Predicted]:
    """Of the longest solves in the order they were called, and of a parareal network if the record is of one."""
    by_length = sorted(range(len(record.solves)), key=lambda n: record.solves[n].start - record.solves[n].end)
    found = [_of_solve(work, n, record.solves[n]) for n in sorted(by_length[:MOST_SOLVES])]
    network = record.about.get("network")
    return [*found, _of_network(work, network)] if isinstance(network, dict) else found


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What is priced."""

    steps: int
    m: Any
    levels: int
    iterations: int
    method: str
    options: MGRIT
    costs: Sequence[StepCost]
    serial: float | None = None  # seconds of the serial chain, if they are better known than from the costs

    def price(self, change: str, processors: int) -> Priced:
        priced, row = self.predict(processors), self.row()
        coarse = sum(seconds for region, seconds in priced.regions.items() if is_coarse(region))
        serial = priced.serial_seconds if self.serial is None else self.serial
        return Priced(
            change=change,
            processors=processors,
            m=row,
            levels=self.levels,
            seconds=priced.seconds,
            serial_seconds=serial,
            speedup=serial / priced.seconds if priced.seconds > 0 else 0.0,
            coarse_share=coarse / priced.seconds if priced.seconds > 0 else 0.0,
        )

    def predict(self, processors: int) -> prediction.Prediction:
        method: Any = "parareal" if self.method == "parareal" else dataclasses.replace(self.options, levels=self.levels)
        return prediction.predict(
            TimeGrid(0.0, 1.0, self.steps),
            self.costs,
            m=self.m if self.method == "mgrit" else self.row()[0],
            iterations=self.iterations,
            processors=processors,
            method=method,
        )

    def row(self) -> list[int]:
        """The factor of every level."""
        return [self.m] * (self.levels - 1) if isinstance(self.m, int) else list(self.m)[: self.levels - 1]

    @property
    def slices(self) -> int:
        return self.steps // self.row()[0]

    def with_m(self, times: float) -> Schedule | None:
        """The finest factor changed, None where that leaves nothing to do in parallel."""
        first, *others = self.row()
        m = int(first * times)
        if m < 2 or m == first or self.steps // m < 2:
            return None
        return dataclasses.replace(self, m=m if isinstance(self.m, int) and self.levels == 2 else [m, *others])

    def with_levels(self, more: int) -> Schedule | None:
        """A level more or less; with a third, parareal becomes MGRIT with F-relaxation, which it equals with two."""
        levels, row = self.levels + more, self.row()
        if levels < 2:
            return None
        if more > 0:
            coarse = self.steps
            for m in row:
                coarse //= m
            extra = next((m for m in (row[-1], 8, 4, 2) if coarse // m >= 2), None)
            if extra is None:
                return None
            row = [*row, extra]
        options = (
            dataclasses.replace(self.options, nu=0, skip_first_down=True) if self.method == "parareal" else self.options
        )
        costs = [*self.costs, self.costs[-1]][:levels]
        if self.method == "parareal":  # whose coarse chain goes link by link; a level that is relaxed need not
            costs = [dataclasses.replace(cost, fused=self.costs[0].fused) for cost in costs]
        return dataclasses.replace(
            self, m=row[: levels - 1], levels=levels, method="mgrit", options=options, costs=costs
        )


def _of_solve(work: Work, number: int, solve: Solve) -> Predicted:
    row = Predicted(
        solve=number,
        what=solve.method,
        unit="seconds",
        measured_seconds=solve.end - solve.start,
        model_seconds=None,
        ratio=None,
        costs=[],
        regions=[],
        processors=[],
        what_if=[],
        serial_seconds=None,
        serial_measured=_serial_measured(work.record, solve),
        serial_wins=None,
        reason=None,
    )
    row["reason"] = _unpriced(solve) or _priced(row, work, solve)
    return row


def _serial_measured(record: Record, solve: Solve) -> float | None:
    """Of the serial chain of the same grid: what was timed beside the record, or a serial solve in it."""
    if (said := _timed_beside(record)) is not None:
        return said
    return min((one.end - one.start for one in _serial_solves(record, solve)), default=None)


def _timed_beside(record: Record) -> float | None:
    said = record.about.get("serial_seconds")
    return float(said) if len(record.solves) == 1 and isinstance(said, int | float) else None


def _serial_solves(record: Record, solve: Solve) -> list[Solve]:
    """Of the same propagator on the same grid."""
    keys = ("grid_steps", "shape", "dtype", "fine")
    return [
        one
        for one in record.solves
        if one.method == "serial" and all(one.facts.get(key) == solve.facts.get(key) for key in keys)
    ]


def _serial_at_best(work: Work, solve: Solve) -> float | None:
    """Of the best serial program: what was timed beside the record was that; of a serial solve in it whose propagator
    takes many steps in a launch, its launches alone, for all could be one."""
    if (said := _timed_beside(work.record)) is not None:
        return said
    found = []
    for one in _serial_solves(work.record, solve):
        calls = calls_of(work, one)
        launched = sum(call.seconds for call in calls)
        fused = bool(calls) and all(call.fused for call in calls)
        found.append(min(one.end - one.start, launched) if fused else one.end - one.start)
    return min(found, default=None)


def _unpriced(solve: Solve) -> str | None:
    """Why there is no price."""
    if solve.method == "serial":
        return "one step after the other: there is no schedule to price"
    if solve.method not in ("parareal", "mgrit"):
        return f"{solve.method}: there is no model of its schedule"
    if solve.iterations < 1 or (solve.facts.get("levels") or 1) < 2:
        return "it was solved serially"
    if not {"grid_steps", "m"} <= solve.facts.keys():
        return "the record does not say how many steps it has"
    if solve.facts.get("mode") not in (None, "eager"):
        return "its launches were recorded in a CUDA graph: they have no times of their own"
    return None


def _priced(row: Predicted, work: Work, solve: Solve) -> str | None:
    """Fills ``row``; why not, if it cannot."""
    facts, levels = solve.facts, int(solve.facts["levels"])
    costs = costs_of(calls_of(work, solve), levels)
    if costs is None:
        return "no launch of the finest level was recorded"
    options = {name: value for name, value in facts.get("options", {}).items() if name in _OPTIONS}
    m = facts["m"] if isinstance(facts["m"], int) else [int(n) for n in facts["m"]]
    schedule = Schedule(
        int(facts["grid_steps"]),
        m,
        levels,
        solve.iterations,
        solve.method,
        MGRIT(**options),
        [cost for cost, _ in costs],
    )
    if schedule.slices * solve.iterations > MOST_LINKS:
        return f"{schedule.slices} slices and {solve.iterations} iterations are too many to price quickly"
    try:
        alone = schedule.predict(len(work.ranks))
    except ValueError as error:
        return str(error)
    schedule = dataclasses.replace(schedule, serial=_serial_at_best(work, solve))
    row["costs"] = [cost for _, cost in costs]
    row["model_seconds"], row["serial_seconds"] = alone.seconds, alone.serial_seconds
    row["ratio"] = row["measured_seconds"] / alone.seconds if alone.seconds > 0 else None
    row["regions"] = _regions(work, solve, alone.regions)
    row["processors"] = [schedule.price("as it is", count) for count in _counts(schedule)]
    row["serial_wins"] = all(price["speedup"] <= 1 for price in row["processors"])
    fastest = min(row["processors"], key=lambda price: price["seconds"])["processors"]
    row["what_if"] = _what_if(schedule, fastest)
    return None


_OPTIONS = ("min_coarse", "nu", "omega", "cycle", "nested", "skip_first_down", "coarsest_sweeps", "measure")


def _counts(schedule: Schedule) -> list[int]:
    """1, 2, 4, ... up to one for each slice, as many as can be priced quickly."""
    most = min(schedule.slices, MOST_PROCESSORS)
    room = max(2, MOST_LINKS // max(1, schedule.slices * schedule.iterations))
    counts = [1 << k for k in range(most.bit_length()) if 1 << k <= most]
    return sorted({*counts, most})[:room]


def _what_if(schedule: Schedule, processors: int) -> list[Priced]:
    """On as many processors as are best for the schedule as it is; K is kept."""
    old, found = schedule.row()[0], []
    for times in (0.5, 2.0, 4.0):
        if (other := schedule.with_m(times)) is not None:
            found.append((f"m = {other.row()[0]} instead of {old}", other))
    for more in (-1, 1):
        if (other := schedule.with_levels(more)) is not None:
            found.append((f"{other.levels} levels instead of {schedule.levels}", other))
    rows = []
    for change, other in found:
        try:
            rows.append(other.price(change, processors))
        except ValueError:  # levels that the grid has no room for
            continue
    return rows


def _regions(work: Work, solve: Solve, priced: dict[str, float]) -> list[RegionPrediction]:
    measured: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for event in work.record.events:
        inside = solve.start <= event.start and event.end <= solve.end
        if inside and event.kind == "region" and event.name not in ("solve", "other"):
            measured[event.name].append((event.start, event.end))
    names = [*priced, *(name for name in measured if name not in priced)]
    return [
        RegionPrediction(
            region=name,
            predicted=priced.get(name),
            measured=intervals.total(intervals.union(measured[name])) if name in measured else None,
        )
        for name in names
    ]


def _of_network(work: Work, network: dict[str, Any]) -> Predicted:
    """A training step of a parareal network on 1, 2, ... devices, from its pieces measured alone; the serial network's.

    ``network`` is what :meth:`.WatchedTraining.network` says.
    """
    serial, step = float(network["serial_step_seconds"]), float(network["step_seconds"])
    alone = float(network["predicted_seconds"]["1"])
    rows = [
        Priced(
            change="as it is" if count == "1" else "parts on devices of their own",
            processors=int(count),
            m=[],
            levels=2,
            seconds=seconds,
            serial_seconds=serial,
            speedup=serial / seconds if seconds > 0 else 0.0,
            coarse_share=network["coarse_seconds"][count] / seconds if seconds > 0 else 0.0,
        )
        for count, seconds in network["predicted_seconds"].items()
    ]
    pieces = network["pieces"]
    forward = {name: sum(pair[0] for pair in pieces[name]) for name in ("preprocess", "fine", "coarse")}
    backward = sum(pair[1] for name in ("preprocess", "fine", "coarse") for pair in pieces[name]) + pieces["head"][1]
    by_piece = {**forward, "head": pieces["head"][0], "backward": backward, "update": pieces["update"]}
    spent: dict[str, float] = defaultdict(float)
    for launch in work.launches:
        spent[launch.op] += launch.seconds
    steps = sum(event.kind == "region" and event.name == "train.update" for event in work.record.events)
    measured = {name: spent[name] / steps if name in spent and steps else None for name in by_piece}
    return Predicted(
        solve=-1,
        what="network",
        unit="seconds",
        measured_seconds=step,
        model_seconds=alone,
        ratio=step / alone if alone > 0 else None,
        costs=[],
        regions=[RegionPrediction(region=r, predicted=s, measured=measured[r]) for r, s in by_piece.items()],
        processors=rows,
        what_if=[],
        serial_seconds=serial,
        serial_measured=serial,
        serial_wins=all(row["speedup"] <= 1 for row in rows),
        reason=None,
    )
