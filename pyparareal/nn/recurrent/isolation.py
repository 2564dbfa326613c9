# SPDX-License-Identifier: BSD-3-Clause
"""A recurrence cut from what its inputs were computed from, and put back together for the backward pass.

Inputs often depend on the parameters that the steps use too: a projection of the input, or an embedding that is tied.
Differentiating steps in both at once would follow the inputs back to the parameters, and count that path twice.
:func:`pyparareal.solve` avoids that by differentiating in the leaves alone (:func:`pyparareal.vjp.independent`), which
also holds for closures, but goes back through what inputs are computed from in every pass; here that is done once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...vjp import without_hooks


class Isolated:
    """``step`` and ``u0`` with leaves in place of the tensors that are computed from others.

    Attributes
    ----------
    step, u0 : the same with leaves
    """

    def __init__(self, step: Any, u0: Tensor) -> None:
        self._leaves: dict[int, tuple[Tensor, Tensor]] = {}
        modules, self._held = _held(step)
        # Cells may count with buffers. Those that they only read stay as they are while the recurrence is solved.
        self._buffers = [(b, b._version) for m in modules for b in m.buffers() if not b.is_inference()]
        self.u0 = self._leaf(u0)
        changed = {name: self._of(value) for name, value in getattr(step, "__dict__", {}).items()}
        changed = {name: value for name, value in changed.items() if value is not None}
        self.step = step
        if changed:
            self.step = copy.copy(step)
            self.step.__dict__.update(changed)

    def _of(self, value: Any) -> Any:
        """``value`` with leaves; None if there is nothing to change in it."""
        if isinstance(value, Tensor):
            return self._leaf(value) if _computed(value) else None
        if type(value) in (list, tuple) and any(isinstance(part, Tensor) and _computed(part) for part in value):
            return type(value)(self._leaf(part) if isinstance(part, Tensor) else part for part in value)
        return None

    def _leaf(self, tensor: Tensor) -> Tensor:
        if not _computed(tensor):
            return tensor
        if id(tensor) not in self._leaves:
            self._leaves[id(tensor)] = (tensor.detach().requires_grad_(), tensor)
        return self._leaves[id(tensor)][0]

    def inside(self, tensor: Tensor) -> Tensor:
        """The leaf in place of ``tensor``, if there is one."""
        return self._leaves[id(tensor)][0] if id(tensor) in self._leaves else tensor

    def known(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """What the states are differentiated in for the gradients of ``parameters``: these, and what is cut."""
        found = [*(self.inside(t) for t in parameters), *(leaf for leaf, _ in self._leaves.values())]
        return list({id(t): t for t in found if t is not self.u0}.values())

    def outside(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Those of ``parameters`` that are not cut."""
        return [t for t in parameters if id(t) not in self._leaves]

    def connected(self, u: Tensor, known: Sequence[Tensor], after: Callable[[], None] | None = None) -> Tensor:
        """``u``, found with ``step`` and ``u0``, as a function of what these stand for, and of ``known``.

        A backward pass takes the steps again: it is refused once a tensor that ``step`` holds has been written to, but
        for buffers that the steps write to themselves. ``after`` is called at the end of each.
        """
        if not u.requires_grad:
            return u
        originals = {id(leaf): tensor for leaf, tensor in self._leaves.values()}
        inner = list({id(t): t for t in [self.u0, *known] if t.requires_grad}.values())
        held = [*self._held, *(b for b, version in self._buffers if b._version == version)]
        return _Connected.apply(lambda: (u, inner, held, after), *(originals.get(id(t), t) for t in inner))  # type: ignore[no-untyped-call]


class _Connected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: Callable[[], tuple[Tensor, list[Tensor], list[Tensor], Any]], *_: Tensor) -> Tensor:
        u, ctx.inner, held, ctx.after = graph()
        ctx.u = u
        ctx.save_for_backward(*held)
        return u.detach()

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors  # torch refuses them if they have been written to since
        with torch.no_grad(), without_hooks(ctx.inner):
            found = torch.autograd.grad(ctx.u, ctx.inner, w, retain_graph=True, allow_unused=True)
        if ctx.after is not None:
            ctx.after()
        # torch's once_differentiable lets those pass as constants for which w is one.
        return None, *(_Once.apply(torch.zeros((), requires_grad=True), *found) if torch.is_grad_enabled() else found)  # type: ignore[no-untyped-call]


class _Once(torch.autograd.Function):
    """Gradients that cannot be differentiated again, and say so."""

    @staticmethod
    def forward(ctx: Any, nothing: Tensor, *found: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if t is None else t.detach() for t in found)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise NotImplementedError("recurrence: not differentiable again: got a second derivative, expected the first")


def _held(step: Any) -> tuple[list[nn.Module], list[Tensor]]:
    """The modules that a propagator keeps, and its tensors and those modules' parameters."""
    modules: list[nn.Module] = []
    found: list[Tensor] = []
    for value in getattr(step, "__dict__", {}).values():
        for part in value if type(value) in (list, tuple) else [value]:
            if isinstance(part, nn.Module):
                modules.append(part)
            found += list(part.parameters()) if isinstance(part, nn.Module) else [part]
    # Inference tensors have no count of the times they were written to.
    return modules, [part for part in found if isinstance(part, Tensor) and not part.is_inference()]


def held_tensors(step: Any) -> list[Tensor]:
    """The tensors of a propagator, with the parameters and buffers of its modules."""
    modules, tensors = _held(step)
    return [*tensors, *(b for module in modules for b in module.buffers())]


def _computed(tensor: Tensor) -> bool:
    return tensor.requires_grad and tensor.grad_fn is not None
