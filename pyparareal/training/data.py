# SPDX-License-Identifier: BSD-3-Clause
"""The examples of a training run, all in memory, and the batch of every step on every level."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, default_collate

from .rules import Rules

_AVERAGED_AT_ONCE = 8  # batches per slice
_ASKED_ALONE = 16  # points of a level


@dataclass(frozen=True)
class Examples:
    """Inputs ``x [K, ...]``, targets ``y [K, ...]``, and the order in which fine steps see them.

    Attributes
    ----------
    order : int64 tensor ``[batches, batch]``, optional
        Numbers of the examples of the batches; step ``i`` of the finest level sees batch ``mod(i, batches)``. None: all
        examples in every step.
    """

    x: Tensor
    y: Tensor
    order: Tensor | None = None

    def batch(self, rules: Rules, level: int, points: range, stride: int, offset: int) -> tuple[Tensor, Tensor, bool]:
        """Inputs and targets of the steps that start at ``points`` of ``level``, and whether each has its own.

        ``stride`` fine steps per step; the level's point 0 is fine step ``offset``, and its own index for the rule
        "serial" counts from the start of the whole run: ``offset // stride`` more.
        """
        if self.order is None and not callable(rules.data):
            return self.x, self.y, False
        if callable(rules.data):
            first = offset // stride
            chosen = self.chosen(
                rules.data, level, range(points.start + first, points.stop + first, points.step), stride
            )
        else:
            own = torch.arange(points.start, points.stop, points.step, dtype=torch.int64)
            chosen = self._by_rule(str(rules.data), own, stride, offset)
        if chosen.ndim == 3:  # [slices, stride, batch]: averaged
            return _mean(self.x, chosen), _mean(self.y.to(self.x.dtype), chosen), True
        return self.x[chosen], self.y[chosen], True

    def batch_bytes(self, rules: Rules, stride: int) -> int:
        """That :meth:`batch` takes per slice on a level with ``stride`` fine steps per step; 0 for all examples."""
        if self.order is None and not callable(rules.data):
            return 0
        chosen = self.order if self.order is not None else self.chosen(rules.data, 0, range(1), 1)  # type: ignore[arg-type]
        size = chosen.shape[1]
        example = self.x[0].nbytes + self.y[0].nbytes + 8  # and its number
        copies = min(stride, _AVERAGED_AT_ONCE) + 2 if rules.data == "averaged" and stride > 1 else 1
        return int(size * example * copies)

    def _by_rule(self, data: str, own: Tensor, stride: int, offset: int) -> Tensor:
        assert self.order is not None
        count = len(self.order)
        if data == "serial":
            return self.order[(own + offset // stride) % count]
        fine = offset + stride * own
        if data == "averaged" and stride > 1:
            return self.order[(fine[:, None] + torch.arange(stride)) % count]
        return self.order[fine % count]

    def chosen(self, rule: Callable[..., Any], level: int, points: range, stride: int) -> Tensor:
        """What ``rule`` gives for ``points``, counted from the start of the run: int64 ``[points, batch]``, checked."""
        slices = len(points)
        given = rule(level, np.arange(points.start, points.stop, points.step, dtype=np.int64), stride)
        try:
            chosen = torch.as_tensor(given)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"data: the rule returned {type(given).__name__}, expected int64 [{slices}, batch] ({error})"
            ) from error
        if chosen.dtype != torch.int64 or chosen.ndim != 2 or len(chosen) != slices or not chosen.shape[1]:
            raise ValueError(
                f"data: the rule returned {chosen.dtype} {list(chosen.shape)}, expected int64 [{slices}, batch]"
            )
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self.x):
            raise ValueError(f"data: the rule returned an example outside 0 .. {len(self.x) - 1}")
        return chosen

    def require_function(self, rule: Callable[..., Any], strides: Sequence[int], steps: int) -> None:
        """Refuse a ``rule`` that does not give the same for a point every time, alone and among others.

        Asked for the first points of every level, which has ``strides`` fine steps per step.

        Raises
        ------
        ValueError
            Names the point.
        """
        for level, stride in enumerate(strides):
            points = range(max(min(steps // stride, _ASKED_ALONE), 1))
            together = self.chosen(rule, level, points, stride)
            for i in points:
                if not torch.equal(self.chosen(rule, level, range(i, i + 1), stride)[0], together[i]):
                    raise ValueError(
                        f"data: the rule gives other examples for point {i} of level {level} when asked again or for "
                        "that point alone; expected a function of level, point and stride"
                    )

    def to(self, device: torch.device) -> Examples:
        """The same on ``device``; the order stays on the host."""
        return Examples(self.x.to(device), self.y.to(device), self.order)


def read(data: Any, rules: Rules, steps: int) -> Examples:
    """Examples of ``(inputs, targets)``, copied, in batches of ``rules``, or of a ``DataLoader`` in its own.

    A loader is asked for as many epochs as ``steps`` need, which moves its generator on as training would.

    Raises
    ------
    TypeError, ValueError
        Neither; empty; NaN or infinity; an order that cannot be had again; classes that would have to be averaged.
    """
    found = _of_loader(data, rules, steps) if isinstance(data, DataLoader) else _of_pair(data, rules)
    for name, part in (("inputs", found.x), ("targets", found.y)):
        wrong = torch.nonzero(~torch.isfinite(part).flatten(1).all(1) if part.ndim > 1 else ~torch.isfinite(part))
        if len(wrong):
            raise ValueError(
                f"data: got {name} with NaN or infinity, first in example {int(wrong[0])}, expected finite numbers"
            )
    if rules.data == "averaged" and not (found.y.is_floating_point() or found.y.is_complex()):
        raise ValueError(
            f"data: got {str(found.y.dtype).removeprefix('torch.')} targets for the rule 'averaged', but the mean of "
            "classes is none; expected floating-point targets, such as probabilities, or another rule"
        )
    if rules.data == "averaged" and not (found.x.is_floating_point() or found.x.is_complex()):
        raise ValueError(
            f"data: got {str(found.x.dtype).removeprefix('torch.')} inputs for the rule 'averaged', but the mean of "
            "such numbers is no input; expected floating-point inputs, or another rule"
        )
    return found


def _of_pair(data: Any, rules: Rules) -> Examples:
    if not isinstance(data, tuple | list) or len(data) != 2 or not all(isinstance(part, Tensor) for part in data):
        raise TypeError(
            f"data: got {type(data).__name__}, expected a pair of tensors (inputs, targets) or a DataLoader"
        )
    if any(part.layout is not torch.strided for part in data):
        raise ValueError("data: got a sparse tensor, expected dense ones")
    x, y = (part.detach().clone() for part in data)  # what the caller writes there later is no part of the run
    if x.ndim < 1 or y.ndim < 1 or len(x) != len(y) or not len(x):
        raise ValueError(
            f"data: got inputs {list(x.shape)} and targets {list(y.shape)}, expected as many, at least one"
        )
    if rules.data == "full" or callable(rules.data):
        return Examples(x, y)
    if rules.batch > len(x):
        raise ValueError(f"batch: got {rules.batch}, expected at most the {len(x)} examples")
    count = len(x) // rules.batch
    return Examples(x, y, torch.arange(count * rules.batch).reshape(count, rules.batch))


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Over axis 1 of ``values[chosen]``, in parts: a step of a coarse level may stand for thousands of batches."""
    parts = chosen.split(_AVERAGED_AT_ONCE, dim=1)
    total = values[parts[0]].sum(1)
    for part in parts[1:]:
        total += values[part].sum(1)
    return total / chosen.shape[1]


