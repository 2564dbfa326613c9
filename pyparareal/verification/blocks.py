# SPDX-License-Identifier: BSD-3-Clause
"""Blocks of a network probed one after the other, on the states that the serial network hands to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm

from ..vjp import varies
from .calls import Call, Raised, guarded
from .derivatives import derivatives
from .faults import FAULT, NOTE, SPOILED, Fault, Finding, Findings, Place
from .held import Held
from .measures import copy, digits
from .precision import precision
from .probes import probes


@dataclass
class Block:
    """One module of a network.

    Attributes
    ----------
    name : str
    module : nn.Module
    part, index : int, optional
        The part or slice, and the number of the block in the chain; None for stems, heads and coarse nets.
    keeps_shape : bool
    keeps_input : bool
        Whether the package hands out a copy, or nobody needs the input again.
    """

    name: str
    module: nn.Module
    part: int | None = None
    index: int | None = None
    keeps_shape: bool = False
    keeps_input: bool = True

    @property
    def place(self) -> Place:
        return Place(self.part, self.index, f"{self.name} ({type(self.module).__name__})")


@dataclass
class BlockProbes:
    """The probes of several blocks; :meth:`run` takes one after the other.

    Attributes
    ----------
    held : Held
        Of the whole network.
    found : Findings
    independent : bool
        Whether rows of the batch have to be independent.
    gradients : bool
    tied : dict
        id of a parameter -> names of the blocks that hold it.
    drawing : list of Place
        Blocks that draw random numbers with the modules for dropout off; added to.
    """

    held: Held
    found: Findings
    independent: bool
    gradients: bool
    tied: dict[int, list[str]] = field(default_factory=dict)
    drawing: list[Place] = field(default_factory=list)

    def run(self, block: Block, u: Any) -> Any:
        """The value of ``block`` at ``u``, after its probes; raises :class:`.Raised`."""
        self.held.restore()
        try:
            with quiet(block.module):
                held = Held({block.name: block.module})  # with dropout off, where the other one has it on
                y = guarded(block.module, block.place, copy(u) if isinstance(u, Tensor) else u)
                y = y.detach().clone() if isinstance(y, Tensor) else y
                if isinstance(u, Tensor) and u.is_floating_point() and u.ndim:
                    self._probe(block, u, held)
            self.held.restore()
            statistics(block, u, self.held, self.found)
        finally:
            self.held.restore()
        return y

    def _probe(self, block: Block, u: Tensor, held: Held) -> None:
        call = Call(
            run=block.module,
            rows=u,
            places=[block.place] * len(u),
            alone=lambda j, row: block.module(row),
            held=held,
            independent=self.independent,
            copies=block.keeps_input,
            random=block.module.training,
            strict_shape=block.keeps_shape,
            parameters=dict(block.module.named_parameters()),
        )
        held.restore()
        found = [f for f in probes(call) if not _usual(f, block)]
        held.restore()
        if not any(f.fault in SPOILED for f in found):
            y = call(copy(u))
            if held.random.changed():
                self.drawing.append(block.place)
            if isinstance(y, Tensor) and y.is_floating_point():
                found += list(precision(call, y)) if len(y) == len(u) else []
                held.restore()
                if self.gradients:
                    call.independent = not any(f.fault is Fault.BATCH_NEIGHBOURS for f in found)
                    found += [self._tied(f, block) for f in derivatives(call)]
        self.found.add(*found)

    def _tied(self, finding: Finding, block: Block) -> Finding:
        """A parameter of several blocks whose gradient does not arrive from all of them."""
        p = dict(block.module.named_parameters()).get(finding.numbers.get("parameter", ""))
        holders = self.tied.get(id(p), []) if p is not None else []
        if len(holders) < 2 or not finding.numbers.get("none"):
            return finding
        text = f"{finding.evidence} {', '.join(holders)} share it: its gradient is not the sum over them."
        return Finding(Fault.TIED_PARAMETERS, finding.place, text, numbers=finding.numbers)


def _usual(finding: Finding, block: Block) -> bool:
    """Of torch's own modules everybody knows that they work in place or hand out views."""
    own = type(block.module).__module__.startswith("torch.nn") and not len(list(block.module.children()))
    return own and finding.fault is Fault.ALIASING and finding.severity == NOTE


