# SPDX-License-Identifier: BSD-3-Clause
"""What a record says: tables, a roofline, prices, and findings in plain words."""

from __future__ import annotations

from ..events import Record
from . import tables
from .results import Analysis as Analysis
from .work import work_of


def analyse(record: Record) -> Analysis:
    """Everything that can be said of ``record``, which is not changed."""
    work = work_of(record)
    return Analysis(
        summary=tables.summary(record, work),
        by_op=tables.by_op(work),
        by_level=tables.by_level(work),
        by_region=tables.by_region(record, work),
        devices=tables.devices(work),
        host_overhead=tables.host_overhead(record, work),
        solves=tables.solves(record),
        memory=tables.memory(record),
    )
