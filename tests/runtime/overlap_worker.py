# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of messages behind work, and of a slow rank: ``python overlap_worker.py RANK RANKS FOLDER``.

Writes ``FOLDER/<rank>.json``: what differs from one process, what is sent, and in which order things happen.
"""

import faulthandler
import json
import sys
import time
import warnings
from pathlib import Path

import torch
from distributed_cases import CASES
from distributed_worker import different, volume
from mgrit_cases import LOGISTIC, logistic
from processes import join
from test_kept_cycles import heat

from pyparareal import distributed, solve
from pyparareal.propagators import Map
from pyparareal.runtime.model import RankCosts
from pyparareal.runtime.ranks import Ranks

ALWAYS, NEVER = RankCosts(call=0.0, step=0.0), RankCosts(call=1e9)
BITS = (
    "FCF", "FCFCF", "FCF, weighted", "FCF, residual", "FCF, modules", "FCF, measured at the end",
    "three levels, nested", "three levels, space", "FCF, every point stored",
    "four levels, relaxed to the end", "parareal",
)  # fmt: skip


class Logged:
    """A step of one slice or many that tells its points."""

    def __init__(self, phi, log, batch_invariant=True):
        self.phi, self.log, self.batch_invariant = phi, log, batch_invariant

    def step(self, u, points):
        self.log.append(f"step {points.start}:{points.stop}:{points.step}")
        return self.phi.step(u, points)


def order(costs, batch_invariant=True):
    """What happens, in which order, in one FCF-cycle of 9 slices of 2 steps."""
    log, kept = [], {name: getattr(Ranks, name) for name in ("send", "expect", "receive", "numbers")}

    def logged(name):
        def call(self, *arguments, **named):
            log.append(name)
            return kept[name](self, *arguments, **named)

        return call

    for name in kept:
        setattr(Ranks, name, logged(name))
    try:
        case = logistic(steps=18, m=2, skip_first_down=False, max_iterations=1)
        solve(**case | {"fine": Logged(LOGISTIC, log, batch_invariant)}, runtime=distributed(timeout=60, costs=costs))
    finally:
        for name, method in kept.items():
            setattr(Ranks, name, method)
    return log


def slow(runtime, rank):
    """A middle rank that takes five times as long for a step as the others."""
    fine = CASES["FCF"]()["fine"]

    def step(u, milliseconds=5 if rank == 1 else 1):  # a float would be taken for something that it computes with
        time.sleep(0.001 * milliseconds)
        return fine.step(u, slice(0, 1, 1))

    found = []
    for name in ("parareal", "FCF", "three levels, nested"):
        found += different(CASES[name]() | {"fine": Map(step, batch_invariant=True)}, runtime)
    return found


def main(rank, ranks, folder):
    faulthandler.dump_traceback_later(280, exit=True)
    warnings.simplefilter("ignore", RuntimeWarning)
    join(rank, ranks, folder)
    found = {"bits": {}, "volume": {}, "order": {}}
    for how, costs in (("always", ALWAYS), ("never", NEVER)):
        runtime = distributed(timeout=60, costs=costs)
        small = distributed(timeout=60, costs=costs, slices_per_call=2)
        cases = {name: CASES[name]() for name in BITS} | {"kernels": heat(levels=3, nu=2)}
        found["bits"][how] = {name: different(case, runtime) for name, case in cases.items()}
        found["bits"][how]["slices per call"] = different(CASES["FCFCF"](), small)
        found["volume"][how] = dict(volume(logistic(steps=75, m=3, levels=3, nu=2), runtime))
        found["order"][how] = order(costs)
    found["order"]["of a company"] = order(ALWAYS, batch_invariant=False)
    found["slow"] = slow(distributed(timeout=60), rank)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
