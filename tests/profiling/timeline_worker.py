# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of timelines over ranks: ``python timeline_worker.py RANK RANKS FOLDER``.

Saves ``FOLDER/own.rank<k>.json``, each rank its own, and ``FOLDER/gathered.json``, of all by the runtime.
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from processes import join
from test_timeline_solves import heat

from pyparareal import MGRIT, ConvergenceError, RankError, distributed, solve
from pyparareal.profiling import Timeline


def after_errors(rank, ranks, runtime, case):
    """What is raised comes through, and the records come together: of all ranks, of one, and not of a runtime's end."""

    def mistaken(k, u, residual):
        if rank == 1:
            raise KeyError("a mistake")

    everyone = set(range(ranks)) if rank == 0 else {rank}
    with pytest.raises(ConvergenceError), Timeline("on all", runtime=runtime) as timeline:
        solve(**case | {"max_iterations": 1, "tol": 0.0})
    assert {e.rank for e in timeline.record.events} == everyone
    with pytest.raises(KeyError) if rank == 1 else nullcontext(), Timeline("on one", runtime=runtime) as timeline:
        solve(**case)
        if rank == 1:
            raise KeyError("a mistake")
    assert {e.rank for e in timeline.record.events} == everyone
    with pytest.raises(KeyError if rank == 1 else RankError), Timeline("the end", runtime=runtime) as timeline:
        solve(**case, callback=mistaken)
    assert {e.rank for e in timeline.record.events} == {rank}


def main(rank, ranks, folder):
    join(rank, ranks, folder)
    runtime = distributed(timeout=60)
    case = {**heat(steps=128), "m": 8, "method": MGRIT(levels=2), "tol": 1e-9, "runtime": runtime}
    expected = solve(**case)
    with Timeline("own") as timeline:
        watched = solve(**case)
    assert watched.u.tobytes() == expected.u.tobytes()
    assert timeline.save(folder / "own.json") == folder / f"own.rank{rank}.json"
    with Timeline("gathered", runtime=runtime) as timeline:
        solve(**case)
    assert {e.rank for e in timeline.record.events} == (set(range(ranks)) if rank == 0 else {rank})
    assert timeline.save(folder / "gathered.json") == (folder / "gathered.json" if rank == 0 else None)
    after_errors(rank, ranks, runtime, case)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
