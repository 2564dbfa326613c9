# SPDX-License-Identifier: BSD-3-Clause
"""A recurrence solved: which method, in which chunks and windows, and what to do when it fails.

Chunks without a Jacobian between them are :mod:`.chunks`; everything else is :func:`pyparareal.solve`.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _trace
from ...adjoint import Adjoint, BackwardPass
from ...errors import ConvergenceError
from ...mgrit import MGRIT
from ...newton import Newton
from ...propagators import require_like
from ...runtime.group import Group, checksum, plain
from ...solution import Solution, Status
from ...solver import solve
from ...time_grid import TimeGrid
from ...traced_ops import launch
from . import memory
from .backward import Chunked, ChunkedBackward, autocast_of_now, known_to
from .choosing import FULL, Key, iterations_of, key_of, measured, resolved
from .chunks import Chunks
from .exponent import Exponent, exponent_of
from .isolation import Isolated, held_tensors
from .report import SequenceReport
from .settings import Settings, tolerance_of

CHOSEN = ("method", "chunk", "max_iterations", "warm_up", "jacobian")  # what "auto" decides on


def solve_sequence(
    step: Any,
    u0: Tensor,
    length: int,
    settings: Settings,
    *,
    coarse: Any = None,
    parameters: Iterable[Tensor] | None = None,
    choices: dict[Key, tuple[Settings, str]] | None = None,
    runtime: Any = None,
) -> tuple[Tensor, SequenceReport]:
    """``u[i+1] = step(u[i])`` for ``length`` steps: ``u [length + 1, batch, features...]``, and how it went.

    Differentiable, as the loop would be.

    Parameters
    ----------
    step : Propagator
        On ``TimeGrid(0, length, length)``. Optional, besides what every propagator may have: ``serial(u0, length)``,
        all states by the loop; ``unroll(u, points, m)``, the list of the next ``m`` states with a graph;
        ``windows(lengths)``, a propagator for each so long part of the sequence.
    u0 : tensor ``[batch, features...]``
    length : int
        At least 1.
    coarse, parameters : as in :func:`pyparareal.solve`
        Without ``coarse`` and ``step.rediscretise`` nothing is carried from chunk to chunk but where they end: "mgrit"
        is then the block Jacobi iteration, right for recurrences that forget.
    choices : dict, optional
        What "auto" has chosen before; it is looked up and written to. Over ranks rank 0 measures and tells.
    runtime : DistributedRuntime, optional
        What :func:`pyparareal.distributed` returns: chunks are spread over its ranks, which all ask for the same and
        get all states. What is serial every rank does for itself.

    Raises
    ------
    TypeError, ValueError
        For a wrong argument.
    ConvergenceError
        If the method fails and ``settings.on_failure`` is "raise".
    """
    group = Group(runtime)
    given = None if parameters is None else list(parameters)

    def task(step: Any, u0: Tensor, length: int, given: list[Tensor] | None, begin: int = 0) -> Task:
        if not torch.is_grad_enabled():
            return Task(step, step, u0, length, settings, coarse, [], True, choices, None, begin, group)
        cut = Isolated(step, u0)
        known = known_to(cut.step, u0, None if given is None else cut.known(given))
        return Task(cut.step, step, u0, length, settings, coarse, known, given is None, choices, cut, begin, group)

    with group.together():
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise ValueError(f"length: got {length!r}, expected an integer of at least 1")
        whole = task(step, u0, length, given)
        if group:
            group.agree(whole.asked())
    parts = _windows(whole)
    if len(parts) == 1:
        return whole.solve()
    if given is not None and whole.cut is not None:
        given = whole.cut.outside(given)  # a window has its own part of what is cut
    states, reports, u, begin = [u0[None]], [], u0, 0
    for part, steps in zip(step.windows(parts), parts, strict=True):
        found, report = task(part, u, steps, given, begin).solve()
        states.append(found[1:])
        reports.append(report)
        u, begin = found[-1], begin + steps
    return torch.cat(states), SequenceReport.of_windows(reports)


def _windows(task: Task) -> list[int]:
    """The lengths of the windows that memory allows."""
    if not hasattr(task.step, "windows") or task.coarse is not None:
        return [task.length]
    budget = task.settings.memory
    if budget is None:
        budget = task.group.least(memory.available(task.u0.device), task.u0.device)
    per_step = memory.bytes_per_step(task.step, task.u0, task.known)
    settings = resolved(task.settings, task.length, task.u0[0].numel())
    if settings.method == "auto" and task.u0[0].numel() <= FULL:  # which may choose it
        settings = dataclasses.replace(settings, method="newton", jacobian="full", chunk=1)
    if settings.method in ("newton", "hybrid"):
        per_step += memory.jacobian_bytes(task.u0, settings.jacobian) // (settings.chunk or 1)
    return memory.windows(task.length, per_step, budget)


@dataclasses.dataclass(frozen=True)
class Task:
    """One window of a sequence.

    Attributes
    ----------
    step : cut from what its tensors were computed from; ``plain``: as it was given
    known : the tensors besides ``u0`` that the states are differentiated in
    cut : what puts them together again
    begin : the step of the whole sequence with which the window begins
    group : the ranks that solve it together
    """

    step: Any
    plain: Any
    u0: Tensor
    length: int
    settings: Settings
    coarse: Any
    known: list[Tensor]
    complete: bool
    choices: dict[Key, tuple[Settings, str]] | None
    cut: Isolated | None
    begin: int = 0
    group: Group = dataclasses.field(default_factory=lambda: Group(None))

    @property
    def start(self) -> Tensor:
        return self.u0 if self.cut is None else self.cut.u0

    @property
    def gradients(self) -> bool:
        return torch.is_grad_enabled() and (self.u0.requires_grad or bool(self.known))

    @property
    def dtype(self) -> torch.dtype:
        """What steps are computed in, as far as that decides how exactly."""
        kind = self.u0.device.type
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.u0.dtype

    def asked(self) -> dict[str, Any]:
        """What must be the same on all ranks, by the name that an error says."""
        auto = self.settings.method == "auto"
        chosen = auto and self.choices is not None and key_of(self.u0, self.length, self.gradients) in self.choices
        held = held_tensors(self.plain)
        trained = "".join("01"[tensor.requires_grad] for tensor in held) if self.gradients else ""
        return {
            "operation": "a recurrence", "length": self.length, "gradients": self.gradients,
            "initial state": checksum([self.u0]), "inputs or weights": checksum(held), "trained": trained,
            "settings": plain(self.settings), "coarse": self.coarse is not None, "choices": chosen,
        }  # fmt: skip

    def solve(self) -> tuple[Tensor, SequenceReport]:
        if self.settings.method == "auto":
            return self._solve_auto()
        return self._solve_by(resolved(self.settings, self.length, self.u0[0].numel()), "as asked for")

    def _solve_auto(self) -> tuple[Tensor, SequenceReport]:
        """By what was chosen for this shape, or by what a measurement promises to be fastest."""
        choices, key = {} if self.choices is None else self.choices, key_of(self.u0, self.length, self.gradients)
        if key not in choices:
            tol = self.settings.tolerance(self.dtype) or tolerance_of(self.dtype)
            choices[key] = self._measured(tol)
        chosen, why = choices[key]
        # The chunk fits the length it was chosen for; others of the same key get their own.
        chosen = dataclasses.replace(chosen, chunk=self.settings.chunk)
        u, report = self._solve_by(resolved(chosen, self.length, self.u0[0].numel()), why)
        if report.failure is not None:
            serial = dataclasses.replace(self.settings, method="serial")
            choices[key] = serial, f"{why}; serial since it failed: {report.failure.value}"
        return u, report

    def _measured(self, tol: float) -> tuple[Settings, str]:
        """What promises to be fastest, on all ranks what rank 0 has measured."""
        told: Any = None
        with self.group.failing():
            if self.group.rank == 0:
                found, why = measured(self.step, self.u0.detach(), self.length, self.settings, tol)
                told = {name: getattr(found, name) for name in CHOSEN}, why
        chosen, why = self.group.told(told, "telling the method that was chosen")[0]
        return dataclasses.replace(self.settings, **chosen), why

    def _connected(self, u: Tensor, after: Callable[[], None] | None = None) -> Tensor:
        return u if self.cut is None else self.cut.connected(u, self.known, after)

    def _solve_by(self, settings: Settings, why: str) -> tuple[Tensor, SequenceReport]:
        if self._lacks_jacobians(settings):
            settings = dataclasses.replace(settings, method="hybrid", jacobian="none", chunk=None, warm_up=None)
            settings = resolved(settings, self.length, self.u0[0].numel())
            why = f"{why}; without Jacobians, which torch does not find in inference mode"
        if settings.method == "serial":
            u, report = self._serial(settings)
        elif settings.method == "hybrid" and settings.jacobian == "none":
            u, report = self._by_chunks(settings)
        else:
            u, report = self._by_solve(settings)
        found = dataclasses.replace(report, reason=why)
        if not self.settings.exponent or settings.method == "serial" or report.failure is not None:
            return u, found
        return u, found.with_exponent(exponent_of(self.step, u.detach(), found.chunk))

    def _lacks_jacobians(self, settings: Settings) -> bool:
        wanted = settings.method in ("newton", "hybrid") and settings.jacobian != "none"
        return wanted and torch.is_inference_mode_enabled() and not hasattr(self.step, "linearise")

    def _serial(self, settings: Settings) -> tuple[Tensor, SequenceReport]:
        u = serial_states(self.plain, self.u0, self.length)
        status = Status.SERIAL if _finite(u) else Status.NON_FINITE
        return u, SequenceReport("serial", self.length, self.length, status, begin=self.begin, settings=settings)

    def _by_chunks(self, settings: Settings) -> tuple[Tensor, SequenceReport]:
        m, warm_up, tol = settings.chunk or 1, settings.warm_up or 0, settings.tolerance(self.dtype)
        limit = iterations_of(settings, self.length)
        with torch.no_grad(), self.group.failing() as ranks:
            chunks = Chunks(self.step, self.length, m, warm_up, tol, limit, ranks=ranks)
            status, u = chunks.run(self.u0.detach())
        report = SequenceReport(
            "hybrid", m, self.length, status, len(chunks.passes), tuple(chunks.residuals), tol, chunks.cost,
            begin=self.begin, settings=settings,
        )  # fmt: skip
        if not status.ok and settings.on_failure != "return":
            return self._failed(u, report, None)
        if self.gradients:
            options = settings.backward_options(self.dtype, limit)
            backward = ChunkedBackward(
                self.step, self.length, m, warm_up, *options, self.complete, autocast_of_now(), group=self.group
            )
            found = u
            u = self._connected(Chunked.apply(lambda: found, backward, self.start, *self.known))  # type: ignore[no-untyped-call]
            report = dataclasses.replace(report, backward=backward.passes)
        return (u, report) if status.ok else self._failed(u, report, None)

    def _by_solve(self, settings: Settings) -> tuple[Tensor, SequenceReport]:
        own, newton = isinstance(settings.method, MGRIT), settings.method in ("newton", "hybrid")
        tol = settings.tolerance(self.dtype)
        solution = solve(
            self.step,
            self.start,
            TimeGrid(0, self.length, self.length),
            m=settings.chunk or 1,
            tol=None if tol is None else tol * self._scale(settings),
            coarse=None if newton else _coarse(self.step, self.coarse, settings),
            method=_method(settings),
            max_iterations=settings.max_iterations,
            norm=None if own else "inf",
            save="all",
            on_failure="return",
            parameters=self.known,  # with what they are computed from left out
            adjoint=self._adjoint(settings, tol),
            runtime=self.group.runtime,
        )
        report = SequenceReport(
            "mgrit" if own else str(settings.method), settings.chunk or 1, self.length, solution.status,
            solution.iterations, solution.residuals, tol, solution.stats.fine_steps / self.length, begin=self.begin,
            settings=settings, backward=solution.adjoint if solution.adjoint is not None else [],
        )  # fmt: skip
        passes = report.backward
        u = self._connected(solution.u, lambda: _warn_of_fallback(report.method, passes))
        return (u, report) if solution.status.ok else self._failed(u, report, solution)

    def _adjoint(self, settings: Settings, tol: float | None) -> Adjoint:
        """As asked for. Newton compares with the sum of all gradients that come in, of which there may be many."""
        given = settings.backward
        if given is None and tol is not None and settings.method in ("newton", "hybrid"):
            given = Adjoint(tol=tol / math.sqrt(self.length))
        if not isinstance(given, Adjoint):
            given = Adjoint(given)
        # solve's own is "return", so that what failed forward comes back here.
        return given if given.on_failure else dataclasses.replace(given, on_failure=settings.on_failure)

    def _scale(self, settings: Settings) -> float:
        """What tolerances are relative to where the method knows nothing of it: the size of the states."""
        newton = settings.method in ("newton", "hybrid")
        return max(1.0, float(self.u0.detach().abs().max())) if newton else 1.0

    def _failed(self, u: Tensor, report: SequenceReport, solution: Solution | None) -> tuple[Tensor, SequenceReport]:
        """What ``on_failure`` says: the serial states or those found, with a warning, or an error."""
        how = self.settings.on_failure
        states = serial_states(self.plain, self.u0, self.length) if how == "serial" else u
        found = exponent_of(self.step, states.detach(), report.chunk, self.length)  # of all chunks
        if not _finite(states):
            at = int(torch.isfinite(states.detach()).flatten(1).all(1).logical_not().nonzero()[0])
            first = max(at - 1, 0) // report.chunk * report.chunk  # the step that made it is the one before
            found = Exponent(found.mean, first, math.nan)
        report = dataclasses.replace(report.with_exponent(found), failure=report.status)
        what = f"recurrence: {report.why_failed()}"
        if how == "raise":
            raise ConvergenceError(f'{what}. on_failure="serial" falls back.', solution)
        if how == "return":
            warnings.warn(f"{what}; the states are used as they are", RuntimeWarning, stacklevel=2)
            return u, report
        warnings.warn(f"{what}; solved serially instead", RuntimeWarning, stacklevel=2)
        status = Status.SERIAL_FALLBACK if _finite(states) else Status.NON_FINITE
        return states, dataclasses.replace(report, status=status, backward=[])


def _warn_of_fallback(method: str, passes: Sequence[BackwardPass]) -> None:
    """After a backward pass by :func:`pyparareal.solve`, which has a failure in its report and warns nobody."""
    if passes and passes[-1].failure is not None:
        what = f"recurrence: the backward pass by {method} failed: {passes[-1].failure.value}"
        warnings.warn(f"{what}; solved serially instead", RuntimeWarning, stacklevel=2)


def _method(settings: Settings) -> Any:
    if isinstance(settings.method, MGRIT):
        return settings.method
    if settings.method in ("newton", "hybrid"):
        return Newton(settings.jacobian, settings.damping, settings.trust)
    # Measured at the end, the residual is that of the states returned.
    return MGRIT(
        levels=settings.levels, nu=settings.nu, measure="end", relative="state", temporal_norm="inf", stagnation=None
    )


def _coarse(step: Any, coarse: Any, settings: Settings) -> Any:
    if coarse is not None or hasattr(step, "rediscretise"):
        return coarse
    levels = settings.method.levels if isinstance(settings.method, MGRIT) else settings.levels
    return [Forgetful()] * ((levels or 2) - 1)


class Forgetful:
    """The coarse step that carries nothing on: what a chunk ends in is then what the relaxation found."""

    batch_invariant = True

    def step(self, u: Tensor, points: slice) -> Tensor:
        return u * 0  # with a graph, for the adjoint


def serial_states(step: Any, u0: Tensor, length: int) -> Tensor:
    """``[length + 1, ...]``, one step after the other; autograd follows."""
    with _trace.mark("recurrence.serial"), launch(step, u0[None], length):
        if hasattr(step, "serial"):
            return step.serial(u0, length)
        u, states = u0[None], [u0[None]]
        for i in range(length):
            u = require_like(step.step(u, slice(i, i + 1, 1)), u, step)
            states.append(u)
        return torch.cat(states)


def _finite(u: Tensor) -> bool:
    return bool(torch.isfinite(u.detach()).all())
