# SPDX-License-Identifier: BSD-3-Clause
"""One rank of the test of DistributedDataParallel: ``python gru_ddp_worker.py RANK RANKS FOLDER``.

Writes ``FOLDER/<rank>.json``: for each kind and method the largest difference of a gradient to one process's.
"""

import json
import sys
from pathlib import Path

import torch
from gru_cases import layers
from processes import join
from torch.nn.parallel import DistributedDataParallel

STEPS, BATCH = 17, 3


def gradients(module, x):
    module.zero_grad()
    module(x)[0].square().mean().backward()
    return [p.grad.clone() for p in module.parameters()]


def worst(kind, method, rank, ranks):
    ours, theirs = layers(kind, 3, 5, 2, bidirectional=True, own={"method": method})
    wrapped, worst = DistributedDataParallel(ours), 0.0
    for step in range(3):  # the reducer rebuilds its buckets after the first
        torch.manual_seed(step)
        x = torch.randn(STEPS, ranks * BATCH, 3, dtype=torch.float64)
        expected, got = gradients(theirs, x), gradients(wrapped, x.chunk(ranks, 1)[rank])
        worst = max(worst, *(float((g - e).norm() / e.norm()) for g, e in zip(got, expected, strict=True)))
    return worst


def main(rank, ranks, folder):
    join(rank, ranks, folder)
    try:
        found = {f"{k} {m}": worst(k, m, rank, ranks) for k in ("GRU", "LSTM") for m in ("serial", "mgrit", "hybrid")}
    finally:
        torch.distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
