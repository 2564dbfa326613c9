# SPDX-License-Identifier: BSD-3-Clause
"""One forward pass of a rank: its fine nets, then its links of the coarse chain, then the output of all."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import RankError
from ..execution.serial import require_meeting, run_part
from ..execution.spans import launch, region
from ..parareal_network import joined
from .chance import Chance, consume
from .link import Link, Sent
from .meeting import require_outside_backward
from .nodes import Fan, Output, State

if TYPE_CHECKING:
    from .network import RankedNetwork

KINDS = 64  # as many kinds of input are remembered, e.g. sequences of many lengths


@dataclass(frozen=True)
class Kind:
    """What the ranks know of an input before it is computed with, once they have met one like it.

    ``number`` is that of the pass in which they met it: ranks of which some have since met another like it, because
    what is frozen on others had changed, do not speak of the same.
    """

    number: int
    sent: tuple[Sent, ...]
    draws: bool


def run(net: RankedNetwork, x: Tensor) -> Tensor:
    """The output for rank 0's ``x``, the same on every rank."""
    with net.runtime.failing():
        require_outside_backward()  # the others are elsewhere
    fields, key, error = None, None, None
    try:
        fields = _fields(net, x)
        key = json.dumps(fields), tuple(p.requires_grad for p in net.parameters())
    except Exception as refused:
        error = refused
    kind = net.kinds.get(key)
    known, seed = net.meeting.forward(fields, kind.number if kind else None, error)
    kind = kind if known else None
    link = Link(net.meeting, net.counts, x.device)
    trains = any(module.training for module in net.modules())  # dropout alone, maybe
    with Chance(seed, x.device, staged=kind is None or kind.draws or trains) as chance:
        own = _Own(net, link, chance, serial=kind is None or kind.draws)
        if kind is None:
            if len(net.kinds) >= KINDS:
                net.kinds.clear()
            kind = net.kinds[key] = _first(own, x)
        else:
            link.sent = list(kind.sent)
            _again(own, x, kind.sent[link.rank])
    if chance.drew and not kind.draws:
        net.meeting.late = True
    if kind.draws:
        consume()
    with region("network.output"):
        return own.output()


