# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints of a run over ranks: each rank writes what it holds, any number of ranks reads it."""

from __future__ import annotations

from .sharded import Resumed as Resumed
from .sharded import ShardedCheckpoint as ShardedCheckpoint
