# SPDX-License-Identifier: BSD-3-Clause
"""What a step costs on every level, from the launches of a solve: the :class:`.StepCost` of a prediction."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...runtime.model import StepCost
from ..events import Solve
from .results import LevelCost
from .work import Launch, Work


class Call(NamedTuple):
    """So many ``steps`` of ``slices`` at once, on ``level``."""

    level: int
    name: str
    slices: int
    steps: int
    seconds: float
    fused: bool  # all steps in one launch


@dataclass(frozen=True)
class Group:
    """Calls of one size on one level."""

    call: Call  # with the median of their seconds
    count: int


def calls_of(work: Work, solve: Solve) -> list[Call]:
    """Of its propagators, the outermost launch of each."""
    found = []
    inner: dict[int, list[Launch]] = defaultdict(list)
    inside = [one for one in work.launches if solve.start <= one.event.start and one.event.end <= solve.end]
    for launch in inside:
        if launch.outer is not None:
            inner[id(launch.outer)].append(launch)
    for launch in inside:
        level, facts = launch.event.level, launch.event.facts
        steps = facts.get("steps", facts.get("m") if launch.op.startswith("relax_") else None)
        if launch.outer is not None or level is None or not isinstance(steps, int) or not facts.get("shape"):
            continue
        mine = inner[id(launch)]
        relaxed = [one for one in mine if one.op.startswith("relax_")]
        fused = launch.op.startswith("relax_") or (len(relaxed) == 1 and relaxed[0].event.facts.get("m") == steps)
        slices = int(facts.get("slices", facts["shape"][0]))
        if slices and steps:
            found.append(Call(level, launch.op, slices, steps, launch.event.seconds, fused))
    return found


def costs_of(calls: Sequence[Call], levels: int) -> list[tuple[StepCost, LevelCost]] | None:
    """One for each level, the finest first; None where nothing ran on the finest.

    ``call + steps (per_step + n per_slice)`` is fitted, none of them negative, to the medians of all levels together,
    because one level alone has too few sizes; that of a level is then stretched to what its own calls took in all.
    """
    groups = _groups(calls)
    if not any(group.call.level == 0 for group in groups):
        return None
    common = _fitted(groups)
    found = []
    for level in range(levels):
        mine = [group for group in groups if group.call.level == level]
        taken = sum(group.count * group.call.seconds for group in mine)
        # A level whose steps came one at a time is priced so: its chain may be one that no launch takes whole.
        fused = any(group.call.fused and group.call.steps > 1 for group in mine or groups)
        said = sum(group.count * _terms(group.call) @ common for group in mine)
        per_slice, call, per_step = common * (taken / said if said > 0 else 1.0)
        cost = StepCost(float(call), float(per_slice), float(per_step), fused)
        count = sum(group.count for group in mine)
        found.append((cost, _row(level, cost, count)))
    return found


def _row(level: int, cost: StepCost, launches: int) -> LevelCost:
    return LevelCost(
        level=level,
        call=cost.call,
        per_step=cost.per_step,
        per_slice=cost.per_slice,
        fused=cost.fused,
        launches=launches,
    )


def _groups(calls: Sequence[Call]) -> list[Group]:
    sizes: dict[tuple[int, int, int], list[Call]] = defaultdict(list)
    for call in calls:
        sizes[call.level, call.slices, call.steps].append(call)
    return [
        Group(same[0]._replace(seconds=statistics.median(call.seconds for call in same)), len(same))
        for same in sizes.values()
    ]


def _fitted(groups: Sequence[Group]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Cost per slice, of a call, and per step: of all choices of what is 0 the least sum of squares of relative errors.

    None is negative.
    """
    rows = [_terms(group.call) for group in groups]
    scale = np.array([max(group.call.seconds, 1e-12) for group in groups])
    a, b = np.array(rows) / scale[:, None], np.ones(len(rows))
    best, least = np.zeros(a.shape[1]), np.inf
    for count in range(1, a.shape[1] + 1):
        for kept in itertools.combinations(range(a.shape[1]), count):
            x, _, rank, _ = np.linalg.lstsq(a[:, kept], b, rcond=None)
            error = float(((a[:, kept] @ x - b) ** 2).sum())
            # With fewer sizes than unknowns the simplest that explains them: costs per slice alone share out fairly.
            if rank == count and (x >= 0).all() and error < least * (1 - 1e-6) - 1e-12:
                best, least = np.zeros(a.shape[1]), error
                best[list(kept)] = x
    return best


def _terms(call: Call) -> np.ndarray[Any, np.dtype[np.float64]]:
    """By which these are multiplied in the seconds of ``call``."""
    return np.array([call.steps * call.slices, 1 if call.fused else call.steps, call.steps], dtype=np.float64)
