# SPDX-License-Identifier: BSD-3-Clause
"""Training runs solved in parallel: the optimiser's updates are the time steps. Needs torch: ``pyparareal[torch]``.

Names are loaded on first use, so that importing this package imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .losses import HalfSquaredError as HalfSquaredError
    from .optimisers import SGD as SGD
    from .optimisers import Adam as Adam
    from .result import RunsResult as RunsResult
    from .rules import PRESETS as PRESETS
    from .rules import Rules as Rules
    from .runs import TrainingRuns as TrainingRuns
    from .speed import sigma as sigma
    from .steps import OptimiserStep as OptimiserStep

_HOME = {
    "Adam": ".optimisers",
    "HalfSquaredError": ".losses",
    "OptimiserStep": ".steps",
    "PRESETS": ".rules",
    "Rules": ".rules",
    "RunsResult": ".result",
    "SGD": ".optimisers",
    "TrainingRuns": ".runs",
    "sigma": ".speed",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name == "problems":
        return importlib.import_module(".problems", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
