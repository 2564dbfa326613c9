# SPDX-License-Identifier: BSD-3-Clause
"""Pictures of model problems and of residual histories, on axes of matplotlib; nothing here imports it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .model import ModelProblem

Array = Any
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")


def draw_solution(axes: Any, problem: ModelProblem, t: Array, u: Array, marked_t: Array, marked_u: Array) -> None:
    """The solution ``u`` at times ``t`` as lines or images, and as marks the C-points ``marked_u`` at ``marked_t``."""
    if len(problem.space) == 2:
        _squares(axes, problem, marked_t, marked_u)
    elif problem.space:
        _profiles(axes, problem, t, u, marked_t, marked_u)
    elif problem.plane:
        axes.plot(u[:, 0], u[:, 1], color=COLOURS[0], lw=1)
        axes.plot(marked_u[:, 0], marked_u[:, 1], ".", color=COLOURS[1], ms=3)
        axes.set(xlabel=problem.labels[0], ylabel=problem.labels[1])
        axes.set_aspect("equal", adjustable="datalim")
    else:
        _components(axes, problem, t, u, marked_t, marked_u)
    axes.set_title(problem.name)


def _components(axes: Any, problem: ModelProblem, t: Array, u: Array, marked_t: Array, marked_u: Array) -> None:
    real, marked = (v[..., 0] if v.ndim == 3 else v for v in (u, marked_u))
    for i, label in enumerate(problem.labels):
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(t, real[:, i], color=colour, lw=1, label=label)
        axes.plot(marked_t, marked[:, i], ".", color=colour, ms=3)
    axes.set(xlabel="time", ylabel="real part" if u.ndim == 3 else "")
    axes.legend(fontsize="small", framealpha=0.8)


def _profiles(axes: Any, problem: ModelProblem, t: Array, u: Array, marked_t: Array, marked_u: Array) -> None:
    (x,) = problem.space
    rows = np.linspace(0, len(marked_t) - 1, 5).round().astype(int)
    sparse = slice(None, None, max(1, len(x) // 32))
    for row, colour in zip(rows, COLOURS, strict=False):
        nearest = int(np.abs(t - marked_t[row]).argmin())
        axes.plot(x, u[nearest], color=colour, lw=1, label=f"t = {marked_t[row]:.3g}")
        axes.plot(x[sparse], marked_u[row][sparse], ".", color=colour, ms=4)
    axes.plot(x, problem.truth(np.array([t[0], t[-1]]))[-1], ":", color="black", lw=1, label=f"{problem.truth_is}, end")
    axes.set(xlabel="x", ylabel="u")
    axes.legend(fontsize="small", framealpha=0.8)


def _squares(axes: Any, problem: ModelProblem, marked_t: Array, marked_u: Array) -> None:
    """The first, a middle and the last state side by side."""
    n = len(problem.space[0])
    gap = np.full((n, max(1, n // 16)), np.nan)
    rows = (0, len(marked_t) // 2, len(marked_t) - 1)
    wide = np.concatenate([marked_u[rows[0]], gap, marked_u[rows[1]], gap, marked_u[rows[2]]], axis=1)
    limit = float(np.nanmax(np.abs(wide)))
    image = axes.imshow(wide, origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.figure.colorbar(image, ax=axes, shrink=0.6, label="u")
    axes.set(yticks=[], ylabel="y")
    axes.set_xticks(
        [n / 2 + k * (n + gap.shape[1]) for k in range(3)], [f"x  (t = {marked_t[row]:.3g})" for row in rows]
    )


def draw_residuals(
    axes: Any, residuals: Sequence[float], tol: float, what: str, label: str = "", index: int = 0
) -> None:
    """The ``what`` after every cycle, on a logarithmic scale, with the tolerance as a dotted line."""
    known = [(k, r) for k, r in enumerate(residuals, start=1) if math.isfinite(r) and r > 0]
    if known:
        colour = COLOURS[index % len(COLOURS)]
        axes.semilogy(*zip(*known, strict=True), "o-", ms=3, lw=1.2, color=colour, label=label or None)
    if tol > 0:
        axes.axhline(tol, color="black", lw=0.8, ls=":")
    axes.set(xlabel="cycle", ylabel=what)
    axes.xaxis.get_major_locator().set_params(integer=True)
