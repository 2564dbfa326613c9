# SPDX-License-Identifier: BSD-3-Clause
"""``nn.GRU``: torch's, with a choice of how its recurrences are solved."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cells import GRUStep
from .layers import SolvedLayers


class GRU(SolvedLayers, nn.GRU):
    """``torch.nn.GRU``: the same arguments, parameters and results; its recurrences are solved as ``method`` says.

    Parameters
    ----------
    *args, **kwargs : as of ``torch.nn.GRU``
    method, chunk, tol, ... : keywords, as of :class:`pyparareal.nn.recurrent.Settings`
        "serial": all steps of all sequences in one kernel of ours on the CPU, torch's own elsewhere. "auto": what was
        measured to be fastest (``docs/recurrences.rst``), which is that.

    Notes
    -----
    Gradients of the parallel methods have no second derivatives. TorchScript is not supported, and ``torch.compile``
    breaks its graph at a recurrent module, as it does for torch's: load the ``state_dict`` into ``torch.nn.GRU``, or
    from there.
    """

    def _sizes(self) -> tuple[int, ...]:
        return (self.hidden_size,)

    def _by_torch(self, batch: int, device: torch.device) -> bool:
        return device.type != "cpu"

    def _step(self, weights: list[Tensor], x: Tensor, dtype: torch.dtype) -> GRUStep:
        w_x, w_h = weights[:2]
        if not self.bias:
            return GRUStep(F.linear(x, w_x).to(dtype), w_h.to(dtype), None)
        hidden = self.hidden_size
        bias = weights[2] + F.pad(weights[3][: 2 * hidden], (0, hidden))
        return GRUStep(F.linear(x, w_x, bias).to(dtype), w_h.to(dtype), weights[3][2 * hidden :].to(dtype))
