# SPDX-License-Identifier: BSD-3-Clause
"""Chunks relaxed side by side, each from where the one before ended: for recurrences that forget.

    u[n+1] = F(u[n])        F = the m steps of a chunk, for all chunks n at once

is the block Jacobi iteration, Newton's method with the Jacobian of a chunk taken as zero: exact after as many passes as
there are chunks, and after two where what a chunk starts from no longer shows at its end. A first guess comes from a
warm-up: the last steps of every chunk, from any state. Then one pass decides: it finds the residual, and it has stored
all states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ... import arrays
from ...propagators import is_fused, relax_by_steps
from ...solution import Status


@dataclass
class Chunks:
    """The iteration for one sequence; :meth:`run` iterates.

    Attributes
    ----------
    step : Propagator
    length, m : int
        Steps, and steps per chunk; ``length mod m`` steps follow the last chunk, one by one.
    warm_up : int
        Steps of the warm-up, at most ``m``; 0: the guess is the initial state.
    tol : float, optional
    passes : list of int
        Chunks relaxed in each pass.
    inexact : list of int
        Chunks that do not start where the one before ends, after the last pass.
    """

    step: Any
    length: int
    m: int
    warm_up: int
    tol: float | None
    max_iterations: int
    residuals: list[float] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    inexact: list[int] = field(default_factory=list)

    @property
    def slices(self) -> int:
        return self.length // self.m

    @property
    def cost(self) -> float:
        """Steps taken over the length."""
        warm = self.warm_up * (self.slices - 1)
        return (sum(self.passes) * self.m + warm + self.length % self.m) / self.length

    def run(self, u0: Tensor) -> tuple[Status, Tensor]:
        """How it ended, and ``u [length + 1, batch, features...]``."""
        u = arrays.empty(u0, (self.length + 1, *u0.shape))
        u[0] = u0
        c = self._guess(u0)
        status = self._iterate(u, c)
        done = self.slices * self.m
        if rest := self.length - done:
            self._relax(u[done : done + 1], slice(done, done + 1, 1), rest, u)
        return status, u

    def _guess(self, u0: Tensor) -> Tensor:
        """The states the chunks start from: the first is given, the others by a warm-up."""
        c = u0.expand(self.slices, *u0.shape).clone()
        if self.warm_up and self.slices > 1:
            w = self.warm_up
            self._relax(c[1:], slice(self.m - w, (self.slices - 1) * self.m - w + 1, self.m), w, None, out=c[1:])
        return c

    def _iterate(self, u: Tensor, c: Tensor) -> Status:
        first, last = 0, self.slices
        bad = torch.zeros(self.slices, dtype=torch.bool)
        sizes = torch.zeros(self.slices + 1, dtype=torch.float64)
        sizes[-1] = u[0].abs().max()
        for _ in range(self.max_iterations):
            self._relax(c[first:last], slice(first * self.m, (last - 1) * self.m + 1, self.m), self.m, u)
            self.passes.append(last - first)
            ends = u[(first + 1) * self.m : last * self.m + 1 : self.m]
            follow = c[first + 1 : last + 1]  # the last chunk has none that follows
            jump = (ends[: len(follow)] - follow).flatten(1).abs().amax(1) if len(follow) else ends.new_zeros(0)
            found = torch.cat([jump, ends.flatten(1).abs().amax(1)]).double().cpu()  # one wait for the device
            jumps, sizes[first:last] = found[: len(jump)], found[len(jump) :]
            size = float(sizes.max())
            bad[first] = False  # it has just been taken from where the one before ends
            bad[first + 1 : last + 1] = ~(jumps <= (self.tol or 0.0) * size)
            self.residuals.append(max(jumps.tolist(), default=0.0) if math.isfinite(float(found.sum())) else math.nan)
            self.inexact = bad.nonzero().flatten().tolist()
            if self.tol is not None and not self.inexact and math.isfinite(size):
                return Status.CONVERGED
            if math.isnan(self.residuals[-1]):
                return Status.NON_FINITE
            c[first + 1 : last + 1] = ends[: len(follow)]
            if self.tol is not None:
                first, last = self.inexact[0], self.inexact[-1] + 1
        return Status.FIXED if self.tol is None else Status.MAX_ITERATIONS

    def _relax(self, c: Tensor, points: slice, m: int, u: Tensor | None, out: Tensor | None = None) -> None:
        """``m`` steps from ``c``; the states go to their places in ``u``, the last ones to ``out``."""
        every = None
        if u is not None:
            every = arrays.windows(u, slice(points.start, points.stop, points.step), m, shift=1)
        relax = self.step.relax if is_fused(self.step) else None
        if relax is not None:
            relax(c, points, m, out, every=every)
        else:
            relax_by_steps(self.step, c, points, m, out, every=every)
