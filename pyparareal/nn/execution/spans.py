# SPDX-License-Identifier: BSD-3-Clause
"""What a timeline hears of the modules of a network; nothing of it is in a compiled graph."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ... import _trace
from ...traced_ops import placed


def region(name: str) -> AbstractContextManager[None]:
    """``network.parts``, ``network.coarse``, ``network.head``."""
    return nullcontext() if torch.compiler.is_compiling() else _trace.mark(name)


def launch(name: str, module: Any, x: Any) -> AbstractContextManager[None]:
    """``module`` at work on ``x``, called ``name``: ``fine[0]``, as errors call it."""
    if torch.compiler.is_compiling() or _trace.listener is None:
        return nullcontext()
    facts = {"op": type(module).__name__}
    if isinstance(x, Tensor):
        facts = placed(facts | {"shape": tuple(x.shape), "dtype": x.dtype, "slices": 1}, x)
    return _trace.mark(name, "launch", facts)


def called(name: str, module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)``"""
    if torch.compiler.is_compiling() or _trace.listener is None:
        return module(x)
    with launch(name, module, x):
        return module(x)