@contextlib.contextmanager
def quiet(*modules: nn.Module, batch_norm: bool = True) -> Iterator[None]:
    """Dropout, and batch norm too if asked, as in ``eval()``: what the package handles is not looked at."""
    parts = [part for module in modules for part in module.modules()]
    chosen = [p for p in parts if p.training and varies(p) and (batch_norm or not _is_norm(p))]
    for part in chosen:
        part.training = False
    try:
        yield
    finally:
        for part in chosen:
            part.training = True


def _is_norm(part: nn.Module) -> bool:
    return "Norm" in type(part).__name__ or isinstance(part, batchnorm._NormBase)


# Batch-norm statistics


def statistics(block: Block, u: Any, held: Held, found: Findings) -> None:
    """One pass in training mode moves the running statistics once; in ``eval()`` they are those of such inputs."""
    norms = [(n, p) for n, p in block.module.named_modules() if isinstance(p, batchnorm._BatchNorm)]
    norms = [(n, p) for n, p in norms if p.running_mean is not None]
    if not norms:
        return
    seen: dict[int, list[Tensor]] = {id(p): [] for _, p in norms}
    before = {id(p): _now(p) for _, p in norms}

    def look(part: nn.Module, given: Any) -> None:
        seen[id(part)].append(given[0].detach().double())

    hooks = [p.register_forward_pre_hook(look) for _, p in norms]
    try:
        with quiet(block.module, batch_norm=False):
            guarded(block.module, block.place, copy(u))
        for name, p in norms:
            judge = _committed if p.training else _up_to_date
            finding = judge(block, name, p, seen[id(p)], *before[id(p)])
            if finding is not None:
                found.add(finding)
    finally:
        for hook in hooks:
            hook.remove()
        held.restore()


def _now(p: Any) -> tuple[Tensor, Tensor, int]:
    return p.running_mean.clone(), p.running_var.clone(), int(p.num_batches_tracked or 0)


def _committed(
    block: Block, name: str, p: Any, seen: Sequence[Tensor], mean: Tensor, var: Tensor, count: int
) -> Finding | None:
    label = f"BatchNorm {name!r}" if name else "This BatchNorm"
    now = int(p.num_batches_tracked or 0) - count if p.num_batches_tracked is not None else None
    moved = bool((p.running_mean - mean).abs().max() > 0 or (p.running_var - var).abs().max() > 0)
    if len(seen) > 1 or (now is not None and now > 1):
        text = (
            f"In one forward pass {label} was called {len(seen)} times and counted {now} batches: committed "
            f"{max(len(seen), now or 0)} times."
        )
        return Finding(Fault.STALE_STATISTICS, block.place, text, numbers={"calls": len(seen), "counted": now})
    if not seen:
        return None
    if p.momentum is None or p.momentum == 0:
        return None
    batch_mean, batch_var = _moments(seen[0])
    off = (batch_mean - mean.double()).abs().max() + (batch_var - var.double()).abs().max()
    if not moved and off > 1e-6:
        text = (
            f"{label} is in training mode and got a batch, but its running statistics did not move: not committed "
            f"(the batch's are {digits(float(off))} away)."
        )
        return Finding(Fault.STALE_STATISTICS, block.place, text, numbers={"calls": 1, "counted": now})
    expected = (1 - p.momentum) * mean.double() + p.momentum * batch_mean
    wrong = float((p.running_mean.double() - expected).abs().max())
    size = float(expected.abs().max() + batch_var.max().sqrt() + (batch_mean - mean.double()).abs().max())
    if wrong > 1e-2 * p.momentum * max(size, 1e-12):
        text = (
            f"After one batch the running mean of {label} is {digits(wrong)} from (1 - momentum) old + momentum batch: "
            "it was committed otherwise than once."
        )
        return Finding(Fault.STALE_STATISTICS, block.place, text, numbers={"error": wrong})
    return None


