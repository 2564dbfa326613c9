# SPDX-License-Identifier: BSD-3-Clause
"""``torch.ops.pyparareal.scan_diag`` and ``scan_block``: differentiable scans, traceable by ``torch.compile``.

========================================  =================================================================
op                                        gradient of its arguments, with ``w`` the reverse scan of ``du``
========================================  =================================================================
``scan_diag(a, b, start, reverse)``       ``db = w``, ``da[i] = w[i] u[i-1]``, ``dstart = a[0] w[0]``
``scan_block(a, b, start, reverse)``      ``db = w``, ``da[i] = w[i] u[i-1]^T``, ``dstart = a[0]^T w[0]``
========================================  =================================================================

The transposed system of a scan is a scan in the other direction (Martin and Cundy 2018, section 2.2), so the backward
pass is as parallel in time as the forward pass, and has second derivatives. ``torch.func.vmap`` adds a batch axis;
other transforms of ``torch.func`` and forward mode are refused.
Importing this module registers the ops; :mod:`pyparareal.torch_ops` imports it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyparareal import ops
from pyparareal.torch_autograd import register_gradient

_ARGUMENTS = "(Tensor a, Tensor b, Tensor? start=None, bool reverse=False) -> Tensor"


def _plain(u: Tensor | None) -> Any:
    # Below the autograd key a tensor still says that it requires grad; ops.py refuses those.
    return u.detach() if u is not None and u.requires_grad else u


def _scan_diag(a: Tensor, b: Tensor, start: Tensor | None = None, reverse: bool = False) -> Tensor:
    return ops.scan_diag(_plain(a), _plain(b), _plain(start), reverse=reverse)


def _scan_block(a: Tensor, b: Tensor, start: Tensor | None = None, reverse: bool = False) -> Tensor:
    return ops.scan_block(_plain(a), _plain(b), _plain(start), reverse=reverse)


def _like_b(a: Tensor, b: Tensor, *_: Any, **__: Any) -> Tensor:
    return b.new_empty(b.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, _, start, ctx.reverse = inputs
    ctx.save_for_backward(a, start, output)


def _other_way(op: Any, a: Tensor, d: Tensor, reverse: bool) -> Tensor:
    """The transposed system: that of a reverse scan is the scan without a start."""
    return op(a, d, None, not reverse)


def _neighbours(u: Tensor, start: Tensor | None, reverse: bool) -> Tensor:
    """What every row of ``a`` was multiplied with; zero where it was not used."""
    if not reverse:
        first = torch.zeros_like(u[:1]) if start is None else start[None]
        return torch.cat([first, u[:-1]])[: u.shape[0]]
    return u


def _factors(w: Tensor, reverse: bool) -> Tensor:
    """The gradient of every product with a row of ``a``: ``w`` of the row, of a reverse scan of the row before."""
    return torch.cat([torch.zeros_like(w[:1]), w[:-1]]) if reverse else w


def _gradients(op: Any, outer: Any, product: Any) -> Any:
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        a, start, u = ctx.saved_tensors
        w = _other_way(op, a, d, ctx.reverse)
        da = dstart = None
        if ctx.needs_input_grad[0]:
            da = outer(_factors(w, ctx.reverse), _neighbours(u, start, ctx.reverse), ctx.reverse)
        if start is not None and ctx.needs_input_grad[2]:
            dstart = product(a[:1], w[:1]).sum(0)  # of one row, or of none
        return da, w if ctx.needs_input_grad[1] else None, dstart, None

    return backward


def _outer(w: Tensor, u: Tensor, reverse: bool) -> Tensor:
    # A reverse scan multiplies with a^T.
    return u[..., :, None] * w[..., None, :] if reverse else w[..., :, None] * u[..., None, :]


def _transposed_product(a: Tensor, w: Tensor) -> Tensor:
    return (a * w[..., :, None]).sum(-2)


def _mapped(op: Any) -> Any:
    def mapped(
        info: Any, in_dims: tuple[int | None, ...], a: Tensor, b: Tensor, start: Any = None, reverse: bool = False
    ) -> tuple[Tensor, int]:
        def moved(u: Any, axis: int | None, to: int) -> Any:
            if axis is not None:
                return u.movedim(axis, to)
            return u.unsqueeze(to).expand(*u.shape[:to], info.batch_size, *u.shape[to:])

        before = None if start is None else moved(start, in_dims[2], 0)
        return op(moved(a, in_dims[0], 1), moved(b, in_dims[1], 1), before, reverse), 1

    return mapped


_library: torch.library.Library | None = None


def register() -> None:
    """Make the two ops known to torch. Importing this module does it; again is no error."""
    global _library
    if _library is not None:
        return
    _library = library = torch.library.Library("pyparareal", "FRAGMENT")
    ways = {
        "scan_diag": (_scan_diag, lambda w, u, _: w * u, lambda a, w: a * w),
        "scan_block": (_scan_block, _outer, _transposed_product),
    }
    for name, (scan, outer, product) in ways.items():
        library.define(name + _ARGUMENTS, tags=(torch.Tag.pt2_compliant_tag,))
        for device in ("CPU", "CUDA"):
            library.impl(name, scan, device)
        qualified = f"pyparareal::{name}"
        torch.library.register_fake(qualified, _like_b, lib=library)
        op = getattr(torch.ops.pyparareal, name)
        register_gradient(library, name, _gradients(op, outer, product), _keep)
        torch.library.register_vmap(qualified, _mapped(op), lib=library)


register()
