# SPDX-License-Identifier: BSD-3-Clause
"""``execution="parallel"``: every part in its own CPU thread, forward and backward.

Part ``j`` is ``x -> (x_j, y_j) = (C^j(x), g^j(C^j(x)))``. One autograd function stands for all parts: its forward pass
lets each build its own graph, its backward pass asks each for its own gradients, both in threads among which torch's
intra-op threads are divided. Gradients of parameters are *returned*, so they reach ``.grad`` through autograd as usual,
and hooks and DistributedDataParallel see each once, after the last part.

Values and gradients are those of ``serial`` bit for bit if ``serial`` has as many intra-op threads as one part has
here, unless a parameter is used in several places; then to rounding. Parts that draw random numbers (found in a first
pass, which takes the parts one by one) take turns, so draws are those of ``serial``; the others run beside them.

Second derivatives are refused. Hooks on saved tensors (e.g. ``save_on_cpu``) that are set outside do not reach the
threads. Activation checkpointing inside parts that draw random numbers needs ``serial``: its replay sets torch's one
generator back while other parts may draw. CUDA inputs: :mod:`.streams`.

Under ``torch.compile(network)`` the parts run one after the other in the compiled graph, and ``network.executed`` says
``"serial"``; parts compiled by themselves (``part.compile()``) run in their threads. torch's guards are not
made for that: parts of equal structure, which share them, are now and then compiled once more than there is need for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.team import Context
from . import Modules, States, streams
from .serial import Serial, require_meeting, run_part
from .spans import called, launch, region
from .team import context, team

PartStates = tuple[Tensor, Tensor]  # x_j, y_j


class Parallel:
    """One thread per part, or as many as torch has intra-op threads."""

    def __init__(self) -> None:
        self._drawing: dict[tuple[bool, ...], frozenset[int]] = {}

    def __reduce__(self) -> tuple[type[Parallel], tuple[()]]:
        return Parallel, ()

    def require(self, preprocess: Modules, fine: Modules) -> None:
        """Refuse parts with a common buffer: running statistics would be written by two threads at once."""
        seen: dict[int, int] = {}
        for j, part in enumerate(zip(preprocess, fine, strict=True)):
            for name, buffer in chain(*(m.named_buffers() for m in part)):
                if seen.setdefault(id(buffer), j) != j:
                    raise ValueError(
                        f"execution: got 'parallel' for parts {seen[id(buffer)] + 1} and {j + 1}, which share the "
                        f"buffer {name!r}, expected parts with buffers of their own. Use 'serial'"
                    )

    def run(self, preprocess: Modules, fine: Modules, x: Tensor) -> States:
        if torch.compiler.is_compiling():  # threads and clocks are not in a graph
            return Serial().run(preprocess, fine, x)
        if len(fine) == 1:
            x_1 = preprocess[0](x)
            return [x_1], [run_part(0, fine[0], x_1)], "serial"
        if x.device.type == "cuda":
            inputs, outputs = streams.run(preprocess, fine, x)
        else:
            inputs, outputs = self._run_threads(preprocess, fine, x)
        for j in range(1, len(fine)):
            require_meeting(j, inputs[j], outputs[j - 1])
        return inputs, outputs, "parallel"

    def _run_threads(self, preprocess: Modules, fine: Modules, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        parts = list(zip(preprocess, fine, strict=True))
        here = context()
        modules = [m for part in parts for member in part for m in member.modules()]
        run = partial(self._forward, tuple(m.training for m in modules), here)
        parameters = [list(dict.fromkeys(p for m in part for p in m.parameters() if p.requires_grad)) for part in parts]
        wanted = list(dict.fromkeys(chain(*parameters)))
        if here.grad and (wanted or x.requires_grad):
            states = _Parts.apply(parts, run, parameters, x, *wanted)  # type: ignore[no-untyped-call]
            return list(states[: len(parts)]), list(states[len(parts) :])
        pairs = run([partial(_part, j, part, x) for j, part in enumerate(parts)])
        return [a for a, _ in pairs], [b for _, b in pairs]

    def _forward(
        self, flags: tuple[bool, ...], context: Context, tasks: Sequence[Callable[[], PartStates]]
    ) -> list[PartStates]:
        """Run one task per part; those that draw from torch's one generator in turn, beside the others."""
        workers = team(len(tasks))
        if flags not in self._drawing:
            pairs, drawing = [], set()
            for j, task in enumerate(tasks):
                before = torch.get_rng_state()
                pairs += workers.run([task], context)
                if not torch.equal(before, torch.get_rng_state()):
                    drawing.add(j)
            self._drawing[flags] = frozenset(drawing)
            return pairs
        drawing_now = sorted(self._drawing[flags])
        alone = [j for j in range(len(tasks)) if j not in drawing_now]
        before = torch.get_rng_state()

        def in_turn() -> list[PartStates]:
            return [tasks[j]() for j in drawing_now]

        *others, drawn = workers.run([*(partial(_one, tasks[j]) for j in alone), in_turn], context)
        if not drawing_now and not torch.equal(before, torch.get_rng_state()):
            del self._drawing[flags]  # a part has begun to draw: the next pass finds out which
        pairs_of = dict(zip([*alone, *drawing_now], [*chain(*others), *drawn], strict=True))
        return [pairs_of[j] for j in range(len(tasks))]