def _up_to_date(
    block: Block, name: str, p: Any, seen: Sequence[Tensor], mean: Tensor, var: Tensor, count: int
) -> Finding | None:
    if not seen or seen[0].numel() // max(seen[0].shape[1], 1) < 8:
        return None
    batch_mean, batch_var = _moments(seen[0])
    distance = ((batch_mean - mean.double()).square() / (batch_var + var.double() + 1e-12)).mean().sqrt()
    ratio = ((batch_var + 1e-9) / (var.double() + 1e-9)).log().abs().mean().exp()
    if distance > 3 or ratio > 100:
        new = "" if count else " It has not been trained at all."
        text = (
            f"In eval() BatchNorm {name!r} uses statistics that are not those of its input: the means are "
            f"{digits(float(distance))} standard deviations apart, the variances a factor {digits(float(ratio))}.{new}"
        )
        severity = FAULT if count else NOTE  # a new network has nothing else
        return Finding(Fault.STALE_STATISTICS, block.place, text, severity, numbers={"distance": float(distance)})
    return None


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    axes = [0, *range(2, x.ndim)]
    return x.mean(axes), x.var(axes, correction=1 if x.numel() > x.shape[1] else 0)


# Tied parameters


def holders(blocks: Sequence[Block]) -> dict[int, list[str]]:
    """id of a parameter -> the blocks that hold it."""
    found: dict[int, list[str]] = {}
    for block in blocks:
        for p in block.module.parameters():
            if block.name not in found.setdefault(id(p), []):
                found[id(p)].append(block.name)
    return found


def duplicated(blocks: Sequence[Block], serial: nn.Module | None) -> Iterator[Finding]:
    """Parameters that are one in the ``serial`` network, or look like it, and several here."""
    own = [(b, n, p) for b in blocks for n, p in b.module.named_parameters(remove_duplicate=False)]
    if serial is not None:
        theirs = [p for _, p in serial.named_parameters(remove_duplicate=False)]
        shapes = [tuple(p.shape) for _, _, p in own]
        if [tuple(p.shape) for p in theirs] == shapes:
            homes: dict[int, int] = {}
            for k, p in enumerate(theirs):
                first = homes.setdefault(id(p), k)
                if first != k and own[first][2] is not own[k][2]:
                    yield _copies(own[first], own[k], "The serial network has one parameter for both.")
            return
    whole = {id(b): [p.detach() for p in b.module.parameters()] for b in blocks}
    first_of: dict[Any, tuple[Block, str, Tensor]] = {}
    for block, name, p in own:
        x = p.detach()
        if x.numel() < 4 or len(torch.unique(x.flatten()[:64])) < 4:
            continue  # constants, as norms and biases begin with
        key = (tuple(x.shape), float(x.double().sum()), float(x.double().square().sum()))
        other = first_of.setdefault(key, (block, name, p))
        if other[2] is p or other[0] is block or not torch.equal(other[2].detach(), x):
            continue
        a, b = whole[id(other[0])], whole[id(block)]
        if len(a) == len(b) and all(s.shape == t.shape and torch.equal(s, t) for s, t in zip(a, b, strict=True)):
            continue  # blocks that are copies as a whole: the usual way to begin
        yield _copies(other, (block, name, p), "They hold the same numbers in different memory, their blocks do not.")


def _copies(a: Any, b: Any, why: str) -> Finding:
    text = (
        f"{a[1]!r} of {a[0].name} and {b[1]!r} of {b[0].name} are two parameters. {why} Each gets the gradient of its "
        "own use only."
    )
    return Finding(Fault.TIED_PARAMETERS, b[0].place, text, numbers={"first": a[0].name, "second": b[0].name})


__all__ = ["Block", "BlockProbes", "Raised", "duplicated", "holders", "quiet"]
