# SPDX-License-Identifier: BSD-3-Clause
"""A row of blocks as one module: blocks of a kind have stacked parameters, and any set of layers runs in one call."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..execution.congruence import first_difference
from .block_step import BlockStep
from .evaluation import Kind, require_like
from .frozen import Frozen, Plans
from .kinds import check_blocks, cut_where, kinds, name_of, of_flags, stacked, with_rows
from .serial_state import from_serial, to_serial
from .shell import Shell

INTERPOLATIONS = ("linear", "constant")


class Stack(nn.Module):
    """``u <- block_i(u)``, or with ``h`` the Euler step ``u <- u + h block_i(u)``, for ``i = 0, 1, ...``.

    Blocks of a kind (equal types, options, shapes and dtypes; hooks, parametrizations and tensors in common set a block
    apart) are copied into stacked parameters ``[layers, ...]``: :meth:`propagator` then takes any number of layers in
    one call. The other blocks are used as they are, one after the other. The names in ``state_dict`` are those of
    ``self.blocks = nn.ModuleList(blocks)`` either way; its tensors are copies where they are stacked.

    What looks at single tensors sees stacked ones, a bias with two dimensions: initialise blocks before they are
    stacked, or by :meth:`apply`; choose weight decay by names (:meth:`optim_groups`), not by the number of dimensions.

    Parameters
    ----------
    blocks : list, ModuleList or Sequential of modules
        Each keeps the shape and dtype of its argument ``[batch, features...]``.
    h : float, optional
        Step size; without one a block is the whole map.
    key : callable, optional
        Layers share a stacked parameter only where ``key(layer)`` is equal along a run of them (:meth:`split`).

    Raises
    ------
    TypeError, ValueError
        For something else than blocks, parameters without a shape, or an ``h`` that is no finite number but 0.
    """

    def __init__(self, blocks: Any, h: float | None = None, *, key: Callable[[int], Hashable] | None = None) -> None:
        super().__init__()
        self.h = _check_h(h)
        self.first = 0  # what errors of forward() call its first layer
        if key is not None and not callable(key):
            raise TypeError(f"key: got {type(key).__name__}, expected a callable of the layer's index")
        self._arrange(check_blocks(blocks), key)

    def _arrange(self, blocks: list[nn.Module], key: Callable[[int], Hashable] | None) -> None:
        sets, self._reasons = kinds(blocks)
        keys = [(key and key(i), flags) for i, flags in enumerate(of_flags(blocks))]
        self.layers = len(blocks)
        self.blocks = nn.ModuleDict()
        self.stacked = nn.ModuleList()
        self._pieces: list[list[int]] = []  # the layers in stacked[k]
        self._kinds: list[tuple[list[int], list[int]]] = []  # layers of a kind, and its places in stacked
        for layers in sets:
            if len(layers) == 1:
                self.blocks[str(layers[0])] = blocks[layers[0]]
                self._kinds.append((layers, []))
                continue
            places = []
            for run in cut_where([keys[i] for i in layers]):
                places.append(len(self._pieces))
                self._pieces.append(layers[run])
                self.stacked.append(stacked([blocks[i] for i in layers[run]]))
            self._kinds.append((layers, places))
        self._plans: Plans = {}
        self._tried: dict[int, str] = {}

    def __len__(self) -> int:
        return self.layers

    def extra_repr(self) -> str:
        return f"layers={self.layers}, h={self.h}"

    # Running

    def frozen(self, u: Tensor) -> Frozen:
        """The stack as one function, for one forward and backward pass of states like ``u [batch, features...]``.

        Masks of dropout are drawn here. Blocks are tried on ``u`` when they are of a kind, shape, dtype or mode that
        was not tried before.

        Raises
        ------
        TypeError, ValueError
            Naming the layer, for blocks that cannot be iterated on (:func:`.trial.try_kind`).
        """
        frozen = Frozen(list(self._bound()), self.h, u, self._plans)
        self._tried = frozen.why_not_batched
        return frozen

    def propagator(self, frozen: Frozen) -> BlockStep:
        """The layers of ``frozen`` as steps of a chain."""
        if not isinstance(frozen, Frozen):
            raise TypeError(f"frozen: got {type(frozen).__name__}, expected what frozen(u) returns")
        return BlockStep(frozen)

    def forward(self, u: Tensor) -> Tensor:
        """One layer after the other: the serial network itself."""
        # unbind: its derivative is one array for all layers, where that of each row would be as long as all.
        for i, block in enumerate(self._each(lambda piece: {name: t.unbind(0) for name, t in _tensors(piece)})):
            y = block(u)
            if getattr(y, "shape", None) != u.shape:  # it might broadcast
                require_like(name_of(self.first + i, self._template(i)), y, u)
            u = y if self.h is None else u + self.h * y
        return u

    def _each(self, rows: Callable[[nn.Module], Mapping[str, Sequence[Tensor]]]) -> Iterator[nn.Module]:
        """Every layer's block, with its ``rows(piece)`` in it if it is stacked; what it assigns is copied there."""
        homes = {layer: (k, n) for k, layers in enumerate(self._pieces) for n, layer in enumerate(layers)}
        several = [rows(piece) for piece in self.stacked]
        for layer in range(self.layers):
            if layer not in homes:
                yield self.blocks[str(layer)]
                continue
            k, n = homes[layer]
            state = {name: parts[n] for name, parts in several[k].items()}
            shell = Shell(self.stacked[k], state)
            yield shell.module
            with torch.no_grad():
                for name, t in shell.assigned().items():
                    state[name].copy_(t)

    def apply(self, fn: Callable[[nn.Module], None]) -> Stack:
        """``fn`` to every module of every layer, where it finds the parameters of the layer, and to the stack."""

        def rows(piece: nn.Module) -> dict[str, list[Tensor]]:
            return {
                name: [nn.Parameter(row, t.requires_grad) for row in t.detach()]
                if isinstance(t, nn.Parameter)
                else [*t]
                for name, t in _tensors(piece)
            }

        for block in self._each(rows):
            block.apply(fn)
        fn(self)
        return self

    def _bound(self) -> Iterator[Kind]:
        for layers, places in self._kinds:
            if not places:
                block = self.blocks[str(layers[0])]
                theta: dict[str, Tensor] = dict(block.named_parameters())
                yield Kind(layers, block, False, theta, dict(block.named_buffers()), [(block, slice(0, 1))])
                continue
            flags = [_flags(self.stacked[k]) for k in places]
            for run in cut_where(flags):  # parts may have been put in other modes
                pieces = [(self.stacked[k], self._pieces[k]) for k in places[run]]
                yield _joined(pieces)

    @property
    def why_not_stacked(self) -> str | None:
        """Why layers run one after the other, if some do; with what the last :meth:`frozen` found by trying."""
        found: dict[str, list[int]] = {}
        for layer, reason in sorted({**self._reasons, **self._tried}.items()):
            found.setdefault(reason, []).append(layer)
        parts = []
        for reason, layers in found.items():
            more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
            parts.append(f"{name_of(layers[0], self._template(layers[0]))}{more}: {reason}")
        return "; ".join(parts) or None

    def _template(self, layer: int) -> nn.Module:
        home = next((k for k, layers in enumerate(self._pieces) if layer in layers), None)
        return self.blocks[str(layer)] if home is None else self.stacked[home]

    # The serial network

    def layer(self, index: int) -> nn.Module:
        """A copy of block ``index``, with its parameters."""
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"index: got {index!r}, expected an integer")
        if not 0 <= index < self.layers:
            raise ValueError(f"index: got {index}, expected 0 to {self.layers - 1}")
        template = self._template(index)
        if str(index) in self.blocks:
            return copy.deepcopy(template)
        home = next(k for k, layers in enumerate(self._pieces) if index in layers)
        row = self._pieces[home].index(index)
        return with_rows(template, lambda tensor: tensor[row])

    def serial(self) -> nn.Sequential:
        """The plain network: an ``nn.Sequential`` of copies, or a :class:`SerialEuler` if there is an ``h``."""
        blocks = self._unstacked()
        return nn.Sequential(*blocks) if self.h is None else SerialEuler(blocks, self.h)

    def refine(self, factor: int = 2, *, interpolation: str = "linear") -> Stack:
        """A new stack ``factor`` times as deep with steps ``h / factor``: the same depth in time, resolved finer.

        Layer ``i`` is the weight at time ``i h``. In between it is interpolated, constant after the last, or
        (``"constant"``) that of the layer before. Blocks of different kinds, and buffers, are taken constant.
        E. C. Cyr, S. Guenther, J. B. Schroder, "Multilevel initialization for layer-parallel deep neural network
        training", arXiv:1912.08974 (2019).

        Raises
        ------
        TypeError, ValueError
            For a ``factor`` below 2, no ``h``, or blocks that share tensors.
        """
        if isinstance(factor, bool) or not isinstance(factor, int):
            raise TypeError(f"factor: got {factor!r}, expected an integer")
        if factor < 2:
            raise ValueError(f"factor: got {factor}, expected at least 2")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation: got {interpolation!r}, expected one of {', '.join(INTERPOLATIONS)}")
        if self.h is None:
            raise ValueError("refine: got a stack without h, expected Euler steps u + h block(u), which can be halved")
        blocks = self._unstacked()
        tensors = [id(t) for block in blocks for t in {id(t): t for t in block.parameters()}.values()]
        if len(set(tensors)) < len(tensors):
            raise ValueError("refine: got blocks that share parameters, expected each layer to have its own")
        finer = []
        for i, block in enumerate(blocks):
            following = blocks[min(i + 1, len(blocks) - 1)]
            linear = interpolation == "linear" and first_difference(block, following) is None
            finer += [_between(block, following, j / factor if linear else 0.0) for j in range(factor)]
        return Stack(finer, self.h / factor)

    # Options of single layers

    def split(self, key: Callable[[int], Hashable]) -> Stack:
        """A new stack, whose layers share a stacked parameter only where ``key(layer)`` is equal along a run of them.

        A stacked parameter is one tensor for an optimiser, a clipping of gradients, ``requires_grad``. Splitting makes
        it several; they are still evaluated in one call, at the price of one copy of the parameters for every pass.
        """
        other = Stack(self._unstacked(), self.h, key=key)
        other.training = self.training
        return other

    def _unstacked(self) -> list[nn.Module]:
        own = copy.deepcopy(self.blocks)  # at once: what they have in common stays in common
        return [own[str(i)] if str(i) in own else self.layer(i) for i in range(self.layers)]

    def optim_groups(self, options: Callable[[int, str], Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser, with ``options(layer, name)`` for the parameter ``name`` of a block.

        A stacked parameter needs one set of options for all of its layers: for others, split the stack first, e.g.
        ``stack = stack.split(lambda i: i)`` for a learning rate of its own in every layer.

        Raises
        ------
        ValueError
            Where options differ between layers that share a stacked parameter.
        """
        groups: dict[Any, dict[str, Any]] = {}
        seen: set[int] = set()
        homes = [(piece, layers) for piece, layers in zip(self.stacked, self._pieces, strict=True)]
        homes += [(block, [int(i)]) for i, block in self.blocks.items()]
        for module, layers in sorted(homes, key=lambda home: home[1][0]):
            for name, parameter in module.named_parameters():
                wanted = dict(options(layers[0], name))
                for layer in layers[1:]:
                    if dict(options(layer, name)) != wanted:
                        raise ValueError(
                            f"options: got other ones for layer {layer} than for layer {layers[0]}, whose {name!r} are "
                            "one stacked parameter, expected the same; use split(key) before making the optimiser"
                        )
                if "params" in wanted:
                    raise ValueError("options: got 'params', expected options of a group, such as lr")
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    group = groups.setdefault(tuple(sorted((k, repr(v)) for k, v in wanted.items())), wanted)
                    group.setdefault("params", []).append(parameter)
        return list(groups.values())

    # Saving

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Under the names of the serial network, ``blocks.17.weight``.

        Stacked tensors are copied, row by row; with ``keep_vars`` they are views with a graph to the parameters.
        """
        state = super().state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)
        prefix = args[1] if len(args) > 1 and not prefix else prefix  # torch still takes them by place
        keep_vars = args[2] if len(args) > 2 and not keep_vars else keep_vars
        to_serial(state, prefix, self._pieces, self.layers, copy=not keep_vars)
        return state

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        pieces = list(zip(self.stacked, self._pieces, strict=True))
        assign = bool(local_metadata.get("assign_to_params_buffers", False))
        from_serial(
            state_dict,
            prefix,
            pieces,
            assign=assign,
            missing=missing_keys,
            unexpected=unexpected_keys,
            errors=error_msgs,
        )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class SerialEuler(nn.Sequential):
    """``u <- u + h block(u)`` for one block after the other."""

    def __init__(self, blocks: list[nn.Module], h: float) -> None:
        super().__init__(*blocks)
        self.h = h

    def forward(self, u: Tensor) -> Tensor:
        for i, block in enumerate(self):
            y = block(u)
            require_like(name_of(i, block), y, u)
            u = u + self.h * y
        return u

    def extra_repr(self) -> str:
        return f"h={self.h}"


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _check_h(h: Any) -> float | None:
    if h is None:
        return None
    if isinstance(h, bool) or not isinstance(h, int | float):
        raise TypeError(f"h: got {type(h).__name__}, expected a number or None")
    if not math.isfinite(h) or h == 0:
        raise ValueError(f"h: got {h}, expected a finite number other than 0")
    return float(h)


def _flags(module: nn.Module) -> list[Any]:
    return [(part.training, getattr(part, "p", None)) for part in module.modules()]


def _joined(pieces: list[tuple[nn.Module, list[int]]]) -> Kind:
    """The layers of several stacked modules of a kind as one."""
    module, layers = pieces[0][0], [i for _, members in pieces for i in members]
    edges = [0]
    for _, members in pieces:
        edges.append(edges[-1] + len(members))
    spans = [(piece, slice(a, b)) for (piece, _), a, b in zip(pieces, edges, edges[1:], strict=False)]
    if len(pieces) == 1:
        return Kind(layers, module, True, dict(module.named_parameters()), dict(module.named_buffers()), spans)
    theta = {n: torch.cat([piece.get_parameter(n) for piece, _ in pieces]) for n, _ in module.named_parameters()}
    buffers = {n: torch.cat([piece.get_buffer(n) for piece, _ in pieces]) for n, _ in module.named_buffers()}
    return Kind(layers, module, True, theta, buffers, spans)


def _between(block: nn.Module, following: nn.Module, a: float) -> nn.Module:
    """A copy of ``block`` with the parameters ``(1 - a) theta + a theta_following``."""
    new = copy.deepcopy(block)
    if a:
        with torch.no_grad():
            for p, q in zip(new.parameters(), following.parameters(), strict=True):
                if p.dtype.is_floating_point:
                    p.lerp_(q.to(p.device), a)
    return new
