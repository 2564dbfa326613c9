# SPDX-License-Identifier: BSD-3-Clause
"""Is the backward pass the derivative? ``<w, J v> = <J^T w, v>`` with ``J v`` from finite differences.

Along random directions, for the rows of a call and for each parameter by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .calls import Call, Raised
from .faults import Fault, Finding
from .measures import digits, epsilon, moved

TRIES = 3  # directions; a wrong derivative is wrong along nearly all


def derivatives(call: Call, adjoint: Callable[[Tensor, Tensor], Tensor] | None = None) -> Iterator[Finding]:
    """Findings about the derivative in the rows, row by row where these are independent, and in each parameter.

    ``adjoint(u, w)`` is ``J^T w`` where a propagator brings its own; default: autograd.
    """
    x = call.rows.detach()
    if torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type):
        x = x.to(next((p.dtype for p in call.parameters.values() if p.is_floating_point()), torch.float32))
    with torch.autocast(x.device.type, enabled=False):  # its rounding is coarser than the differences
        yield from _derivatives(call, x, adjoint)


def _derivatives(call: Call, x: Tensor, adjoint: Any) -> Iterator[Finding]:
    try:
        bad, text, numbers = _of_rows(call, x, adjoint)
    except Raised as raised:
        yield raised.finding()
        return
    except (RuntimeError, ValueError, TypeError) as error:
        yield Finding(Fault.WRONG_ADJOINT, call.places[0], f"Its backward pass raised {type(error).__name__}: {error}.")
        return
    if bad is not None:
        yield Finding(Fault.WRONG_ADJOINT, call.places[bad], f"In its input: {text}", numbers=numbers)
    if adjoint is None:
        yield from _of_parameters(call, x)


def _run(call: Call, x: Tensor, graph: bool = False) -> Tensor:
    call.held.restore()
    with torch.set_grad_enabled(graph):
        return call.run(x.clone())


def _base(x: Tensor, attempt: int) -> Tensor:
    """Where to differentiate: at ``x``, then near it, since ``x`` may lie where a derivative jumps."""
    signs = np.random.default_rng(attempt).uniform(-1, 1, tuple(x.shape))
    return moved(x, signs, 0.1) if attempt else x


def _of_rows(call: Call, x: Tensor, adjoint: Any) -> tuple[int | None, str, dict[str, Any]]:
    suspicious = np.zeros(len(x), int)
    text = ""
    found: dict[str, Any] = {}
    for attempt in range(TRIES):
        leaf = _base(x, attempt).clone().requires_grad_()
        y = _run(call, leaf, graph=True)
        if adjoint is None and not y.requires_grad:
            return 0, "its result has no graph to it (detached, or computed outside torch).", {"detached": True}
        rows = len(x) if call.independent and len(y) == len(x) else 1
        w, v = _random(y, 2 * attempt), _random(x, 2 * attempt + 1) * _size(x)
        if adjoint is not None:
            g = adjoint(leaf.detach(), w)
        else:
            (g,) = torch.autograd.grad(y, leaf, w, allow_unused=True)
            g = torch.zeros_like(x) if g is None else g
        by_adjoint = (g.double() * v.double()).reshape(rows, -1).sum(1).numpy(force=True)
        plain, error, scale = differences(partial(_moved, call, leaf.detach(), v), w, epsilon(x), rows)
        wrong = ~(np.abs(plain - by_adjoint) <= allowed(error, scale, epsilon(x)))
        if not wrong.any():
            return None, "", {}
        suspicious[:rows] += wrong
        j = int(np.argmax(wrong))
        text, found = _words(by_adjoint[j], plain[j], error[j])
    bad = np.flatnonzero(suspicious == TRIES)
    return (int(bad[0]) if len(bad) else None), text, found


def _words(by_adjoint: float, plain: float, error: float) -> tuple[str, dict[str, Any]]:
    text = (
        f"along a random direction its backward pass says {by_adjoint:.6g}, differences of the forward pass say "
        f"{plain:.6g} (to {digits(error)})."
    )
    return text, {"backward": float(by_adjoint), "differences": float(plain), "error": float(error)}


def differences(value: Callable[[float], Tensor], w: Tensor, eps: float, rows: int = 1) -> tuple[Any, Any, Any]:
    """``d/dh <w, value(h)>`` at 0 by central differences, its error, and its natural size."""
    best: list[Any] = []
    w64 = w.double().reshape(rows, -1)
    for h in (eps ** (1 / 3) * k for k in (0.5, 2.0, 8.0)):
        up, down = value(h).double().reshape(rows, -1), value(-h).double().reshape(rows, -1)
        terms = w64 * (up - down) / (2 * h)
        noise = eps * (w64 * up).square().sum(1).sqrt() / h
        scale = terms.square().sum(1).sqrt()
        best.append([t.numpy(force=True) for t in (terms.sum(1), noise, scale)])
    first, second, third = (b[0] for b in best)
    nearer = np.abs(first - second) <= np.abs(second - third)
    error = np.where(nearer, np.abs(first - second), np.abs(second - third)) + best[1][1]
    return second, error, best[1][2]


def allowed(error: Any, scale: Any, eps: float) -> Any:
    """How far both may be apart."""
    return 10 * error + (1e-5 if eps < 1e-10 else 1e-2 if eps < 1e-5 else 0.2) * scale + 1e-300


def _of_parameters(call: Call, x: Tensor) -> Iterator[Finding]:
    known = {name: p for name, p in call.parameters.items() if p.requires_grad and p.is_leaf}
    if not known:
        return
    outputs = [_run(call, _base(x, attempt), graph=True) for attempt in range(TRIES)]
    for name, p in known.items():
        wrong = 0
        for attempt, y in enumerate(outputs):
            w, v = _random(y, 31 + attempt), _random(p, 17 + attempt) * _size(p)
            g = torch.autograd.grad(y, p, w, retain_graph=True, allow_unused=True)[0] if y.requires_grad else None
            by_adjoint = 0.0 if g is None else float((g.double() * v.double()).sum())
            here = partial(_with, call, _base(x, attempt), p, v)
            plain, error, scale = differences(here, w, epsilon(x))
            if g is None and _moves(here, y):
                wrong += 1
            elif abs(float(plain[0]) - by_adjoint) <= allowed(error, scale, epsilon(x))[0]:
                break
            else:
                wrong += 1
        if wrong == TRIES:
            text, numbers = _words(by_adjoint, float(plain[0]), float(error[0]))
            missing = " No gradient arrives there." if g is None else ""
            yield Finding(
                Fault.WRONG_ADJOINT, call.places[0], f"In its parameter {name!r}: {text}{missing}",
                numbers=numbers | {"parameter": name, "none": g is None},
            )  # fmt: skip


def _moves(value: Callable[[float], Tensor], y: Tensor) -> bool:
    """Whether the result depends on what has no gradient."""
    d = (value(0.1) - y.detach()).abs().max()
    return bool(d > 1e3 * epsilon(y) * y.detach().abs().max())


def _moved(call: Call, x: Tensor, v: Tensor, h: float) -> Tensor:
    return _run(call, x + h * v)


def _with(call: Call, x: Tensor, p: Tensor, v: Tensor, h: float) -> Tensor:
    kept = p.detach().clone()
    call.held.restore()
    try:
        p.data.add_(v, alpha=h)
        with torch.no_grad():
            return call.run(x.clone()).clone()
    finally:
        p.data.copy_(kept)


def _random(like: Tensor, seed: int) -> Tensor:
    values = np.random.default_rng(seed).standard_normal(tuple(like.shape))
    return torch.as_tensor(values).to(like.device, like.dtype)


def _size(x: Tensor) -> float:
    return max(float(x.detach().double().square().mean().sqrt()), 1e-3) if x.numel() else 1.0
