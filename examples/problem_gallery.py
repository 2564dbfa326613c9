# SPDX-License-Identifier: BSD-3-Clause
"""All model problems: what MGRIT or parareal leaves after each cycle, and the solution it ends with.

Usage: python examples/problem_gallery.py [figure.png [NAME ...]]

Lines are the serial solution, marks the points between slices as solved in parallel in time. On the heat equation
every cycle divides the residual by more than ten; on advection, with the same points, steps and slices, by less than
three at first, and it takes 13 cycles for 32 slices. After 17 they are exact whatever the problem.
"""

import sys

from pyparareal import MGRIT, problems, serial_solve, solve
from pyparareal.problems.pictures import draw_residuals, draw_solution

try:
    from matplotlib.figure import Figure
except ImportError:
    raise SystemExit("no figure: it needs matplotlib") from None

path, *names = sys.argv[1:] or ["problem_gallery.png"]
names = names or list(problems.CATALOGUE)
rows = -(-len(names) // 2)
figure = Figure(figsize=(17, 3.6 * rows), layout="constrained")
grid = figure.subplots(rows, 4, squeeze=False, width_ratios=(2, 3, 2, 3)).reshape(-1, 2)
for (left, right), name in zip(grid, names, strict=False):
    problem = problems.model_problem(name)
    case = problem.arguments()
    parareal = problem.method == "parareal"
    solution = solve(**case, method="parareal" if parareal else MGRIT(levels=problem.levels), on_failure="return")
    chain = serial_solve(case["fine"], case["u0"], case["grid"], m=case["m"])
    draw_residuals(left, solution.residuals, case["tol"], "largest change" if parareal else "residual")
    if name == "advection-1d":
        heat = problems.model_problem("heat-1d", points=problem.u0.size, steps=problem.grid.steps).arguments()
        compared = solve(**heat | {"m": case["m"], "tol": case["tol"]}, method=MGRIT(levels=problem.levels))
        draw_residuals(left, compared.residuals, case["tol"], "residual", "heat-1d, the same numbers", 1)
        left.legend(fontsize="small")
    left.set_title(f"{problem.method}: {solution.iterations} cycles, {solution.stats.slices} slices", fontsize="medium")
    draw_solution(right, problem, chain.t, chain.u, solution.t, solution.u)
    print(
        f"{name:13s} {solution.status.name.lower()}: {solution.iterations:2d} cycles for {solution.stats.slices:3d} "
        f"slices; largest RMS error {problem.error(solution.t, solution.u).max():.1e} ({problem.truth_is} solution)"
    )
for axes in grid[len(names) :].ravel():
    axes.remove()
figure.savefig(path, dpi=90)
print(f"wrote {path}")
