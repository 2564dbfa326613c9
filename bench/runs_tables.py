# SPDX-License-Identifier: BSD-3-Clause
"""Iteration counts of J. B. Schroder, arXiv 1708.02276v2, tables 1 to 15, and the set-ups they belong to.

51 stands for "50+": not converged after 50 iterations. The adder's tables print 50 for those that did not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

XOR_STEPS = tuple(100 * 2**k for k in range(9))
ADDER_STEPS = tuple(100 * 2**k for k in range(8))
SHORT = tuple(40 * 2**k for k in range(6))
NOT = 51


@dataclass(frozen=True)
class Table:
    """Options of ``RunsProblem.runs``, training steps of every row and the iterations printed for it."""

    rules: str
    steps: tuple[int, ...]
    iterations: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    examples: int = 500


def _cycles(kind: str, alpha_max: float) -> dict[str, Any]:
    return {"levels": None, "cycle": kind, "alpha_max": alpha_max}


XOR = {
    "T1": Table("naive", XOR_STEPS, (14, 19, 24, 31, 40, 49, NOT, NOT, NOT)),
    "T2": Table("solver1", XOR_STEPS, (6, 6, 6, 6, 6, 6, 6, 6, 5)),
    "T3": Table("solver1", XOR_STEPS, (6, 6, 7, 7, 7, 8, 11, 16, 21), _cycles("F", 8.0)),
    "T5": Table("solver2", XOR_STEPS, (10, 12, 15, 18, 20, 20, 20, 20, 19)),
    "T6": Table("solver2", XOR_STEPS, (10, 12, 15, 21, 26, 27, 29, 41, 50), _cycles("F", 8.0)),
}
ADDER = {
    "T8": Table("naive", SHORT, (9, 13, 19, 36, 48, 50), {"lr": 0.1}),
    "T9": Table("solver1", SHORT, (9, 50, 50, 50, 50, 50), {"lr": 0.1}),
    "T11": Table("solver1", SHORT, (5, 7, 11, 16, 25, 37), {"lr": 0.025}),
    "T12": Table("solver1", ADDER_STEPS, (4, 5, 7, 11, 14, 13, 14, 14), {"lr": 0.025}, 50),
    "T14": Table("solver2", ADDER_STEPS, (4, 4, 5, 5, 6, 6, 8, 13), {"lr": 0.025, **_cycles("F", 0.2)}),
    "T15": Table("solver2", ADDER_STEPS, (4, 5, 6, 7, 8, 9, 11, 20), {"lr": 0.025, **_cycles("V", 0.2)}),
}


def in_band(found: int, paper: int) -> bool:
    """Within 2 cycles or 30 % of the paper's count."""
    return abs(found - paper) <= max(2, 0.3 * paper)


def count(problem: Any, table: Table, steps: int) -> int:
    """Cycles that ``problem`` takes with the settings of the paper; 51 if 50 were not enough."""
    runs = problem.runs(
        steps, rules=table.rules, stagnation=None, divergence=1e300, on_failure="return", **table.options
    )
    result = runs.run()
    return result.iterations[0] if result.status.ok else NOT
