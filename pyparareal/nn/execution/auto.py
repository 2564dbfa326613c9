# SPDX-License-Identifier: BSD-3-Clause
"""``execution="auto"``: the fastest mode, measured once per kind of input, recorded and reused."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..._timing import Call, interleave
from . import Mode, Modules, States
from .batched import Batched
from .parallel import Parallel
from .serial import Serial

REPEATS = 5  # a median of five survives two disturbed samples


class Auto:
    """Measures every mode that can run, on copies, the first time it meets a kind of input; then uses the fastest.

    A kind is: with or without backward pass, shape, dtype, device. Parameters, statistics, gradients, hooks and random
    streams do not notice the measurement. ``recorded`` maps each kind to the mode, the seconds measured (median per
    forward and, if so, backward pass of the parts) and the reasons why other modes could not run. Under
    ``torch.compile(network)`` nothing is measured: the parts run one after the other.
    """

    def __init__(self) -> None:
        self.recorded: dict[str, dict[str, Any]] = {}
        self._modes: dict[str, Mode] = {"serial": Serial(), "batched": Batched(), "parallel": Parallel()}

    def require(self, preprocess: Modules, fine: Modules) -> None:
        pass  # serial always can

    def restore(self, recorded: dict[str, dict[str, Any]]) -> None:
        """Take over what another run measured."""
        unknown = [entry.get("mode") for entry in recorded.values() if entry.get("mode") not in self._modes]
        if unknown:
            raise ValueError(f"extra state: got mode {unknown[0]!r}, expected one of {', '.join(self._modes)}")
        self.recorded = recorded

    def run(self, preprocess: Modules, fine: Modules, x: Tensor) -> States:
        if torch.compiler.is_compiling():  # threads and clocks are not in a graph
            return Serial().run(preprocess, fine, x)
        if len(fine) == 1:
            return self._modes["serial"].run(preprocess, fine, x)
        parameters = [p for modules in (preprocess, fine) for m in modules for p in m.parameters()]
        backward = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters))
        kind = f"{'forward and backward' if backward else 'forward'} {list(x.shape)} {x.dtype} {x.device.type}"
        if kind not in self.recorded:
            self.recorded[kind] = _measured(self._modes, preprocess, fine, x, backward)
        return self._modes[self.recorded[kind]["mode"]].run(preprocess, fine, x)


def _measured(modes: dict[str, Mode], preprocess: Modules, fine: Modules, x: Tensor, backward: bool) -> dict[str, Any]:
    calls: dict[str, Call] = {}
    refused: dict[str, str] = {}
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        for name, mode in modes.items():
            call = _step(mode, *_copies(preprocess, fine), x.detach().requires_grad_(x.requires_grad), backward)
            try:
                mode.require(preprocess, fine)
                call()
            except (ValueError, RuntimeError) as error:
                if name == "serial":
                    raise  # the network's own, not the mode's
                refused[name] = str(error)
            else:
                calls[name] = call
        device = "cuda" if x.is_cuda else "cpu"
        samples = interleave(calls, device=device, cold_cache=False, repeats=REPEATS, warmup=1, max_calls=1)
    seconds = {name: taken.median for name, taken in samples.items()}
    return {"mode": min(seconds, key=seconds.__getitem__), "seconds": seconds, "refused": refused}


def _copies(preprocess: Modules, fine: Modules) -> tuple[list[nn.Module], list[nn.Module]]:
    """Copies without hooks, which may count or record: they are not to see the measurement."""
    both = copy.deepcopy((list(preprocess), list(fine)))
    for module in (m for modules in both for top in modules for m in top.modules()):
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            hooks.clear()
    return both


def _step(mode: Mode, preprocess: Modules, fine: Modules, x: Tensor, backward: bool) -> Call:
    wanted: list[Tensor] = [
        p for modules in (preprocess, fine) for m in modules for p in m.parameters() if p.requires_grad
    ]
    wanted += [x] * x.requires_grad

    def step() -> None:
        inputs, outputs, _ = mode.run(preprocess, fine, x)
        states = [u for u in (*inputs[1:], *outputs) if u.requires_grad]
        if backward:
            torch.autograd.grad(states, wanted, [torch.ones_like(u) for u in states], allow_unused=True)

    return step
