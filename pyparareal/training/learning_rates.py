# SPDX-License-Identifier: BSD-3-Clause
"""The learning rate of the finest level: one number, or one for every step.

A schedule is read once, for all steps, before the first is taken: it can depend on the number of the step alone. Step
``i`` of a coarse level, which starts at fine step ``t``, has ``min(growth^l alpha_0(t), alpha_max)``.
"""

from __future__ import annotations

import copy
import math
import numbers
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

Rate = float | Tensor  # a float64 tensor [steps] on the host


def read(lr: Any, steps: int) -> Rate:
    """``lr``, or what the function ``lr(step)`` gives for 0, 1, ..., ``steps - 1``.

    Raises
    ------
    TypeError, ValueError
        No number; not finite; not above 0, for a function: below 0, or 0 in all steps.
    """
    if isinstance(lr, LRScheduler):
        raise ValueError(f"lr: got {type(lr).__name__}, expected it beside the torch optimiser that it was made for")
    if callable(lr):
        return _row([lr(i) for i in range(steps)])
    require_number("lr", lr, "a number, or a function of the step")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr: got {lr!r}, expected a finite number above 0")
    return float(lr)


def of_torch(optimiser: torch.optim.Optimizer, scheduler: Any, steps: int) -> Rate:
    """That of ``optimiser``; with its new ``scheduler``, which takes a step after every update, one per update.

    Both stay as they are: a copy of the scheduler is asked.

    Raises
    ------
    TypeError, ValueError
        A scheduler that was left out, belongs to another optimiser, is not new, waits for a loss, or changes more than
        the learning rate.
    """
    group = optimiser.param_groups[0]
    if scheduler is None:
        if "initial_lr" in group:  # what every scheduler of torch leaves in the groups
            raise ValueError(
                f"lr: got {type(optimiser).__name__} with a scheduler of its learning rate; expected lr=scheduler, "
                "or an optimiser without"
            )
        return read(float(group["lr"]), steps)
    if not isinstance(scheduler, LRScheduler):
        raise ValueError(
            f"lr: got {scheduler!r} beside a torch optimiser, expected it in one of them, or a scheduler of it"
        )
    kind = type(scheduler).__name__
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(f"lr: got {kind}, which waits for a loss; expected a function of the step")
    if scheduler.optimizer is not optimiser:
        raise ValueError(f"lr: got {kind} of another optimiser, expected one of the optimiser given")
    taken = max(part.last_epoch for part in getattr(scheduler, "_schedulers", [scheduler]))  # some are made of others
    if taken:
        raise ValueError(f"lr: got {kind} that has taken {taken} steps, expected a new one")
    return _row(_asked(scheduler, steps))


def _asked(scheduler: LRScheduler, steps: int) -> list[float]:
    shared = {id(p): p for group in scheduler.optimizer.param_groups for p in group["params"]}
    twin = copy.deepcopy(scheduler, shared)
    group, found = twin.optimizer.param_groups[0], list[float]()
    fixed = _fixed(group)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no update was made before the scheduler's step, and none will be
        for i in range(steps):
            found.append(float(group["lr"]))
            if i + 1 < steps:
                try:
                    twin.step()
                except ValueError as error:  # of a schedule of a given length
                    kind = type(scheduler).__name__
                    raise ValueError(f"lr: got {kind} without a rate for step {i + 1} of {steps}: {error}") from error
            now = _fixed(group)
            changed = [name for name in fixed if now[name] != fixed[name]]
            if changed:
                raise ValueError(f"lr: got {type(scheduler).__name__}, which changes {changed[0]} as well")
    return found


def _fixed(group: dict[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in ("momentum", "betas", "weight_decay") if name in group}


def _row(values: list[Any]) -> Tensor:
    for i, value in enumerate(values):
        require_number(f"lr: step {i}", value, "a number")
        if not 0 <= value < math.inf:
            raise ValueError(f"lr: step {i}: got {value!r}, expected a finite number of at least 0")
    if not any(values):
        raise ValueError("lr: got 0 in all steps, expected a number above 0 in some")
    return torch.tensor([float(value) for value in values], dtype=torch.float64, device="cpu")


def require_number(name: str, value: Any, expected: str) -> None:
    """Refuse what is no number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r}, expected {expected}")


def largest(rate: Rate, steps: slice) -> float:
    """In ``steps``."""
    return float(rate[steps].max()) if isinstance(rate, Tensor) else rate
