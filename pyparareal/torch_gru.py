# SPDX-License-Identifier: BSD-3-Clause
"""``relax_gru`` as a differentiable torch function: ``torch.ops.pyparareal.gru_states`` and its backward.

Beside it ``torch.ops.pyparareal.newton_gru``, an iteration of Newton's method on all these states, not differentiable.

Both directions are the fused kernels of :mod:`pyparareal.gru_ops`; the gradients of ``weight`` and ``bias`` are matrix
products over all steps. ``torch.compile`` traces through it as one node. Importing this module registers the ops.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyparareal import ops
from pyparareal.torch_autograd import register_gradient


def gru_states(gates: Tensor, weight: Tensor, bias: Tensor | None, h0: Tensor) -> Tensor:
    """All states of a gated recurrent unit, one step after the other: ``torch.nn.GRU`` without its input products.

    Parameters
    ----------
    gates : Tensor [T, batch, 3 hidden]
        ``x @ weight_ih.T + bias_ih``, and of ``bias_hh`` the first two thirds. Any strides; float32 or float64. Within
        autocast 16 bits are widened to the dtype of ``weight``.
    weight : Tensor [3 hidden, hidden]
        ``weight_hh``.
    bias : Tensor [hidden], optional
        The last third of ``bias_hh``.
    h0 : Tensor [batch, hidden]

    Returns
    -------
    Tensor [T, batch, hidden]
        Differentiable once with respect to all four; ``T`` is 1 or more.
    """
    return gru_chunks(gates[None], weight, bias, h0[None])[0]


def gru_chunks(gates: Tensor, weight: Tensor, bias: Tensor | None, u: Tensor) -> Tensor:
    """The same of every slice: ``gates [slices, m, batch, 3 hidden]``, start states ``u [slices, batch, hidden]``.

    Returns the states after every step, ``[slices, m, batch, hidden]``.
    """
    if torch.is_autocast_enabled(gates.device.type):
        gates, u = gates.to(weight.dtype), u.to(weight.dtype)
        bias = None if bias is None else bias.to(weight.dtype)
    return torch.ops.pyparareal.gru_states(u, gates, weight, bias)


def newton_gru(
    u: Tensor, gates: Tensor, weight: Tensor, bias: Tensor | None = None, factor: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An iteration of Newton's method on all states, with the diagonals of the Jacobians: :func:`.ops.newton_gru`.

    The products with ``weight`` are one matrix product of torch's; ``torch.compile`` traces through both.

    Parameters
    ----------
    u : Tensor [T + 1, batch, hidden]
        The start, and a guess of the states.
    gates, weight, bias : as of :func:`gru_states`
    factor : float
        Damping of the Jacobians: 1 is none.

    Returns
    -------
    u_new : Tensor [T, batch, hidden]
        What follows the start.
    jacobians : Tensor, like ``u_new``
        Their diagonals, without ``factor``.
    residuals, updates : Tensor float64 [T]
        The largest ``|F(u[i]) - u[i+1]|`` and the largest change, of every step.

    Raises
    ------
    NotImplementedError
        If it is to be differentiated: that is for the chain that has converged, by the implicit function theorem.
    """
    hidden = u.shape[-1]
    products = torch.nn.functional.linear(u[:-1], weight)
    diagonal = torch.stack([w.diagonal() for w in weight.split(hidden)])
    return torch.ops.pyparareal.newton_gru(u, products.to(u.dtype), gates, diagonal, bias, factor)


def _plain(*given: Any) -> Any:
    # Below the autograd key a tensor still says that it requires grad; ops.py refuses those.
    return tuple(u.detach() if u is not None and u.requires_grad else u for u in given)


