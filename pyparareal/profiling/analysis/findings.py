# SPDX-License-Identifier: BSD-3-Clause
"""What to mend, in plain words: one rule a finding, sorted by the seconds it costs."""

from __future__ import annotations

import math
import re
from typing import Any

from . import rules_machine, rules_method
from .results import SEVERITIES, Analysis, Finding
from .rules import Rule, finding, severity
from .wording import duration, percent

RULES: tuple[Rule, ...] = (*rules_method.RULES, *rules_machine.RULES)

LISTED = 12  # solves of one finding, in words
LOST = ("serial-wins", "pays-from", "pays")  # rules that may say that this run lost: then there is something to mend


def findings(analysis: Analysis) -> list[Finding]:
    """By severity, then by what they cost; "nothing to mend" is one too."""
    found = [one for rule in RULES for one in _together(analysis, list(rule(analysis)))]
    if not analysis.summary["launches"]:
        found.append(nothing_seen(analysis))
    elif not any(_is_cost(one) for one in found):
        found.append(nothing_to_mend(analysis))
    return sorted(found, key=lambda one: (SEVERITIES.index(one["severity"]), -_cost(one)))


def _is_cost(one: Finding) -> bool:
    return one["severity"] in ("serious", "warning") or (one["rule"] in LOST and one["seconds"] is not None)


def _together(analysis: Analysis, rows: list[Finding]) -> list[Finding]:
    """What a rule finds of several solves as one finding, in the words of the costliest and with the list of all."""
    kinds: dict[Any, list[Finding]] = {}
    for n, one in enumerate(rows):
        kind = (one["seconds"] is None, one["evidence"].get("status")) if "solve" in one["evidence"] else n
        kinds.setdefault(kind, []).append(one)
    return [_joined(analysis, same) if len(same) > 1 else same[0] for same in kinds.values()]


def _joined(analysis: Analysis, same: list[Finding]) -> Finding:
    most, numbers = max(same, key=_cost), [str(one["evidence"]["solve"]) for one in same]
    cost = None if most["seconds"] is None else sum(one["seconds"] or 0.0 for one in same)
    listed = ", ".join(numbers[:LISTED]) + ", ..." * (len(numbers) > LISTED)
    words = f"Of {len(same)} solves ({listed}), here of solve {most['evidence']['solve']}: {most['words']}"
    title = re.sub(r"^Solve \d+ ", f"{len(same)} solves ", most["title"])
    how = most["severity"] if cost is None else min(most["severity"], severity(analysis, cost), key=SEVERITIES.index)
    evidence = {**most["evidence"], "solves": [int(number) for number in numbers]}
    return finding(most["rule"], how, title, words, evidence, most["suggestion"], cost)


def _cost(one: Finding) -> float:
    return one["seconds"] if one["seconds"] is not None else -math.inf


def nothing_seen(analysis: Analysis) -> Finding:
    """There is nothing to judge."""
    return finding(
        "nothing-seen",
        "note",
        "Nothing of pyparareal ran",
        f"In {duration(analysis.summary['seconds'])} no step and no op was seen in this process.",
        {"events": analysis.summary["events"]},
        "Watch a part of the program that calls solve, an op of pyparareal.ops or a network of pyparareal.nn.",
    )


def nothing_to_mend(analysis: Analysis) -> Finding:
    """No rule found a cost worth a change."""
    summary = analysis.summary
    share = min(1.0, summary["busy_seconds"] / summary["work_seconds"]) if summary["work_seconds"] > 0 else 0.0
    return finding(
        "nothing-to-mend",
        "good",
        "Nothing to mend",
        f"In {duration(summary['work_seconds'])} of work, {percent(share)} went into the steps and ops themselves, "
        "and no rule found a cost worth a change.",
        {"busy share": share},
    )
