# SPDX-License-Identifier: BSD-3-Clause
"""Derivatives of single steps by torch's autograd: ``J^T w``, gradients of parameters, and which tensors these are."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, dropout, instancenorm

from .propagators import Propagator, require_like
from .tree_sum import TreeSum, plus


def vjp(phi: Propagator, u: Tensor, points: slice, w: Tensor) -> Tensor:
    """``(dPhi_i/du)(u[i])^T w[i]`` for all ``points`` at once, ``u`` and ``w`` ``[slices, batch, features...]``.

    Raises
    ------
    ValueError
        If ``phi.step`` returns a tensor without a graph to ``u``.
    """
    with torch.enable_grad():
        x = u.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(_step(phi, x, points), x, w, allow_unused=True)
    if gradient is None:
        raise detached_step(phi)
    return gradient


def parameter_gradients(
    phi: Propagator,
    u: Tensor,
    w: Tensor,
    parameters: Sequence[Tensor],
    *,
    complete: bool,
    block: int | None,
    begin: int = 0,
) -> list[Tensor | None]:
    """``sum_i (dPhi_i/dtheta)(u[i])^T w[i]``, ``u`` and ``w`` ``[steps, ...]``; None where no step uses ``theta``.

    ``begin`` is the first step; ``block`` steps share a call. ``complete``: the steps must not depend on other tensors
    that require grad. A propagator with :class:`.OwnAdjoint` computes them itself.
    """
    if hasattr(phi, "parameter_gradients"):
        return phi.parameter_gradients(u, w, parameters)
    totals: list[Tensor | None] = [None] * len(parameters)
    for found in _of_calls(phi, u, w, parameters, complete, block or len(u), begin):
        totals = plus(totals, found)
    return totals


def sums_of_slices(
    phi: Propagator, u: Tensor, w: Tensor, parameters: Sequence[Tensor], *, complete: bool, m: int, begin: int = 0
) -> TreeSum:
    """The same, a call for each slice of ``m`` steps, by the fixed tree over the slices; trailing steps are the last.

    The bits depend on no number of blocks that the slices are in.
    """
    sums = TreeSum()
    for n, found in enumerate(_of_calls(phi, u, w, parameters, complete, m, begin), start=begin // m):
        sums.add(n, 1, found)
    return sums


def _of_calls(
    phi: Propagator, u: Tensor, w: Tensor, parameters: Sequence[Tensor], complete: bool, size: int, begin: int
) -> Iterator[list[Tensor | None]]:
    """Those of every ``size`` steps."""
    for first in range(0, len(u), size):
        last = min(first + size, len(u))
        with torch.enable_grad():
            points = slice(begin + first, begin + last, 1)
            stepped = require_like(phi.step(_copy(u[first:last]), points), u[first:last], phi)
        if not stepped.requires_grad:
            yield [None] * len(parameters)
            continue
        if complete:
            require_known(stepped, parameters)
        # What the parameters themselves were computed from is not ours to free.
        with without_hooks(parameters):
            found = torch.autograd.grad(stepped, parameters, w[first:last], allow_unused=True, retain_graph=True)
        yield list(found)


def own_graph() -> Any:
    """For steps taken on trial: a checkpoint around the solve would count what they save, and run again for it."""
    # Not the tensors themselves: a result that a node saves, with its graph, would hold that node for ever.
    return torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, _itself)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _step(phi: Propagator, x: Tensor, points: slice) -> Tensor:
    stepped: Tensor = require_like(phi.step(_copy(x), points), x, phi)
    if not stepped.requires_grad:
        raise detached_step(phi)
    return stepped


def detached_step(phi: Propagator) -> ValueError:
    return ValueError(
        f"{type(phi).__name__}.step: returned a tensor without a graph to its argument u: "
        "a differentiable step must not detach u, leave torch or run under torch.no_grad()"
    )


def _copy(u: Tensor) -> Tensor:
    # A step may work in place; it must change neither the states nor a leaf of the graph.
    return u.clone(memory_format=torch.contiguous_format)


# Hooks of tensors


@contextlib.contextmanager
def without_hooks(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Within it this thread does not call the hooks of ``tensors``.

    :func:`torch.autograd.grad` calls those of what it differentiates in. Parts of a gradient are not what a hook is
    for: it is called for the whole, by the backward pass that these are parts of.
    """
    for tensor in tensors:
        hooks: dict[int, Any] = tensor._backward_hooks or {}
        for key, hook in list(hooks.items()):
            if not isinstance(hook, _OfTheWhole):
                hooks[key] = _OfTheWhole(hook)
    before = getattr(_silence, "on", False)
    _silence.on = True
    try:
        yield
    finally:
        _silence.on = before


_silence = threading.local()


class _OfTheWhole:
    """A hook that is not called within :func:`without_hooks`; it stays in place of the one it calls."""

    def __init__(self, hook: Callable[[Tensor], Tensor | None]) -> None:
        functools.update_wrapper(self, hook)
        self._hook = hook

    def __call__(self, gradient: Tensor) -> Tensor | None:
        return None if getattr(_silence, "on", False) else self._hook(gradient)


