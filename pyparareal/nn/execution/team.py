# SPDX-License-Identifier: BSD-3-Clause
"""CPU threads for parts: torch's intra-op threads are divided among them."""

from __future__ import annotations

from typing import Any

import torch

from ...runtime.team import Alone, Context, allowed, standing


def team(tasks: int) -> Any:
    """Threads for ``tasks`` equal tasks: as many as torch has intra-op threads, which are divided among them.

    Kept for later calls. Within a task the same question has a smaller answer, whatever the task does to torch's
    number of threads, so parts of parts never wait for their own threads.
    """
    total, mine = torch.get_num_threads(), allowed()
    total = total if mine is None else min(total, mine)
    workers = min(tasks, total)
    return Alone() if workers == 1 else standing(workers, total // workers, WHO, "use execution='serial'")


def context() -> Context:
    """What parts in other threads need of this one."""
    return Context.current(WHO, "set network.execution = 'serial' there")


WHO = "execution='parallel'"
