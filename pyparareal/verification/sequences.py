# SPDX-License-Identifier: BSD-3-Clause
"""Recurrences verified: the cell as a step, then the solved sequence against the loop."""

from __future__ import annotations

from typing import Any

import torch

from ..nn.recurrent.checks import check_inputs
from ..nn.recurrent.implicit_gru import ImplicitGRU
from ..nn.recurrent.recurrence import Recurrence
from ..nn.recurrent.settings import Settings, tolerance_of
from ..nn.recurrent.states import Packing
from ..nn.recurrent.step import CellStep
from ..time_grid import TimeGrid
from .both import tensors_of
from .calls import guarded
from .chain import Chain, ChainVerifier
from .expected import growth
from .faults import Fault, Place
from .networks import NetworkVerifier
from .result import Comparison


class SequenceVerifier(NetworkVerifier):
    """``model(x, h0)`` against the same with ``method="serial"``, and the cell by itself."""

    independent = True

    def _run(self) -> list[Comparison]:
        grown = self._cell() if isinstance(self.model, Recurrence) else 1.0
        if self.found.has(Fault.RAISED):
            return []
        self.held.restore()
        model = self.model
        own = model.settings
        tol = own.tol if isinstance(own.tol, float) else tolerance_of(tensors_of(self.data)[0].dtype)
        why = (
            f"tolerance: {tol:.2g} of the states as set, rounding, and what the loop makes of changes of that size "
            f"(differences grow by {grown:.2g})"
        )

        def run(x: Any) -> Any:
            return model(*model_arguments(x))

        def loop(x: Any) -> Any:
            model.settings = Settings(method="serial")
            try:
                return model(*model_arguments(x))
            finally:
                model.settings = own

        self.progress("solved and serial", 0.6)
        self.grown = grown
        made = self.both("sequence", why, run, loop, extra=64 * tol * min(max(grown, 1.0), 1e6))
        report = model.report[0] if isinstance(model.report, list) and model.report else model.report
        if report is not None:
            self.facts["report"] = str(report)
        return made

    def _cell(self) -> float:
        """The probes of a chain whose steps are those of the cell; how differences grow along it."""
        model = self.model
        x, h0 = (*model_arguments(self.data), None)[:2]
        if isinstance(model, ImplicitGRU):
            if model.batch_first:
                x = x.transpose(0, 1)
            x = model.cell.project(x).detach()
            h0 = None if h0 is None else h0.transpose(0, 1)
        tensors, nested = check_inputs(x, model.batch_first and not isinstance(model, ImplicitGRU))
        tensors = [t.detach() for t in tensors]
        steps, batch = tensors[0].shape[:2]
        h0 = model._initial(tensors[0], batch) if h0 is None else h0
        packing = Packing(h0)
        step = CellStep(model.cell, tensors, nested, packing)
        m = max(1, round(steps**0.5))
        chain = Chain(step, packing.pack(h0).detach(), TimeGrid(0, steps, steps), m, what="cell")
        work = CellVerifier(chain, self.quick, self.gradients, self.progress)
        work.held, work.found = self.held, self.found
        self.facts |= {"steps": steps, "batch": batch, "chunk of the probes": m}
        with torch.no_grad():
            work.probe()
        return work.relative


class CellVerifier(ChainVerifier):
    """The probes alone."""

    relative = 1.0
    word = "chunk"

    def probe(self) -> None:
        """Findings, and how differences grow."""
        found = self.serial_states()
        if found is None:
            return
        self.u = found
        self.probe_steps()
        self.held.restore()
        if not self.found.blames():
            grown = growth(lambda i, v: guarded(self.one, self.place(i), i, v), self.u, self.m, self.slices)
            self.relative = grown.relative

    def place(self, i: int) -> Place:
        n, j = divmod(i, self.m)
        return Place(n, j, f"the cell at step {i} (chunk {n}, its step {j})")


def model_arguments(data: Any) -> tuple[Any, ...]:
    """``(x,)`` or ``(x, h0)``: a tuple whose first is a sequence and whose second is a state."""
    return data if isinstance(data, tuple) and len(data) == 2 else (data,)
