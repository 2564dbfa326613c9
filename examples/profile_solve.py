# SPDX-License-Identifier: BSD-3-Clause
"""A timeline of a part of your own program: where the time of an MGRIT solve went, and a file to look at.

Usage: python examples/profile_solve.py [timeline.json]

Open the file in chrome://tracing or https://ui.perfetto.dev: every region, verb and kernel of the solve, nested, and
the residual as a counter. ``pyparareal profile examples/profile_solve.py`` makes a report of the whole program.
"""

import sys
from collections import Counter

import numpy as np

from pyparareal import MGRIT, TimeGrid, solve
from pyparareal.implicit import ImplicitEuler
from pyparareal.profiling import Timeline


def heat(points=255, steps=4096):
    """``u_t = u_xx`` in implicit steps, from a rough initial value."""
    grid = TimeGrid(0, 0.1, steps)
    off = np.full(points - 1, (points + 1.0) ** 2)
    u0 = np.random.default_rng(0).standard_normal((1, points))
    return {"fine": ImplicitEuler(off, np.full(points, -2 * (points + 1.0) ** 2), off, grid), "u0": u0, "grid": grid}


def main():
    case = heat()
    with Timeline("heat equation, MGRIT with three levels") as timeline:
        solution = solve(**case, m=8, method=MGRIT(levels=3), tol=1e-9)

    record = timeline.record
    seconds = Counter()
    for event in record.events:
        if event.kind == "region" and event.name.startswith("mgrit"):
            seconds[event.name] += event.seconds
    print(f"{solution.iterations} iterations, {len(record.events)} events in {record.about['seconds'] * 1e3:.1f} ms")
    for name, spent in seconds.most_common():
        print(f"  {name:24s} {spent * 1e3:8.2f} ms")
    if len(sys.argv) > 1:
        print(f"wrote {timeline.save(sys.argv[1])}")


if __name__ == "__main__":
    main()
