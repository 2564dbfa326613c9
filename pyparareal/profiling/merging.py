# SPDX-License-Identifier: BSD-3-Clause
"""The records of all ranks as one, on one clock."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from .chrome import device_clocks, read
from .clocks import align
from .events import Record


def merge(records: Sequence[Record | str | Path]) -> Record:
    """One record of all ``records``, each of a rank of its own, with times on the clock of the lowest rank.

    Parameters
    ----------
    records : sequence of Record or path
        Of one run; files are those of :meth:`.Timeline.save`. Records that were merged before are merged no more.

    Returns
    -------
    Record
        Events and samples of all in the order of time; ``clocks`` says of each rank how its clock was laid on that of
        the first, and how well that is known (:mod:`.clocks`). Solves and ``about`` are those of the lowest rank, with
        ``about["ranks"]`` how many there are. The records themselves stay as they are.

    Raises
    ------
    ValueError
        No record, two of one rank, or one of several ranks; for a file that is no timeline.
    TypeError
        For anything else, such as a Timeline instead of its ``record``.
    """
    if isinstance(records, str | Path | Record) or not isinstance(records, Iterable):
        raise TypeError(f"records: got {type(records).__name__}, expected a sequence of records or paths")
    given = list(records)
    for i, each in enumerate(given):
        if not isinstance(each, str | Path | Record):
            raise TypeError(f"records[{i}]: got {type(each).__name__}, expected a Record or a path")
    named = [(str(one), read(one)) if isinstance(one, str | Path) else ("a record", one) for one in given]
    if not named:
        raise ValueError("records: got none, expected one for each rank")
    of_rank: dict[int, tuple[str, Record]] = {}
    for name, record in named:
        rank = _rank_of(name, record)
        if rank in of_rank:
            raise ValueError(
                f"records: {name} and {of_rank[rank][0]} are both of rank {rank}, expected different ranks"
            )
        of_rank[rank] = name, record
    ranks = sorted(of_rank)
    whole = [of_rank[rank][1] for rank in ranks]
    clocks = align(whole, ranks)
    events, samples = [], []
    for clock, record in zip(clocks, whole, strict=True):
        for one in record.events:
            moved = dataclasses.replace(one, start=one.start + clock.offset, end=one.end + clock.offset)
            moved.facts = copy.deepcopy(one.facts)
            events.append(moved)
        samples += [dataclasses.replace(one, time=one.time + clock.offset) for one in record.samples]
    first = whole[0]
    about = copy.deepcopy(first.about)
    about["ranks"] = len(ranks)
    for rank, record in zip(ranks, whole, strict=True):
        about |= {key: copy.deepcopy(told) for key, told in record.about.items() if key == device_clocks(rank)}
    seconds = [record.about.get("seconds") for record in whole]
    if all(isinstance(one, int | float) and math.isfinite(one) for one in seconds):
        starts = [clock.offset for clock in clocks]
        ends = [clock.offset + record.about["seconds"] for clock, record in zip(clocks, whole, strict=True)]
        about["seconds"] = max(ends) - min(starts)
    events.sort(key=lambda one: (one.start, -one.end, one.rank))
    samples.sort(key=lambda one: (one.time, one.rank))
    return Record(events, samples, clocks, copy.deepcopy(first.solves), about)


def _rank_of(name: str, record: Record) -> int:
    """The one rank that ``record`` is of."""
    ranks = {one.rank for one in record.events} | {one.rank for one in record.samples}
    ranks |= {one.rank for one in record.clocks}
    if len(ranks) != 1:
        raise ValueError(f"records: {name} is of ranks {sorted(ranks)}, expected one rank each")
    return ranks.pop()
