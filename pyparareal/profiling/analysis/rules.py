# SPDX-License-Identifier: BSD-3-Clause
"""What every rule is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .results import Analysis, Finding

Rule = Callable[[Analysis], Iterable[Finding]]

SERIOUS, WORTH = 0.25, 0.05
"""Shares of the work from which a cost is serious, or worth a change."""


def finding(
    rule: str, severity: str, title: str, words: str, evidence: dict[str, Any], suggestion: str = "",
    seconds: float | None = None,
) -> Finding:  # fmt: skip
    """Its fields by position."""
    return Finding(
        rule=rule, severity=severity, title=title, words=words, evidence=evidence, suggestion=suggestion,
        seconds=seconds,
    )  # fmt: skip


def severity(analysis: Analysis, seconds: float) -> str:
    """Of a cost, by its share of the work."""
    share = seconds / analysis.summary["work_seconds"] if analysis.summary["work_seconds"] > 0 else 0.0
    return "serious" if share >= SERIOUS else "warning" if share >= WORTH else "note"
