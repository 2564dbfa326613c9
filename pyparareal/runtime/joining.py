# SPDX-License-Identifier: BSD-3-Clause
"""A process group that can be made again when ``torchrun`` restarts its ranks."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any


def join(backend: str = "gloo", *, timeout: float = 300.0) -> None:
    """``torch.distributed.init_process_group(backend)`` under ``torchrun --max-restarts``.

    torchrun's store outlives a restart, so that a rank finds in it the addresses of ranks that have died, and no
    restart succeeds (https://github.com/pytorch/pytorch/issues/135712; seen with torch 2.13). Here each start has names
    of its own. On several machines, where torchrun counts the restarts of each for itself, set
    ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` for torchrun as well.

    Parameters
    ----------
    backend : str
        "gloo", "nccl" or both: "cpu:gloo,cuda:nccl".
    timeout : float
        Seconds that an operation of the group may take, those of ``init_process_group``: half an hour by default there.

    Raises
    ------
    ValueError
        This process was not started by torchrun.
    """
    import torch.distributed

    dist: Any = torch.distributed
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(f"join: got no {missing[0]} in the environment, expected to be started by torchrun")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < float("inf"):
        raise ValueError(f"timeout: got {timeout!r}, expected a number of seconds above 0")
    limit = timedelta(seconds=timeout)
    store, rank, size = next(dist.rendezvous("env://", timeout=limit))
    start = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=start, rank=rank, world_size=size, timeout=limit)
