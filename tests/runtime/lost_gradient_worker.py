# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the test of gradients of a solve that lost a rank: ``python lost_gradient_worker.py RANK RANKS FOLDER``.

Rank 1 kills itself in the second of two solves; the others go on without it, and back through both.
"""

import json
import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from gradient_cases import Chain, Waves
from processes import join

from pyparareal import distributed, serial_solve, solve


class Mortal(Waves):
    """Kills its process once ``most`` rows are taken."""

    most = float("inf")

    def step(self, u, points):
        if self.taken > self.most:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(u, points)


def gradients(problem, solution):
    inputs = [*problem.exact.values(), *problem.summed.values()]
    return torch.autograd.grad(torch.sin(solution.u).sum(), inputs)


def main(rank, ranks, folder):
    warnings.simplefilter("ignore", RuntimeWarning)
    join(rank, ranks, folder)
    runtime = distributed(timeout=6, on_loss="recreate")
    first, second = (Chain(50, m=4, kind=Mortal, tol=0.0) for _ in range(2))
    before = solve(**first.arguments, runtime=runtime)
    if rank == 1:
        second.fine.most = 40  # in the third iteration on four slices of four steps
    solution = solve(**second.arguments, runtime=runtime)
    known = {name: second.arguments[name] for name in ("fine", "u0", "grid", "rhs")}
    serial = serial_solve(**known, m=4, save="coarse")
    found = {"lost": [list(loss.ranks) for loss in solution.stats.losses], "size": runtime.size}
    found["states"] = bool((solution.u == serial.u).all())
    expected = gradients(second, serial)
    found["gradients"] = [bool((a == b).all()) for a, b in zip(gradients(second, solution), expected, strict=True)]
    try:
        gradients(first, before)
    except Exception as error:
        found["before"] = [type(error).__name__, str(error)]
    (folder / f"{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # without rank 1 there is no orderly end


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
