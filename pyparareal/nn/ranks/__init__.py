# SPDX-License-Identifier: BSD-3-Clause
"""A parareal network whose parts are on many ranks: :func:`over_ranks`."""

from __future__ import annotations

from .network import RankedNetwork as RankedNetwork
from .network import over_ranks as over_ranks

__all__ = ["RankedNetwork", "over_ranks"]
