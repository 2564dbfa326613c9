# SPDX-License-Identifier: BSD-3-Clause
"""The kernels as ``torch.ops.pyparareal.*``: differentiable, traceable by ``torch.compile``, the same bits.

``import pyparareal.torch_ops`` registers them, once; ``import pyparareal`` does not, and does not load torch.

========================  ==============================================  ===================================
op                        value                                           gradient of the arguments
========================  ==============================================  ===================================
``parareal_update``       ``u = f_old + (g_new - g_old)``                 ``(du, du, -du)``
``parareal_update_jump``  the same, and ``jump``, the norms of            ``(w, w, -w, du - w)`` with
                          ``u - u_old``                                   ``w = du + 2 djump (u - u_old)``
``slice_norms``           ``sum |e|^2`` per slice of ``e = u - u_old``    ``(2 d e, -2 d e)``
``extract``               ``v[j] = u[start + j step]``, ``j < count``     ``inject`` into zeros
``inject``                ``u`` with ``u[start + j step] = v[j]``         ``extract``; zero at those points
``c_relax``               ``omega phi + (1 - omega) u``                   ``(omega d, (1 - omega) d)``
========================  ==============================================  ===================================

These return new tensors, and so do the scans (:mod:`pyparareal.torch_scan`). A name with ``_`` appended
(``parareal_update_(out, ...)``) writes into its first argument instead, returns nothing, and refuses
tensors that require grad. Norms other than ``sum_squares`` are not differentiable: their backward raises.
``torch.func.vmap`` maps the functional ones. Forward mode and the other transforms of ``torch.func`` raise
NotImplementedError (:mod:`pyparareal.torch_autograd`).

All run on the current stream, on CPU and CUDA tensors of float64, float32, float16 and bfloat16; wrong
arguments raise the errors of :mod:`pyparareal.ops`, whose functions cost less per call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyparareal import ops
from pyparareal import torch_scan as torch_scan
from pyparareal.torch_autograd import refuse_derivatives, register_gradient

_SCHEMAS = {
    "parareal_update": "(Tensor f_old, Tensor g_new, Tensor g_old) -> Tensor",
    "parareal_update_jump": "(Tensor f_old, Tensor g_new, Tensor g_old, Tensor u_old, str norm='sum_squares')"
    " -> (Tensor, Tensor)",
    "slice_norms": "(Tensor u, Tensor? u_old=None, str norm='sum_squares') -> Tensor",
    "extract": "(Tensor u, int start, int step, int? count=None) -> Tensor",
    "inject": "(Tensor v, Tensor u, int start, int step) -> Tensor",
    "c_relax": "(Tensor phi, Tensor u, float omega) -> Tensor",
    "parareal_update_": "(Tensor(a!) out, Tensor f_old, Tensor g_new, Tensor g_old) -> ()",
    "parareal_update_jump_": "(Tensor(a!) out, Tensor(b!) jump, Tensor f_old, Tensor g_new, Tensor g_old,"
    " Tensor u_old, str norm='sum_squares') -> ()",
    "slice_norms_": "(Tensor(a!) out, Tensor u, Tensor? u_old=None, str norm='sum_squares') -> ()",
    "extract_": "(Tensor(a!) out, Tensor u, int start, int step) -> ()",
    "inject_": "(Tensor(a!) u, Tensor v, int start, int step) -> ()",
    "c_relax_": "(Tensor(a!) out, Tensor phi, Tensor u, float omega) -> ()",
}


def _plain(u: Tensor) -> Tensor:
    # Below the autograd key a tensor still says that it requires grad; ops.py refuses those.
    return u.detach() if u.requires_grad else u


def _parareal_update(f_old: Tensor, g_new: Tensor, g_old: Tensor) -> Tensor:
    return ops.parareal_update(_plain(f_old), _plain(g_new), _plain(g_old))


def _parareal_update_jump(
    f_old: Tensor, g_new: Tensor, g_old: Tensor, u_old: Tensor, norm: str = "sum_squares"
) -> tuple[Tensor, Tensor]:
    return ops.parareal_update(_plain(f_old), _plain(g_new), _plain(g_old), _plain(u_old), norm=norm)


def _slice_norms(u: Tensor, u_old: Tensor | None = None, norm: str = "sum_squares") -> Tensor:
    return ops.slice_norms(_plain(u), None if u_old is None else _plain(u_old), norm=norm)


def _extract(u: Tensor, start: int, step: int, count: int | None = None) -> Tensor:
    return ops.extract(_plain(u), start=start, step=step, count=count)


def _inject(v: Tensor, u: Tensor, start: int, step: int) -> Tensor:
    return ops.inject(_plain(v), _plain(u).clone(memory_format=torch.contiguous_format), start=start, step=step)


def _c_relax(phi: Tensor, u: Tensor, omega: float) -> Tensor:
    return ops.c_relax(_plain(phi), _plain(u), omega)


def _parareal_update_(out: Tensor, f_old: Tensor, g_new: Tensor, g_old: Tensor) -> None:
    ops.parareal_update(f_old, g_new, g_old, out=out)


def _parareal_update_jump_(
    out: Tensor, jump: Tensor, f_old: Tensor, g_new: Tensor, g_old: Tensor, u_old: Tensor, norm: str = "sum_squares"
) -> None:
    ops.parareal_update(f_old, g_new, g_old, u_old, norm=norm, out=out, jump=jump)


def _slice_norms_(out: Tensor, u: Tensor, u_old: Tensor | None = None, norm: str = "sum_squares") -> None:
    ops.slice_norms(u, u_old, norm=norm, out=out)


def _extract_(out: Tensor, u: Tensor, start: int, step: int) -> None:
    ops.extract(u, start=start, step=step, out=out)


def _inject_(u: Tensor, v: Tensor, start: int, step: int) -> None:
    ops.inject(v, u, start=start, step=step)


def _c_relax_(out: Tensor, phi: Tensor, u: Tensor, omega: float) -> None:
    ops.c_relax(phi, u, omega, out=out)


# What tracing needs to know of a result: its shape, dtype and device.
def _like(u: Tensor, *_: Any, **__: Any) -> Tensor:
    return u.new_empty(u.shape)


def _norms_like(u: Tensor, *_: Any, **__: Any) -> Tensor:
    return u.new_empty(u.shape[:1], dtype=torch.float64)


def _points_like(u: Tensor, start: int, step: int, count: int | None = None) -> Tensor:
    room = torch.sym_max(0, (u.shape[0] - start + step - 1) // step)
    return u.new_empty((room if count is None else count, *u.shape[1:]))


def _nothing(*_: Any, **__: Any) -> None:
    return None


_FAKES: dict[str, Any] = {
    "parareal_update": _like,
    "parareal_update_jump": lambda f_old, *_, **__: (_like(f_old), _norms_like(f_old)),
    "slice_norms": _norms_like,
    "extract": _points_like,
    "inject": lambda v, u, *_: _like(u),
    "c_relax": _like,
}


# Gradients. Each is a composition of differentiable operations, so second derivatives work too.
def _norm_gradient(d_norms: Tensor, u: Tensor, u_old: Tensor | None, norm: str) -> Tensor:
    """``2 d_norms[n] (u[n] - u_old[n])`` in float64, rounded once to the dtype of ``u``."""
    if norm != "sum_squares":
        raise NotImplementedError(f"norm: got {norm!r}, expected 'sum_squares', the norm that is differentiable")
    d = u.double() if u_old is None else u.double() - u_old.double()
    return (2.0 * d_norms.reshape(-1, *[1] * (u.ndim - 1)) * d).to(u.dtype)


def _keep_update_jump(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.norm = inputs[4]
    ctx.save_for_backward(output[0], inputs[3])


def _grad_update_jump(ctx: Any, du: Tensor | None, d_jump: Tensor | None) -> tuple[Tensor | None, ...]:
    if d_jump is None:
        return du, du, None if du is None else -du, None, None
    u, u_old = ctx.saved_tensors
    d = _norm_gradient(d_jump, u, u_old, ctx.norm)
    total = d if du is None else du + d
    return total, total, -total, -d, None


def _keep_norms(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.norm = inputs[2]
    ctx.save_for_backward(inputs[0], inputs[1])


def _grad_norms(ctx: Any, d_norms: Tensor) -> tuple[Tensor | None, ...]:
    u, u_old = ctx.saved_tensors
    d = _norm_gradient(d_norms, u, u_old, ctx.norm)
    return d, None if u_old is None else -d, None


def _keep_extract(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, ctx.start, ctx.step, _ = inputs
    ctx.shape = u.shape


def _grad_extract(ctx: Any, dv: Tensor) -> tuple[Tensor | None, ...]:
    du = torch.ops.pyparareal.inject(dv, dv.new_zeros(ctx.shape), ctx.start, ctx.step)
    return du, None, None, None


def _keep_inject(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    v, _, ctx.start, ctx.step = inputs
    ctx.shape = v.shape


def _grad_inject(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
    dv = torch.ops.pyparareal.extract(d, ctx.start, ctx.step, ctx.shape[0])
    return dv, torch.ops.pyparareal.inject(d.new_zeros(ctx.shape), d, ctx.start, ctx.step), None, None


def _keep_relax(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.omega = inputs[2]


def _grad_relax(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
    # At omega = 1 the result does not depend on u at all, so d times zero (NaN for an infinite d) is not it.
    return ctx.omega * d, None if ctx.omega == 1.0 else (1.0 - ctx.omega) * d, None


_GRADIENTS: dict[str, tuple[Any, Any]] = {
    "parareal_update": (lambda ctx, du: (du, du, -du), None),
    "parareal_update_jump": (_grad_update_jump, _keep_update_jump),
    "slice_norms": (_grad_norms, _keep_norms),
    "extract": (_grad_extract, _keep_extract),
    "inject": (_grad_inject, _keep_inject),
    "c_relax": (_grad_relax, _keep_relax),
}


# vmap: the mapped axis of a state becomes a batch axis; where norms are asked for, more slices.
def _at(u: Any, axis: int | None, size: int, to: int) -> Any:
    if not isinstance(u, Tensor):
        return u
    return u.movedim(axis, to) if axis is not None else u.unsqueeze(to).expand(*u.shape[:to], size, *u.shape[to:])


def _map_batch(op: Any) -> Any:
    def mapped(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        moved = [_at(u, axis, info.batch_size, 1) for u, axis in zip(args, in_dims, strict=True)]
        return op(*moved), 1

    return mapped


def _map_slices(op: Any) -> Any:
    def mapped(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        moved = [_at(u, axis, info.batch_size, 0) for u, axis in zip(args, in_dims, strict=True)]
        result = op(*[u.flatten(0, 1) if isinstance(u, Tensor) else u for u in moved])
        size = (info.batch_size, moved[0].shape[1])
        if isinstance(result, Tensor):
            return result.unflatten(0, size), 0
        return tuple(u.unflatten(0, size) for u in result), (0,) * len(result)

    return mapped


_library: torch.library.Library | None = None


def register() -> None:
    """Make ``torch.ops.pyparareal.*`` known to torch. Importing this module does it; again is no error."""
    global _library
    if _library is not None:
        return
    # Kept in the module: a library that is collected takes its ops with it.
    _library = library = torch.library.Library("pyparareal", "DEF")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        for device in ("CPU", "CUDA"):
            library.impl(name, globals()[f"_{name}"], device)
        qualified = f"pyparareal::{name}"
        torch.library.register_fake(qualified, _FAKES.get(name, _nothing), lib=library)
        if name not in _GRADIENTS:
            refuse_derivatives(library, name)
            continue
        backward, keep = _GRADIENTS[name]
        register_gradient(library, name, backward, keep)
        op = getattr(torch.ops.pyparareal, name)
        mapped = _map_slices(op) if name in ("slice_norms", "parareal_update_jump") else _map_batch(op)
        torch.library.register_vmap(qualified, mapped, lib=library)


register()
