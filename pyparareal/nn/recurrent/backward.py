# SPDX-License-Identifier: BSD-3-Clause
"""The backward pass of a recurrence solved in chunks: one linear, reversed recurrence, solved in chunks too.

With ``w[i]`` the gradient with respect to state ``i``, and ``J`` the Jacobian of the ``m`` steps of chunk ``n``,

    lambda[n] = J[n]^T lambda[n+1] + (what the w inside chunk n make of it)

at the states found: the implicit function theorem, whatever iteration found them. The steps of all chunks are taken
once more, side by side, now with a graph; each application of all the ``J^T`` is then one pass back through it, and the
last one has the gradients of inputs and parameters too. The iteration is that of :mod:`.chunks`, with its warm-up.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ... import _trace
from ...adjoint import BackwardPass
from ...errors import ConvergenceError
from ...runtime.group import Group, checksum
from ...solution import Status
from ...time_grid import shift_points
from ...traced_ops import launch
from ...vjp import held_by, leaves, require_known, require_repeatable, without_hooks
from .share import Share

Array = Any


def known_to(step: Any, u0: Tensor, parameters: Any) -> list[Tensor]:
    """The tensors that require grad and on which the steps depend: as given, or found as in :func:`.solve`."""
    modules, tensors = held_by(step)
    if parameters is None:
        tensors = [*tensors, *(p for module in modules for p in module.parameters() if p.requires_grad)]
        with torch.enable_grad():
            one = step.step(u0.detach()[None], slice(0, 1, 1))
        tensors = [*tensors, *leaves(one, stop=tensors)]
    else:
        tensors = [tensor for tensor in parameters if tensor.requires_grad]
    found = list({id(tensor): tensor for tensor in tensors}.values())
    if found or u0.requires_grad:
        require_repeatable(modules)
    return found


@dataclass
class ChunkedBackward:
    """How to go back through ``length`` steps in chunks of ``m``; one :class:`BackwardPass` per time that is done.

    Attributes
    ----------
    tol : float, optional
        Converged when no ``lambda`` between chunks changes by more than ``tol`` times the largest of them. None:
        after ``limit`` passes, compared with nothing.
    limit : int
        Passes back through all chunks, at most; 0: one chunk after the other.
    """

    step: Any
    length: int
    m: int
    warm_up: int
    tol: float | None
    limit: int
    on_failure: str
    complete: bool
    autocast: Callable[[], Any]
    passes: list[BackwardPass] = field(default_factory=list)
    group: Group = field(default_factory=lambda: Group(None))
    made: int = field(init=False)

    def __post_init__(self) -> None:
        self.made = 0 if self.group.runtime is None else self.group.runtime.talks

    def gradients(self, u: Tensor, w: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        """Of ``u0`` and the parameters, from the states ``u`` and their gradients ``w``, ``[length + 1, ...]``."""
        with self.group.together():
            self._agree(w, parameters)
        with self.group.failing() as ranks, _trace.mark("backward"):
            share = Share(ranks, self.length // self.m, "recurrence, backward")
            went, start, found = self._gradients(u, w, parameters, share)
        if start is None:
            raise ConvergenceError(_failed(went), None)
        self.passes.append(went)
        return start, found

    def _agree(self, w: Tensor, parameters: Sequence[Tensor]) -> None:
        """All ranks are to go back through the same sequence."""
        if self.group:
            asked = {"operation": "backward through a recurrence", "length": self.length, "pass": len(self.passes)}
            asked |= {"recurrence of the gradients": f"the one after exchange {self.made}"}
            asked |= {"gradient of the output": checksum([w]), "parameters": [list(p.shape) for p in parameters]}
            self.group.agree(asked)

    def _gradients(
        self, u: Tensor, w: Tensor, parameters: Sequence[Tensor], share: Share
    ) -> tuple[BackwardPass, Tensor | None, list[Tensor | None]]:
        """How it went, and the gradients, of which there are none where that is to be raised."""
        done = self.length - self.length % self.m
        end, of_tail = w[done], list[Tensor | None]([None] * len(parameters))
        with self.autocast():
            if done < self.length and share.rightmost:
                tail = Tape(self.step, u[done : done + 1], slice(done, done + 1, 1), self.length - done, w[done:])
                start, *of_tail = tail.back(None, parameters)
                end = end + start[0]
            tape = None if share.empty else self._tape(u, w, share)
            if self.complete and tape is not None:
                for last in tape.states[-1:]:
                    require_known(last, [*parameters, tape.starts])
            went, found = _Iteration(self, tape, share).run(end, parameters)
        if found is None:
            return went, None, []
        start, *of_chunks = found
        own = [_sum(a, b) for a, b in zip(of_chunks, of_tail, strict=True)]
        begin = share.of_first(None if start is None or not share.leftmost else start[0] + w[0], w[0])
        return went, begin, share.summed(own, parameters)

    def _tape(self, u: Tensor, w: Tensor, share: Share) -> Tape:
        a, b, m = share.first, share.last, self.m
        points = slice(a * m, (b - 1) * m + 1, m)
        return Tape(self.step, u[a * m : b * m : m], points, m, w[a * m : b * m + 1], share.rightmost)


class _Iteration:
    """The iteration for ``lambda`` between the chunks of one backward pass, of which ``tape`` has those here."""

    def __init__(self, work: ChunkedBackward, tape: Tape | None, share: Share) -> None:
        self.work, self.tape, self.share = work, tape, share

    def run(self, end: Tensor, parameters: Sequence[Tensor]) -> tuple[BackwardPass, list[Any] | None]:
        """Until ``lambda`` at the starts of the chunks no longer changes; with gradients of all from the last pass."""
        work, share, residuals, finish = self.work, self.share, list[float](), True
        slices = share.slices
        v = end.expand(share.last - share.first, *end.shape).clone()
        if work.limit == 0:
            self._one_by_one(v)
            return BackwardPass(Status.SERIAL), self._back(v, parameters)
        v = self._moved(v, self._warm_up(v))
        for k in range(1, work.limit + 1):
            found = self._back(v, parameters if finish else [])
            moved = self._moved(v, found[0])
            inner = len(v) - share.rightmost  # the last end is given
            ours = [] if self.tape is None else [_largest(moved[:inner] - v[:inner])]
            sizes = [] if self.tape is None else [_largest(found[0])] + [_largest(end)] * share.rightmost
            change, size = (float(one.max()) for one in share.numbers(ours, sizes))
            residuals.append(change)
            v = moved
            if not math.isfinite(change + size):
                return self._failed(v, parameters, BackwardPass(Status.NON_FINITE, k, tuple(residuals)))
            if k >= slices or (work.tol is not None and change <= work.tol * size):
                went = BackwardPass(Status.CONVERGED, k, tuple(residuals))
                return went, found if finish else self._back(v, parameters)
            finish = False  # further passes look for lambda alone; one more, with all, follows
        status = Status.FIXED if work.tol is None else Status.MAX_ITERATIONS
        return self._failed(v, parameters, BackwardPass(status, work.limit, tuple(residuals)))

    def _failed(
        self, v: Tensor, parameters: Sequence[Tensor], went: BackwardPass
    ) -> tuple[BackwardPass, list[Any] | None]:
        """What ``on_failure`` says; fixed iterations do not fail."""
        if went.status is Status.FIXED:
            return went, self._back(v, parameters)
        if self.work.on_failure == "raise":
            return went, None
        if self.work.on_failure == "return":
            warnings.warn(f"{_failed(went)}; the gradients are inexact", RuntimeWarning, stacklevel=2)
            return went, self._back(v, parameters)
        text = f"{_failed(went)}; solved one chunk after the other instead"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        self._one_by_one(v)
        return BackwardPass(Status.SERIAL_FALLBACK, failure=went.status), self._back(v, parameters)

    def _back(self, v: Tensor, parameters: Sequence[Tensor]) -> list[Any]:
        return [None] * (1 + len(parameters)) if self.tape is None else self.tape.back(v, parameters)

    def _warm_up(self, v: Tensor) -> Tensor:
        if self.tape is None or not self.work.warm_up or self.share.slices == 1:
            return torch.zeros_like(v)
        return self.tape.warm_up(self.work.warm_up)

    def _moved(self, v: Tensor, starts: Tensor | None) -> Tensor:
        """``lambda`` at the ends of the chunks here, where those that follow have ``starts``."""
        if starts is None:
            return v
        moved = v.clone()
        moved[:-1] = starts[1:]
        following = self.share.starts_left(starts[:1], v[:1])
        if following is not None:
            moved[-1:] = following
        return moved

    def _one_by_one(self, v: Tensor) -> None:
        """``lambda`` at the ends of the chunks from that of the last, from right to left; a rank after the next."""
        tape, share = self.tape, self.share
        if tape is None:
            return
        if not share.rightmost:
            v[-1:] = share.from_right(v[:1])
        for n in range(len(v) - 1, 0, -1):
            v[n - 1] = tape.back_one(n, v[n])
        if not share.leftmost:
            share.to_left(tape.back_one(0, v[0])[None])


class Tape:
    """The ``m`` steps of all chunks from ``u [slices, ...]``, with a graph to go back through.

    Parameters
    ----------
    w : tensor ``[slices * m + 1, ...]``
        Gradients of the states, from the first start to the last end; the first is not used.
    ends : bool
        Whether nothing follows the last of these chunks.
    """

    def __init__(self, step: Any, u: Tensor, points: slice, m: int, w: Tensor, ends: bool = True) -> None:
        self.step, self.points, self.m, self.ends = step, points, m, ends
        slices = len(u)
        self.given = w[1 : slices * m + 1].unflatten(0, (slices, m)).unbind(1)
        with torch.enable_grad(), _trace.mark("recurrence.again"), launch(step, u, m):
            self.starts = u.detach().clone().requires_grad_()
            self.states = unrolled(step, self.starts, points, m)
        if not self.states[-1].requires_grad:
            raise ValueError(
                "cell: returned a tensor without a graph to its arguments: a differentiable step must not detach u, "
                "leave torch or run under torch.no_grad()"
            )

    def back(self, v: Tensor | None, parameters: Sequence[Tensor]) -> list[Any]:
        """Gradients of the starts ``[slices, ...]`` and of the parameters; ``v``: what comes in at the ends besides."""
        given = list(self.given)
        if v is not None:
            # The last end's own gradient is in v already: lambda there counts it.
            inner = given[-1].clone()
            inner[len(inner) - self.ends :] = 0
            given[-1] = inner + v
        return self._grad(self.states, [self.starts, *parameters], given)

    def warm_up(self, steps: int) -> Tensor:
        """``lambda`` at the starts, from the first ``steps`` of each chunk alone."""
        return self._grad(self.states[:steps], [self.starts], self.given[:steps])[0]

    def back_one(self, n: int, v: Tensor) -> Tensor:
        """``lambda`` at the start of chunk ``n``, of ``v`` at its end."""
        points = slice(self.points.start + n * self.points.step, self.points.start + n * self.points.step + 1, 1)
        with torch.enable_grad():
            start = self.starts[n : n + 1].detach().requires_grad_()
            states = unrolled(self.step, start, points, self.m)
        given = [w[n : n + 1] for w in self.given]
        last = self.ends and n + 1 == len(self.starts)
        given[-1] = v[None] if last else given[-1] + v
        return self._grad(states, [start], given)[0][0]

    @staticmethod
    def _grad(outputs: Sequence[Tensor], inputs: Sequence[Tensor], given: Sequence[Tensor]) -> list[Any]:
        # What the parameters themselves were computed from is not ours to free.
        with without_hooks(inputs):
            found = list(torch.autograd.grad(outputs, inputs, given, retain_graph=True, allow_unused=True))
        if found[0] is None:  # a cell that does not look at its state
            found[0] = torch.zeros_like(inputs[0])
        return found


def unrolled(step: Any, u: Tensor, points: slice, m: int) -> list[Tensor]:
    if hasattr(step, "unroll"):
        return step.unroll(u, points, m)
    states = []
    for j in range(m):
        u = step.step(u, shift_points(points, j))
        states.append(u)
    return states


class Chunked(torch.autograd.Function):
    """``compute()``, with the gradients of ``backward``."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable[[], Tensor], backward: ChunkedBackward, u0: Tensor, *parameters: Tensor
    ) -> Tensor:
        """What ``compute`` returns."""
        u = compute()
        ctx.work, ctx.parameters = backward, parameters
        ctx.save_for_backward(u, *parameters)  # torch checks that nobody has written to them since
        return u

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, w: Tensor) -> tuple[Any, ...]:
        """The gradients, by :meth:`ChunkedBackward.gradients`."""
        u, *_ = ctx.saved_tensors
        wanted = [p for p, needed in zip(ctx.parameters, ctx.needs_input_grad[3:], strict=True) if needed]
        start, found = ctx.work.gradients(u.detach(), w, wanted)
        found = iter(found)
        of_parameters = [next(found) if needed else None for needed in ctx.needs_input_grad[3:]]
        return None, None, start if ctx.needs_input_grad[2] else None, *of_parameters


def autocast_of_now() -> Callable[[], Any]:
    """A context with the automatic mixed precision of now."""
    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    dtypes = [torch.get_autocast_dtype(kind) for kind in kinds]

    def again() -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        for kind, dtype in zip(kinds, dtypes, strict=True):
            stack.enter_context(torch.autocast(kind, dtype=dtype))
        return stack

    return again


def _failed(went: BackwardPass) -> str:
    return f"recurrence: the backward pass failed after {went.iterations} iterations: {went.status.value}"


def _largest(v: Tensor) -> float:
    return float(v.abs().max()) if v.numel() else 0.0


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
