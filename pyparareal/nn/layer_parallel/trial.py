# SPDX-License-Identifier: BSD-3-Clause
"""What a block does besides computing, and whether ``vmap`` can run it: found by running it.

A block is run alone, twice, and then twice in one call. What draws, what changes in it, and an answer that is not the
same each time are seen here, before anything is iterated on.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .chance import Chance, Site
from .evaluation import Kind, Plan, devices_of, require_like, reseed

_BOOKKEEPING = ("_parameters", "_buffers", "_modules")


def try_kind(kind: Kind, u: Tensor, h: float | None) -> Plan:
    """The plan for layers of a kind on states like ``u [batch, features...]``; ``kind`` and ``u`` stay as they are.

    Raises
    ------
    TypeError, ValueError
        Naming the layer: if it does not return a tensor like ``u``, keeps a state of its own outside its buffers, or
        gives another value when it is called again. What a block raises itself is passed on.
    """
    rows = [0] if len(kind.layers) == 1 else [0, len(kind.layers) - 1]
    with torch.random.fork_rng(devices_of(u.device)):
        seed = torch.initial_seed()
        found = [_alone(kind, u, row, h, seed) for row in rows]
        plan = found[0][0]
        if any(other.sites != plan.sites for other, _ in found):
            raise ValueError(f"{kind.name(rows[1])}: draws in other places than {kind.name(0)}, expected the same")
        for other, _ in found[1:]:
            plan = dataclasses.replace(
                plan,
                seeded=plan.seeded or other.seeded,
                changes_buffers=plan.changes_buffers or other.changes_buffers,
                changes_input=plan.changes_input or other.changes_input,
            )
        if not kind.is_stacked:
            return plan
        if plan.seeded:
            return dataclasses.replace(plan, why_not_batched="draws by other means than dropout")
        why = _why_not_together(_with_masks(kind, plan, u, rows), u, rows)
    return dataclasses.replace(plan, why_not_batched=why)


def _alone(kind: Kind, u: Tensor, row: int, h: float | None, seed: int) -> tuple[Plan, Tensor]:
    """The plan as far as one layer tells, and its value without dropout."""
    name = kind.name(row)
    attends = any(isinstance(m, nn.MultiheadAttention | nn.TransformerEncoderLayer) for m in kind.module.modules())
    # Buffers may be changed: each call gets copies.
    careful = dataclasses.replace(kind, plan=Plan(changes_buffers=True), masks=[])
    with torch.no_grad():
        module = careful.shell(row).module if kind.is_stacked else kind.module
    runs: list[tuple[Tensor, tuple[Site, ...], bool]] = []
    changed: list[str] = []
    changes_buffers = changes_input = False
    for _ in range(2):
        reseed(u.device, seed)
        before, states = _attributes(module), _random_states(u.device)
        x = u.detach().clone()
        with torch.no_grad(), kind.autocast(), Chance() as chance:
            y, buffers = careful.alone(x, row)
        require_like(name, y, u)
        _require_dtype(name, y, u, h)
        attends = attends or chance.attends
        drew = any(not torch.equal(a, b) for a, b in zip(states, _random_states(u.device), strict=True))
        runs.append((y, tuple(chance.sites), drew))
        changed = _changed(before, _attributes(module))
        changes_input = changes_input or not _same(u, x)
        changes_buffers = any(not _same(_buffer(kind, key, row), t) for key, t in buffers.items())
    if changed:
        raise ValueError(
            f"{name}: its forward changes its attribute {changed[0]!r} at every call, expected state in buffers only: "
            "a layer is called in every iteration"
        )
    if runs[0][1] != runs[1][1] or not _close(runs[0][0], runs[1][0]):
        raise ValueError(
            f"{name}: gives another value when it is called again with the same input, parameters and random state, "
            "expected the same function every time"
        )
    if changes_input and h is not None:
        raise ValueError(f"{name}: changes its argument in place, expected u + h block(u) of an unchanged u")
    uses = changes_buffers and not kind.is_stacked and _uses(careful, u, row, seed, buffers, runs[0][0])
    return Plan(None, runs[0][1], runs[0][2], changes_buffers, changes_input, uses, attends), runs[0][0]


def _uses(careful: Kind, u: Tensor, row: int, seed: int, buffers: dict[str, Tensor], y: Tensor) -> bool:
    """Whether the value is another than ``y`` with these ``buffers``."""
    later = dataclasses.replace(careful, buffers=buffers)
    reseed(u.device, seed)
    with torch.no_grad(), later.autocast(), Chance():
        return not _close(later.alone(u.detach().clone(), row)[0], y)


def _why_not_together(kind: Kind, u: Tensor, rows: list[int]) -> str | None:
    """Why ``vmap`` cannot run the layers ``rows``, or does it wrongly; ``kind`` has masks."""
    grad = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    several = torch.stack([u.detach()] * len(rows))
    with torch.no_grad(), kind.autocast():
        alone = torch.stack([kind.alone(several[n].clone(), row)[0] for n, row in enumerate(rows)])
    x = several.clone().requires_grad_(grad)
    try:
        with warnings.catch_warnings(record=True) as caught, kind.autocast():
            warnings.simplefilter("always")
            y, _ = kind.together(x.clone(), rows)
            if grad and y.requires_grad:
                wanted = [x, *(t for t in kind.theta.values() if t.requires_grad)]
                torch.autograd.grad(y.sum(), wanted, allow_unused=True)
    except Exception as error:  # it ran alone with the same numbers, so it is vmap that cannot run it
        return f"vmap cannot run it: {str(error).strip().splitlines()[0] if str(error) else type(error).__name__}"
    slow = [str(w.message) for w in caught if "performance drop" in str(w.message)]
    if slow:
        return f"vmap would run it one after the other: {slow[0].split('for ', 1)[-1].split('.')[0]}"
    if y.dtype != alone.dtype:
        return f"under vmap it returns {y.dtype} in place of {alone.dtype}"
    return None if _close(y.detach(), alone) else "vmap gives other values than the block alone"


def _with_masks(kind: Kind, plan: Plan, u: Tensor, rows: list[int]) -> Kind:
    """``kind`` with masks, as far as ``rows`` need them."""
    masks = []
    for site in plan.sites:
        mask = torch.ones((len(kind.layers), *site.shape), dtype=torch.bool, device=u.device)
        for row, drawn in zip(rows, site.draw(u.device, len(rows)), strict=True):
            mask[row] = drawn
        masks.append(mask)
    return dataclasses.replace(kind, plan=plan, masks=masks)


def _require_dtype(name: str, y: Tensor, u: Tensor, h: float | None) -> None:
    after = y.dtype if h is None else torch.promote_types(u.dtype, y.dtype)
    if after != u.dtype:
        raise ValueError(
            f"{name}: makes a state of dtype {after}, expected {u.dtype}: blocks keep shape, dtype and device; under "
            "autocast let a block add to its argument"
        )


def _buffer(kind: Kind, name: str, row: int) -> Tensor | None:
    known = kind.buffers.get(name)
    return known if known is None or not kind.is_stacked else known[row]


def _same(a: Tensor | None, b: Tensor) -> bool:
    if a is None or a.shape != b.shape:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _close(a: Tensor, b: Tensor) -> bool:
    """To ten roots of the rounding unit: another order of sums stays far below, another function does not."""
    if not a.numel():
        return True
    scale = float(b.abs().nan_to_num(0.0, 0.0, 0.0).amax())
    tol = 10 * math.sqrt(torch.finfo(b.dtype).eps)
    return torch.allclose(a, b, rtol=tol, atol=tol * scale, equal_nan=True)


def _random_states(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices_of(device))]


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What the modules keep in Python, but for torch's own bookkeeping."""
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        for key, value in vars(part).items():
            if key not in _BOOKKEEPING:
                found[f"{name}.{key}" if name else key] = _fingerprint(value)
    return found


def _fingerprint(value: Any) -> Any:
    if isinstance(value, bool | int | float | str | bytes | type(None)):
        return value
    if isinstance(value, Tensor):
        return id(value), None if value.is_inference() else value._version
    if isinstance(value, list | tuple | dict | set):
        return id(value), len(value)
    return id(value)


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    names = [*after, *(key for key in before if key not in after)]
    return [key for key in names if before.get(key, ...) != after.get(key, ...)]
