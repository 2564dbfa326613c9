# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of timelines over ranks: ``python timeline_worker.py RANK RANKS FOLDER``.

Saves ``FOLDER/own.rank<k>.json``, each rank its own, and ``FOLDER/gathered.json``, of all by the runtime.
"""

import sys
from pathlib import Path

import torch
from processes import join
from test_timeline_solves import heat

from pyparareal import MGRIT, distributed, solve
from pyparareal.profiling import Timeline


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
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
