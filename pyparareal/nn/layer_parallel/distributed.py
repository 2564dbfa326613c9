# SPDX-License-Identifier: BSD-3-Clause
"""Parameters that are not here: sharded ones are refused by name."""

from __future__ import annotations

import sys

from torch import nn


def refuse_sharded(module: nn.Module) -> None:
    """Refuse parameters that are ``DTensor`` at the time of the forward pass.

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
            raise TypeError(
                f"{name}: got a DTensor, expected a whole parameter: shard the network as one unit, "
                "fully_shard(net), whose forward gathers it"
            )
