# SPDX-License-Identifier: BSD-3-Clause
"""What a training step is on every level: its learning rate and its examples.

J. B. Schroder, "Parallelizing over artificial neural network training runs with multigrid", arXiv 1708.02276v2: the
naive solver; solver 1, eq. (14); solver 2, eq. (15); the slowly growing learning rate, eq. (18).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .learning_rates import Rate, require_number

DATA = ("full", "serial", "injected", "averaged")


@dataclass(frozen=True)
class Rules:
    """``alpha_l = min(growth^l alpha_0, alpha_max)``, and which batch step ``i`` of level ``l`` sees.

    Attributes
    ----------
    growth : float, optional
        Of the learning rate from level to level; None: the coarsening factor of each level, 2 in the paper.
    alpha_max : float
        Where gradient descent would become unstable: ``|1 - alpha_l mu| < 1`` for every curvature ``mu`` of the loss.
    data : {"full", "serial", "injected", "averaged"} or callable
        "full": all examples in every step. The others give step ``i`` of the finest level batch ``mod(i, K)`` of ``K``;
        on a level with ``M`` fine steps per step that is, for "serial", ``mod(i, K)`` with the level's own index;
        for "injected" ``mod(M i, K)``; for "averaged" the mean of the batches ``M i, ..., M i + M - 1``, inputs and
        targets. A function ``data(level, points, M)``, ``points`` the level's own int64 indices ``[slices]``, returns
        the numbers of the examples, int64 ``[slices, batch]``.
    batch : int
        Examples per batch; batch ``j`` has the examples ``j batch, ..., j batch + batch - 1``, and of those the last
        ``examples mod batch`` are in none. Not used for "full", nor for data with batches of its own.
    """

    growth: float | None = None
    alpha_max: float = math.inf
    data: str | Callable[..., Any] = "full"
    batch: int = 1

    def __post_init__(self) -> None:
        if self.growth is not None:
            require_number("growth", self.growth, "a number or None")
        if self.growth is not None and not 0 < self.growth < math.inf:
            raise ValueError(f"growth: got {self.growth!r}, expected a number above 0")
        require_number("alpha_max", self.alpha_max, "a number")
        if not self.alpha_max > 0:
            raise ValueError(f"alpha_max: got {self.alpha_max!r}, expected a number above 0")
        if not callable(self.data) and self.data not in DATA:
            raise ValueError(f"data: got {self.data!r}, expected one of {', '.join(DATA)}, or a function")
        # As floats: what is equal has one text, and a checkpoint compares texts.
        object.__setattr__(self, "alpha_max", float(self.alpha_max))
        if self.growth is not None:
            object.__setattr__(self, "growth", float(self.growth))
        if isinstance(self.batch, bool) or not isinstance(self.batch, numbers.Integral) or self.batch < 1:
            raise ValueError(f"batch: got {self.batch!r}, expected an integer of at least 1")
        object.__setattr__(self, "batch", int(self.batch))

    def alpha(self, base: Rate, level: int, stride: int) -> Rate:
        """The learning rate of ``level``, which has ``stride`` fine steps per step; each, where ``base`` has many."""
        if level == 0:
            return base
        alpha = self.scale(level, stride) * base
        return alpha.clamp(max=self.alpha_max) if isinstance(alpha, Tensor) else min(alpha, self.alpha_max)

    def scale(self, level: int, stride: int) -> float:
        """``growth^l``: what the rate of the finest level is multiplied by, where ``alpha_max`` allows it."""
        return float(stride) if self.growth is None else self.growth**level


PRESETS = {
    "naive": Rules(growth=1.0),
    "solver1": Rules(),
    "solver2": Rules(data="serial"),
    "slow": Rules(growth=1.25),
}


def find(rules: str | Rules) -> Rules:
    """One of :data:`PRESETS` by name, or ``rules`` themselves."""
    if isinstance(rules, Rules):
        return rules
    if not isinstance(rules, str):
        raise TypeError(f"rules: got {type(rules).__name__}, expected Rules or one of {', '.join(PRESETS)}")
    if rules not in PRESETS:
        raise ValueError(f"rules: got {rules!r}, expected Rules or one of {', '.join(PRESETS)}")
    return PRESETS[rules]
