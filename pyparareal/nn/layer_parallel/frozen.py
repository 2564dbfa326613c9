# SPDX-License-Identifier: BSD-3-Clause
"""A stack as one function of its input and parameters, for the length of one forward and backward pass.

Iterations take every step several times, the adjoint takes it again, and each time it must be the same step. So masks
of dropout are drawn beforehand, one per layer; batch norm in training mode normalises by the batch it is given and
leaves its running statistics alone until :meth:`Frozen.commit`; and automatic mixed precision is that of the beginning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.group import checksum
from .evaluation import Kind, Plan, Rows
from .trial import try_kind

MOST_AXES = 7  # slices are another
MAX_PLANS = 256  # e.g. for sequences of many lengths
Plans = dict[tuple[Any, ...], Plan]


class Frozen:
    """What the layers of a stack are during one forward and backward pass.

    Parameters
    ----------
    kinds : list of Kind
        Of all layers; masks, seeds and plans are set here.
    h : float or None
        As in :class:`.Stack`.
    u : tensor ``[batch, features...]``
        What will go in: its shape, dtype and device count, and the layers are tried on it.
    plans : dict
        Those known from before; new ones are added.

    Attributes
    ----------
    parameters : list of tensors
        What requires grad, stacked or not: a step depends on ``u`` and on these.
    fixed_tensors : list of tensors
        Other parameters, and buffers that the layers themselves leave alone: a step depends on them too.
    """

    def __init__(self, kinds: list[Kind], h: float | None, u: Tensor, plans: Plans) -> None:
        _check_input(u)
        self.h, self.layers = h, sum(len(kind.layers) for kind in kinds)
        self.shape, self.dtype, self.device = u.shape, u.dtype, u.device
        autocast = autocast_now()
        for kind in kinds:
            kind.autocast = autocast
            key = (kind.layers[0], *_key(kind.module, u))
            if key not in plans:
                if len(plans) >= MAX_PLANS:
                    plans.clear()
                plans[key] = try_kind(kind, u, h)
            kind.plan = plans[key]
        _refuse_common_state(kinds)
        self._kinds = kinds
        self._where = {layer: (k, row) for k, kind in enumerate(kinds) for row, layer in enumerate(kind.layers)}
        self._draw()
        self._parts: dict[tuple[int, int, int], list[tuple[Kind, Rows, Rows]]] = {}
        tensors = {id(t): t for kind in kinds for t in kind.theta.values()}
        self.parameters = [t for t in tensors.values() if t.requires_grad]
        tensors |= {id(t): t for kind in kinds if not kind.plan.changes_buffers for t in kind.buffers.values()}
        self.fixed_tensors = [t for t in tensors.values() if not t.requires_grad]

    @property
    def changes_buffers(self) -> bool:
        """Whether there is something for :meth:`commit` to do."""
        return any(kind.plan.changes_buffers for kind in self._kinds)

    @property
    def why_not_batched(self) -> dict[int, str]:
        """Of the layers that run one after the other though they are stacked."""
        plans = [(kind, kind.plan.why_not_batched) for kind in self._kinds]
        return {layer: why for kind, why in plans if why is not None for layer in kind.layers}

    @property
    def stacked(self) -> dict[str, Tensor] | None:
        """The parameters ``[layers, ...]`` by their names in a block, if all layers are of one kind."""
        return self._kinds[0].theta if len(self._kinds) == 1 and self._kinds[0].is_stacked else None

    @property
    def template(self) -> nn.Module:
        """The block of the first layer's kind; its parameters may be stacked."""
        return self._kinds[0].module

    @property
    def draws(self) -> bool:
        """Whether a layer depends on chance."""
        return any(kind.plan.sites or kind.plan.seeded for kind in self._kinds)

    def fingerprint(self) -> dict[str, str]:
        """What must be the same in all processes that take these layers together, by the name that an error says."""
        held = [*self.parameters, *self.fixed_tensors, *(t for kind in self._kinds for t in kind.buffers.values())]
        masks = [mask for kind in self._kinds for mask in kind.masks]
        seeds = [torch.tensor(kind.seeds) for kind in self._kinds]
        drawn = checksum([*masks, *seeds]) if self.draws else "none"
        return {"parameters or buffers": checksum(held), "random numbers of the layers": drawn}

    def blocks(self, u: Tensor, layers: range) -> Tensor:
        """``y[n] = block_(layers[n])(u[n])``, ``u`` and ``y`` ``[slices, batch, features...]``."""
        parts = self._split(layers)
        if len(parts) == 1:
            kind, rows, _ = parts[0]
            return kind.run(u, rows)
        found = [kind.run(_take(u, places), rows) for kind, rows, places in parts]
        order = [n for _, _, places in parts for n in _indices(places, len(layers))]
        back = sorted(range(len(order)), key=order.__getitem__)
        dtypes = {y.dtype for y in found}
        if len(dtypes) > 1:  # under autocast blocks may differ in it
            found = [y.to(self.dtype) for y in found]
        return torch.cat(found)[torch.tensor(back, device=u.device)]

    def commit(self, states: Tensor) -> None:
        """Let every layer change its buffers once, as one pass through ``states [layers (+ 1), batch, features...]``.

        Raises
        ------
        ValueError
            For states of another shape. Nothing was changed then.
        """
        if not isinstance(states, Tensor) or states.shape[1:] != self.shape or len(states) < self.layers:
            got = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
            raise ValueError(f"states: got {got}, expected the input of every layer: {(self.layers, *self.shape)}")
        found: list[tuple[Kind, dict[str, Tensor]]] = []
        with torch.no_grad():
            changing = [kind for kind in self._kinds if kind.plan.changes_buffers]
            for kind in changing:  # the backward pass takes the steps that were taken, with what they were taken with
                kind.buffers = {name: t.clone() for name, t in kind.buffers.items()}
            latest: dict[int, Tensor] = {}  # of buffers that several layers have in common
            for kind in changing:
                u = states[: self.layers] if len(self._kinds) == 1 else _take(states, list(kind.layers))
                found.append((kind, _buffers_after(kind, u, latest)))
            for kind, buffers in found:
                for name, t in buffers.items():
                    for module, span in kind.pieces:
                        module.get_buffer(name).copy_(t[span] if kind.is_stacked else t[0])

    def _split(self, layers: range) -> list[tuple[Kind, Rows, Rows]]:
        """The kinds among ``layers``, the rows of each, and their places in ``layers``."""
        key = (layers.start, layers.stop, layers.step)
        if key not in self._parts:
            if len(self._kinds) == 1:
                rows: Rows = slice(layers.start, layers.start + (len(layers) - 1) * layers.step + 1, layers.step)
                self._parts[key] = [(self._kinds[0], rows, slice(0, len(layers), 1))]
            else:
                found: dict[int, tuple[list[int], list[int]]] = {}
                for place, layer in enumerate(layers):
                    k, row = self._where[layer]
                    rows_of, places_of = found.setdefault(k, ([], []))
                    rows_of.append(row)
                    places_of.append(place)
                self._parts[key] = [(self._kinds[k], _strided(r), _strided(p)) for k, (r, p) in found.items()]
        return self._parts[key]

    def _draw(self) -> None:
        """Masks and seeds of all layers, from torch's random state; on a CPU in the order of the serial network."""
        for kind in self._kinds:
            sites, rows = kind.plan.sites, (len(kind.layers),)
            if self.device.type == "cpu":
                kind.masks = [torch.empty(rows + site.shape, dtype=torch.bool) for site in sites]
            else:
                kind.masks = [site.draw_several(self.device, len(kind.layers)) for site in sites]
            kind.seeds = [0] * len(kind.layers)
        if not self.draws:
            return
        draws = [[site.draw(self.device, len(kind.layers)) for site in kind.plan.sites] for kind in self._kinds]
        for layer in range(self.layers):
            k, row = self._where[layer]
            kind = self._kinds[k]
            if self.device.type == "cpu":
                for draw, mask in zip(draws[k], kind.masks, strict=True):
                    mask[row] = next(draw)
            if kind.plan.seeded:
                kind.seeds[row] = int(torch.randint(2**62, ()))


