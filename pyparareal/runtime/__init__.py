# SPDX-License-Identifier: BSD-3-Clause
"""Where a method runs. A method says *what* happens in a few verbs; a runtime decides *where*."""

from __future__ import annotations

from .distributed import DistributedRuntime as DistributedRuntime
from .distributed import distributed as distributed
from .graph import GraphRuntime as GraphRuntime
from .joining import join as join
from .local import LocalRuntime as LocalRuntime
from .model import RankCosts as RankCosts
from .placement import PlacedRuntime as PlacedRuntime
from .protocol import Runtime as Runtime
from .replicas import per_device as per_device
