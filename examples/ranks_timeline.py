# SPDX-License-Identifier: BSD-3-Clause
"""One timeline of several processes: what each rank did, and an arrow for every state that went from one to another.

Usage: torchrun --nproc-per-node 2 examples/ranks_timeline.py [timeline.json]
"""

import sys

import torch.distributed as dist
from profile_solve import heat

import pyparareal
from pyparareal import MGRIT, solve
from pyparareal.profiling import Timeline, arrows


def main():
    dist.init_process_group("gloo")
    runtime = pyparareal.distributed()
    ask = heat() | {"m": 8, "method": MGRIT(levels=3), "tol": 1e-9, "runtime": runtime}
    with Timeline("heat equation over ranks", runtime=runtime) as timeline:
        solve(**ask)
    path = timeline.save(sys.argv[1]) if len(sys.argv) > 1 else None  # rank 0 has all
    if runtime.rank == 0:
        record = timeline.record
        print(f"{record.about['ranks']} ranks, {len(record.events)} events, {len(arrows(record.events))} arrows")
        for clock in record.clocks[1:]:
            print(f"rank {clock.rank}: {clock.how}, right to {clock.error:.1g} s")
        if path is not None:
            print(f"wrote {path}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