def _one(task: Callable[[], PartStates]) -> list[PartStates]:
    return [task()]


def _part(j: int, part: tuple[nn.Module, nn.Module], x: Tensor) -> PartStates:
    x_j = called(f"preprocess[{j}]", part[0], x)
    return x_j, run_part(j, part[1], x_j)


class _Parts(torch.autograd.Function):
    """``x, parameters -> x_1 .. x_N, y_1 .. y_N``; each part has its own graph, from ``x`` and its parameters on."""

    @staticmethod
    def forward(
        ctx: Any,
        parts: list[tuple[nn.Module, nn.Module]],
        run: Callable[[Sequence[Callable[[], PartStates]]], list[PartStates]],
        parameters: list[list[Tensor]],
        x: Tensor,
        *wanted: Tensor,
    ) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_(x.requires_grad) for _ in parts]
        pairs = run([partial(_part, j, *args) for j, args in enumerate(zip(parts, leaves, strict=True))])
        ctx.set_materialize_grads(False)
        ctx.pairs, ctx.wanted = pairs, wanted
        ctx.sources = [[leaf] * x.requires_grad + own for leaf, own in zip(leaves, parameters, strict=True)]
        results = [pair[i] for i in (0, 1) for pair in pairs]
        detached = [r.detach() for r in results]
        ctx.mark_non_differentiable(*(d for r, d in zip(results, detached, strict=True) if not r.requires_grad))
        return tuple(detached)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "execution='parallel' has no second derivatives (create_graph=True); use execution='serial' for them"
            )
        count = len(ctx.pairs)
        tasks = [
            partial(_part_gradients, j, pair, (gradients[j], gradients[count + j]), ctx.sources[j], _keeps_graph())
            for j, pair in enumerate(ctx.pairs)
        ]
        with _hooks_held(ctx.wanted), region("backward network.parts"):
            found = team(count).run(tasks, context())
        # In the order in which autograd adds up the serial network's: the last part's first.
        sums: dict[int, Tensor] = {}
        of_x: Tensor | None = None
        for own, of_part in zip(reversed(ctx.sources), reversed(found), strict=True):
            for source, gradient in zip(own, of_part, strict=True):
                if gradient is None:
                    continue
                if ctx.needs_input_grad[3] and source is own[0]:
                    of_x = gradient if of_x is None else of_x + gradient
                else:
                    sums[id(source)] = sums[id(source)] + gradient if id(source) in sums else gradient
        return None, None, None, of_x, *(sums.get(id(p)) for p in ctx.wanted)


def _part_gradients(
    j: int, states: PartStates, gradients: tuple[Tensor | None, ...], sources: list[Tensor], keep: bool
) -> Sequence[Tensor | None]:
    used = [(s, g) for s, g in zip(states, gradients, strict=True) if g is not None and s.requires_grad]
    if not used or not sources:
        return [None] * len(sources)
    outputs, seeds = zip(*used, strict=True)
    with launch(f"backward fine[{j}]", states[1], states[1]):
        return torch.autograd.grad(outputs, sources, seeds, retain_graph=keep, allow_unused=True)


def _keeps_graph() -> bool:
    """Whether the running backward pass was asked to retain the graph; yes, where torch does not tell."""
    tell = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    return bool(tell())


@contextmanager
def _hooks_held(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Hooks of a parameter see its whole gradient, when it is accumulated, and not also what one part contributes."""
    held = [(p._backward_hooks, dict(p._backward_hooks)) for p in parameters if p._backward_hooks]
    for hooks, _ in held:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, items in held:
            hooks.update(items)
