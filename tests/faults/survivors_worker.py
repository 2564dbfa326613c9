# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of solves that go on without some of them: ``python survivors_worker.py RANK RANKS FOLDER``.

In each case one rank fewer is left. ``FOLDER/<rank>.json`` has what this rank found, by case, up to its end.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from processes import join

import pyparareal
from pyparareal import MGRIT, TimeGrid, serial_solve, solve
from pyparareal.propagators import Map

LIMIT = 6.0  # seconds
SLICES, TOL = 24, 1e-9


def nothing():
    pass


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def boom():
    raise ArithmeticError("of this rank's own")


def problem(call=0, act=nothing):
    """A contraction of two numbers, nonlinear, with a poor coarse step; ``act()`` at the fine step number ``call``."""
    calls = iter(range(1, 10**9))

    def fine(u):
        if next(calls) == call:
            act()
        return u + 0.1 * np.cos(u) - 0.2 * u

    grid, u0 = TimeGrid(0, 1, 2 * SLICES), np.array([[0.37, -2.0]])
    coarse = Map(lambda u: u + 0.15 - 0.3 * u, batch_invariant=True)
    return {"fine": Map(fine, batch_invariant=True), "u0": u0, "grid": grid, "coarse": coarse, "m": 2}


def serial():
    case = problem()
    return serial_solve(case["fine"], case["u0"], case["grid"], m=2, save="coarse").u


def told(solution):
    """The error, how it ended, and what was lost on the way."""
    stats = solution.stats
    losses = [
        [loss.iteration, list(loss.ranks), [list(one) for one in loss.recreated], loss.left] for loss in stats.losses
    ]
    return {
        "error": float(np.abs(solution.u - serial()).max()),
        "status": solution.status.name,
        "iterations": [solution.iterations, len(solution.residuals)],
        "residuals": list(solution.residuals),
        "losses": losses,
        "said": [str(loss) for loss in stats.losses],
    }


def raised(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def cases(rank):
    runtime = pyparareal.distributed(timeout=LIMIT, on_loss="recreate")
    asked = {"tol": TOL, "runtime": runtime}
    yield "newton", raised(lambda: solve(**problem(), method="newton", **asked))
    own = problem(5, boom) if rank == 1 else problem()
    yield "an error of its own", raised(lambda: solve(**own, **asked))
    runtime = asked["runtime"] = pyparareal.distributed(timeout=LIMIT, on_loss="recreate")
    yield "none lost", told(solve(**problem(), **asked))
    case = problem(19, die) if runtime.rank == 3 else problem()
    yield "the last of four, parareal", told(solve(**case, **asked))
    case = problem(9, die) if runtime.rank == 1 else problem()
    yield "the middle one of three, MGRIT", told(solve(**case, method=MGRIT(nested=True), **asked))
    case = problem(7, die) if runtime.rank == 0 else problem()
    yield "the first of two, to the bit", told(solve(**case, **asked | {"tol": 0.0})) | {"size": runtime.size}
    yield "afterwards", told(solve(**problem(), **asked))


def main():
    rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    join(rank, ranks, folder)
    torch.set_num_threads(1)
    found = {}
    for name, what in cases(rank):
        found[name] = what
        (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
