# SPDX-License-Identifier: BSD-3-Clause
"""A fine net: the blocks of one part."""

from __future__ import annotations

from torch import Tensor, nn


class Part(nn.Sequential):
    """``g^j = b_n . ... . b_1``, an ``nn.Sequential`` that ``part.compile()`` turns into one graph.

    Hence a forward method of its own: torch (2.13) does not compile that of ``nn.Sequential``, so that the latter's
    ``compile()`` compiles every user's module inside by itself, and nothing where all are torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = block(x)
        return x
