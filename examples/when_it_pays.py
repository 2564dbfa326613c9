# SPDX-License-Identifier: BSD-3-Clause
"""When parareal pays: iterations against slices on five problems. Usage: python examples/when_it_pays.py [figure.png]

The iterations ``K`` are measured. The speed-up ``1 / ((1 + K/P) a + K/P)`` is *predicted*: one processor per slice,
free communication, and ``a`` the cost of a coarse step over that of a fine slice, counted in right-hand sides.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from pyparareal import problems, solve
from pyparareal.solution import predicted_speedup

TOL = 5e-7
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555")


def cases():
    """Name, arguments of ``solve`` and the cost ratio ``a`` of each problem."""
    for make in (problems.fitzhugh_nagumo, problems.lorenz, problems.brusselator, problems.burgers):
        problem = make()
        coarse = problem.coarse_substeps * len(problem.coarse.stages)
        yield problem.name, problem.normalised().parareal(), coarse / (problem.m * len(problem.fine.stages))
    heat = problems.heat_1d()
    yield "heat 1D", heat, 1 / heat["m"]


figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
labels = []
for row, ((name, case, ratio), colour) in enumerate(zip(cases(), COLOURS, strict=True)):
    solution = solve(**case, tol=TOL)
    slices, k = solution.stats.slices, solution.iterations
    speedup = predicted_speedup(k, slices, ratio)
    # An iteration whose remaining slices did not move at all has no place on a logarithmic axis.
    jumps = [(i + 1, jump) for i, jump in enumerate(solution.residuals) if jump > 0]
    left.semilogy(*zip(*jumps, strict=True), color=colour, lw=1.6, label=name)
    right.barh(row, slices, color="#dddddd", height=0.62)
    right.barh(row, speedup, color=colour, height=0.62)
    right.text(slices + 2, row, f"{speedup:.1f}x on {slices}", va="center")
    labels.append(f"{name}\nK = {k} of {slices}")
    print(f"{name:16s} {solution.status.name.lower()}, K = {k} for {slices} slices, a = {ratio:.2g}: {speedup:.2f}x")

left.axhline(TOL, color="black", lw=0.8, ls=":")
left.set(xlabel="iteration", ylabel="largest jump of a slice", title="measured: what each iteration still changes")
left.legend(frameon=False)
right.set(xlim=(0, 155), xlabel="speed-up over the serial solution (grey: processors used)")
right.set_title("predicted: what that is worth at best")
right.set_yticks(range(len(labels)), labels)
right.invert_yaxis()
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)

path = Path(sys.argv[1] if len(sys.argv) > 1 else "when_it_pays.png")
figure.savefig(path, dpi=110)
print(f"wrote {path}")
