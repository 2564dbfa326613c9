# SPDX-License-Identifier: BSD-3-Clause
"""Neural networks whose depth runs in parallel. Needs torch: ``pip install "pyparareal[torch]"``.

Names are loaded on first use, so that importing this package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import models as models
    from .automatic import automatic_maps as automatic_maps
    from .automatic import build_parareal as build_parareal
    from .checkpoints import ShardedCheckpoint as ShardedCheckpoint
    from .layer_parallel import LayerParallel as LayerParallel
    from .parareal_network import PararealNetwork as PararealNetwork
    from .partitioning import Partition as Partition
    from .partitioning import partition as partition
    from .ranks import over_ranks as over_ranks
    from .recurrent.gru import GRU as GRU
    from .recurrent.implicit_gru import ImplicitGRU as ImplicitGRU
    from .recurrent.lstm import LSTM as LSTM
    from .recurrent.recurrence import Recurrence as Recurrence
    from .saving import load as load
    from .saving import save as save
    from .warm_start import fit_maps as fit_maps

__all__ = [
    "GRU",
    "LSTM",
    "ImplicitGRU",
    "LayerParallel",
    "PararealNetwork",
    "Partition",
    "Recurrence",
    "ShardedCheckpoint",
    "automatic_maps",
    "build_parareal",
    "fit_maps",
    "load",
    "models",
    "over_ranks",
    "partition",
    "save",
]

_HOME = {
    "GRU": ".recurrent",
    "LSTM": ".recurrent",
    "ImplicitGRU": ".recurrent",
    "LayerParallel": ".layer_parallel",
    "PararealNetwork": ".parareal_network",
    "Partition": ".partitioning",
    "Recurrence": ".recurrent",
    "ShardedCheckpoint": ".checkpoints",
    "automatic_maps": ".automatic",
    "build_parareal": ".automatic",
    "fit_maps": ".warm_start",
    "load": ".saving",
    "over_ranks": ".ranks",
    "partition": ".partitioning",
    "save": ".saving",
}


def __getattr__(name: str) -> Any:
    if name == "models":
        return importlib.import_module(".models", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
