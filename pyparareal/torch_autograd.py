# SPDX-License-Identifier: BSD-3-Clause
"""Gradients of ops in ``torch.ops``, as :func:`torch.library.register_autograd` has them, that refuse what they lack.

An op registered by torch alone loses the tangents of forward mode without a word, and :func:`torch.func.grad` fails on
it with a message about a ``setup_context`` that no caller has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def register_gradient(
    library: torch.library.Library, name: str, backward: Callable[..., Any], keep: Callable[..., None] | None
) -> None:
    """``backward(ctx, *grads)`` for the op ``name`` of ``library``, with what ``keep(ctx, inputs, output)`` saved.

    Calls within ``torch.func`` other than ``vmap``, and with tangents of forward mode, raise NotImplementedError.
    """
    op, below = getattr(torch.ops.pyparareal, name).default, _below_autograd(name)

    def forward_and_keep(ctx: Any, *args: Any) -> Any:
        output = below(args[-1], args[:-1])
        if keep is not None:
            keep(ctx, args[:-1], output)
        return output

    def back(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        of_all = ctx.needs_input_grad
        ctx.needs_input_grad = of_all[:-1]  # without the keyset
        try:
            found = backward(ctx, *grads)
        finally:
            ctx.needs_input_grad = of_all  # for the next time
        return *(found if isinstance(found, tuple) else (found,)), None

    members = {"forward": staticmethod(forward_and_keep), "backward": staticmethod(back)}
    node: Any = type(f"{name}_backward", (torch.autograd.Function,), members)

    def impl(keyset: Any, *args: Any) -> Any:
        # torch leaves out arguments that have their default.
        args = (*args, *(argument.default_value for argument in op._schema.arguments[len(args) :]))
        _refuse_other_derivatives(name, args)
        if torch.is_grad_enabled() and any(isinstance(u, Tensor) and u.requires_grad for u in args):
            return node.apply(*args, keyset)
        return below(keyset, args)

    library.impl(name, impl, "Autograd", with_keyset=True)


def refuse_derivatives(library: torch.library.Library, name: str) -> None:
    """The op ``name`` of ``library``, which writes into an argument, raises where :func:`register_gradient`'s would.

    Without this it would write into what has a tangent, or belongs to a transform, and leave the derivative as it was.
    """
    below = _below_autograd(name)

    def impl(keyset: Any, *args: Any) -> Any:
        _refuse_other_derivatives(name, args)
        return below(keyset, args)

    library.impl(name, impl, "Autograd", with_keyset=True)


def _below_autograd(name: str) -> Callable[[Any, tuple[Any, ...]], Any]:
    op = getattr(torch.ops.pyparareal, name).default

    def below(keyset: Any, args: tuple[Any, ...]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    return below


def _refuse_other_derivatives(name: str, args: tuple[Any, ...]) -> None:
    if torch._C._are_functorch_transforms_active():
        got = "a transform of torch.func"
    elif any(isinstance(u, Tensor) and forward_ad.unpack_dual(u).tangent is not None for u in args):
        got = "a tangent of forward mode"
    else:
        return
    raise NotImplementedError(
        f"{name}: got {got}, expected torch.autograd.grad, backward() or torch.func.vmap: "
        "it has derivatives in reverse mode alone"
    )
