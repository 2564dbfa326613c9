# SPDX-License-Identifier: BSD-3-Clause
"""Training steps solved in parallel against serial training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .calls import Raised
from .faults import Fault, Finding, Findings, Place
from .held import Held
from .measures import differences, digits
from .result import Comparison, SliceErrors, Verification


class TrainingVerifier:
    """Of a :class:`pyparareal.training.TrainingRuns`; :meth:`run` trains twice."""

    def __init__(self, runs: Any, progress: Callable[[str, float], None]) -> None:
        self.runs, self.progress = runs, progress
        self.held, self.found = Held({"runs": runs, "module": runs.module}), Findings()

    def run(self) -> Verification:
        """The weights, tensor by tensor; the module keeps its own."""
        runs, made, facts = self.runs, [], {}
        facts = {"steps": runs.settings.steps, "tolerance": runs.settings.tol}
        try:
            self.progress("in parallel", 0.1)
            ours = runs.run()
            self.held.restore()
            self.progress("serially", 0.6)
            theirs = runs.serial()
            facts["status"] = ours.status.value
            made = list(self._compared(ours, theirs))
            if not ours.status.ok:
                text = f"The windows ended so: {ours.status.value}."
                self.found.add(Finding(Fault.NOT_CONVERGED, Place(words="the training run"), text))
            bad = [c for c in made if not c.ok]
            if bad and not self.found.blames():
                text = f"{bad[0].what} differ by {digits(bad[0].largest)} (allowed: {digits(bad[0].rows[0].allowed)})."
                self.found.add(Finding(Fault.UNEXPLAINED, Place(words="the training run"), text))
        except Exception as error:
            self.found.add(Raised(error, Place(words="the training run")).finding())
        finally:
            self.held.restore()
        return Verification("TrainingRuns", tuple(made), self.found.all(), facts)

    def _compared(self, ours: Any, theirs: Any) -> Any:
        steps, tol = self.runs.settings.steps, float(self.runs.settings.tol or 0.0)
        for name, w in theirs.weights.items():
            eps, scale = float(torch.finfo(w.dtype).eps), float(w.abs().max())
            # What every window leaves at its C-points, and sums in another order at every step.
            allowed = 64 * (tol * steps**0.5 + 4 * eps * scale * steps**0.5)
            d = differences(ours.weights[name], w)
            text = f"tolerance: that of the run, {tol:.2g} per root of {steps} steps, and rounding"
            yield Comparison(
                f"weights {name}", text, (SliceErrors(0, float(d.max()), float(d.mean()), allowed),)
            )  # fmt: skip
