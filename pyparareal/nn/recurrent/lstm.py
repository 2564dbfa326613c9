# SPDX-License-Identifier: BSD-3-Clause
"""``nn.LSTM``: torch's, with a choice of how its recurrences are solved."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cells import LSTMStep
from .layers import SolvedLayers


class LSTM(SolvedLayers, nn.LSTM):
    """``torch.nn.LSTM``: the same arguments, parameters and results; its recurrences are solved as ``method`` says.

    Parameters
    ----------
    *args, **kwargs : as of ``torch.nn.LSTM``
    method, chunk, tol, ... : keywords, as of :class:`pyparareal.nn.recurrent.Settings`
        "serial" and, on every device, "auto" are torch's own kernels.

    Notes
    -----
    Gradients of the parallel methods have no second derivatives. TorchScript is not supported, and ``torch.compile``
    breaks its graph at a recurrent module, as it does for torch's: load the ``state_dict`` into ``torch.nn.LSTM``, or
    from there.
    """

    def _sizes(self) -> tuple[int, ...]:
        return self.proj_size or self.hidden_size, self.hidden_size

    def _by_torch(self, batch: int, device: torch.device) -> bool:
        return True

    def _step(self, weights: list[Tensor], x: Tensor, dtype: torch.dtype) -> LSTMStep:
        w_x, w_h = weights[:2]
        bias = weights[2] + weights[3] if self.bias else None
        projection = weights[-1].to(dtype) if self.proj_size else None
        return LSTMStep(F.linear(x, w_x, bias).to(dtype), w_h.to(dtype), projection)
