# SPDX-License-Identifier: BSD-3-Clause
"""Which event waits for which: the arrows of a timeline."""

from __future__ import annotations

from collections.abc import Sequence

from .events import Event

ROUNDING = 1e-9  # seconds: what times of different clocks are rounded to when they are laid on one another
Arrow = tuple[int, int]
"""Numbers of two events, the one that is waited for first."""


def by_flow(events: Sequence[Event]) -> dict[str, list[int]]:
    """The numbers of the events that share a flow, in the order in which they started."""
    found: dict[str, list[int]] = {}
    for i, event in enumerate(events):
        if event.flow is not None:
            found.setdefault(event.flow, []).append(i)
    for members in found.values():
        members.sort(key=lambda i: (events[i].start, events[i].end, i))
    return found


def is_collective(event: Event) -> bool:
    """Whether every rank waits for every other in this message: it names neither whom it goes to nor its source."""
    return event.kind == "message" and "to" not in event.facts and "source" not in event.facts


def waits(events: Sequence[Event], members: Sequence[int]) -> list[Arrow]:
    """All pairs in one flow of which the second cannot end before the first has started.

    A sending (a fact "to") and each receiving (a fact "source"); in a collective message every one and every other;
    otherwise what started first, such as an event's record, and each that waits for it. What ended with an error (a
    fact "error") may have ended without what it waited for.
    """
    return [(i, j) for i, j in _pairs(events, members) if "error" not in events[j].facts]


def _pairs(events: Sequence[Event], members: Sequence[int]) -> list[Arrow]:
    sent = [i for i in members if "to" in events[i].facts]
    received = [i for i in members if "source" in events[i].facts and "to" not in events[i].facts]
    if sent and received:
        return [(sent[0], i) for i in received]
    if sent or received:
        return []  # the other end is in no record here
    if all(is_collective(events[i]) for i in members):
        return [(i, j) for i in members for j in members if i != j]
    # On a device a wait begins before the event is recorded, which is behind what was in the queue there.
    first = next((i for i in members if events[i].name == "record"), members[0])
    return [(first, i) for i in members if i != first]


def arrows(events: Sequence[Event]) -> list[Arrow]:
    """One for each event that waited, in the order of the flows; of a collective message from the last that came.

    None runs backwards: what would, by clocks that do not agree, is left out.
    """
    found: list[Arrow] = []
    for members in by_flow(events).values():
        pairs = waits(events, members)
        if pairs and is_collective(events[members[0]]):
            pairs = [(i, j) for i, j in pairs if i == members[-1]]
        found += [(i, j) for i, j in pairs if events[i].start <= events[j].end + ROUNDING]
    return found
