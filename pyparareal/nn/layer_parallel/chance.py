# SPDX-License-Identifier: BSD-3-Clause
"""Dropout with masks that were drawn before: every iteration and the adjoint take the same function.

A :class:`Chance` is in force while a block runs. Without masks it only notes the calls that draw; with masks it
answers the k-th of them with the k-th mask. It knows ``F.dropout`` (and so ``nn.Dropout``), ``F.dropout1d/2d/3d``, and
the dropout of the weights in ``F.scaled_dot_product_attention`` and ``nn.MultiheadAttention``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Site:
    """One call that draws: the shape, strides and dtype of its mask, and the probability of a zero.

    Numbers are drawn in the order of the memory, which is that of what is dropped.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    p: float

    def scale(self) -> float:
        """``1 / (1 - p)`` as torch's dropout rounds it to ``dtype``."""
        return float(torch.ones((), dtype=self.dtype).div_(1 - self.p)) if self.p < 1 else 0.0

    def draw(self, device: torch.device, count: int) -> Iterator[Tensor]:
        """0 or 1 ``[*shape]``, ``count`` times in the same memory, by the numbers that torch's dropout would take."""
        mask = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=device)
        for _ in range(count):
            yield mask.bernoulli_(1 - self.p) if self.p < 1 else mask.zero_()

    def draw_several(self, device: torch.device, count: int) -> Tensor:
        """bool ``[count, *shape]``, all in one call."""
        return torch.empty((count, *self.shape), dtype=torch.bool, device=device).bernoulli_(1 - self.p)


class Chance(TorchFunctionMode):
    """What draws, in a block: noted in :attr:`sites`, or answered by ``masks``.

    Parameters
    ----------
    masks, scales : sequences, optional
        For each call that draws.
    spelt_out : bool
        Attention in single operations: torch's kernel for CPUs knows no ``vmap``.

    Attributes
    ----------
    sites : list of Site
    attends : bool
        Whether there was attention.
    """

    def __init__(
        self, masks: Sequence[Tensor] | None = None, scales: Sequence[float] = (), *, spelt_out: bool = False
    ) -> None:
        super().__init__()
        self.sites: list[Site] = []
        self.attends, self.spelt_out = False, spelt_out
        self._masks, self._scales, self._next = masks, scales, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = _HANDLERS.get(func)
        if handler is None:
            return func(*args, **(kwargs or {}))
        return handler(self, func, *args, **(kwargs or {}))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if kind is None and self._masks is not None and self._next < len(self._masks):
            raise RuntimeError("a block draws less often than when it was tried: expected the same calls every time")

    def noisy(self, x: Tensor, p: float, shape: tuple[int, ...] | None = None) -> Tensor:
        """``x * mask / (1 - p)`` with a mask like ``x`` or of ``shape``; ``x`` while calls are noted."""
        if self._masks is None:
            like = torch.empty_like(x) if shape is None else x.new_empty(shape)
            self.sites.append(Site(tuple(like.shape), like.stride(), x.dtype, p))
            return x.clone()
        if self._next >= len(self._masks):
            raise RuntimeError("a block draws more often than when it was tried: expected the same calls every time")
        mask, scale = self._masks[self._next], self._scales[self._next]
        self._next += 1
        return x * (mask.to(x.dtype) * scale)


def _elementwise(
    chance: Chance, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not training or p == 0 or not 0 <= p <= 1:
        return func(input, p, training, inplace)
    return _in_place(input, chance.noisy(input, p), inplace)


def _channels(dims: int) -> Callable[..., Tensor]:
    """One draw for every channel of ``[batch, channels, ...]`` with so many dimensions."""

    def handler(
        chance: Chance, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0 or not 0 <= p <= 1 or input.ndim != dims:
            return func(input, p, training, inplace)
        shape = (*input.shape[:2], *(1 for _ in range(dims - 2)))
        return _in_place(input, chance.noisy(input, p, shape), inplace)

    return handler


def _in_place(x: Tensor, result: Tensor, inplace: bool) -> Tensor:
    return x.copy_(result) if inplace else result


def _attention(
    chance: Chance,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``dropout(softmax(q k^T scale + mask)) v``, the weights spelt out where they are dropped."""
    chance.attends = True
    if dropout_p == 0 and not chance.spelt_out:
        more: dict[str, Any] = {"enable_gqa": True} if enable_gqa else {}
        return func(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.mT
    if is_causal:
        here = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~here, -math.inf)
    if attn_mask is not None:
        allowed = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if allowed else scores + attn_mask
    weights = scores.softmax(-1)
    if dropout_p > 0:
        weights = chance.noisy(weights, dropout_p)
    return weights @ value


def _multi_head(chance: Chance, func: Any, *args: Any, **kwargs: Any) -> Any:
    """``F.multi_head_attention_forward`` with the two functions that draw in it replaced.

    A mode is not in force inside of a function that it was asked about, and this one draws inside.
    """
    changed = {
        "has_torch_function": lambda *_: False,
        "dropout": partial(_elementwise, chance, F.dropout),
        "scaled_dot_product_attention": partial(_attention, chance, F.scaled_dot_product_attention),
    }
    same = FunctionType(func.__code__, func.__globals__ | changed, func.__name__, func.__defaults__)
    same.__kwdefaults__ = func.__kwdefaults__
    return same(*args, **kwargs)


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.dropout: _elementwise,
    F.dropout1d: _channels(3),
    F.dropout2d: _channels(4),
    F.dropout3d: _channels(5),
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head,
}
