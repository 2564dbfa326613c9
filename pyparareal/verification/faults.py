# SPDX-License-Identifier: BSD-3-Clause
"""What can be wrong with a chain, one name each; and a finding: a name with its place and numbers."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any


class Fault(enum.Enum):
    """Why a chain solved in parallel is not, or would not stay, the serial one; the value says it in plain words."""

    HIDDEN_STATE = "keeps something between calls: the result depends on what was called before"
    UNFIXED_RANDOMNESS = "draws random numbers that nothing fixes: each call gives another result"
    NARROWED_DTYPE = "computes in a narrower dtype than its state has: digits are lost at a border"
    BATCH_NEIGHBOURS = "depends on what else is in the call: neighbours in the batch or other slices"
    CHAOS = "is sensitive: small differences grow along the chain, until two right answers differ visibly"
    OFF_BY_ONE = "uses the wrong point: another step of the chain than the one it was asked for"
    WRONG_ADJOINT = "has a wrong derivative: its backward pass is not the derivative of its forward pass"
    STALE_STATISTICS = "has wrong batch-norm statistics: committed twice, not at all, or out of date"
    TIED_PARAMETERS = "holds copies of a parameter that should be one: tied weights drift apart"
    ALIASING = "shares memory it should not: a view of its input, its input overwritten, one buffer for all results"
    NON_FINITE = "makes NaN or infinity"
    NOT_REPEATABLE = "gives another result for the same call, and nothing that it holds has changed"
    COARSE_INCONSISTENT = "has a coarse step that does not approximate the fine ones"
    RELAX_DIFFERS = "has a relax(m) that is not m steps"
    BROKEN_PROMISE = "promises batch_invariant=True, but rounds otherwise in other company"
    ROUNDING = "rounds otherwise in other company: harmless, of the size of the dtype's rounding"
    NOT_CONVERGED = "was not solved: the iteration did not reach its tolerance"
    RAISED = "raises an error"
    OTHER_SHAPE = "changes the shape of the state"
    UNEXPLAINED = "differs from the serial chain, and no probe says why"


FAULT, NOTE = "fault", "note"

# After these other probes would only see the same again.
SPOILED = (
    Fault.HIDDEN_STATE, Fault.UNFIXED_RANDOMNESS, Fault.NOT_REPEATABLE, Fault.NON_FINITE, Fault.RAISED,
    Fault.OTHER_SHAPE,
)  # fmt: skip

ADVICE = {
    Fault.HIDDEN_STATE: "Make the step a function of its arguments: move what it keeps into the state, or reset it.",
    Fault.UNFIXED_RANDOMNESS: "Draw the numbers once, before the solve, and hand them to the steps; or call eval().",
    Fault.NARROWED_DTYPE: "Keep the dtype of the state through the whole step, or make the state narrow everywhere.",
    Fault.BATCH_NEIGHBOURS: "Let every row of a call be computed from that row alone (axis 0 holds the slices).",
    Fault.CHAOS: "Compare statistics of the states, shorten the chain, or solve exactly (tol=0, deterministic=True).",
    Fault.OFF_BY_ONE: "Row j of the call starts at point points.start + j * points.step; look at the index there.",
    Fault.WRONG_ADJOINT: "Compare the backward pass with torch.autograd.gradcheck in float64, term by term.",
    Fault.STALE_STATISTICS: "Let each BatchNorm see each batch once; refresh its statistics before eval().",
    Fault.TIED_PARAMETERS: "Put the very same nn.Parameter into all places (no deepcopy, no .data, no detach()).",
    Fault.ALIASING: "Return new memory: u + ..., .clone(), or out-of-place operations (inplace=False).",
    Fault.NON_FINITE: "Look at that step with its input (a division, log, square root, too long a time step).",
    Fault.NOT_REPEATABLE: "Remove the clock, thread race or global it depends on.",
    Fault.COARSE_INCONSISTENT: "One coarse step must be about m fine steps: check its step length and right-hand side.",
    Fault.RELAX_DIFFERS: "relax(u, points, m, out) must give the bits of m calls of step.",
    Fault.BROKEN_PROMISE: "Say batch_invariant=False, or solve with deterministic=True.",
    Fault.ROUNDING: "Nothing to do; deterministic=True makes it bit for bit.",
    Fault.NOT_CONVERGED: "Allow more iterations, take a better coarse step, or a tolerance that the dtype can reach.",
    Fault.RAISED: "See the error; a call may have any number of rows: the slices of a solve, the examples of a batch.",
    Fault.OTHER_SHAPE: "Blocks of a chain keep shape and dtype; put what does not before or behind it.",
    Fault.UNEXPLAINED: "Please report it, with the table of slices.",
}


@dataclass(frozen=True)
class Place:
    """Where in the chain.

    Attributes
    ----------
    slice, step : int, optional
        Slice, and the step within it, from 0; for networks the part (slice of layers) and the block of the whole chain.
    words : str
        The same for people: "slice 3, step 1 (point 13)", "blocks.5 (Sequential)".
    """

    slice: int | None = None
    step: int | None = None
    words: str = "the chain"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (severity "fault") or good to know (severity "note").

    Attributes
    ----------
    fault : Fault
    place : Place
        The first place where it shows.
    evidence : str
        Which probe saw it, with its numbers.
    suggestion : str
    severity : {"fault", "note"}
    numbers : dict
        What ``evidence`` says, for programs.
    """

    fault: Fault
    place: Place
    evidence: str
    severity: str = FAULT
    suggestion: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def slice(self) -> int | None:
        return self.place.slice

    @property
    def step(self) -> int | None:
        return self.place.step

    @property
    def words(self) -> str:
        """``WHERE WHAT``: one sentence."""
        return f"{self.place.words} {self.fault.value}"

    def __str__(self) -> str:
        return f"{self.fault.name}: {self.words}. {self.evidence} {self.suggestion or ADVICE[self.fault]}"

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "fault": self.fault.name.lower(),
            "severity": self.severity,
            "where": self.place.words,
            "slice": self.slice,
            "step": self.step,
            "words": self.words,
            "evidence": self.evidence,
            "suggestion": self.suggestion or ADVICE[self.fault],
            "numbers": self.numbers,
        }


class Findings:
    """A list in which each fault has one entry for each kind of place: the first, with how many followed."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], list[Finding]] = {}

    def add(self, *found: Finding, group: str = "") -> None:
        for finding in found:
            self._found.setdefault((finding.fault, group), []).append(finding)

    def has(self, *faults: Fault) -> bool:
        return any(fault in faults for fault, _ in self._found)

    def blames(self) -> bool:
        """Whether there is a fault among them."""
        return any(f.severity == FAULT for several in self._found.values() for f in several)

    def all(self) -> tuple[Finding, ...]:
        """Faults before notes; where one shows in several places, the first with their number."""
        merged = []
        for several in self._found.values():
            first = min(several, key=lambda f: (f.severity != FAULT, *_order(f)))
            places = {f.place.words for f in several}
            if len(places) > 1:
                numbers = first.numbers | {"places": sorted(places)}
                evidence = f"{first.evidence} It shows in {len(places)} places; this is the first."
                first = Finding(first.fault, first.place, evidence, first.severity, first.suggestion, numbers)
            merged.append(first)
        return tuple(sorted(merged, key=lambda f: f.severity != FAULT))


def _order(f: Finding) -> tuple[float, float]:
    far = float("inf")
    return (far if f.slice is None else f.slice, far if f.step is None else f.step)
