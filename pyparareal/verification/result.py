# SPDX-License-Identifier: BSD-3-Clause
"""What a verification found: a verdict, the findings, and the errors slice by slice."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass, field
from typing import Any

from ..errors import PararealError
from .faults import FAULT, Finding


class VerificationError(PararealError):
    """What :meth:`Verification.raise_if_bad` raises; ``verification`` is the whole result."""

    def __init__(self, message: str, verification: Verification) -> None:
        super().__init__(message)
        self.verification = verification


@dataclass(frozen=True)
class SliceErrors:
    """Of one slice (or part, or layer) in one comparison: parallel less serial.

    Attributes
    ----------
    slice : int
    largest, mean : float
        Of ``|parallel - serial|``.
    allowed : float
        What ``largest`` is expected to be at most: 0 is bit for bit.
    growth : float
        By how much an error at the start has grown until here; NaN where it was not measured.
    step : int, optional
        The first step of the slice with a larger error.
    """

    slice: int
    largest: float
    mean: float
    allowed: float
    growth: float = math.nan
    step: int | None = None

    @property
    def ok(self) -> bool:
        return self.largest <= self.allowed


@dataclass(frozen=True)
class Comparison:
    """One thing compared with its serial counterpart.

    Attributes
    ----------
    what : str
        "values", "gradient of weight", "mode batched", ...
    expected : str
        The class and where its number comes from: "bitwise: ..." or "tolerance: ...".
    rows : tuple of SliceErrors
        One alone where there are no slices.
    """

    what: str
    expected: str
    rows: tuple[SliceErrors, ...]

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    @property
    def largest(self) -> float:
        return max((row.largest for row in self.rows), default=0.0)

    @property
    def first_bad(self) -> SliceErrors | None:
        return next((row for row in self.rows if not row.ok), None)


@dataclass(frozen=True)
class Verification:
    """Whether a chain is solved rightly in parallel.

    Attributes
    ----------
    what : str
        What was verified.
    comparisons : tuple of Comparison
    findings : tuple of Finding
        Faults first, then notes.
    facts : dict
        Sizes, dtypes, growth, and how the solve went.

    Notes
    -----
    ``slices`` are the rows of the first comparison: the errors of the values, slice by slice.
    """

    what: str
    comparisons: tuple[Comparison, ...] = ()
    findings: tuple[Finding, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """No fault was found; notes may have been."""
        return not self.faults

    @property
    def faults(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == FAULT)

    @property
    def notes(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity != FAULT)

    @property
    def slices(self) -> tuple[SliceErrors, ...]:
        """The rows of the first comparison: the values, slice by slice."""
        return self.comparisons[0].rows if self.comparisons else ()

    @property
    def largest_error(self) -> float:
        """Of the first comparison."""
        return self.comparisons[0].largest if self.comparisons else math.nan

    def raise_if_bad(self) -> Verification:
        """This, or :class:`VerificationError` with the faults in words."""
        if self.ok:
            return self
        raise VerificationError("\n".join([f"{self.what}: not right", *map(str, self.faults)]), self)

    def text(self, width: int = 100) -> str:
        """All of it in plain words."""
        lines = [f"{self.what}: {self._verdict()}", ""]
        for finding in self.findings:
            mark = "FAULT" if finding.severity == FAULT else "note"
            lines.append(textwrap.fill(f"{mark} {finding}", width, subsequent_indent="  "))
        if self.findings:
            lines.append("")
        for comparison in self.comparisons:
            lines += [f"{comparison.what}: {'as expected' if comparison.ok else 'NOT as expected'}"]
            lines.append(textwrap.fill(comparison.expected, width, initial_indent="  ", subsequent_indent="  "))
            lines += _table(comparison.rows)
        if self.facts:
            lines += ["", *(f"{name}: {value}" for name, value in self.facts.items())]
        return "\n".join(lines)

    __str__ = text

    def _verdict(self) -> str:
        if self.ok:
            return "right" if not self.notes else f"right, with {len(self.notes)} note{'s' * (len(self.notes) > 1)}"
        several = len(self.faults)
        return f"NOT right, {several} fault{'s' * (several > 1)}"

    def as_dict(self) -> dict[str, Any]:
        """JSON values; NaN and infinity become null."""
        return {
            "what": self.what,
            "ok": self.ok,
            "findings": [_plain(f.as_dict()) for f in self.findings],
            "comparisons": [
                {
                    "what": c.what,
                    "expected": c.expected,
                    "ok": c.ok,
                    "largest": _plain(c.largest),
                    "slices": [_plain(vars(row) | {"ok": row.ok}) for row in c.rows],
                }
                for c in self.comparisons
            ],
            "facts": _plain(self.facts),
        }


def _table(rows: tuple[SliceErrors, ...], most: int = 12) -> list[str]:
    """The first and last rows, those that are bad, and the largest."""
    if len(rows) == 1:
        (row,) = rows
        return [f"  largest {row.largest:.2g}, mean {row.mean:.2g}, allowed {row.allowed:.2g}"]
    worst = max(range(len(rows)), key=lambda n: rows[n].largest, default=0)
    bad = [n for n, row in enumerate(rows) if not row.ok]
    shown = sorted({*range(min(3, len(rows))), len(rows) - 1, worst, *bad[: most - 5]})
    lines = [f"  {'slice':>6} {'largest':>9} {'mean':>9} {'allowed':>9} {'growth':>9}"]
    before = -1
    for n in shown:
        row = rows[n]
        if n != before + 1:
            lines.append(f"  {'...':>6}")
        mark = "" if row.ok else f"  <- not as expected{'' if row.step is None else f', from step {row.step}'}"
        growth = "" if math.isnan(row.growth) else f"{row.growth:9.2g}"
        lines.append(f"  {row.slice:6d} {row.largest:9.2g} {row.mean:9.2g} {row.allowed:9.2g} {growth:>9}{mark}")
        before = n
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int | bool) or value is None:
        return value
    return _plain(value.item()) if hasattr(value, "item") else str(value)
