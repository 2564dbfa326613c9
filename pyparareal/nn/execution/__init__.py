# SPDX-License-Identifier: BSD-3-Clause
"""Where and how the parts of a parareal network run. One result, four ways:

============  ========================================================================================
``serial``    one part after the other: the definition, see :func:`.serial.run`
``batched``   parts of equal structure as one wider network with stacked parameters (:mod:`.batched`)
``parallel``  one CPU thread, or one CUDA stream or device, per part (:mod:`.parallel`, :mod:`.streams`)
``auto``      the fastest of them, measured once per kind of input and recorded (:mod:`.auto`)
============  ========================================================================================

A mode is an object with ``require(preprocess, fine)``, which refuses parts it cannot run before anything is computed,
and ``run(preprocess, fine, x) -> (inputs, outputs, executed)``: the ``x_j`` and ``y_j`` of the paper and the name of
the mode that ran. Values, gradients and running statistics of all modes agree to rounding; random draws (dropout) are
the same in ``serial`` and ``parallel`` and of the same distribution in ``batched``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

Modules = Sequence[nn.Module] | nn.ModuleList
States = tuple[list[Tensor], list[Tensor], str]  # x_1 .. x_N, y_1 .. y_N, the mode that ran

MODES = ("serial", "batched", "parallel", "auto")


class Mode(Protocol):
    """One way to run the parts; holds nothing that a copy of the network would miss, except what ``auto`` measured."""

    def require(self, preprocess: Modules, fine: Modules) -> None: ...

    def run(self, preprocess: Modules, fine: Modules, x: Tensor) -> States: ...


def make(name: str) -> Mode:
    """The mode called ``name``."""
    from .auto import Auto
    from .batched import Batched
    from .parallel import Parallel
    from .serial import Serial

    modes: dict[str, type[Mode]] = {"serial": Serial, "batched": Batched, "parallel": Parallel, "auto": Auto}
    if not isinstance(name, str) or name not in modes:
        raise ValueError(f"execution: got {name!r}, expected one of {', '.join(map(repr, MODES))}")
    return modes[name]()
