# SPDX-License-Identifier: BSD-3-Clause
"""How wrong the gradient of an unfinished iteration is, from what the iteration itself has shown.

Let ``j_k`` be the change of the C-points in iteration ``k``, relative to their size, and ``e_k`` the relative error
after it. The iteration contracts errors, ``e_k ~ rho e_{k-1}``, and ``j_k ~ e_{k-1} - e_k``, so that

    e_k ~ j_k rho / (1 - rho),    rho ~ j_k / j_{k-1}.

A first iteration that is only a coarse solve starts from nothing, whose relative error is ``j_1 = 1``.

The gradient is ``sum_i (dPhi_i/dtheta)(u_i)^T lambda_{i+1}``. A relative error ``e_b`` of the adjoint states ``lambda``
is one of the gradient too. The relative error ``e_f`` of the states enters twice: in the gradient that the loss sends
back and in ``dPhi/dtheta``, to first order by as much as it is, if both are about as sensitive as they are large; and
in each transposed Jacobian, ``lambda_i = lambda_{i+1} + h f'(u_i)^T lambda_{i+1}``, whose second term changes by about
``e_f |lambda_i - lambda_{i+1}|``. These add up to ``e_f`` times the path of ``lambda`` in units of itself::

    error ~ e_b + (1 + path) e_f,    path = sum_n |lambda_n - lambda_{n+1}| / |lambda_n|.

It is an estimate, not a bound: the constants of the layers' second derivatives are taken as 1. Where there are none it
misses something: of units with a kink about a share ``e_f`` is on its wrong side, whose slopes are wrong by all of
themselves, and the gradient by about ``sqrt(e_f)``. Case ``depth.estimate`` compares with true errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def filled(jumps: Sequence[float]) -> list[float]:
    """Relative ``jumps``, with 1 for a first iteration that was only a coarse solve and has none."""
    return [1.0 if k == 0 and math.isnan(j) else j for k, j in enumerate(jumps)]


def contraction(jumps: Sequence[float]) -> float:
    """``rho = j_k / j_{k-1}`` of the last two; NaN where there are not two, 0 where nothing moves any more."""
    known = filled(jumps)
    if len(known) < 2:
        return math.nan
    if known[-1] == 0:
        return 0.0
    return known[-1] / known[-2] if known[-2] else math.inf


def iteration_error(jumps: Sequence[float], floor: float = 0.0) -> float:
    """``e_k ~ j_k rho / (1 - rho)``, relative; infinite if ``rho >= 1``, NaN if nothing tells.

    Parameters
    ----------
    jumps : list of float
        ``j_1 ... j_k``.
    floor : float
        What rounding makes of a jump. At or below it there is no contraction to see, and ``e_k ~ j_k``.
    """
    known, rho = filled(jumps), contraction(jumps)
    if math.isnan(rho):
        return math.nan
    if known[-1] <= floor:
        return known[-1]
    return known[-1] * rho / (1 - rho) if rho < 1 else math.inf


def error_after(jumps: Sequence[float], k: int, rest: float) -> float:
    """``e_k`` of an iteration that went on beyond ``k``: ``j_{k+1} + j_{k+2} + ...`` and the ``rest`` it leaves."""
    return sum(filled(jumps)[k:]) + rest


def gradient_error(forward: float, backward: float, path: float) -> float:
    """``e_b + (1 + path) e_f``, relative; where the forward pass is exact ``path`` need not be known."""
    return backward + ((1 + path) * forward if forward else 0.0)
