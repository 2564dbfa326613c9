# SPDX-License-Identifier: BSD-3-Clause
"""Every part on its own CUDA stream, on the device its parameters are on: fork, run, join, by events.

Autograd runs each backward operation on the stream of its forward operation and orders streams itself, so the backward
pass of the parts is parallel without further help. Host work stays in the calling thread, in the order of the parts:
random draws are those of ``serial``.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor

from . import Modules
from .serial import run_part
from .spans import called

_STREAMS: dict[tuple[torch.device, int], torch.cuda.Stream] = {}


def run(preprocess: Modules, fine: Modules, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """All ``x_j`` and ``y_j``, on the device of ``x`` and in the order of the caller's current stream there."""
    home = torch.cuda.current_stream(x.device)
    fork = home.record_event()
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    joins = []
    cache = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # a cast made on one stream must not be read on another
    try:
        for j, (c, g) in enumerate(zip(preprocess, fine, strict=True)):
            owned = next(chain(g.parameters(), c.parameters()), x)
            stream = _stream(owned.device if owned.is_cuda else x.device, j)
            stream.wait_event(fork)
            with torch.cuda.stream(stream):
                x_j = called(f"preprocess[{j}]", c, x.to(stream.device, non_blocking=True))
                y_j = run_part(j, g, x_j)
                inputs.append(x_j.to(x.device, non_blocking=True))
                outputs.append(y_j.to(x.device, non_blocking=True))
                joins.append(stream.record_event())
            if stream.device == x.device:
                x.record_stream(stream)  # read there in the backward pass, too: not to be handed out before
    finally:
        torch.set_autocast_cache_enabled(cache)
        for join in joins:
            home.wait_event(join)
    for state in chain(inputs, outputs):
        state.record_stream(home)
    return inputs, outputs


def _stream(device: torch.device, j: int) -> torch.cuda.Stream:
    if (device, j) not in _STREAMS:
        _STREAMS[device, j] = torch.cuda.Stream(device)
    return _STREAMS[device, j]