def _gru_states(u: Tensor, gates: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    every = u.new_empty((u.shape[0], gates.shape[1] if gates.ndim > 1 else 0, *u.shape[1:]))
    u, gates, weight, bias = _plain(u, gates, weight, bias)
    return ops.relax_gru(u, gates, weight, bias, every.shape[1], every=every)


def _gru_states_backward(
    d_every: Tensor,
    every: Tensor,
    u: Tensor,
    gates: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    of_gates: bool = True,
    of_weight: bool = True,
    of_bias: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``u``, ``gates``, ``weight`` and ``bias``; empty where they are not wanted."""
    d_every, every, u, gates, weight, bias = _plain(d_every, every, u, gates, weight, bias)
    hidden, d, all_steps = u.shape[-1], torch.zeros_like(u), of_gates or of_weight or of_bias
    d_gates = torch.empty_like(gates, memory_format=torch.contiguous_format) if all_steps else u.new_empty(0)
    d_hidden = torch.empty_like(every) if all_steps else u.new_empty(0)
    d_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format) if of_weight else u.new_empty(0)
    if len(u) == 1:  # the first step starts from u, the others from where the last ended: no copy joins the two
        parts = [(slice(1, None), every[:, :-1]), (slice(0, 1), u[:, None])]
    else:
        parts = [(slice(None), torch.cat([u[:, None], every[:, :-1]], 1))]
    for steps, starts in parts:
        if starts.numel() == 0:
            continue
        given = starts, gates[:, steps], weight, bias, d
        if not all_steps:
            d = ops.relax_gru_adjoint(*given, d_every=d_every[:, steps], only_start=True)
            continue
        here, inner = d_gates[:, steps], d_hidden[:, steps]
        d, _, _ = ops.relax_gru_adjoint(*given, d_every=d_every[:, steps], d_gates=here, d_hidden=inner)
        if of_weight:
            rows = starts.reshape(-1, hidden)
            d_weight[: 2 * hidden].addmm_(here.reshape(-1, 3 * hidden)[:, : 2 * hidden].T, rows)
            d_weight[2 * hidden :].addmm_(inner.reshape(-1, hidden).T, rows)
    d_bias = d_hidden.reshape(-1, hidden).sum(0) if of_bias else u.new_empty(0)
    return d, d_gates if of_gates else u.new_empty(0), d_weight, d_bias


def _fake_states(u: Tensor, gates: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return u.new_empty((u.shape[0], gates.shape[1], *u.shape[1:]))


def _fake_backward(
    d_every: Tensor,
    every: Tensor,
    u: Tensor,
    gates: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    of_gates: bool = True,
    of_weight: bool = True,
    of_bias: bool = True,
) -> tuple[Tensor, ...]:
    shapes = ((gates.shape, of_gates), (weight.shape, of_weight), (u.shape[-1:], of_bias))
    return u.new_empty(u.shape), *(u.new_empty(shape if wanted else (0,)) for shape, wanted in shapes)


def _newton_gru(
    u: Tensor, products: Tensor, gates: Tensor, diagonal: Tensor, bias: Tensor | None, factor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    found = _fake_newton(u, products, gates, diagonal, bias, factor)
    out, jacobians, residuals, updates = found
    operands = _plain(u, products, gates, diagonal, bias)
    ops.newton_gru(*operands, factor=factor, out=out, jacobians=jacobians, residuals=residuals, updates=updates)
    return found


def _fake_newton(
    u: Tensor, products: Tensor, gates: Tensor, diagonal: Tensor, bias: Tensor | None, factor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    states = (u.shape[0] - 1, *u.shape[1:])
    norms = [u.new_empty(states[:1], dtype=torch.float64) for _ in range(2)]
    return u.new_empty(states), u.new_empty(states), norms[0], norms[1]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.has_bias = inputs[3] is not None
    ctx.save_for_backward(output, *inputs)


def _backward(ctx: Any, d_every: Tensor) -> tuple[Tensor | None, ...]:
    of_u, *wanted = ctx.needs_input_grad
    wanted[2] = wanted[2] and ctx.has_bias
    found = torch.ops.pyparareal.gru_states_backward(d_every, *ctx.saved_tensors, *wanted)
    return tuple(d if needed else None for d, needed in zip(found, (of_u, *wanted), strict=True))


def _no_first(ctx: Any, *_: Any) -> None:
    raise NotImplementedError(
        "newton_gru: got a derivative, expected none of an iteration: the converged chain has one, see pyparareal.solve"
    )


def _no_second(ctx: Any, *_: Any) -> None:
    raise NotImplementedError("gru_states: got a second derivative, expected the first: its backward is one kernel")


_SCHEMAS = {
    "gru_states": "(Tensor u, Tensor gates, Tensor weight, Tensor? bias) -> Tensor",
    "gru_states_backward": "(Tensor d_every, Tensor every, Tensor u, Tensor gates, Tensor weight, Tensor? bias, "
    "bool of_gates=True, bool of_weight=True, bool of_bias=True) -> (Tensor, Tensor, Tensor, Tensor)",
    "newton_gru": "(Tensor u, Tensor products, Tensor gates, Tensor diagonal, Tensor? bias, float factor)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
}
_BODIES: dict[str, Any] = {
    "gru_states": _gru_states,
    "gru_states_backward": _gru_states_backward,
    "newton_gru": _newton_gru,
}
_FAKES: dict[str, Any] = {
    "gru_states": _fake_states,
    "gru_states_backward": _fake_backward,
    "newton_gru": _fake_newton,
}
_GRADIENTS: dict[str, tuple[Any, Any]] = {
    "gru_states": (_backward, _keep),
    "gru_states_backward": (_no_second, None),
    "newton_gru": (_no_first, None),
}

_library: torch.library.Library | None = None


def register() -> None:
    """Make the ops known to torch. Importing this module does it; again is no error."""
    global _library
    if _library is not None:
        return
    _library = library = torch.library.Library("pyparareal", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        for device in ("CPU", "CUDA"):
            library.impl(name, _BODIES[name], device)
        torch.library.register_fake(f"pyparareal::{name}", _FAKES[name], lib=library)
        register_gradient(library, name, *_GRADIENTS[name])


register()
