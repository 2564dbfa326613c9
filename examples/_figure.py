# SPDX-License-Identifier: BSD-3-Clause
"""What the examples share: solve and keep every iterate, print the outcome, draw the error of each slice."""

import sys
import time
from pathlib import Path

import numpy as np

from pyparareal.solver import serial_solve, solve


def run(case, **options):
    """The solution at every fine point, the C-point states after every iteration, and the serial C-point states."""
    iterates = []
    begin = time.perf_counter()
    solution = solve(**case, **options, save="all", callback=lambda k, u, jump: iterates.append(u.copy()))
    middle = time.perf_counter()
    chain = serial_solve(case["fine"], case["u0"], case["grid"], m=case["m"], save="coarse")
    end = time.perf_counter()
    stats = solution.stats
    print(
        f"{solution.status.name.lower()}: {solution.iterations} iterations for {stats.slices} slices, "
        f"{stats.critical_fine_steps} fine steps after one another instead of {stats.serial_steps}"
    )
    print(
        f"measured on this machine: {middle - begin:.2g} s, serial {end - middle:.2g} s with the same steps; "
        f"predicted on {stats.slices} processors without communication: speed-up {solution.predicted_speedup:.2f}"
    )
    return solution, iterates, chain


def panels():
    """A figure with room for the solution on the left and the error map on the right."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise SystemExit("no figure: it needs matplotlib") from None
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    return figure, *axes


def finish(figure, left, right, solution, iterates, chain, default):
    """Legend, error map, and the PNG named on the command line, or ``default`` in the current folder."""
    left.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False)
    error_map(figure, right, solution, iterates, chain)
    path = Path(sys.argv[1] if len(sys.argv) > 1 else default)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def error_map(figure, axes, solution, iterates, chain):
    """Distance to the serial solution per slice and iteration, with the end of the frozen prefix."""
    distance = np.array([np.abs(u - chain.u).reshape(len(u), -1).max(1)[1:] for u in iterates])
    shown = np.log10(np.maximum(distance, 1e-16))
    extent = (0.5, shown.shape[1] + 0.5, 0.5, len(shown) + 0.5)
    image = axes.imshow(shown, aspect="auto", origin="lower", vmin=-16, vmax=1, extent=extent)
    frozen = np.array(solution.stats.converged_slices)
    axes.step(np.append(frozen, frozen[-1]) + 0.5, np.arange(len(frozen) + 1) + 0.5, where="pre", color="white")
    axes.set(
        xlabel="end of slice", ylabel="iteration", title="error against the serial solution; frozen left of the line"
    )
    axes.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=axes, label="log10 of the largest error (dark blue: exact)")
