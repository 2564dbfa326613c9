# SPDX-License-Identifier: BSD-3-Clause
"""Training problems: those of Schroder (2017), the handwritten digits, and one whose convergence is known.

``xor().runs(steps=800, rules="solver1")`` makes :class:`pyparareal.training.TrainingRuns`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .losses import HalfSquaredError
from .runs import TrainingRuns
from .settings import integer

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class RunsProblem:
    """A network with its loss, examples and learning rate.

    Attributes
    ----------
    lr : float
    alpha_max : float
        That of the paper, or where gradient descent is known to be stable.
    test : (inputs, targets), optional
        Held out, with labels as targets.
    """

    name: str
    module: nn.Module
    loss: Callable[..., Tensor]
    data: tuple[Tensor, Tensor]
    lr: float
    alpha_max: float
    test: tuple[Tensor, Tensor] | None = None

    def runs(self, steps: int, **options: Any) -> TrainingRuns:
        """``steps`` updates with the problem's learning rate, and ``options`` of :class:`.TrainingRuns`."""
        return TrainingRuns(self.module, self.loss, self.data, steps=steps, **{"lr": self.lr, **options})

    def to(self, device: torch.device | str) -> RunsProblem:
        """The same on ``device``."""
        move = functools.partial(_moved, device=device)
        test = self.test and move(self.test)
        return dataclasses.replace(self, module=self.module.to(device), data=move(self.data), test=test)

    def accuracy(self) -> float:
        """Of the module on the held-out examples."""
        if self.test is None:
            raise ValueError(f"{self.name}: has no held-out examples")
        with torch.no_grad():
            return float((self.module(self.test[0]).argmax(1) == self.test[1]).double().mean())


def xor(seed: int = 1) -> RunsProblem:
    """Three inputs, four hidden units, one output, no biases, sigmoid; all four examples in a batch; ``lr = 1``.

    Weights as in A. Trask, "A neural network in 11 lines of Python", with ``np.random.seed(seed)``; double precision.
    """
    random = np.random.RandomState(seed)
    weights = [2 * random.random_sample(shape) - 1 for shape in ((3, 4), (4, 1))]
    x = np.array([[0, 0, 1], [0, 1, 1], [1, 0, 1], [1, 1, 1]], np.float64)
    y = np.array([[0, 1, 1, 0]], np.float64).T
    return RunsProblem("xor", _sigmoid_network(weights), HalfSquaredError(), _tensors(x, y), 1.0, 8.0)


def adder(seed: int = 1, pairs: int = 500, bits: int = 12) -> RunsProblem:
    """Sums of two numbers of ``bits`` bits, the overflow dropped: 24-128-64-12, no biases, sigmoid; ``lr = 0.025``.

    Pairs, then weights ``0.2 randn - 0.1``, from ``np.random.seed(seed)``: as in the paper's source, A. Trask, "Deep
    learning without backpropagation" ("Plain Vanilla"). The paper fixes no seed.
    """
    integer("pairs", pairs, 1)
    integer("bits", bits, 1)
    if bits > 31:  # a sum of two is an int64 with room
        raise ValueError(f"bits: got {bits}, expected at most 31")
    random = np.random.RandomState(seed)
    numbers = random.randint(0, 2**bits, size=(2, pairs))
    x = np.concatenate([_bits(row, bits) for row in numbers], axis=1)
    y = _bits(numbers.sum(0) % 2**bits, bits)
    sizes = (2 * bits, 128, 64, bits)
    weights = [0.2 * random.standard_normal(shape) - 0.1 for shape in itertools.pairwise(sizes)]
    return RunsProblem("adder", _sigmoid_network(weights), HalfSquaredError(), _tensors(x, y), 0.025, 0.2)


def digits(seed: int = 1, hidden: int = 32) -> RunsProblem:
    """The 8 x 8 handwritten digits that :mod:`pyparareal.nn.data` reads, 64-``hidden``-10, tanh, cross entropy.

    Double precision, pixels from 0 to 1; full batch of the training images, ``lr = 0.5``; held out are those of every
    other job.
    """
    from ..nn.data import digits as load

    integer("hidden", hidden, 1)
    split = load()
    torch_random = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            bound = 1 / np.sqrt(parameter.shape[-1] if parameter.ndim > 1 else 64)
            parameter.copy_((2 * torch.rand(parameter.shape, generator=torch_random, dtype=torch.float64) - 1) * bound)
    train, test = split.train, split.test
    pictures = [part.x.double().reshape(len(part), 64) / 16 for part in (train, test)]
    return RunsProblem("digits", module, nn.CrossEntropyLoss(), (pictures[0], train.y), 0.5, 0.5, (pictures[1], test.y))


def quadratic(curvatures: Sequence[float]) -> RunsProblem:
    """``loss = sum mu_i w_i^2 / 2``: gradient descent is ``w <- (1 - alpha mu_i) w``, whatever level it is on.

    So the factors of :mod:`pyparareal.convergence` with ``lambda_l = 1 - alpha_l mu`` are those of the training run.
    """
    mu = torch.tensor(list(curvatures), dtype=torch.float64)
    if not len(mu) or not bool((mu > 0).all() and torch.isfinite(mu).all()):
        raise ValueError(f"curvatures: got {list(curvatures)}, expected finite numbers above 0, at least one")
    module = nn.Sequential(nn.Linear(len(mu), 1, bias=False)).double()
    with torch.no_grad():
        next(module.parameters()).fill_(1.0)
    x, y = torch.diag(mu.sqrt()), torch.zeros(len(mu), 1, dtype=torch.float64)
    return RunsProblem("quadratic", module, HalfSquaredError(), (x, y), float(0.5 / mu.max()), float(2 / mu.max()))


def _sigmoid_network(weights: Sequence[Array]) -> nn.Sequential:
    """Layers ``sigmoid(x @ W)`` for ``W [inputs, outputs]``, double precision."""
    layers: list[nn.Module] = []
    for w in weights:
        linear = nn.Linear(w.shape[0], w.shape[1], bias=False).double()
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(w.T.copy()))
        layers += [linear, nn.Sigmoid()]
    return nn.Sequential(*layers)


def _bits(numbers: Array, count: int) -> Array:
    return (numbers[:, None] >> np.arange(count)[::-1] & 1).astype(np.float64)


def _moved(pair: tuple[Tensor, Tensor], device: torch.device | str) -> tuple[Tensor, Tensor]:
    return pair[0].to(device), pair[1].to(device)


def _tensors(x: Array, y: Array) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(x), torch.from_numpy(y)


CATALOGUE: dict[str, Callable[..., RunsProblem]] = {"xor": xor, "adder": adder, "digits": digits}
