# SPDX-License-Identifier: BSD-3-Clause
"""New preprocessing maps and coarse nets, fitted to a trained serial network before the whole is trained further."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .paired_call import call_pair
from .parareal_network import PararealNetwork
from .partitioning import aligned


@dataclass(frozen=True)
class MapFit:
    """One map: its error on the given inputs, relative to the size of what it has to give, before and after."""

    name: str  # C^j or F^j, as in the paper, from 1
    before: float
    after: float


@dataclass(frozen=True)
class Fit:
    """What :func:`fit_maps` reached. ``print`` it. Errors are ``||got - wanted|| / ||wanted||`` over all inputs."""

    maps: tuple[MapFit, ...]
    left_alone: tuple[str, ...]  # maps that share tensors with the serial network
    state_before: float  # of U_N, the corrected state before the head, against the serial network's
    state_after: float

    def __str__(self) -> str:
        rows = [["map", "before", "after"]]
        rows += [[fit.name, f"{fit.before:.3g}", f"{fit.after:.3g}"] for fit in self.maps]
        rows.append(["U_N", f"{self.state_before:.3g}", f"{self.state_after:.3g}"])
        note = f"left alone: {', '.join(self.left_alone)}" if self.left_alone else ""
        return "\n".join([*aligned(rows), *[note] * bool(note)])


def fit_maps(network: PararealNetwork, batches: Iterable[Any], *, epochs: int = 10, lr: float = 1e-2) -> Fit:
    """Fit ``C^2 .. C^N`` and ``F^1 .. F^{N-1}`` to the states of ``network.serial()``, which stays bitwise as it is.

    With the states ``s_1 = g^1(C^1(x))``, ``s_{j+1} = g^{j+1}(s_j)`` of the serial network,

    * first ``C^{j+1}(x)`` is fitted to ``s_j``, which it has to guess;
    * then, with these guesses ``x_{j+1}``, the coarse net to what is missing behind the next part:
      ``F^j(s_j - x_{j+1})``, for ``correction="difference"`` ``F^j(s_j) - F^j(x_{j+1})``, to
      ``s_{j+1} - g^{j+1}(x_{j+1})``.

    Were the second fit exact, the parareal network would be the serial one. It is least squares, each map by itself, by
    Adam with a rate that falls to zero along half a cosine; batches in the order given. A map that would end with a
    larger error than it began with is put back. Serial network and evaluation run in evaluation mode; training flags,
    gradients and ``requires_grad`` are afterwards what they were.

    Handwritten digits, a trained ResNet-20 cut into 4 parts, no labels, seeds 0, 1, 2: as a serial network 98.3, 98.3
    and 97.5 % of 355 test images right; as a parareal one with new maps 11.0, 12.7 and 9.9 %; with maps fitted to the
    1,266 training images by the defaults 98.9, 98.6 and 97.7 %. On the validation images a rate of 0.03 was as good as
    the default, 0.003 and 0.001 were worse.

    Parameters
    ----------
    network : around a trained serial network: ``build_parareal(trained, ...)``
    batches : of inputs ``[batch, features...]``, or of tuples that begin with them, as a ``DataLoader`` gives
        Gone through ``2 epochs + 8`` times; an iterator that can be used only once is kept in memory.
    epochs : passes over ``batches`` for each of the two steps
    lr : of Adam, at the beginning

    Raises
    ------
    TypeError, ValueError
        Wrong arguments, or no batches; nothing is changed then.
    """
    _require_arguments(network, epochs, lr)
    inputs = _Inputs(batches)
    serial = {id(t) for t in network.serial().state_dict(keep_vars=True).values()}
    guesses = [_Job(f"C^{j + 1}", m, j, serial) for j, m in enumerate(network.preprocess) if j > 0]
    coarse = [_Job(f"F^{j}", m, j, serial) for j, m in enumerate(network.coarse, start=1)]
    with _undisturbed(network):
        before = _distance(network, inputs)
        fits = []
        for jobs, errors in ((guesses, _guess_errors), (coarse, _coarse_errors)):
            fits += _fitted([job for job in jobs if job.free], network, inputs, errors, epochs, lr)
        after = _distance(network, inputs)
    alone = tuple(job.name for job in (*guesses, *coarse) if not job.free)
    return Fit(tuple(fits), alone, before, after)


class _Job:
    """One map to be fitted, at interface ``j``; free if nothing of it belongs to the serial network."""

    def __init__(self, name: str, module: nn.Module, j: int, serial: set[int]) -> None:
        self.name, self.module, self.j = name, module, j
        self.parameters = list(module.parameters())
        tensors = module.state_dict(keep_vars=True).values()
        self.free = bool(self.parameters) and not any(id(t) in serial for t in tensors)


class _Inputs:
    """The inputs, as often as wanted."""

    def __init__(self, batches: Iterable[Any]) -> None:
        if not isinstance(batches, Iterable) or isinstance(batches, Tensor):
            raise TypeError(f"batches: got {type(batches).__name__}, expected a sequence of batches of inputs")
        self.batches = list(batches) if iter(batches) is batches else batches

    def __iter__(self) -> Iterator[Tensor]:
        count = 0
        for batch in self.batches:
            x = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
            if not isinstance(x, Tensor):
                raise TypeError(f"batches: got a batch of {type(x).__name__}, expected a tensor [batch, features...]")
            count += 1
            yield x
        if not count:
            raise ValueError("batches: got none, expected at least one")


# What a map gives and what it has to give, [batch, features...].
Pair = tuple[Tensor, Tensor]


def _guess_errors(network: PararealNetwork, job: _Job, x: Tensor, states: list[Tensor]) -> Pair:
    return job.module(x), states[job.j]


def _coarse_errors(network: PararealNetwork, job: _Job, x: Tensor, states: list[Tensor]) -> Pair:
    s, j = states[job.j], job.j
    with torch.no_grad():
        guess = network.preprocess[j](x)
        missing = states[j + 1] - network.fine[j](guess)
    if network.correction == "residual":
        return job.module(s - guess), missing
    new, old = call_pair(job.module, s, guess)
    return new - old, missing


def _fitted(
    jobs: list[_Job], network: PararealNetwork, inputs: _Inputs, errors: Any, epochs: int, lr: float
) -> list[MapFit]:
    before = _evaluated(jobs, network, inputs, errors)
    start = [copy.deepcopy(job.module.state_dict()) for job in jobs]
    if jobs:
        _descend(jobs, network, inputs, errors, epochs, lr)
    after = _evaluated(jobs, network, inputs, errors)
    for i, job in enumerate(jobs):
        if not after[i] <= before[i]:  # also where it is no number
            job.module.load_state_dict(start[i])
            after[i] = before[i]
    return [MapFit(job.name, b, a) for job, b, a in zip(jobs, before, after, strict=True)]


def _descend(jobs: list[_Job], network: PararealNetwork, inputs: _Inputs, errors: Any, epochs: int, lr: float) -> None:
    parameters = list(dict.fromkeys(p for job in jobs for p in job.parameters))
    optimiser = torch.optim.Adam(parameters, lr=lr)
    steps = epochs * sum(1 for _ in inputs)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(epochs):
        for x in inputs:
            states = _serial_states(network, x)
            losses = []
            for job in jobs:
                job.module.train()
                got, wanted = errors(network, job, x, states)
                job.module.eval()
                losses.append((got - wanted).square().sum() / wanted.square().sum().clamp_min(_tiny(wanted)))
            # The maps are independent, so the gradient of the sum is each one's own.
            gradients = torch.autograd.grad(torch.stack(losses).sum(), parameters, allow_unused=True)
            for p, g in zip(parameters, gradients, strict=True):
                p.grad = g
            optimiser.step()
            schedule.step()


@torch.no_grad()
def _evaluated(jobs: list[_Job], network: PararealNetwork, inputs: _Inputs, errors: Any) -> list[float]:
    sums = [[0.0, 0.0] for _ in jobs]
    for x in inputs:
        states = _serial_states(network, x)
        for total, job in zip(sums, jobs, strict=True):
            _add(total, *errors(network, job, x, states))
    return [_relative(total) for total in sums]


@torch.no_grad()
def _distance(network: PararealNetwork, inputs: _Inputs) -> float:
    total = [0.0, 0.0]
    for x in inputs:
        _add(total, network.corrected(x), _serial_states(network, x)[-1])
    return _relative(total)


def _add(total: list[float], got: Tensor, wanted: Tensor) -> None:
    total[0] += float((got - wanted).double().square().sum())
    total[1] += float(wanted.double().square().sum())


def _relative(total: list[float]) -> float:
    return (total[0] / total[1]) ** 0.5 if total[1] else total[0] ** 0.5


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny


@torch.no_grad()
def _serial_states(network: PararealNetwork, x: Tensor) -> list[Tensor]:
    """``s_0 = C^1(x), s_1, ..., s_N``."""
    states = [network.preprocess[0](x)]
    for g in network.fine:
        states.append(g(states[-1]))
    return states


@contextmanager
def _undisturbed(network: PararealNetwork) -> Iterator[None]:
    """Evaluation mode, gradients on; afterwards flags, gradients and what needs them as before."""
    flags = {m: m.training for m in network.modules()}
    kept = {p: (p.grad, p.requires_grad) for p in network.parameters()}
    maps = chain(network.preprocess[1:].parameters(), network.coarse.parameters())
    network.eval()
    for p in maps:
        p.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for m, flag in flags.items():
            m.training = flag
        for p, (gradient, needed) in kept.items():
            p.grad = gradient
            p.requires_grad_(needed)


def _require_arguments(network: PararealNetwork, epochs: int, lr: float) -> None:
    if not isinstance(network, PararealNetwork):
        raise TypeError(f"network: got {type(network).__name__}, expected a PararealNetwork")
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs: got {epochs!r}, expected a positive int")
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr: got {lr!r}, expected a positive number")
