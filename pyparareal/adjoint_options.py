# SPDX-License-Identifier: BSD-3-Clause
"""How an adjoint chain (:mod:`pyparareal.adjoint`) is to be solved, and how that went."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .mgrit import MGRIT
from .newton import Newton
from .solution import Status
from .stopping import SpatialNorm

METHODS = ("parareal", "mgrit", "newton", "serial")
ON_FAILURE = ("raise", "serial", "return")


@dataclass(frozen=True)
class Adjoint:
    """How the backward pass of :func:`pyparareal.solve` solves; what is None is that of the forward solve.

    Attributes
    ----------
    method : {"parareal", "mgrit", "newton", "serial"}, MGRIT or Newton, optional
        "serial": one step after the other, as autograd does it for the chain. With ``skip_first_down=False``
        MGRIT starts from zero. Newton, for this linear chain, is one reverse scan of the transposed Jacobians, each
        computed once, and a second relaxation to see that it is right; with ``jacobian="diagonal"`` or "none" it
        iterates. It has neither damping nor ``trust`` unless a Newton is given here.
    tol : float, optional
        As ``tol`` of the forward solve, times ``sum_i |w[i]|``, the norms of the gradients that come in: no
        ``lambda`` is larger than that where the steps do not amplify. Not times that if MGRIT's ``relative`` is given.
    max_iterations : int, optional
        Default: as many as make every slice exact, or ``max_iterations`` of the forward solve if that is more. With
        ``tol=None`` it is the number of the forward solve, and how exact the gradients are is for you to say.
    on_failure : {"raise", "serial", "return"}, optional
        "return" uses the gradients as they are, with a warning unless ``max_iterations`` is given and all that failed.
    norm : as in :func:`pyparareal.solve`, optional
    fixed : bool
        Run ``max_iterations`` iterations, compared with nothing, whatever the tolerance of the forward solve.
    accept : callable, optional
        Asked about every pass of iterations that ended well, a :class:`BackwardPass`; if it says no, the pass counts as
        diverged, whatever ``on_failure``, and the adjoint is solved serially instead. Over ranks one no is enough.
    """

    method: str | MGRIT | Newton | None = None
    tol: float | None = None
    max_iterations: int | None = None
    on_failure: str | None = None
    norm: SpatialNorm | None = None
    fixed: bool = False
    accept: Callable[[BackwardPass], bool] | None = None


@dataclass(frozen=True)
class BackwardPass:
    """How one backward pass went; :attr:`Solution.adjoint` has one for each.

    Attributes
    ----------
    status : Status
    iterations : int
    residuals : tuple of float
        As in :class:`Solution`, of the adjoint; if it was not accepted, of the iterations that were not.
    failure : Status, optional
        Why the method failed, if the adjoint was solved serially instead.
    size : float
        Norm of ``lambda`` at the C-points, as that of the residuals is taken.
    path : float
        How far ``lambda`` goes, in units of itself: ``sum_n |lambda[n] - lambda[n+1]| / |lambda[n]|`` at the C-points.
    """

    status: Status
    iterations: int = 0
    residuals: tuple[float, ...] = ()
    failure: Status | None = None
    size: float = math.nan
    path: float = math.nan


def options_of(adjoint: Any) -> Adjoint:
    if adjoint is None:
        return Adjoint()
    if isinstance(adjoint, str | MGRIT | Newton):
        return Adjoint(adjoint)
    if not isinstance(adjoint, Adjoint):
        raise TypeError(f"got {type(adjoint).__name__}, expected Adjoint, MGRIT, Newton or one of {', '.join(METHODS)}")
    return adjoint
