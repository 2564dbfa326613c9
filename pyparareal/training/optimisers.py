# SPDX-License-Identifier: BSD-3-Clause
"""One update of an optimiser, for all slices at once, and what such an update becomes on a coarse level.

On the finest level the formulas are those of ``torch.optim``. A step of a coarse level stands for ``q`` steps of the
finest one, ``q = alpha_l / alpha_0`` (:class:`pyparareal.training.Rules`), with the gradient of its first point for all
of them. For plain SGD that is the learning rate ``alpha_l``, Schroder's rule; for momentum the sum of the ``q`` updates
in closed form; for Adam the moments after ``q`` updates, the mean first moment of them, and the last second moment.
With ``q = 1`` a coarse step is a fine step.

The step count of Adam's bias correction follows from the point: step ``i`` of a level with ``M`` fine steps per step
ends at fine step ``M (i + 1)``, and corrects with that count, on every level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import learning_rates
from .learning_rates import Rate, require_number


def _between(name: str, value: Any) -> float:
    expected = "a number of at least 0 and below 1"
    require_number(name, value, expected)
    if not 0 <= value < 1:
        raise ValueError(f"{name}: got {value!r}, expected {expected}")
    return float(value)


def _not_negative(name: str, value: Any) -> float:
    expected = "a finite number of at least 0"
    require_number(name, value, expected)
    if not 0 <= value < math.inf:
        raise ValueError(f"{name}: got {value!r}, expected {expected}")
    return float(value)


def _switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {value!r}, expected True or False")


def _like(w: Tensor, factor: Rate) -> Any:
    """A factor per slice in the dtype of ``w``; a number as it is."""
    return factor.to(w.dtype) if isinstance(factor, Tensor) else factor


def _minus(w: Tensor, alpha: Rate, d: Tensor) -> Tensor:
    """``w - alpha d``, rounded as torch does where ``alpha`` is a number."""
    return torch.addcmul(w, _like(w, alpha), d, value=-1) if isinstance(alpha, Tensor) else w.add(d, alpha=-alpha)


@dataclass(frozen=True)
class SGD:
    """``v <- momentum v + g``, ``w <- w - alpha v`` (Nesterov: ``w - alpha (g + momentum v)``), ``g`` with L2 decay."""

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        # As floats: what is equal has one text, and a checkpoint compares texts.
        object.__setattr__(self, "momentum", _between("momentum", self.momentum))
        object.__setattr__(self, "weight_decay", _not_negative("weight_decay", self.weight_decay))
        _switch("nesterov", self.nesterov)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: got True without momentum, expected momentum > 0")

    @property
    def moments(self) -> tuple[str, ...]:
        return ("momentum_buffer",) if self.momentum else ()

    def update(self, w: Tensor, moments: list[Tensor], g: Tensor, alpha: Rate, q: Rate, count: Tensor) -> list[Tensor]:
        """``[w, moments...]``, each ``[slices, weights]``, after the update; ``count [slices, 1]`` is the fine step.

        ``alpha`` and ``q`` may be float64 tensors ``[slices, 1]``.
        """
        if self.weight_decay:
            g = g.add(w, alpha=self.weight_decay)
        if not self.momentum:
            return [_minus(w, alpha, g)]
        mu, (v,) = self.momentum, moments
        if isinstance(q, float) and q == 1:
            v = v.mul(mu).add(g)
            return [_minus(w, alpha, g.add(v, alpha=mu) if self.nesterov else v), v]
        gain = (1 - mu**q) / (1 - mu)
        total = v * _like(w, mu * gain) + g * _like(w, (q - mu * gain) / (1 - mu))  # v_1 + ... + v_q
        if self.nesterov:
            total = _like(w, q) * g + mu * total
        return [_minus(w, alpha / q, total), v * _like(w, mu**q) + g * _like(w, gain)]


@dataclass(frozen=True)
class Adam:
    """Adam; with ``decoupled`` decay AdamW. No AMSGrad."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    moments = ("exp_avg", "exp_avg_sq")

    def __post_init__(self) -> None:
        if not isinstance(self.betas, tuple | list):
            raise TypeError(f"betas: got {self.betas!r}, expected a pair of numbers")
        if len(self.betas) != 2:
            raise ValueError(f"betas: got {self.betas!r}, expected a pair of numbers")
        object.__setattr__(self, "betas", tuple(_between("betas", beta) for beta in self.betas))
        _switch("decoupled", self.decoupled)
        object.__setattr__(self, "eps", _not_negative("eps", self.eps))
        object.__setattr__(self, "weight_decay", _not_negative("weight_decay", self.weight_decay))

    def update(self, w: Tensor, moments: list[Tensor], g: Tensor, alpha: Rate, q: Rate, count: Tensor) -> list[Tensor]:
        """See :meth:`SGD.update`."""
        (b1, b2), (first, second) = self.betas, moments
        if self.weight_decay and self.decoupled:
            w = w * _like(w, (1 - alpha / q * self.weight_decay) ** q)
        elif self.weight_decay:
            g = g.add(w, alpha=self.weight_decay)
        one, mean = isinstance(q, float) and q == 1, first
        if not one:
            share = b1 * (1 - b1**q) / (q * (1 - b1))  # of the first moment in the mean of the q next ones
            mean = first * _like(w, share) + g * _like(w, 1 - share)
        first = first.lerp(g, _like(w, 1 - b1**q))
        new = _like(w, 1 - b2**q)
        second = second.mul(_like(w, b2**q))
        second = second + new * g * g if isinstance(new, Tensor) else second.addcmul(g, g, value=new)
        root = second.clamp_min(0).sqrt().maximum(first.abs() / self._most())
        # In float64, as in torch: in float32 the small 1 - b2 of the first steps would have half its digits.
        fine = count.double()
        length, unbiased = (alpha / (1 - b1**fine)).to(w.dtype), (1 - b2**fine).sqrt().to(w.dtype)
        spread = root / unbiased + self.eps
        return [w - length * (first if one else mean) / spread, first, second]

    def _most(self) -> float:
        """``|m| <= (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)) sqrt(v)`` for the moments of any gradients.

        By Cauchy-Schwarz. A correction of the iteration may leave moments that no gradients have, a second one near or
        below zero, and with them steps of any length. One per cent more: training's own moments are never touched.
        """
        b1, b2 = self.betas
        return 1.01 * (1 - b1) / math.sqrt((1 - b2) * (1 - b1 * b1 / b2)) if b1 * b1 < b2 else math.inf


