# SPDX-License-Identifier: BSD-3-Clause
"""Losses of a training run; any callable ``loss(prediction, target) -> scalar`` will do."""

from __future__ import annotations

from torch import Tensor, nn


class HalfSquaredError(nn.Module):
    """``sum (prediction - target)^2 / 2`` over all outputs of all examples: the loss of the papers' model problems."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (prediction - target).square().sum()
