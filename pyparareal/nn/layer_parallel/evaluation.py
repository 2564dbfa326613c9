# SPDX-License-Identifier: BSD-3-Clause
"""Many layers of one kind in one call, or one after the other: ``y[n] = block_(rows[n])(u[n])``.

In one call a block runs under ``torch.func.vmap`` over views of its stacked parameters. Both ways have a graph to ``u``
and to the parameters, and neither changes buffers: what a block makes of them is returned.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .casting import Casting
from .chance import Chance, Site
from .kinds import name_of
from .shell import Shell

Rows = slice | list[int]


@dataclass(frozen=True)
class Plan:
    """How to run the layers of one kind, as found by trying (:mod:`.trial`).

    Attributes
    ----------
    why_not_batched : str, optional
        Why the layers run one after the other, if they do.
    sites : tuple of Site
        The calls that draw, in their order.
    seeded : bool
        Something else draws too: every layer starts from a random state of its own.
    changes_buffers, changes_input : bool
        What a block does to its buffers, or to its argument in place.
    uses_changes : bool
        It gives another value with the buffers it leaves behind; not looked for in stacked layers.
    attends : bool
        There is attention, which torch would compute in another way without a graph than with one.
    """

    why_not_batched: str | None = None
    sites: tuple[Site, ...] = ()
    seeded: bool = False
    changes_buffers: bool = False
    changes_input: bool = False
    uses_changes: bool = False
    attends: bool = False


class Reporter(nn.Module):
    """``inner``, returning also the buffers it leaves behind, changed in place or assigned."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, u: Tensor) -> tuple[Any, dict[str, Tensor]]:
        y = self.inner(u)
        return y, dict(self.inner.named_buffers())


