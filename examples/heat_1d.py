# SPDX-License-Identifier: BSD-3-Clause
"""Heat equation: diffusion forgets, so parareal converges at the same rate for any number of slices.

Usage: python examples/heat_1d.py [figure.png]
"""

import _figure
import numpy as np

from pyparareal import problems

case = problems.heat_1d(points=63, slices=32, m=64, t1=0.2)
solution, iterates, chain = _figure.run(case, tol=1e-8)

figure, left, right = _figure.panels()
x = np.linspace(0, 1, 65)
for n, colour in ((0, "tab:red"), (2, "tab:orange"), (5, "tab:green"), (12, "tab:blue"), (32, "tab:purple")):
    left.plot(x, np.pad(chain.u[n], 1), color=colour, lw=1, label=f"t = {chain.t[n]:.3f}")
    left.plot(x[::4], np.pad(iterates[0][n], 1)[::4], ".", color=colour)
left.set(xlabel="x", ylabel="u", title="heat equation; marks: iteration 1")
_figure.finish(figure, left, right, solution, iterates, chain, "heat_1d.png")