def _fields(net: RankedNetwork, x: Tensor) -> dict[str, Any]:
    """What must be the same on all ranks, by the name that an error says."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: got {type(x).__name__}, expected a tensor [batch, features...]")
    device, cast = x.device.type, None
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        cast = str(torch.get_autocast_dtype(device))
    return {
        "x.shape": list(x.shape),
        "x.dtype": str(x.dtype),
        "x.stride": list(torch.empty_like(x, device="meta").stride()),
        "x.device": device,
        "x.requires_grad": x.requires_grad and torch.is_grad_enabled(),
        "torch.is_grad_enabled()": torch.is_grad_enabled(),
        "torch.is_inference_mode_enabled()": torch.is_inference_mode_enabled(),
        "torch.autocast": cast,
        "network.training": net.training,
    }


class _Own:
    """The parts of this rank in one pass."""

    def __init__(self, net: RankedNetwork, link: Link, chance: Chance, serial: bool) -> None:
        self.net, self.link, self.chance, self.serial = net, link, chance, serial
        self.before: Tensor | None = None  # what the rank before handed on

    def run_parts(self, x: Tensor) -> None:
        """``x_j`` and ``y_j`` of all parts here."""
        net, link = self.net, self.link
        value = link.input(x)
        in_turn = self.serial or net.execution == "serial"
        count = len(net.own) if in_turn else 1  # the other modes have one input
        self.x: tuple[Tensor, ...] = (value,) * count
        if x.requires_grad and torch.is_grad_enabled():
            self.x = Fan.apply(link, value, count, x)  # type: ignore[no-untyped-call]
        if in_turn:
            self._run_in_turn()
            return
        link.place = f"parts {net.own[0] + 1} to {net.own[-1] + 1}"
        with self.chance.stage(3 * net.own[0]):
            self.inputs, self.outputs = net.run_parts(*net.own_parts(), self.x[0])

    def _run_in_turn(self) -> None:
        self.inputs, self.outputs = [], []
        for j, x, c, g in zip(self.net.own, self.x, *self.net.own_parts(), strict=True):
            x_j = self._stage(f"preprocess[{j}]", 3 * j, c, x)
            if self.outputs:
                require_meeting(j, x_j, self.outputs[-1])
            self.inputs.append(x_j)
            self.outputs.append(self._stage(f"fine[{j}]", 3 * j + 1, run_part, j, g, x_j))
        self.net.executed = "serial"

    def receive(self) -> None:
        """The state of the rank before."""
        link = self.link
        if link.rank == 0:
            return
        link.place = f"interface {self.net.own[0]}"
        u = link.state()
        self.before = u
        if link.sent[link.rank - 1].requires_grad:
            anchor = torch.zeros((), requires_grad=True)
            of_x = self.x[:1] if self.x[0].requires_grad else ()
            self.before = State.apply(link, u, anchor, *of_x)  # type: ignore[no-untyped-call]

    def correct(self) -> Sent:
        """This rank's links of the coarse chain, and the head; of what kind the result is."""
        net, u = self.net, self.before
        for j, x_j, y_j in zip(net.own, self.inputs, self.outputs, strict=True):
            if u is None:
                u = y_j
                continue
            if j == net.own[0]:
                require_meeting(j, x_j, u)
            link = joined, net.correction, net.coarse[j - 1], j, u, x_j, y_j
            u = self._stage(f"coarse[{j - 1}]", 3 * j + 2, *link)
        if self.link.is_last:
            u = self._stage("head", 3 * net.parts, net.head, u)
        if not isinstance(u, Tensor):
            raise TypeError(f"head: got an output of type {type(u).__name__}, expected one tensor")
        self.last: Tensor = u  # what this rank hands on, or the output
        return Sent.of(u)

    def hand_on(self) -> None:
        if not self.link.is_last:
            self.link.place = f"interface {self.net.own[-1] + 1}"
            self.link.hand_on(self.last)

    def output(self) -> Tensor:
        """The output of the last rank."""
        self.link.place = "output"
        if not self.link.sent[-1].requires_grad:
            return self.link.output(self.last)
        anchor = torch.zeros((), requires_grad=True)
        before = self.before if self.before is not None and self.before.requires_grad else None
        out: Tensor = Output.apply(self.link, self.last, before, anchor)  # type: ignore[no-untyped-call]
        return out

    def _stage(self, place: str, number: int, call: Callable[..., Any], *arguments: Any) -> Any:
        self.link.place = place
        module = isinstance(call, nn.Module)  # the others say themselves what they launch
        with self.chance.stage(number), launch(place, call, arguments[0]) if module else nullcontext():
            return call(*arguments)


def _again(own: _Own, x: Tensor, expected: Sent) -> None:
    """A pass of a known kind: an error here is one of all, and the end."""
    link = own.link
    with link.runtime.failing() as ranks:
        try:
            with region("network.parts"):
                own.run_parts(x)
            with region("network.coarse"):
                own.receive()
                got = own.correct()
            if got != expected:
                raise ValueError(f"got {got} for an input of a kind that had given {expected}")
            own.hand_on()
        except Exception as error:
            if not isinstance(error, RankError):
                ranks.fail(RankError(f"rank {link.rank} failed at {link.what()}: {type(error).__name__}: {error}"))
            raise


def _first(own: _Own, x: Tensor) -> Kind:
    """The first pass of a kind: the ranks take their links in turn and tell each other what came out, or what failed.

    Nothing is lost if one fails.
    """
    link, error, draws = own.link, None, False
    try:
        with region("network.parts"):
            own.run_parts(x)
    except RankError:
        raise
    except Exception as failed:
        error = failed
    for turn in range(link.size):
        told: dict[str, Any] = {}
        if turn == link.rank and error is None:
            try:
                with region("network.coarse"):
                    own.receive()
                    told = {"sent": own.correct().tell(), "draws": own.chance.drew}
            except RankError:
                raise
            except Exception as failed:
                error = failed
        if error is not None:
            told = {"error": f"{link.place}: {type(error).__name__}: {error}"}
        message = _all_told(link, told, error)[turn]
        link.sent.append(Sent.told(message["sent"]))
        draws = draws or message["draws"]
        if turn == link.rank:
            own.hand_on()
    return Kind(link.number, tuple(link.sent), draws)


def _all_told(link: Link, told: dict[str, Any], error: Exception | None) -> list[dict[str, Any]]:
    with link.runtime.failing() as ranks:
        everyone = ranks.texts(told, f"forward pass {link.number}")
    if error is not None:
        raise error
    for rank, theirs in enumerate(everyone):
        if "error" in theirs:
            raise RankError(f"rank {link.rank}: rank {rank} failed at forward pass {link.number}, {theirs['error']}")
    return everyone
