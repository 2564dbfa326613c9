# SPDX-License-Identifier: BSD-3-Clause
"""A network run in two ways: values, gradients of inputs and parameters, and the buffers it leaves, one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .derivatives import _random
from .held import Held
from .measures import differences, epsilon, moved
from .probes import TIMES, UNITS
from .result import Comparison, SliceErrors

Run = Callable[[Any], Any]


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in nested tuples."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [t for part in value for t in tensors_of(part)]
    return []


def outcome(run: Run, x: Any, module: nn.Module, held: Held, gradients: bool) -> dict[str, Tensor]:
    """What ``run(x)`` gives: "value", "gradient of ...", "buffer ..."; the model is as before afterwards."""
    held.restore()
    given = [t.detach().clone() for t in tensors_of(x)]
    for t in given:
        if t.is_floating_point() and gradients:
            t.requires_grad_()
    leaves = iter(given)
    parameters = {n: p for n, p in module.named_parameters() if p.requires_grad} if gradients else {}
    kept = {n: p.grad for n, p in parameters.items()}
    for p in parameters.values():
        p.grad = None
    try:
        with torch.set_grad_enabled(gradients):
            values = [t for t in tensors_of(run(_rebuilt(x, leaves))) if t.is_floating_point()]
            found = {f"value{k or ''}": t.detach().clone() for k, t in enumerate(values)}
            if gradients:
                torch.autograd.backward(
                    [t for t in values if t.requires_grad],
                    [_random(t, 40 + k) for k, t in enumerate(values) if t.requires_grad],
                )
                for k, t in enumerate(given):
                    if t.grad is not None:
                        found[f"gradient of the input{f' {k}' if k else ''}"] = t.grad.detach().clone()
                for n, p in parameters.items():
                    found[f"gradient of {n}"] = torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        buffers = {n: b for n, b in module.named_buffers() if b.is_floating_point() or b.dtype == torch.int64}
        return found | {f"buffer {n}": b.detach().clone() for n, b in buffers.items()}
    finally:
        for n, p in parameters.items():
            p.grad = kept[n]
        held.restore()


def _rebuilt(x: Any, leaves: Any) -> Any:
    if isinstance(x, Tensor):
        return next(leaves)
    return type(x)(_rebuilt(part, leaves) for part in x) if isinstance(x, tuple | list) else x


def changed(x: Any, size: float) -> Any:
    """The input with relative changes of ``size``."""
    if isinstance(x, Tensor):
        if not x.is_floating_point():
            return x
        signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return moved(x.detach(), signs.numpy().astype(float), size)
    return type(x)(changed(part, size) for part in x) if isinstance(x, tuple | list) else x


def shaken(run: Run, module: nn.Module, size: float) -> Run:
    """``run`` with relative changes of ``size`` of all parameters: as if every layer had rounded otherwise.

    Those of the input alone may die out before a layer that is sensitive. Who calls it puts the parameters back.
    """

    def changed_run(x: Any) -> Any:
        generator = torch.Generator().manual_seed(1)
        for p in module.parameters():
            if p.is_floating_point():
                signs = torch.randint(0, 2, p.shape, generator=generator) * 2 - 1
                p.data.mul_(1 + size * signs.to(p.device, p.dtype))
        return run(x)

    return changed_run


def compared(
    what: str,
    why: str,
    ours: dict[str, Tensor],
    reference: dict[str, Tensor],
    nearby: dict[str, Tensor],
    extra: float = 0.0,
) -> list[Comparison]:
    """One comparison per tensor; ``nearby``: the reference, input and parameters changed by some units of rounding.

    ``extra`` is a relative error that the method may leave.
    """  # fmt: skip
    scales = {n: float(t.detach().double().abs().max()) if t.numel() else 0.0 for n, t in reference.items()}
    largest = max((s for n, s in scales.items() if n.startswith("gradient")), default=0.0)
    made = []
    for name, t in reference.items():
        if name not in ours or ours[name].shape != t.shape:
            row = SliceErrors(0, float("inf"), float("inf"), 0.0)
        elif not t.is_floating_point():
            off = (ours[name] - t).abs()
            row = SliceErrors(0, float(off.max()), float(off.double().mean()), 0.0)
        elif not t.numel():
            continue
        else:
            d = differences(ours[name], t)
            reaction = float(differences(nearby[name], t).max()) if name in nearby else 0.0
            size = max(scales[name], 0.1 * largest if name.startswith("gradient") else 0.0)
            eps = epsilon(t)
            allowed = UNITS * eps * size + TIMES * min(reaction, 0.1 * size) + extra * size
            row = SliceErrors(0, float(d.max()), float(d.mean()), allowed)
        made.append(Comparison(f"{what}: {name}", why, (row,)))
    return made


def summary(made: Sequence[Comparison], what: str, why: str) -> list[Comparison]:
    """Values as they are, of gradients and buffers the bad ones and one for all the others."""
    kept = [c for c in made if ": value" in c.what or not c.ok]
    rest = [c for c in made if c not in kept]
    for kind in ("gradient", "buffer"):
        some = [c for c in rest if f": {kind}" in c.what]
        if some:
            worst = max(some, key=lambda c: c.rows[0].largest / max(c.rows[0].allowed, 1e-300))
            kept.append(Comparison(f"{what}: {len(some)} {kind}s, the nearest to its limit", why, worst.rows))
    return kept
