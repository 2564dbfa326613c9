# SPDX-License-Identifier: BSD-3-Clause
"""One solve in several processes, with the bits of one: each has a block of the slices.

Usage: torchrun --nproc-per-node 2 examples/ranks_solve.py
"""

import numpy as np
import torch.distributed as dist

import pyparareal
from pyparareal import MGRIT, TimeGrid, solve
from pyparareal.implicit import ImplicitEuler


def heat(points=255, steps=4096):
    """``u_t = u_xx`` in implicit steps, from a rough initial value."""
    grid = TimeGrid(0, 0.1, steps)
    off = np.full(points - 1, (points + 1.0) ** 2)
    u0 = np.random.default_rng(0).standard_normal((1, points))
    return {"fine": ImplicitEuler(off, np.full(points, -2 * (points + 1.0) ** 2), off, grid), "u0": u0, "grid": grid}


def main():
    dist.init_process_group("gloo")
    runtime = pyparareal.distributed()
    for name, ask in {
        "parareal": {"method": "parareal", "m": 64},
        "MGRIT, 3 levels": {"method": MGRIT(levels=3), "m": 8},
    }.items():
        ask |= heat() | {"tol": 1e-9}
        alone, ours = solve(**ask), solve(**ask, runtime=runtime)
        if runtime.rank == 0:
            # A first cycle that only goes up has no residual: NaN.
            same = np.array_equal(alone.u, ours.u) and np.array_equal(alone.residuals, ours.residuals, equal_nan=True)
            print(f"{name}: {runtime.size} ranks, {ours.iterations} iterations, {ours.status.name.lower()}")
            print(f"  residual {ours.residuals[-1]:.1e}; the same bits as one process: {'yes' if same else 'NO'}")
    if runtime.rank == 0:
        print(f"rank 0 sent {runtime.volume['states']} states, {runtime.volume['bytes'] / 1e6:.2f} MB")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
