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

from ... import _trace, arrays
from ...propagators import is_fused, relax_by_steps
from ...runtime.ranks import Ranks
from ...solution import Status
from ...stopping import History
from ...traced_ops import launch
from .share import Share


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
    ranks : Ranks, optional
        Who has a part of the chunks each; all end with all states.
    """

    step: Any
    length: int
    m: int
    warm_up: int
    tol: float | None
    max_iterations: int
    residuals: list[float] = field(default_factory=History)
    passes: list[int] = field(default_factory=list)
    inexact: list[int] = field(default_factory=list)
    ranks: Ranks | None = None

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
        share = Share(self.ranks, self.slices)
        status = self._iterate(u, self._guess(u0, share), share)
        share.whole(u, self.m)
        done = self.slices * self.m
        if rest := self.length - done:
            self._relax(u[done : done + 1], slice(done, done + 1, 1), rest, u)
        return status, u

    def _guess(self, u0: Tensor, share: Share) -> Tensor:
        """The states the chunks start from: the first is given, the others by a warm-up."""
        c = u0.expand(self.slices, *u0.shape).clone()
        first, last = share.of(1, self.slices)
        if self.warm_up and first < last:
            m, w, own = self.m, self.warm_up, c[first:last]
            self._relax(own, slice(first * m - w, (last - 1) * m - w + 1, m), w, None, out=own)
        return c

    def _iterate(self, u: Tensor, c: Tensor, share: Share) -> Status:
        first, last = 0, self.slices
        bad = torch.zeros(self.slices, dtype=torch.bool)
        sizes = torch.zeros(self.slices + 1, dtype=torch.float64)
        sizes[-1] = u[0].abs().max()
        for _ in range(self.max_iterations):
            jumps, sizes[first:last] = self._pass(u, c, first, last, share)
            self.passes.append(last - first)
            size = float(sizes.max())
            bad[first] = False  # it has just been taken from where the one before ends
            bad[first + 1 : last + 1] = ~(jumps <= (self.tol or 0.0) * size)
            finite = bool(jumps.isfinite().all() and sizes[first:last].isfinite().all())
            self.residuals.append(max(jumps.tolist(), default=0.0) if finite else math.nan)
            self.inexact = bad.nonzero().flatten().tolist()
            if self.tol is not None and not self.inexact and math.isfinite(size):
                return Status.CONVERGED
            if math.isnan(self.residuals[-1]):
                return Status.NON_FINITE
            if self.tol is not None:
                first, last = self.inexact[0], self.inexact[-1] + 1
        return Status.FIXED if self.tol is None else Status.MAX_ITERATIONS

    def _pass(self, u: Tensor, c: Tensor, first: int, last: int, share: Share) -> tuple[Tensor, Tensor]:
        """Relax the chunks ``first .. last - 1``, and start from there: how far those that follow began from it.

        And the largest entries where they end.
        """
        m, (a, b) = self.m, share.of(first, last)
        if a < b:
            self._relax(c[a:b], slice(a * m, (b - 1) * m + 1, m), m, u)
        share.ends_right(u, m, first, last)
        size = u[(a + 1) * m : b * m + 1 : m]
        k, end = share.of(first + 1, min(last + 1, self.slices))  # the last chunk has none that follows
        ends, follow = u[k * m : (end - 1) * m + 1 : m], c[k:end]
        jump = (ends - follow).flatten(1).abs().amax(1) if k < end else ends.new_zeros(0)
        size = size.flatten(1).abs().amax(1) if a < b else ends.new_zeros(0)
        found = torch.cat([jump, size]).double().cpu()  # one wait for the device
        if k < end:
            c[k:end] = ends
        jumps, sizes = share.numbers(found[: len(jump)], found[len(jump) :])
        return torch.from_numpy(jumps), torch.from_numpy(sizes)

    def _relax(self, c: Tensor, points: slice, m: int, u: Tensor | None, out: Tensor | None = None) -> None:
        """``m`` steps from ``c``; the states go to their places in ``u``, the last ones to ``out``."""
        every = None
        if u is not None:
            every = arrays.windows(u, slice(points.start, points.stop, points.step), m, shift=1)
        with _trace.mark("recurrence.chunks"), launch(self.step, c, m):
            if is_fused(self.step):
                self.step.relax(c, points, m, out, every=every)
            else:
                relax_by_steps(self.step, c, points, m, out, every=every)