# Which tensors a step depends on


def used_by(phi: Propagator, u: Tensor, known: Sequence[Tensor] = ()) -> list[Tensor]:
    """The leaves that require grad and that one step from ``u [1, ...]`` depends on, found by taking it.

    Those on which it depends through the tensors ``known`` alone do not count.
    """
    with torch.enable_grad():
        return leaves(require_like(phi.step(_copy(u.detach()), slice(0, 1, 1)), u, phi), stop=known)


def independent(tensors: Sequence[Tensor]) -> list[Tensor]:
    """``tensors``, those computed from others of them replaced by the leaves behind them: no path is counted twice."""
    found = list({id(t): t for t in tensors}.values())
    while of_others := [t for t in found if _depends(t, found)]:
        kept = [t for t in found if all(t is not other for other in of_others)]
        behind = [leaf for t in of_others for leaf in leaves(t)]
        found = list({id(t): t for t in [*kept, *behind]}.values())
    return found


def _depends(u: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether one of the ``others`` is in the graph behind ``u``."""
    here = {id(t) for t in others if t.grad_fn is None}
    nodes = {t.grad_fn for t in others if t.grad_fn is not None and t is not u}
    return any(node in nodes or id(getattr(node, "variable", None)) in here for node in _behind(u))


def require_graph(phi: Propagator, u: Tensor) -> None:
    """Refuse a propagator without a graph from its step to ``u [1, ...]`` and without an adjoint of its own."""
    if hasattr(phi, "adjoint"):
        return
    vjp(phi, u, slice(0, 1, 1), torch.zeros_like(u))


def leaves(u: Any, stop: Iterable[Tensor] = ()) -> list[Tensor]:
    """The leaves of the graph behind ``u``, but for those behind the tensors ``stop``."""
    return [node.variable for node in _behind(u, stop) if hasattr(node, "variable")]


def _behind(u: Any, stop: Iterable[Tensor] = ()) -> Iterator[Any]:
    """The nodes of the graph behind ``u``, each once, but for those behind the tensors ``stop``."""
    seen = {t.grad_fn for t in stop if t.grad_fn is not None}
    todo = [u.grad_fn] if isinstance(u, Tensor) and u.grad_fn is not None else []
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        todo.extend(parent for parent, _ in node.next_functions if parent is not None)


def require_known(u: Tensor, known: Sequence[Tensor]) -> None:
    """Refuse a graph with a leaf that is not among ``known``: its gradient would be lost."""
    ids = {id(t) for t in known}
    for leaf in leaves(u, stop=known):
        if id(leaf) not in ids:
            raise ValueError(
                f"parameters: a step depends on a tensor of shape {tuple(leaf.shape)} that requires grad, is no "
                "parameter of a module of fine, and was not used by the first step; "
                "name all of them in parameters="
            )


def held_by(phi: Any) -> tuple[list[nn.Module], list[Tensor]]:
    """The modules and the tensors that require grad which a propagator keeps as attributes, or in lists of them."""
    modules, tensors = _held(phi)
    return modules, [tensor for tensor in tensors if tensor.requires_grad]


def constants_of(phi: Any) -> list[tuple[Tensor, int]]:
    """The tensors that a propagator and its modules keep and that need no gradient, as often written to as said."""
    modules, tensors = _held(phi)
    found = [*tensors, *(t for module in modules for t in (*module.parameters(), *module.buffers()))]
    constants = {id(t): t for t in found if not t.requires_grad and not t.is_inference()}  # these are not counted
    return [(t, t._version) for t in constants.values()]


def _held(phi: Any) -> tuple[list[nn.Module], list[Tensor]]:
    modules: list[nn.Module] = []
    tensors: list[Tensor] = []
    seen: set[int] = set()
    todo = [phi]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            modules.append(value)
        elif isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            todo.extend(value)
        elif not isinstance(value, type) and (hasattr(value, "step") or callable(value)):
            todo.extend(getattr(value, "__dict__", {}).values())
            todo.append(getattr(value, "__self__", None))  # the object of a bound method
    return modules, tensors


def require_repeatable(modules: Sequence[nn.Module]) -> None:
    """Refuse modules whose result depends on what else is in the batch or on chance.

    The same step is taken in every iteration, in different company, and again for its derivative.
    """
    for module in modules:
        for name, part in module.named_modules():
            if varies(part):
                raise ValueError(
                    f"fine: its module {name or 'itself'!r} ({type(part).__name__}) gives another value when it is "
                    "called again, or in other company, so that a step has no gradient of its own; call eval() on it"
                )


def varies(part: nn.Module) -> bool:
    """Whether one module, its children left out, gives another value when called again or in other company."""
    if isinstance(part, batchnorm._BatchNorm):
        return part.training or part.running_mean is None
    if isinstance(part, instancenorm._InstanceNorm):
        return part.training and bool(part.track_running_stats)
    if isinstance(part, dropout._DropoutNd):
        return part.training and part.p > 0
    rate = getattr(part, "dropout", 0.0)  # recurrent and attention modules
    return part.training and (isinstance(part, nn.RReLU) or (isinstance(rate, float) and rate > 0))
