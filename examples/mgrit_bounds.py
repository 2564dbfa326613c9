# SPDX-License-Identifier: BSD-3-Clause
"""MGRIT's convergence, predicted and measured, mode by mode. Usage: python examples/mgrit_bounds.py [figure.png]

Backward Euler on every level for u' = eta u: real negative eta is what diffusion has, imaginary eta what advection has.
Lines come from eigenvalues alone; dots are the method itself: the largest error ratio of its first cycles, from random
guesses.
"""

import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from pyparareal import TimeGrid, solve
from pyparareal.convergence import multilevel_bound
from pyparareal.implicit import DiagonallyImplicit
from pyparareal.mgrit import MGRIT
from pyparareal.operators import Rates

STEPS, CYCLES, GUESSES = 256, 4, 6
GRID = TimeGrid(0, STEPS, STEPS)  # steps of length 1: the axes show |dt eta|
EQUATIONS = {"diffusion": (-1, np.geomspace(1e-3, 1e3, 121)), "advection": (1j, np.geomspace(1e-2, 1e2, 121))}
METHODS = {
    "two levels, m = 4": {
        "F": ([4], 0, "V"),
        "FCF": ([4], 1, "V"),
        "FCFCF": ([4], 2, "V"),
    },
    "four levels, m = 2": {
        "V-cycle, F": ([2, 2, 2], 0, "V"),
        "V-cycle, FCF": ([2, 2, 2], 1, "V"),
        "F-cycle, FCF": ([2, 2, 2], 1, "F"),
    },
}
COLOURS = ("#0072b2", "#d55e00", "#009e73")


def measured(eta, m, nu, cycle):
    """Largest ratio of the errors of neighbouring cycles, per mode; the solution is 0, so the states are the errors."""
    rng = np.random.default_rng(0)
    u = rng.normal(size=(STEPS // m[0] + 1, GUESSES, len(eta), 2))
    u[0] = 0
    norms = [np.linalg.norm(u, axis=(0, 3))]
    solve(
        DiagonallyImplicit(Rates(eta), GRID),
        u[0],
        GRID,
        m=m,
        tol=0.0,
        method=MGRIT(levels=len(m) + 1, nu=nu, cycle=cycle, divergence=math.inf),
        initial=u,
        max_iterations=CYCLES,
        on_failure="return",
        callback=lambda k, u, residual: norms.append(np.linalg.norm(u, axis=(0, 3))),
    )
    before, after = np.array(norms[:-1]), np.array(norms[1:])
    # Errors near rounding say nothing.
    return np.where(after > 1e-10, after / before, 0).max((0, 1))


figure, rows = plt.subplots(2, 2, figsize=(11, 8), layout="constrained", sharey=True)
for axes_row, (title, methods) in zip(rows, METHODS.items(), strict=True):
    for axes, (name, (direction, size)) in zip(axes_row, EQUATIONS.items(), strict=True):
        for colour, (label, (m, nu, cycle)) in zip(COLOURS, methods.items(), strict=True):
            lams = [1 / (1 - direction * size * math.prod(m[:level])) for level in range(len(m) + 1)]
            upper, exact = (multilevel_bound(lams, m, STEPS, nu, cycle=cycle, kind=k) for k in ("sqrt_1_inf", "exact"))
            some = slice(None, None, 6)
            found = measured(direction * size[some], m, nu, cycle)
            axes.loglog(size, upper, "--", color=colour, lw=1.1)
            axes.loglog(size, exact, color=colour, lw=1.6, label=label)
            shown = found > 0
            axes.loglog(size[some][shown], found[shown], "o", color=colour, ms=4.5, mec="white", mew=0.6)
            ratio = (found / upper[some]).max()
            print(f"{name}, {title}, {label}: bound {upper.max():.3f}, largest measured/bound {ratio:.3f}")
        axes.axhline(1, color="black", lw=0.8, ls=":")
        axes.set(ylim=(1e-4, 10), ylabel="error factor per cycle", title=f"{name}, {title}")
        axes.set_xlabel("$|\\Delta t\\,\\eta|$, $\\eta$ " + ("negative" if direction == -1 else "imaginary"))
        axes.spines[["top", "right"]].set_visible(False)
    axes_row[0].legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.82))
figure.suptitle(
    "dashed: bound $(\\|E\\|_1 \\|E\\|_\\infty)^{1/2}$;  solid: $\\|E\\|_2$;  dots: measured, random guesses",
    fontsize=11,
)

path = Path(sys.argv[1] if len(sys.argv) > 1 else "mgrit_bounds.png")
figure.savefig(path, dpi=110)
print(f"wrote {path}")
