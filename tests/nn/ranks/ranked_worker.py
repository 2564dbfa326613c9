# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of networks over ranks: ``python ranked_worker.py RANK RANKS FOLDER``.

Writes ``FOLDER/<rank>.json``: for each number of ranks and case the names of what differs from one process.
"""

import faulthandler
import json
import sys
from pathlib import Path

import torch
from processes import join
from ranked_cases import CASES, DRAWING, run

from pyparareal import distributed
from pyparareal.nn import over_ranks


def different(name, runtime, alone, **options):
    told, state = run(name, lambda net: over_ranks(net, runtime, **options))
    found = [i for i, (a, b) in enumerate(zip(told, alone[0], strict=True)) if a != b]
    names = list(alone[1])
    return found + (["order"] if list(state) != names else []) + [n for n in names if state.get(n) != alone[1][n]]


def main(rank, ranks, folder):
    faulthandler.dump_traceback_later(280, exit=True)
    join(rank, ranks, folder)
    groups = {count: torch.distributed.new_group(range(count)) for count in range(1, ranks + 1)}
    one = distributed(torch.distributed.new_subgroups(1)[0], timeout=60)
    alone = {name: run(name, (lambda net: over_ranks(net, one)) if name in DRAWING else None) for name in CASES}
    found = {}
    for count, group in groups.items():
        if rank < count:
            runtime = distributed(group, timeout=60)
            found[count] = {name: different(name, runtime, alone[name]) for name in CASES}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
