# SPDX-License-Identifier: BSD-3-Clause
"""What parallel and serial may differ by: nothing, or what tolerance and rounding become on their way along the chain.

An error ``d`` made at the end of slice ``k`` has grown to ``d G_n / G_k`` at the end of slice ``n``, where ``G`` is the
growth of a difference that runs along with the serial chain, renewed at every slice (the way Lyapunov exponents are
measured: Benettin et al., Meccanica 15 (1980), 9-20). A method leaves at most about ``tol`` at every slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .measures import Numbers, copy, epsilon, like, numbers, sizes

Array = Any

SAFETY = 64.0  # one direction is followed, errors are in all of them; norms and sums differ by the number of unknowns
SENSITIVE = 1e4  # a growth of relative differences along the whole chain from which on it is called sensitive


@dataclass(frozen=True)
class Growth:
    """How differences grow along the chain.

    Attributes
    ----------
    logs : float64 array ``[slices]``
        ``log`` of the growth within every slice.
    scales : float64 array ``[slices]``
        The largest state of every slice.
    m : int
    sizes : float64 array ``[slices + 1]``
        The largest number of the state where every slice starts, and of the last one.
    """

    logs: Numbers
    scales: Numbers
    m: int
    sizes: Numbers

    @property
    def total(self) -> Numbers:
        """``G_n``, ``[slices]``."""
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(np.cumsum(self.logs)))

    @property
    def relative(self) -> float:
        """The largest growth of a difference relative to the states, over any part of the chain."""
        sizes = np.maximum(self.sizes, 1e-300)
        logs = np.concatenate([[0.0], np.cumsum(self.logs)]) - np.log(sizes / sizes[0])
        with np.errstate(over="ignore"):
            return float(np.exp(np.max(logs - np.minimum.accumulate(logs))))

    @property
    def exponent(self) -> float:
        """Mean ``log`` growth per step."""
        return float(self.logs.mean() / self.m)

    def carried(self, per_slice: Numbers) -> Numbers:
        """``sum_{k <= n} per_slice[k] G_n / G_k``: all errors made until there."""
        found = np.empty(len(self.logs))
        error = 0.0
        with np.errstate(over="ignore"):
            for n, log in enumerate(self.logs):
                error = error * math.exp(min(log, 700.0)) + float(per_slice[n])
                found[n] = error
        return found

    def allowed(self, eps: float, tol: float, *, growing: bool = True) -> Numbers:
        """Largest expected difference ``[slices]`` of states, from rounding ``eps`` and the method's ``tol``."""
        rounding = 4 * eps * math.sqrt(self.m) * np.maximum(self.scales, 1e-300)
        chain = self if growing else Growth(np.minimum(self.logs, 0.0), self.scales, self.m, self.sizes)
        return SAFETY * chain.carried(rounding + tol)


def growth(step: Callable[[int, Array], Array], u: Array, m: int, slices: int) -> Growth:
    """That of ``u[i+1] = step(i, u[i])`` along the serial states ``u``; ``step`` takes ``[1, ...]``."""
    direction: Numbers = np.asarray(np.random.default_rng(7).standard_normal(numbers(u[:1]).shape))
    eps = epsilon(u)
    logs, scales = np.zeros(slices), np.empty(slices)
    for n in range(slices):
        base = numbers(u[n * m : n * m + 1])
        size: float = max(float(np.abs(base).max()), 1e-3 * float(np.abs(numbers(u[: n * m + 1])).max()), 1e-300)
        scales[n] = max(float(np.abs(numbers(u[n * m : (n + 1) * m + 1])).max()), 1e-300)
        length = float(np.linalg.norm(direction))
        if not 0 < length < math.inf:
            direction = np.asarray(np.random.default_rng(n).standard_normal(base.shape))
            length = float(np.linalg.norm(direction))
        d = direction * (math.sqrt(eps) * size * math.sqrt(base.size) / length)
        v = like(base + d, u)
        before = float(np.linalg.norm(numbers(v) - base))
        for i in range(n * m, (n + 1) * m):
            v = step(i, copy(v))
        direction = numbers(v) - numbers(u[(n + 1) * m : (n + 1) * m + 1])
        after = float(np.linalg.norm(direction))
        floor = eps * scales[n]  # below it there is only rounding
        if before > 0 and math.isfinite(after):
            logs[n] = math.log(max(after, floor) / before)
    return Growth(logs, scales, m, sizes(u[: slices * m + 1 : m]))
