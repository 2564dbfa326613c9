# SPDX-License-Identifier: BSD-3-Clause
"""Newton's iteration where the propagator has all of it as one step.

A propagator may offer ``newton_kinds``, of the kinds of :mod:`pyparareal.linearise` those for which it has

    newton_step(u, points, factor, *, out, jacobians, scratch) -> (residuals, updates), or None

with which ``F``, ``J``, the residuals and the linear chain need not be stored. Of ``u [S + 1, ...]``, a start and the
states that follow it, it writes ``out[n] = F(u[n]) + factor J[n] d[n]`` with ``d[n + 1] = factor J[n] d[n] + F(u[n]) -
u[n + 1]`` from ``d[0] = 0`` on, and ``J`` to ``jacobians``; ``points`` are those of ``u[:-1]``. It returns the largest
``|F(u[n]) - u[n + 1]|`` and ``|d[n + 1]|`` of every slice, or None, and nothing written, where it cannot. ``scratch``
is a dict for what one iteration leaves to the next.

``F`` is the propagator's step to rounding: not bit for bit, and not always the same bits for the same state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from . import arrays, ops
from .newton import NewtonIteration
from .propagators import Propagator
from .runtime import GraphRuntime, LocalRuntime, Runtime

Array = Any


def fuses(
    fine: Propagator, kind: str, m: int, damping: float | str, tol: float | None, norm: str, runtime: Runtime
) -> bool:
    """Whether :class:`FusedNewton` does what these ask for.

    Without a tolerance the iterations are counted because their result is exact to the bit, which it does not promise.
    """
    whole = type(runtime) in (LocalRuntime, GraphRuntime) and runtime.slices_per_call is None  # type: ignore[attr-defined]
    return (
        kind in getattr(fine, "newton_kinds", ())
        and m == 1
        and damping != "adaptive"
        and tol is not None
        and norm == "inf"
        and whole
    )


@dataclass
class FusedNewton(NewtonIteration):
    """:class:`.NewtonIteration` by the propagator's own ``newton_step``.

    Where a trust region might be in force, whose changes are scaled between the scan and the states, an iteration is
    taken again by its parts.

    Attributes
    ----------
    scratch : dict
        What ``newton_step`` keeps.
    """

    scratch: dict[str, Array] = field(default_factory=dict)

    def _iterate(self, u: Array, f: Array, done: int) -> tuple[Array, Array]:
        points, ends = self.grid.starts(self.m, done, len(f)), f[done:]
        assert self.jacobians is not None
        with self.runtime.mark("newton.step"):
            norms = self.fine.newton_step(  # type: ignore[attr-defined]
                u[done:],
                points,
                1 - float(self.damping),
                out=ends,
                jacobians=self.jacobians[done:],
                scratch=self.scratch,
            )
            if norms is not None:
                self.fine_steps += len(ends)
                if self._trusted(ends, *norms):
                    u[done + 1 :] = ends
                    return norms
        return super()._iterate(u, f, done)

    def _trusted(self, ends: Array, residuals: Array, updates: Array) -> bool:
        """Whether no change is larger than ``trust`` times the largest number in ``F``, for sure.

        ``F = u_new - J d`` and ``J d[n] = d[n + 1] - r[n]``, so that ``|F|`` is at least ``|u_new| - |d| - |r|``; one
        hundredth is more than the rounding errors of these.
        """
        if self.trust is None:
            return True
        largest = arrays.to_numpy(ops.slice_norms(ends, norm="max_abs")).max(initial=0.0)
        d, r = (arrays.to_numpy(norms) for norms in (updates, residuals))
        return bool(d.max(initial=0.0) <= 0.99 * self.trust * (largest - (d + r).max(initial=0.0)))
