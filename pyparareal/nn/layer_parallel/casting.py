# SPDX-License-Identifier: BSD-3-Clause
"""Automatic mixed precision inside ``torch.func.vmap``, where torch casts for products of matrices but not for layers.

``vmap`` turns a linear layer or a convolution into another operation before autocast sees it
(https://github.com/pytorch/functorch/issues/305), so that it would run in full precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Those of torch's list of operations in lower precision that vmap rewrites; the rest of the list it casts itself.
_LOWERED = {
    F.linear,
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
    torch.addmm,
    torch.addbmm,
    torch.baddbmm,
    F.scaled_dot_product_attention,
}
# Those that take a lower precision with parameters in full precision, except under vmap.
_MIXED = {F.batch_norm, F.instance_norm}


class Casting(TorchFunctionMode):
    """Arguments of linear layers and convolutions, in the dtype of the autocast in force for ``device``, if one is."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not torch.is_autocast_enabled(self._device):
            return func(*args, **kwargs)
        if func in _MIXED and isinstance(args[0], Tensor):
            return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
        if func in _LOWERED:
            dtype = torch.get_autocast_dtype(self._device)
            args = [_cast(value, dtype) for value in args]
            kwargs = {name: _cast(value, dtype) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    # As torch does it: float64 is asked for, and stays.
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value