NAMES: dict[str, SGD | Adam] = {
    "sgd": SGD(),
    "momentum": SGD(momentum=0.9),
    "nesterov": SGD(momentum=0.9, nesterov=True),
    "adam": Adam(),
    "adamw": Adam(weight_decay=1e-2, decoupled=True),
}


def find(optimiser: Any, lr: Any, module: nn.Module, steps: int) -> tuple[SGD | Adam, Rate]:
    """The optimiser and its learning rate: of a name of :data:`NAMES`, one of ours, or one of ``torch.optim``.

    ``lr`` is a number or a function of the step (:mod:`.learning_rates`); beside one of ``torch.optim`` None, or its
    scheduler.

    Raises
    ------
    ValueError, TypeError
        Unknown; with options or hooks that are not here; several groups; of other parameters than those that
        ``module`` trains; a learning rate that is missing, given twice or not above 0.
    """
    if isinstance(optimiser, torch.optim.Optimizer):
        return _of_torch(optimiser, lr, module, steps)
    if isinstance(optimiser, str):
        if optimiser not in NAMES:
            raise ValueError(f"optimiser: got {optimiser!r}, expected one of {', '.join(NAMES)}, or an object")
        optimiser = NAMES[optimiser]
    if not isinstance(optimiser, SGD | Adam):
        raise TypeError(
            f"optimiser: got {type(optimiser).__name__}, expected one of {', '.join(NAMES)}, training.SGD, "
            "training.Adam, or torch.optim.SGD, Adam or AdamW"
        )
    return optimiser, learning_rates.read(lr, steps)


def _of_torch(optimiser: torch.optim.Optimizer, lr: Any, module: nn.Module, steps: int) -> tuple[SGD | Adam, Rate]:
    kind = type(optimiser).__name__
    if type(optimiser) not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        raise ValueError(f"optimiser: got {kind}, expected torch.optim.SGD, Adam or AdamW: others are not known here")
    if len(optimiser.param_groups) != 1:
        raise ValueError(f"optimiser: got {len(optimiser.param_groups)} groups of parameters, expected one")
    if optimiser.state:
        raise ValueError(f"optimiser: got {kind} that has made updates, expected a new one")
    group = optimiser.param_groups[0]
    unknown = [name for name in ("maximize", "amsgrad", "dampening") if group.get(name)]
    if unknown:
        raise ValueError(f"optimiser: got {kind} with {unknown[0]}={group[unknown[0]]}, which is not known here")
    if any(getattr(optimiser, f"_optimizer_step_{when}_hooks", None) for when in ("pre", "post")):
        raise ValueError(f"optimiser: got {kind} with hooks of its step, which would not be called; expected none")
    rate, decay = learning_rates.of_torch(optimiser, lr, steps), float(group["weight_decay"])
    _require_all(kind, group["params"], module)
    if kind == "SGD":
        return SGD(float(group["momentum"]), bool(group["nesterov"]), decay), rate
    betas = (float(group["betas"][0]), float(group["betas"][1]))
    return Adam(betas, float(group["eps"]), decay, kind == "AdamW" or bool(group.get("decoupled_weight_decay"))), rate


def _require_all(kind: str, given: list[Tensor], module: nn.Module) -> None:
    """Refuse an optimiser that leaves some of the trained parameters as they are, or changes others."""
    held = {id(p) for p in given if p.requires_grad}  # frozen ones it would pass over too
    trained = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    missing, foreign = [name for key, name in trained.items() if key not in held], len(held - trained.keys())
    found = [f"without {', '.join(missing)}"] if missing else []
    found += [f"with {foreign} that are not the module's"] if foreign else []
    if found:
        raise ValueError(
            f"optimiser: got {kind} {' and '.join(found)}, expected it over the {len(trained)} parameters of the "
            "module that require grad, and no others"
        )
