# SPDX-License-Identifier: BSD-3-Clause
"""Where the graph of one rank meets those of the others: three autograd nodes, created and hence run in this order.

==========  ==================================================  =====================================================
node        forward                                             backward
==========  ==================================================  =====================================================
``Fan``     ``x`` for each part (if ``x`` requires grad)        sum over all parts of all ranks; runs last
``State``   ``U_{j-1}`` comes from the rank before              its gradient goes there, before the fine nets' backward
                                                                pass: autograd runs what was created last first
``Output``  ``U_j`` has gone to the next rank, the last rank's  the gradient of ``U_j`` comes from the next rank
            output comes
==========  ==================================================  =====================================================

``Output`` is the one node that begins, and it takes ``U_{j-1}`` as an argument, so that ``State`` runs after it even
if no gradient reaches it: of each message that one rank waits for, another knows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .link import Link


class Fan(torch.autograd.Function):
    """``x -> (x, ..., x)``, once for every part here."""

    @staticmethod
    def forward(ctx: Any, link: Link, value: Tensor, parts: int, x: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.link, ctx.like = link, value
        return tuple(value.detach() for _ in range(parts))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        return None, None, None, ctx.link.sum_over_parts(gradients, ctx.like)


class State(torch.autograd.Function):
    """What the rank before hands on. ``x`` only makes it needed whenever the gradient of the input is."""

    @staticmethod
    def forward(ctx: Any, link: Link, u: Tensor, anchor: Tensor, *x: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.link, ctx.more = link, len(x)
        return u.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        ctx.link.give_back(gradients[0])
        return (None,) * (3 + ctx.more)


class Output(torch.autograd.Function):
    """The output of the whole network, from this rank's last state ``u`` and the one it got."""

    @staticmethod
    def forward(ctx: Any, link: Link, u: Tensor, before: Tensor | None, anchor: Tensor) -> Tensor:
        ctx.link = link
        return link.output(u)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("a network over ranks has no second derivatives (create_graph=True)")
        link: Link = ctx.link
        link.begin_backward()
        g = gradients[0] if link.is_last else link.gradient() if link.returns(link.rank) else None
        return None, g, None, None
