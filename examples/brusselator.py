# SPDX-License-Identifier: BSD-3-Clause
"""Brusselator: a case that does not pay. Usage: python examples/brusselator.py [figure.png]

The coarse steps lose the phase of the oscillation, so most slices wait until the exact prefix reaches them:
19 iterations for 25 slices.
"""

import _figure

from pyparareal import problems

problem = problems.brusselator()
case = problem.normalised().parareal()
solution, iterates, chain = _figure.run(case, tol=5e-7)

figure, left, right = _figure.panels()
left.plot(*problem.physical(solution.u).T, "0.7", lw=0.8, label="solution")
left.plot(*problem.physical(chain.u).T, "ko", ms=8, mfc="none", label="ends of the slices")
for k, mark in ((1, "r."), (9, "bx")):
    left.plot(*problem.physical(iterates[k - 1]).T, mark, label=f"iteration {k}")
left.set(xlabel="u", ylabel="v", title="Brusselator")
_figure.finish(figure, left, right, solution, iterates, chain, "brusselator.png")
