# SPDX-License-Identifier: BSD-3-Clause
"""FitzHugh-Nagumo: spikes of a neuron. Usage: python examples/fitzhugh_nagumo.py [figure.png]"""

import dataclasses

import _figure

from pyparareal import problems

problem = dataclasses.replace(problems.fitzhugh_nagumo(), m=1000)  # a quarter of the published fine steps
case = problem.normalised().parareal()
solution, iterates, chain = _figure.run(case, tol=5e-7)

figure, left, right = _figure.panels()
u, v = problem.physical(solution.u).T
left.plot(solution.t, u, "k", lw=0.8, label="potential u")
left.plot(solution.t, v, "0.6", lw=0.8, label="recovery v")
left.plot(chain.t, problem.physical(iterates[0])[:, 0], "r.", label="u, iteration 1")
left.set(xlabel="time", title="FitzHugh-Nagumo; marks at the ends of the slices")
_figure.finish(figure, left, right, solution, iterates, chain, "fitzhugh_nagumo.png")
