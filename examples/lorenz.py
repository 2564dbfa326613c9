# SPDX-License-Identifier: BSD-3-Clause
"""Lorenz: parareal on a chaotic system. Usage: python examples/lorenz.py [figure.png]

The slices freeze when their jumps fall below 5e-7, yet the last ones are 1e-4 away from the serial solution: chaos
amplifies what was left in the first slices. A tolerance bounds the jump, not the error; ``tol=0`` is exact.
"""

import _figure

from pyparareal import problems

problem = problems.lorenz()
case = problem.normalised().parareal()
solution, iterates, chain = _figure.run(case, tol=5e-7)

figure, left, right = _figure.panels()
left.plot(solution.t, problem.physical(solution.u)[:, 0], "k", lw=0.8, label="solution")
for k, mark in ((1, "r."), (6, "bx")):
    left.plot(chain.t, problem.physical(iterates[k - 1])[:, 0], mark, label=f"iteration {k}")
left.set(xlabel="time", ylabel="x", ylim=(-25, 25), title="Lorenz; marks at the ends of the slices")
_figure.finish(figure, left, right, solution, iterates, chain, "lorenz.png")