def _check_input(u: Any) -> None:
    if not isinstance(u, Tensor):
        raise TypeError(f"u: got {type(u).__name__}, expected a tensor [batch, features...]")
    if u.ndim < 1 or not u.numel():
        raise ValueError(f"u: got shape {tuple(u.shape)}, expected [batch, features...] with entries")
    if u.ndim > MOST_AXES:
        raise ValueError(f"u: got {u.ndim} axes, expected at most {MOST_AXES} with that of the batch: flatten some")
    if not u.dtype.is_floating_point:
        raise TypeError(f"u: got dtype {u.dtype}, expected a floating point dtype")


def _buffers_after(kind: Kind, u: Tensor, latest: dict[int, Tensor]) -> dict[str, Tensor]:
    """The buffers ``[layers, ...]`` that ``kind`` leaves behind; ``latest`` by the id of a buffer, which is updated."""
    rows, before = slice(0, len(kind.layers), 1), kind.buffers
    own = {} if kind.is_stacked else dict(kind.module.named_buffers())
    kind.buffers = before | {name: latest[id(t)] for name, t in own.items() if id(t) in latest}
    try:
        after = kind.run_with_buffers(u, rows)[1]
    finally:
        kind.buffers = before
    latest.update({id(t): after[name][0] for name, t in own.items()})
    return after


