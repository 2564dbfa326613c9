# SPDX-License-Identifier: BSD-3-Clause
"""What a sequence takes in memory, estimated before anything of it is allocated, and windows that fit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

JACOBIANS = 4  # of a chunk at a time
STATES = 3  # arrays as long as the sequence: the states, their gradients, and a copy on the way


def available(device: torch.device) -> int:
    """Bytes that may be taken: half of what is free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 // 2  # it is given in kibibytes
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def bytes_per_step(step: Any, u0: Tensor, known: Sequence[Tensor]) -> int:
    """Of the sequence: its states, and with gradients what a step keeps for the backward pass."""
    kept = STATES * u0.numel() * u0.element_size()
    if not known and not u0.requires_grad:
        return kept
    parameters = {tensor.untyped_storage().data_ptr() for tensor in known}
    seen: set[int] = set()

    def pack(tensor: Tensor) -> None:
        nonlocal kept
        place = tensor.untyped_storage().data_ptr()
        if place not in parameters and place not in seen:
            seen.add(place)
            kept += tensor.numel() * tensor.element_size()
        # The graph is for counting: one that kept the step's own result would keep itself, and never be freed.

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
        step.step(u0.detach()[None].requires_grad_(), slice(0, 1, 1))
    return kept


def jacobian_bytes(u0: Tensor, kind: str) -> int:
    """Of a chunk: its Jacobian, that of a step, their product, and what a scan needs."""
    features = u0[0].numel()
    numbers = {"none": 0, "full": features}.get(kind, 2)  # blocks have two rows
    return JACOBIANS * u0.numel() * u0.element_size() * numbers


def windows(length: int, per_step: int, budget: int) -> list[int]:
    """Steps of windows that together are the sequence, as long as ``budget`` bytes allow and about equal."""
    most = max(4, budget // max(1, per_step))
    count = -(-length // most)
    each, more = divmod(length, count)
    return [each + (n < more) for n in range(count)]
