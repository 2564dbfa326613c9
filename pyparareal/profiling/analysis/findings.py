# SPDX-License-Identifier: BSD-3-Clause
"""What to mend, in plain words: one rule a finding, sorted by the seconds it costs."""

from __future__ import annotations

import math

from . import rules_machine, rules_method
from .results import SEVERITIES, Analysis, Finding
from .rules import Rule, finding
from .wording import duration, percent

RULES: tuple[Rule, ...] = (*rules_method.RULES, *rules_machine.RULES)


def findings(analysis: Analysis) -> list[Finding]:
    """By severity, then by what they cost; "nothing to mend" is one too."""
    found = [one for rule in RULES for one in rule(analysis)]
    if not analysis.summary["launches"]:
        found.append(nothing_seen(analysis))
    elif not any(one["severity"] in ("serious", "warning") for one in found):
        found.append(nothing_to_mend(analysis))
    return sorted(found, key=lambda one: (SEVERITIES.index(one["severity"]), -_cost(one)))


def _cost(one: Finding) -> float:
    return one["seconds"] if one["seconds"] is not None else -math.inf


def nothing_seen(analysis: Analysis) -> Finding:
    """There is nothing to judge."""
    return finding(
        "nothing-seen",
        "note",
        "Nothing of pyparareal ran",
        f"In {duration(analysis.summary['seconds'])} no step and no op was seen.",
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