def _refuse_common_state(kinds: Sequence[Kind]) -> None:
    """Refuse a buffer of several layers that each of them changes, and whose change changes their values."""
    holders: dict[int, Kind] = {}
    for kind in kinds:
        if kind.is_stacked or not kind.plan.uses_changes:
            continue
        for name, t in kind.buffers.items():
            if holders.setdefault(id(t), kind) is not kind:
                raise ValueError(
                    f"{kind.name(0)}: changes the buffer {name!r}, which it shares with {holders[id(t)].name(0)}, and "
                    "then gives another value, expected layers that can be taken in any order"
                )


def _key(module: nn.Module, u: Tensor) -> tuple[Any, ...]:
    """What a plan depends on, besides the module's class."""
    flags = []
    for part in module.modules():
        # Any of them may say whether something is drawn, as a rate that a schedule changes.
        flags.append(tuple((key, x) for key, x in part.__dict__.items() if isinstance(x, bool | int | float | str)))
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    mixed = [(kind, torch.get_autocast_dtype(kind)) for kind in kinds]
    graph = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    return u.shape, u.dtype, u.device, tuple(mixed), graph, tuple(flags)


def autocast_now() -> Callable[[], Any]:
    """A context with the automatic mixed precision of now, or nothing if there is none.

    It keeps no casted parameters: those of a pass without a graph would have none in one with it.
    """
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    if not kinds:
        return contextlib.nullcontext
    dtypes = [torch.get_autocast_dtype(kind) for kind in kinds]

    @contextlib.contextmanager
    def again() -> Any:
        with contextlib.ExitStack() as several:
            for kind, dtype in zip(kinds, dtypes, strict=True):
                several.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=False))
            yield

    return again


def _strided(indices: list[int]) -> Rows:
    """``indices`` as a slice if they have a constant stride: a view in place of a copy."""
    if len(indices) == 1:
        return slice(indices[0], indices[0] + 1, 1)
    step = indices[1] - indices[0]
    if all(b - a == step for a, b in pairwise(indices)):
        return slice(indices[0], indices[-1] + 1, step)
    return indices


def _take(u: Tensor, places: Rows) -> Tensor:
    return u[places] if isinstance(places, slice) else u[torch.tensor(places, device=u.device)]


def _indices(places: Rows, count: int) -> Sequence[int]:
    return range(*places.indices(count)) if isinstance(places, slice) else places
