# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the tests of what is done with a network over ranks: ``python ranked_uses_worker.py RANK RANKS FOLDER``.

Writes ``FOLDER/<rank>.json``: what each use and each mistake returned or raised.
"""

import faulthandler
import json
import sys
import traceback
from pathlib import Path

import torch
from processes import join
from ranked_mistakes import MISTAKES
from ranked_uses import USES

from pyparareal import distributed


def main(rank, ranks, folder):
    faulthandler.dump_traceback_later(170, exit=True)
    join(rank, ranks, folder)
    one = distributed(torch.distributed.new_subgroups(1)[0], timeout=60)
    runtime, found = distributed(timeout=60), {}
    for name, use in (USES | MISTAKES).items():
        torch.manual_seed(0)
        try:
            found[name] = use(runtime, one)
        except Exception:
            found[name] = traceback.format_exc()
        (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
