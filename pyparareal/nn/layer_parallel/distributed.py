# SPDX-License-Identifier: BSD-3-Clause
"""Parameters that are not here: what cannot work on sharded ones is refused by name."""

from __future__ import annotations

import sys

from torch import nn

RUNNING = "shard the network as one unit, fully_shard(net), whose forward gathers it"
LOADING = "load_state_dict before fully_shard"


def refuse_sharded(module: nn.Module, instead: str) -> None:
    """Refuse a module that has parameters of type ``DTensor`` now, and say what to do ``instead``.

    Raises
    ------
    TypeError
        Naming the first of them.
    """
    tensor = sys.modules.get("torch.distributed.tensor")
    if tensor is None:
        return
    for name, parameter in module.named_parameters():
        if isinstance(parameter, tensor.DTensor):
            raise TypeError(f"{name}: got a DTensor, expected a whole parameter: {instead}")