def _of_loader(loader: DataLoader[Any], rules: Rules, steps: int) -> Examples:
    if rules.data == "full" or callable(rules.data):
        raise ValueError(
            f"data: got a DataLoader for the rule {rules.data!r}, expected 'serial', 'injected' or 'averaged'"
        )
    dataset, sampler = loader.dataset, _sampler(loader)
    if not hasattr(dataset, "__len__"):
        raise ValueError("data: got a DataLoader of an iterable dataset, expected one with a length")
    collate = loader.collate_fn or default_collate
    pairs = collate([dataset[i] for i in range(len(dataset))])
    if not isinstance(pairs, tuple | list) or len(pairs) != 2 or not all(isinstance(part, Tensor) for part in pairs):
        raise TypeError("data: the DataLoader's dataset gives no pairs (input, target) of tensors or numbers")
    order = _order(loader, steps if isinstance(sampler, RandomSampler) else 1)
    for batch in order[: len(loader)]:  # an epoch
        again = collate([dataset[int(i)] for i in batch])
        if not all(_equal(part[batch], a) for part, a in zip(pairs, again, strict=True)):
            raise ValueError(
                "data: got a DataLoader whose examples are others when asked again (random numbers in the dataset), or "
                "depend on the batch they are in (collate_fn); expected a batch to be a choice of fixed examples"
            )
    return Examples(pairs[0], pairs[1], order)


def _sampler(loader: DataLoader[Any]) -> Any:
    """What draws the order, found to be repeatable: no sampler is known to be but torch's own two."""
    batches = loader.batch_sampler
    if batches is None:
        raise ValueError("data: got a DataLoader with batch_size=None, expected one that makes batches")
    sampler = batches.sampler if type(batches) is BatchSampler else batches
    if type(sampler) not in (RandomSampler, SequentialSampler):
        raise ValueError(
            f"data: got a DataLoader with {type(sampler).__name__}, whose order may be another one each time; expected "
            "shuffle=False, or shuffle=True with a generator"
        )
    if isinstance(sampler, RandomSampler) and sampler.generator is None:
        raise ValueError(
            "data: got a DataLoader that shuffles without a generator, whose order cannot be had again; expected "
            "DataLoader(..., shuffle=True, generator=torch.Generator().manual_seed(seed))"
        )
    return sampler


def _equal(ours: Tensor, theirs: Any) -> bool:
    """Bitwise, NaN included."""
    return isinstance(theirs, Tensor) and ours.shape == theirs.shape and bool(((ours == theirs) | (ours != ours)).all())


def _order(loader: DataLoader[Any], steps: int) -> Tensor:
    """The numbers of the examples of the first ``steps`` batches, in whole epochs of whole batches."""
    # As the loader itself would draw: its iterator takes a seed from the generator before the sampler does.
    dataset: Any = _Numbers(len(loader.dataset))  # type: ignore[arg-type]
    twin: DataLoader[Any] = DataLoader(dataset, batch_sampler=loader.batch_sampler, generator=loader.generator)
    found: list[Tensor] = []
    while len(found) < steps:
        epoch = list(twin)
        sizes = {len(batch) for batch in epoch}
        if len(sizes) > 1:
            raise ValueError(
                f"data: got a DataLoader with batches of {sorted(sizes)} examples, expected drop_last=True"
            )
        if not epoch:
            raise ValueError("data: got a DataLoader without a single batch")
        found += epoch
    return torch.stack(found)


class _Numbers:
    """A dataset whose example ``i`` is ``i``."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: numbers.Integral) -> int:
        return int(i)