@dataclass
class Kind:
    """The layers of one kind, with what is fixed for one forward and backward pass.

    Attributes
    ----------
    layers : sequence of int
    module : nn.Module
        The block; its parameters and buffers are stacked if ``is_stacked``.
    theta, buffers : dict
        ``[layers, ...]`` by name if stacked; else of the block itself.
    pieces : sequence of (module, slice)
        The modules that hold the buffers of which rows.
    masks : list of bool tensors ``[layers, ...]``, one for each site
    seeds : list of int
    autocast : callable
        A context with the automatic mixed precision of the forward pass.
    modes : list of (module, bool)
        Which parts are in training mode in the forward pass.
    """

    layers: Sequence[int]
    module: nn.Module
    is_stacked: bool
    theta: dict[str, Tensor]
    buffers: dict[str, Tensor]
    pieces: Sequence[tuple[nn.Module, slice]] = ()
    plan: Plan = Plan()
    masks: list[Tensor] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    autocast: Callable[[], Any] = contextlib.nullcontext
    modes: list[tuple[nn.Module, bool]] = field(default_factory=list, init=False)
    _own: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list, init=False)
    _shells: dict[tuple[int, bool], Shell] = field(default_factory=dict, init=False)
    _rows: dict[bool, dict[str, tuple[Tensor, ...]]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        parts = list(self.module.modules())
        self.modes = [(part, part.training) for part in parts]
        self._own = [] if self.is_stacked else [(part._parameters, dict(part._parameters)) for part in parts]

    def name(self, row: int) -> str:
        return name_of(self.layers[row], self.module)

    def run(self, u: Tensor, rows: Rows) -> Tensor:
        """``y[n]``, ``[len(rows), ...]``."""
        return self.run_with_buffers(u, rows)[0]

    def run_with_buffers(self, u: Tensor, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """``y`` and, if the block changes buffers, these ``[len(rows), ...]`` after the call."""
        if self.plan.changes_input:
            u = u.clone()
        with self.autocast(), self._as_before():
            # One layer alone is several times as fast without vmap: a serial coarse level consists of such steps.
            if self.plan.why_not_batched is None and self.is_stacked and len(u) > 1:
                y, after = self.together(u, rows)
                require_shape(self, rows, y, u)
                return y, after
            return self._one_by_one(u, rows)

    def together(self, u: Tensor, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        """All in one call."""
        keep = self.plan.changes_buffers
        theta = {name: _of(t, rows) for name, t in self.theta.items()}
        buffers = {name: _of(t, rows) for name, t in self.buffers.items()}
        if keep:
            buffers = {name: t.clone() for name, t in buffers.items()}
        masks = [_of(mask, rows) for mask in self.masks]
        mixed = torch.amp.is_autocast_available(u.device.type) and torch.is_autocast_enabled(u.device.type)
        casting: Any = Casting(u.device.type) if mixed else contextlib.nullcontext()

        names, changing = [*theta, *buffers], list(self.buffers) if keep else []

        # Tensors one by one, and one alone if possible: vmap takes several times as long with dicts and tuples.
        def one(u: Tensor, *given: Tensor) -> Any:
            shell = Shell(self.module, dict(zip(names, given, strict=False)))
            # The one for casting is asked last: it sees what the other makes of attention.
            with casting, self._chance(given[len(names) :], spelt_out=u.device.type == "cpu"):
                y = shell.module(u)
                return (y, *shell.buffers(changing).values()) if changing else y

        found = vmap(one)(u, *theta.values(), *buffers.values(), *masks)
        return (found[0], dict(zip(changing, found[1:], strict=True))) if changing else (found, {})

    def alone(self, u: Tensor, row: int) -> tuple[Any, dict[str, Tensor]]:
        """``block_row(u)`` for one state ``[batch, features...]``, and the buffers after the call if they change."""
        keep = self.plan.changes_buffers
        with self._chance([mask[row] for mask in self.masks]), self._seeded(row, u.device):
            if self.is_stacked:
                shell = self.shell(row)
                if keep:
                    shell.put({name: t[row].clone() for name, t in self.buffers.items()})
                return shell.module(u), shell.buffers(self.buffers) if keep else {}
            if not keep:
                return self._with_own_parameters(u), {}
            state = {f"inner.{name}": t.clone() for name, t in self.buffers.items()}
            state |= {f"inner.{name}": t for name, t in self.theta.items()}
            y, after = functional_call(Reporter(self.module), state, (u,))
            return y, after

    def _with_own_parameters(self, u: Tensor) -> Any:
        """``module(u)``, with the parameters of the forward pass: it may have had others for the length of a call."""
        if all(now.get(key) is t for now, then in self._own for key, t in then.items()):
            return self.module(u)
        return functional_call(self.module, self.theta, (u,))

    @contextlib.contextmanager
    def _as_before(self) -> Any:
        """Every part in the mode of the forward pass; in the backward pass it may be in another by then."""
        others = [(part, part.training) for part, training in self.modes if part.training != training]
        for part, now in others:
            part.training = not now
        try:
            yield
        finally:
            for part, now in others:
                part.training = now

    def shell(self, row: int) -> Shell:
        """The block of one layer of a stack, with views of its parameters; under autograd these have a graph."""
        graph = torch.is_grad_enabled()
        if (row, graph) not in self._shells:
            if graph not in self._rows:
                # unbind: its derivative is one array for all layers, where that of each row would be as long as all.
                self._rows[graph] = {name: t.unbind(0) for name, t in (self.theta | self.buffers).items()}
            state = {name: parts[row] for name, parts in self._rows[graph].items()}
            self._shells[row, graph] = Shell(self.module, state)
        return self._shells[row, graph]

    def _one_by_one(self, u: Tensor, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
        indices = range(*rows.indices(len(self.layers))) if isinstance(rows, slice) else rows
        found: list[Tensor] = []
        buffers: list[dict[str, Tensor]] = []
        for n, row in enumerate(indices):
            y, after = self.alone(u[n], row)
            require_like(self.name(row), y, u[n])
            found.append(y)
            buffers.append(after)
        return torch.stack(found), {name: torch.stack([b[name] for b in buffers]) for name in buffers[0]}

    def _chance(self, masks: Sequence[Tensor], *, spelt_out: bool = False) -> Any:
        if not (self.plan.sites or self.plan.attends):
            return contextlib.nullcontext()
        return Chance(masks, [site.scale() for site in self.plan.sites], spelt_out=spelt_out)

    @contextlib.contextmanager
    def _seeded(self, row: int, device: torch.device) -> Any:
        if not self.plan.seeded:
            yield
            return
        with torch.random.fork_rng(devices_of(device)):
            reseed(device, self.seeds[row])
            yield


def devices_of(device: torch.device) -> list[torch.device]:
    """The GPUs whose random state counts beside the CPU's."""
    return [device] if device.type == "cuda" else []


def reseed(device: torch.device, seed: int) -> None:
    """Seed the CPU's generator and that of ``device``, and no other: the caller brings back these two."""
    torch.default_generator.manual_seed(seed)
    for gpu in devices_of(device):
        torch.cuda.default_generators[gpu.index or 0].manual_seed(seed)


def _of(t: Tensor, rows: Rows) -> Tensor:
    if isinstance(rows, slice):
        # The derivative of a view is an array as long as all layers; that of no view is not.
        return t if rows == slice(0, len(t), 1) else t[rows]
    return t[torch.tensor(rows, device=t.device)]


def require_like(name: str, y: Any, u: Tensor) -> None:
    """Refuse what a block returned if it is no tensor like its argument but for the dtype."""
    if not isinstance(y, Tensor):
        raise TypeError(f"{name}: returned {type(y).__name__}, expected a tensor like its argument")
    for what in ("shape", "device"):
        got, expected = getattr(y, what), getattr(u, what)
        if got != expected:
            got, expected = (tuple(x) if what == "shape" else x for x in (got, expected))
            raise ValueError(f"{name}: returned {what} {got}, expected {expected}: blocks keep shape, dtype and device")


def require_shape(kind: Kind, rows: Rows, y: Tensor, u: Tensor) -> None:
    """:func:`require_like` for several layers at once."""
    first = rows.start or 0 if isinstance(rows, slice) else rows[0]
    require_like(kind.name(first), y, u)
