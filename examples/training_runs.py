# SPDX-License-Identifier: BSD-3-Clause
"""Training steps solved in parallel, and why that works. Usage: python examples/training_runs.py [figure.png]

Left: residual per cycle of the XOR network, 1,600 steps, with the solvers of Schroder (2017). Right: a quadratic loss,
where gradient descent multiplies a weight of curvature mu by 1 - alpha mu: the factor per cycle of two levels, from the
eigenvalues (lines) and measured (dots), for a coarse learning rate of alpha and of 2 alpha.
"""

import itertools
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from pyparareal.convergence import two_level_bound
from pyparareal.training import problems
from pyparareal.training.windows import WindowSolver

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
F_CYCLE = {"levels": None, "cycle": "F", "alpha_max": 8.0}
SOLVERS = {
    "naive": ("naive", {}),
    "solver 1": ("solver1", {}),
    "solver 1, F-cycles": ("solver1", F_CYCLE),
    "solver 2, F-cycles": ("solver2", F_CYCLE),
}
STEPS, QUADRATIC_STEPS, ALPHA = 1600, 256, 0.5


def factors(rules, curvatures):
    """Largest ratio of the errors at the C-points of neighbouring cycles, per curvature."""
    runs = problems.quadratic(curvatures).runs(
        QUADRATIC_STEPS, rules=rules, lr=ALPHA, tol=0.0, max_iterations=4, stagnation=None
    )
    states, solver = [], WindowSolver(runs.step, QUADRATIC_STEPS, runs.settings)
    solver.solve(runs.start, after=lambda cycle: states.append(cycle.c[:, 0].numpy().copy()))
    exact = (1 - ALPHA * curvatures) ** (2 * np.arange(QUADRATIC_STEPS // 2 + 1))[:, None]
    sizes = [np.linalg.norm(state - exact, axis=0) for state in states]
    return np.max([np.where(b > 1e-12, b / a, 0) for a, b in itertools.pairwise(sizes)], axis=0)


figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
for colour, (name, (rules, options)) in zip(COLOURS, SOLVERS.items(), strict=True):
    result = problems.xor().runs(STEPS, rules=rules, stagnation=None, **options).run()
    left.semilogy(range(1, result.iterations[0] + 1), result.residuals[0], ".-", color=colour, label=name)
    print(f"{name}: {result.iterations[0]} cycles, {result.status.name.lower()}")
left.set(xlabel="cycle", ylabel="residual", title=f"XOR network, {STEPS} training steps at once")

mu = np.geomspace(1e-3, 1, 200)
for colour, (rules, growth, label) in zip(
    COLOURS, (("naive", 1, r"$\alpha_1 = \alpha$"), ("solver1", 2, r"$\alpha_1 = 2\alpha$")), strict=False
):
    bound = two_level_bound(1 - ALPHA * mu, 1 - growth * ALPHA * mu, 2, QUADRATIC_STEPS, 1, kind="exact")
    right.loglog(ALPHA * mu, bound, color=colour, label=label)
    found = factors(rules, mu[::14])
    right.loglog(ALPHA * mu[::14][found > 0], found[found > 0], "o", color=colour, ms=4.5, mec="white", mew=0.6)
    print(f"quadratic, {rules}: bound {bound.max():.3f}, measured {found.max():.3f}")
right.set(xlabel=r"learning rate $\times$ curvature", ylabel="error factor per cycle", ylim=(1e-4, 2))
right.set_title("quadratic loss, two levels, FCF-relaxation")
for axes in (left, right):
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)

path = Path(sys.argv[1] if len(sys.argv) > 1 else "training_runs.png")
figure.savefig(path, dpi=110)
print(f"wrote {path}")
